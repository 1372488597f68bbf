package prom_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
	"github.com/berth-go/berth/listener/middleware/prom"
)

// filled has every metric.
func filled(t testing.TB, o prom.Options) (*prom.Collector, *prometheus.Registry) {
	t.Helper()
	c := prom.New(o)
	registry := prometheus.NewPedanticRegistry() // which compares what is collected with what is described
	require.NoError(t, registry.Register(c))
	base, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, c.Connections("web")(base).Close())
	c.Event(listener.Event{Kind: listener.Conflict, Name: "web", Network: "tcp"})
	c.Upgrade("ready", 0, nil)
	return c, registry
}

func TestLint(t *testing.T) {
	_, registry := filled(t, prom.Options{ConstLabels: prometheus.Labels{"service": "shop"}})
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	require.Empty(t, problems)
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, families, 18)
	for _, family := range families {
		require.Contains(t, family.Metric[0].String(), "shop", family.GetName())
	}
}

func TestRegisteredOnce(t *testing.T) {
	c, registry := filled(t, prom.Options{})
	again := registry.Register(c)
	require.ErrorAs(t, again, &prometheus.AlreadyRegisteredError{})
	other := prom.New(prom.Options{ConstLabels: prometheus.Labels{"service": "other"}})
	require.Error(t, registry.Register(other), "the same names with other labels")
	require.True(t, registry.Unregister(c))
}

func TestDurationBuckets(t *testing.T) {
	_, registry := filled(t, prom.Options{DurationBuckets: []float64{1, 2, 3}})
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if buckets := len(family.Metric[0].GetHistogram().GetBucket()); buckets > 0 {
			require.Equal(t, family.GetName() == "berth_connection_duration_seconds", buckets == 3, family.GetName())
		}
	}
}

// A server with metrics, which it shows on its own port.
func Example() {
	metrics := prom.New(prom.Options{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	cfg := listener.Config{
		Name:       "web",
		Middleware: []listener.Middleware{metrics.Connections("web"), (&middleware.Limit{Max: 10_000}).Wrap},
		OnEvent:    metrics.Event,
	}
	ln, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), ReadHeaderTimeout: time.Second}
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()

	response, err := http.Get("http://" + ln.Addr().String() + "/metrics")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(response.Status)
	response.Body.Close()
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(errors.Is(<-served, http.ErrServerClosed))
	// Output:
	// 200 OK
	// true
}
