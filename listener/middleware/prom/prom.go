// Package prom counts for Prometheus what happens on listeners: connections, conflicts and their ends, upgrades.
//
//	metrics := prom.New(prom.Options{})
//	prometheus.MustRegister(metrics)
//	upgrader, err := reload.New(reload.Config{OnEvent: metrics.Upgrade})
//	cfg := listener.Config{
//		Name:       "web",
//		Sources:    []listener.Source{upgrader},
//		Middleware: []listener.Middleware{metrics.Connections("web")},
//		OnEvent:    metrics.Event,
//	}
//
// The metrics of connections, with the labels name and network (tcp, udp, unix or other):
//
//	berth_connections_accepted_total                 handed to the server
//	berth_connections_refused_total{reason}          closed instead: a Reason of package middleware, or of a hook
//	berth_connections_open                           handed to the server and not closed
//	berth_connection_duration_seconds                how long they were open: a histogram
//	berth_accept_errors_total{error}                 EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED or other
//
// Of listeners, with the same labels:
//
//	berth_listeners{origin}                          open now: bound, fallback, reclaimed, activated or inherited
//	berth_listen_obtained_total{origin}              obtained
//	berth_listen_conflicts_total                     calls that found their address taken
//	berth_listen_reclaims_total{result}              attempts to stop who held it: success or failure
//	berth_listen_failures_total                      calls that failed
//	berth_listen_duration_seconds                    how long a successful one took: a histogram
//	berth_listen_lock_wait_duration_seconds{result}  how long a lock had to be waited for: a histogram
//
// Of the process, from the moment that package reload tells something:
//
//	berth_state{state}                               1 for ready, upgrading, draining, stopping or stopped; 0 for the others
//	berth_takeover_timestamp_seconds                 when it took over from the version before it; 0: it did not
//	berth_upgrades_total{result}                     that it asked for: success or failure
//	berth_upgrade_duration_seconds{result}           from the start of the new version: a histogram
//	berth_upgrades_resumed_total                     after which the new version ended, and this one served again
//	berth_drain_duration_seconds{result}             how long it took to finish what it had begun: a histogram
//
// Every version of a program counts from zero, and it is the new one that a scrape after an upgrade finds. So upgrades that
// succeed are counted by changes(berth_takeover_timestamp_seconds[1h]), and those that fail by berth_upgrades_total.
//
// Nothing that a client sends becomes a label. What is counted for each connection allocates nothing.
package prom

import (
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware/internal/telemetry"
)

// Options are what can be chosen. The zero value is ready to use.
type Options struct {
	// ConstLabels are added to every metric.
	ConstLabels prometheus.Labels

	// DurationBuckets are the upper bounds of berth_connection_duration_seconds, in seconds and rising. Nil means eleven from
	// 10 ms to four hours.
	DurationBuckets []float64
}

// A Collector counts. It is a [prometheus.Collector]: the caller registers it, in one registry. Its methods may be called
// by several goroutines at once.
type Collector struct {
	recorder *telemetry.Recorder
	vectors  []prometheus.Collector
}

// New makes a Collector that has counted nothing.
func New(o Options) *Collector {
	c := &Collector{}
	instruments := map[*telemetry.Desc]func(values []string) telemetry.Instrument{}
	for _, d := range telemetry.Descs {
		instruments[d] = c.vector(d, o)
	}
	c.recorder = telemetry.New(func(d *telemetry.Desc, values ...string) telemetry.Instrument { return instruments[d](values) })
	return c
}

func (c *Collector) vector(d *telemetry.Desc, o Options) func(values []string) telemetry.Instrument {
	name := d.PrometheusName()
	switch d.Kind {
	case telemetry.Counter:
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: d.Help, ConstLabels: o.ConstLabels}, d.Labels)
		c.vectors = append(c.vectors, v)
		return func(values []string) telemetry.Instrument { return v.WithLabelValues(values...).Add }
	case telemetry.Histogram:
		buckets := d.Buckets
		if d == &telemetry.ConnectionDuration && o.DurationBuckets != nil {
			buckets = o.DurationBuckets
		}
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: d.Help, ConstLabels: o.ConstLabels, Buckets: buckets}, d.Labels)
		c.vectors = append(c.vectors, v)
		return func(values []string) telemetry.Instrument { return v.WithLabelValues(values...).Observe }
	default:
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: d.Help, ConstLabels: o.ConstLabels}, d.Labels)
		c.vectors = append(c.vectors, v)
		return func(values []string) telemetry.Instrument {
			if d.Kind == telemetry.Gauge {
				return v.WithLabelValues(values...).Set
			}
			return v.WithLabelValues(values...).Add
		}
	}
}

// Connections gives a middleware that counts the connections of a listener under a name, usually that of its
// [listener.Config]. It wraps any [net.Listener]; those of one name and network count together. First in
// [listener.Config.Middleware], it is the outermost and counts what the server gets.
func (c *Collector) Connections(name string) func(net.Listener) net.Listener {
	return c.recorder.Connections(name)
}

// Event counts what happens to an address: it is for [listener.Config.OnEvent].
func (c *Collector) Event(e listener.Event) { c.recorder.Event(e) }

// Upgrade counts what happens to the process: it is for the OnEvent of package reload's Config. What it does not know it
// ignores.
func (c *Collector) Upgrade(event string, took time.Duration, err error) {
	c.recorder.Upgrade(event, took, err)
}

// Describe is for the registry.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range c.vectors {
		v.Describe(ch)
	}
}

// Collect is for the registry.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.vectors {
		v.Collect(ch)
	}
}
