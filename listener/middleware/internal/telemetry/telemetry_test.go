package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
	"github.com/berth-go/berth/listener/middleware/internal/telemetry"
	"github.com/berth-go/berth/listener/middleware/otel"
	"github.com/berth-go/berth/listener/middleware/prom"
	"github.com/berth-go/berth/strategy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A subject is one of the two that count.
type subject struct {
	metrics interface {
		Connections(name string) func(net.Listener) net.Listener
		Event(listener.Event)
		Upgrade(event string, took time.Duration, err error)
	}
	// values are the numbers by their names in Prometheus, with the values of the labels in the order of those: of a
	// histogram how many there were, and how much they were together.
	values func(t testing.TB) map[string]float64
}

func subjects(t testing.TB) map[string]subject {
	collector := prom.New(prom.Options{})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector)
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	t.Cleanup(func() { require.NoError(t, provider.Shutdown(context.Background())) })
	metrics, err := otel.New(otel.Options{MeterProvider: provider})
	require.NoError(t, err)
	return map[string]subject{
		"prom": {collector, func(t testing.TB) map[string]float64 { return gathered(t, registry) }},
		"otel": {metrics, func(t testing.TB) map[string]float64 { return read(t, reader) }},
	}
}

func gathered(t testing.TB, registry prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			name := key(t, family.GetName(), labels)
			switch {
			case m.Counter != nil:
				values[name] = m.Counter.GetValue()
			case m.Gauge != nil:
				values[name] = m.Gauge.GetValue()
			case m.Histogram.GetSampleCount() > 0: // the other library has no empty ones
				values[name+" count"] = float64(m.Histogram.GetSampleCount())
				values[name+" sum"] = m.Histogram.GetSampleSum()
			}
		}
	}
	return values
}

func read(t testing.TB, reader sdk.Reader) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(context.Background(), &all))
	values := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			i := slices.IndexFunc(telemetry.Descs, func(d *telemetry.Desc) bool { return d.Name == m.Name })
			require.GreaterOrEqual(t, i, 0, m.Name)
			d := telemetry.Descs[i]
			require.Equal(t, d.Unit, m.Unit)
			require.Equal(t, d.Help, m.Description)
			name := func(set attribute.Set) string {
				labels := map[string]string{}
				for _, kv := range set.ToSlice() {
					labels[labelOf(t, string(kv.Key))] = kv.Value.AsString()
				}
				return key(t, d.PrometheusName(), labels)
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				require.Equal(t, d.Kind == telemetry.Counter, data.IsMonotonic)
				for _, p := range data.DataPoints {
					values[name(p.Attributes)] = float64(p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					values[name(p.Attributes)] = p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					require.Equal(t, d.Buckets, p.Bounds)
					values[name(p.Attributes)+" count"], values[name(p.Attributes)+" sum"] = float64(p.Count), p.Sum
				}
			default:
				t.Fatalf("%s is a %T", m.Name, data)
			}
		}
	}
	return values
}

// labelOf is the label in Prometheus that an attribute is.
func labelOf(t testing.TB, attribute string) string {
	t.Helper()
	labels := map[string]string{
		"berth.listener.name": "name", "network.transport": "network", "berth.listener.origin": "origin",
		"berth.refusal.reason": "reason", "error.type": "error", "berth.result": "result", "berth.state": "state",
	}
	require.Contains(t, labels, attribute)
	return labels[attribute]
}

// key is name{value,value}, with exactly the labels that the metric has.
func key(t testing.TB, name string, labels map[string]string) string {
	t.Helper()
	i := slices.IndexFunc(telemetry.Descs, func(d *telemetry.Desc) bool { return d.PrometheusName() == name })
	require.GreaterOrEqual(t, i, 0, name)
	var values []string
	for _, label := range telemetry.Descs[i].Labels {
		require.Contains(t, labels, label, name)
		values = append(values, labels[label])
	}
	require.Len(t, values, len(labels), name)
	return name + "{" + strings.Join(values, ",") + "}"
}

// has compares the numbers under these names.
func has(t *testing.T, values map[string]float64, want map[string]float64) {
	t.Helper()
	got := map[string]float64{}
	for name := range want {
		if v, ok := values[name]; ok {
			got[name] = v
		}
	}
	require.Equal(t, want, got)
}

func each(t *testing.T, test func(t *testing.T, s subject)) {
	for name, s := range subjects(t) {
		t.Run("by="+name, func(t *testing.T) { test(t, s) })
	}
}

