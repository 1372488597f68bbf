// Package otel counts through OpenTelemetry what happens on listeners: connections, conflicts and their ends, upgrades.
//
//	metrics, err := otel.New(otel.Options{MeterProvider: provider})
//	if err != nil {
//		return err
//	}
//	upgrader, err := reload.New(reload.Config{OnEvent: metrics.Upgrade})
//	cfg := listener.Config{
//		Name:       "web",
//		Sources:    []listener.Source{upgrader},
//		Middleware: []listener.Middleware{metrics.Connections("web")},
//		OnEvent:    metrics.Event,
//	}
//
// The metrics of connections, with the attributes berth.listener.name and network.transport (tcp, udp, unix or other):
//
//	berth.connections.accepted        handed to the server
//	berth.connections.refused         closed instead; berth.refusal.reason is a Reason of package middleware, or of a hook
//	berth.connections.open            handed to the server and not closed
//	berth.connection.duration         how long they were open: a histogram, in seconds
//	berth.accept.errors               error.type is EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED or other
//
// Of listeners, with the same attributes:
//
//	berth.listeners                   open now; berth.listener.origin is bound, fallback, reclaimed, activated or inherited
//	berth.listen.obtained             obtained, with the same attribute
//	berth.listen.conflicts            calls that found their address taken
//	berth.listen.reclaims             attempts to stop who held it; berth.result is success or failure
//	berth.listen.failures             calls that failed
//	berth.listen.duration             how long a successful one took: a histogram, in seconds
//	berth.listen.lock.wait.duration   how long a lock had to be waited for, with berth.result: a histogram, in seconds
//
// Of the process, from the moment that package reload tells something:
//
//	berth.state                       1 for the berth.state that it is in, 0 for the others:
//	                                  ready, upgrading, draining, stopping or stopped
//	berth.takeover.timestamp          when it took over from the version before it, in Unix time; 0: it did not
//	berth.upgrades                    that it asked for, with berth.result
//	berth.upgrade.duration            from the start of the new version, with berth.result: a histogram, in seconds
//	berth.upgrades.resumed            after which the new version ended, and this one served again
//	berth.drain.duration              how long it took to finish what it had begun, with berth.result: a histogram, in seconds
//
// Each version of a program counts for itself. While one drains, two report: their resources should differ, by
// service.instance.id for example. Where they are exported to Prometheus, the metrics have the names of package prom.
//
// Nothing that a client sends becomes an attribute.
package otel

import (
	"context"
	"errors"
	"net"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware/internal/telemetry"
)

// Options are what can be chosen. The zero value is ready to use.
type Options struct {
	// MeterProvider makes the instruments. Nil means the global one.
	MeterProvider metric.MeterProvider

	// Attributes are added to every metric.
	Attributes []attribute.KeyValue
}

// Metrics counts. Its methods may be called by several goroutines at once.
type Metrics struct{ recorder *telemetry.Recorder }

// New makes the instruments. An error is that of the MeterProvider.
func New(o Options) (*Metrics, error) {
	provider := o.MeterProvider
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter("github.com/berth-go/berth/listener/middleware/otel")
	instruments := map[*telemetry.Desc]func(metric.MeasurementOption) telemetry.Instrument{}
	var errs []error
	for _, d := range telemetry.Descs {
		i, err := instrument(meter, d)
		instruments[d] = i
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Metrics{telemetry.New(func(d *telemetry.Desc, values ...string) telemetry.Instrument {
		list := append([]attribute.KeyValue(nil), o.Attributes...)
		for i, value := range values {
			list = append(list, attribute.String(keys[d.Labels[i]], value))
		}
		return instruments[d](metric.WithAttributeSet(attribute.NewSet(list...)))
	})}, nil
}

// keys are the labels, by the semantic conventions.
var keys = map[string]string{
	"name":    "berth.listener.name",
	"network": "network.transport",
	"origin":  "berth.listener.origin",
	"reason":  "berth.refusal.reason",
	"error":   "error.type",
	"result":  "berth.result",
	"state":   "berth.state",
}

// instrument makes an instrument, which still lacks its attributes. Each of those begins with 0, so that the first of what
// is counted is an increase. The options are made once: they would cost an allocation at each call.
func instrument(meter metric.Meter, d *telemetry.Desc) (func(metric.MeasurementOption) telemetry.Instrument, error) {
	ctx := context.Background()
	switch d.Kind {
	case telemetry.Counter:
		c, err := meter.Int64Counter(d.Name, metric.WithDescription(d.Help), metric.WithUnit(d.Unit))
		return func(with metric.MeasurementOption) telemetry.Instrument {
			options := []metric.AddOption{with}
			c.Add(ctx, 0, options...)
			return func(n float64) { c.Add(ctx, int64(n), options...) }
		}, err
	case telemetry.UpDown:
		c, err := meter.Int64UpDownCounter(d.Name, metric.WithDescription(d.Help), metric.WithUnit(d.Unit))
		return func(with metric.MeasurementOption) telemetry.Instrument {
			options := []metric.AddOption{with}
			c.Add(ctx, 0, options...)
			return func(n float64) { c.Add(ctx, int64(n), options...) }
		}, err
	case telemetry.Histogram:
		h, err := meter.Float64Histogram(d.Name, metric.WithDescription(d.Help), metric.WithUnit(d.Unit), metric.WithExplicitBucketBoundaries(d.Buckets...))
		return func(with metric.MeasurementOption) telemetry.Instrument {
			options := []metric.RecordOption{with}
			return func(n float64) { h.Record(ctx, n, options...) }
		}, err
	default:
		g, err := meter.Float64Gauge(d.Name, metric.WithDescription(d.Help), metric.WithUnit(d.Unit))
		return func(with metric.MeasurementOption) telemetry.Instrument {
			options := []metric.RecordOption{with}
			return func(n float64) { g.Record(ctx, n, options...) }
		}, err
	}
}

// Connections gives a middleware that counts the connections of a listener under a name, usually that of its
// [listener.Config]. It wraps any [net.Listener]; those of one name and network count together. First in
// [listener.Config.Middleware], it is the outermost and counts what the server gets.
func (m *Metrics) Connections(name string) func(net.Listener) net.Listener {
	return m.recorder.Connections(name)
}

// Event counts what happens to an address: it is for [listener.Config.OnEvent].
func (m *Metrics) Event(e listener.Event) { m.recorder.Event(e) }

// Upgrade counts what happens to the process: it is for the OnEvent of package reload's Config. What it does not know it
// ignores.
func (m *Metrics) Upgrade(event string, took time.Duration, err error) {
	m.recorder.Upgrade(event, took, err)
}