func TestConnections(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		cfg := listener.Config{Name: "web", StateDir: t.TempDir(), OnEvent: s.metrics.Event, Middleware: []listener.Middleware{
			s.metrics.Connections("web"),
			(&middleware.Limit{Max: 2, Refuse: true}).Wrap,
		}}
		for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(t.TempDir(), "s")}} {
			network, address := at[0], at[1]
			ln, err := cfg.Listen(context.Background(), network, address)
			require.NoError(t, err)
			var open []net.Conn
			for range 2 {
				client, err := net.Dial(network, ln.Addr().String())
				require.NoError(t, err)
				defer client.Close()
				conn, err := ln.Accept()
				require.NoError(t, err)
				open = append(open, conn)
			}
			accepted := make(chan net.Conn)
			go func() {
				defer close(accepted)
				if conn, err := ln.Accept(); err == nil {
					accepted <- conn
				}
			}()
			refused, err := net.Dial(network, ln.Addr().String())
			require.NoError(t, err)
			_, err = refused.Read(make([]byte, 1)) // closed, or reset
			require.Error(t, err)
			require.NoError(t, refused.Close())
			require.NoError(t, open[0].Close())
			_ = open[0].Close() // counts once

			of := "{web," + network + "}"
			values := s.values(t)
			has(t, values, map[string]float64{
				"berth_connections_accepted_total" + of:                       2,
				"berth_connections_open" + of:                                 1,
				"berth_connections_refused_total{web," + network + ",denied}": 0,
				"berth_connection_duration_seconds" + of + " count":           1,
				"berth_accept_errors_total{web," + network + ",EMFILE}":       0,
				"berth_listeners{web," + network + ",bound}":                  1,
				"berth_listen_obtained_total{web," + network + ",bound}":      1,
				"berth_listen_obtained_total{web," + network + ",fallback}":   0,
				"berth_listen_conflicts_total" + of:                           0,
				"berth_listen_duration_seconds" + of + " count":               1,
			})
			require.Less(t, values["berth_connection_duration_seconds"+of+" sum"], 60.0)
			require.Positive(t, values["berth_connection_duration_seconds"+of+" sum"])
			require.NoError(t, open[1].Close())
			require.NoError(t, ln.Close())
			conn, ok := <-accepted
			require.False(t, ok, conn)
			has(t, s.values(t), map[string]float64{
				"berth_connections_refused_total{web," + network + ",limit}": 1, // told after the client has seen it
				"berth_connections_open" + of:                                0,
				"berth_connection_duration_seconds" + of + " count":          2,
				"berth_listeners{web," + network + ",bound}":                 0,
				"berth_listen_obtained_total{web," + network + ",bound}":     1,
			})
		}
	})
}

// A failing listener has nothing but errors.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) == 0 {
		return nil, net.ErrClosed
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
}

func TestAcceptErrors(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		base, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer base.Close()
		errs := []error{syscall.EMFILE, syscall.ENFILE, syscall.EMFILE, syscall.ECONNABORTED, syscall.EPROTO, syscall.ENOBUFS, syscall.ENOMEM}
		ln := s.metrics.Connections("web")(&failing{base, errs})
		for range errs {
			_, err := ln.Accept()
			require.NotErrorIs(t, err, net.ErrClosed)
		}
		_, err = ln.Accept()
		require.ErrorIs(t, err, net.ErrClosed) // which counts as none
		has(t, s.values(t), map[string]float64{
			"berth_accept_errors_total{web,tcp,EMFILE}":       2,
			"berth_accept_errors_total{web,tcp,ENFILE}":       1,
			"berth_accept_errors_total{web,tcp,ENOBUFS}":      1,
			"berth_accept_errors_total{web,tcp,ENOMEM}":       1,
			"berth_accept_errors_total{web,tcp,ECONNABORTED}": 1,
			"berth_accept_errors_total{web,tcp,other}":        1,
		})
	})
}

// Hooks may give reasons of their own, as many as they like, on listeners that come and go; the metrics stay few.
func TestReasonsAreBounded(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		asked := 0
		hook := middleware.Hook{Accept: func(net.Conn) error {
			asked++
			return &middleware.Refusal{Reason: middleware.Reason(fmt.Sprintf("reason %d", asked))}
		}}
		const listeners, connections = 4, 50
		for range listeners {
			base, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			ln := s.metrics.Connections("web")(hook.Wrap(base))
			done := make(chan error)
			go func() {
				_, err := ln.Accept()
				done <- err
			}()
			for range connections {
				conn, err := net.Dial("tcp", base.Addr().String())
				require.NoError(t, err)
				_, err = conn.Read(make([]byte, 1))
				require.Error(t, err)
				require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
				require.NoError(t, conn.Close())
			}
			require.NoError(t, ln.Close())
			require.ErrorIs(t, <-done, net.ErrClosed)
		}
		series, total := 0, 0.0
		values := s.values(t)
		for name, v := range values {
			if strings.HasPrefix(name, "berth_connections_refused_total{") {
				series, total = series+1, total+v
			}
		}
		require.Equal(t, 65, series) // the bound, and what has no place in it
		require.EqualValues(t, listeners*connections, total)
		has(t, values, map[string]float64{"berth_connections_refused_total{web,tcp,reason 1}": 1})
		require.Greater(t, values["berth_connections_refused_total{web,tcp,other}"], 100.0)
	})
}

func TestConflict(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer taken.Close()
		cfg := listener.Config{Name: "web", StateDir: t.TempDir(), OnEvent: s.metrics.Event}
		_, err = cfg.Listen(context.Background(), "tcp4", taken.Addr().String())
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		cfg.Strategy = strategy.Fallback{Ranges: []strategy.Range{{}}}
		ln, err := cfg.Listen(context.Background(), "tcp", taken.Addr().String())
		require.NoError(t, err)
		defer ln.Close()
		has(t, s.values(t), map[string]float64{
			"berth_listen_conflicts_total{web,tcp}":         2,
			"berth_listen_failures_total{web,tcp}":          1,
			"berth_listen_obtained_total{web,tcp,fallback}": 1,
			"berth_listeners{web,tcp,fallback}":             1,
			"berth_listeners{web,tcp,bound}":                0,
			"berth_listen_reclaims_total{web,tcp,success}":  0,
			"berth_listen_duration_seconds{web,tcp} count":  1,
		})
		conn, err := cfg.ListenPacket(context.Background(), "udp", "127.0.0.1:0")
		require.NoError(t, err)
		has(t, s.values(t), map[string]float64{"berth_listeners{web,udp,bound}": 1})
		require.NoError(t, conn.Close())
		has(t, s.values(t), map[string]float64{"berth_listeners{web,udp,bound}": 0})
	})
}

// What takes another process is shown in examples/observability.
func TestEvent(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		for _, e := range []listener.Event{
			{Kind: listener.Reclaim, Network: "tcp6"},
			{Kind: listener.Reclaim, Network: "tcp", Err: errors.New("it stays")},
			{Kind: listener.LockWait, Network: "tcp", Elapsed: time.Second},
			{Kind: listener.LockWait, Network: "tcp", Elapsed: 2 * time.Second, Err: errors.New("somebody has it")},
			{Kind: listener.Failed, Network: "unheard of"},
			{Kind: listener.Failed, Network: "unheard of 2"},
			{},
			{Kind: 100, Network: "unixgram"},
			{Kind: listener.Obtained, Network: "unixpacket"}, // without an origin
		} {
			s.metrics.Event(e)
		}
		has(t, s.values(t), map[string]float64{
			"berth_listen_reclaims_total{,tcp,success}":                 1,
			"berth_listen_reclaims_total{,tcp,failure}":                 1,
			"berth_listen_lock_wait_duration_seconds{,tcp,success} sum": 1,
			"berth_listen_lock_wait_duration_seconds{,tcp,failure} sum": 2,
			"berth_listen_failures_total{,other}":                       2,
			"berth_listen_failures_total{,unix}":                        0,
			"berth_listen_conflicts_total{,tcp}":                        0,
		})
	})
}

func TestUpgrade(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		require.Empty(t, s.values(t), "a program without package reload has none of its metrics")
		state := func(now string) map[string]float64 {
			want := map[string]float64{}
			for _, name := range []string{"ready", "upgrading", "draining", "stopping", "stopped"} {
				want["berth_state{"+name+"}"] = 0
			}
			want["berth_state{"+now+"}"] = 1
			return want
		}
		failure := errors.New("it does not start")
		for _, step := range []struct {
			event string
			took  time.Duration
			err   error
			state string
		}{
			{"ready", 0, nil, "ready"},
			{"upgrading", 0, nil, "upgrading"},
			{"upgrade failed", time.Second, failure, "ready"},
			{"upgrading", 0, nil, "upgrading"},
			{"upgraded", 2 * time.Second, nil, "draining"},
			{"draining", 0, nil, "draining"},
			{"resumed", 0, failure, "ready"},
			{"something new", 0, nil, "ready"},
			{"stopping", 0, nil, "stopping"},
			{"stopped", 3 * time.Second, nil, "stopped"},
		} {
			s.metrics.Upgrade(step.event, step.took, step.err)
			has(t, s.values(t), state(step.state))
		}
		has(t, s.values(t), map[string]float64{
			"berth_upgrades_total{success}":               1,
			"berth_upgrades_total{failure}":               1,
			"berth_upgrade_duration_seconds{success} sum": 2,
			"berth_upgrade_duration_seconds{failure} sum": 1,
			"berth_upgrades_resumed_total{}":              1,
			"berth_drain_duration_seconds{success} sum":   3,
			"berth_takeover_timestamp_seconds{}":          0,
		})
	})
}

func TestTakeover(t *testing.T) {
	inherited := listener.Event{Kind: listener.Obtained, Network: "tcp", Origin: listener.Origin{Kind: listener.Inherited}}
	each(t, func(t *testing.T, s subject) {
		s.metrics.Event(inherited)
		require.NotContains(t, s.values(t), "berth_takeover_timestamp_seconds{}", "it does not lead yet")
		begin := float64(time.Now().Unix())
		s.metrics.Upgrade("ready", 0, nil)
		require.GreaterOrEqual(t, s.values(t)["berth_takeover_timestamp_seconds{}"], begin)
	})
	each(t, func(t *testing.T, s subject) {
		s.metrics.Event(inherited)
		s.metrics.Upgrade("stopping", 0, nil)
		has(t, s.values(t), map[string]float64{"berth_takeover_timestamp_seconds{}": 0}) // it never led
	})
}

// Both count the same things by the same names.
func TestBothAreAlike(t *testing.T) {
	names := map[string][]string{}
	for by, s := range subjects(t) {
		base, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer s.metrics.Connections("web")(base).Close()
		s.metrics.Event(listener.Event{Kind: listener.Conflict, Name: "web", Network: "tcp"})
		s.metrics.Upgrade("ready", 0, nil)
		names[by] = slices.Sorted(maps.Keys(s.values(t)))
	}
	require.Equal(t, names["prom"], names["otel"])
	require.NotEmpty(t, names["prom"])
}

// An endless listener has connections that nobody has made, to count what the wrapper alone costs.
type endless struct {
	net.Listener
	conn net.Conn
}

func (e endless) Accept() (net.Conn, error) { return e.conn, nil }

type silent struct{ net.Conn }

func (silent) Close() error { return nil }

func endlessListener(t testing.TB) net.Listener {
	base, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { base.Close() })
	return endless{base, silent{}}
}

// hook does nothing but what every one does that hears of the end of connections.
var hook = middleware.Hook{Closed: func(net.Conn, time.Duration) {}}

// To count a connection allocates nothing beyond what any wrapper does.
func TestCountingAllocatesNothing(t *testing.T) {
	refusal := &middleware.Refusal{Reason: middleware.ReasonLimit}
	cost := func(wrap func(net.Listener) net.Listener) float64 {
		n := 0
		ln := wrap(middleware.Hook{Accept: func(net.Conn) error {
			if n++; n%2 == 0 { // one is refused for each that is handed out
				return refusal
			}
			return nil
		}}.Wrap(endlessListener(t)))
		return testing.AllocsPerRun(1000, func() {
			conn, err := ln.Accept()
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		})
	}
	bare := cost(hook.Wrap)
	require.NotZero(t, bare)
	each(t, func(t *testing.T, s subject) { require.Equal(t, bare, cost(s.metrics.Connections("web"))) })
}

func BenchmarkConnections(b *testing.B) {
	wraps := map[string]func(net.Listener) net.Listener{"none": hook.Wrap}
	for name, s := range subjects(b) {
		wraps[name] = s.metrics.Connections("web")
	}
	for _, name := range []string{"none", "prom", "otel"} {
		b.Run("by="+name, func(b *testing.B) {
			ln := wraps[name](endlessListener(b))
			b.ReportAllocs()
			for b.Loop() {
				conn, _ := ln.Accept()
				conn.Close()
			}
		})
	}
}
