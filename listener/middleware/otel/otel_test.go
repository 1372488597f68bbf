package otel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	api "go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware/otel"
)

func provider(t testing.TB) (*sdk.MeterProvider, *sdk.ManualReader) {
	reader := sdk.NewManualReader()
	p := sdk.NewMeterProvider(sdk.WithReader(reader))
	t.Cleanup(func() { require.NoError(t, p.Shutdown(context.Background())) })
	return p, reader
}

// failures are how many times Listen failed, with the attributes of those.
func failures(t *testing.T, reader *sdk.ManualReader) (int64, attribute.Set) {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(context.Background(), &all))
	require.Len(t, all.ScopeMetrics, 1)
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name == "berth.listen.failures" {
			points := m.Data.(metricdata.Sum[int64]).DataPoints
			require.Len(t, points, 1)
			return points[0].Value, points[0].Attributes
		}
	}
	t.Fatal("there is no berth.listen.failures")
	return 0, attribute.Set{}
}

var failed = listener.Event{Kind: listener.Failed, Name: "web", Network: "tcp"}

func TestAttributes(t *testing.T) {
	p, reader := provider(t)
	m, err := otel.New(otel.Options{MeterProvider: p, Attributes: []attribute.KeyValue{attribute.String("service", "shop")}})
	require.NoError(t, err)
	m.Event(failed)
	n, attributes := failures(t, reader)
	require.EqualValues(t, 1, n)
	require.Equal(t, attribute.NewSet(
		attribute.String("service", "shop"), attribute.String("berth.listener.name", "web"), attribute.String("network.transport", "tcp"),
	), attributes)
}

// Without a MeterProvider it is the global one, also where that is set later.
func TestGlobalProvider(t *testing.T) {
	before := api.GetMeterProvider()
	t.Cleanup(func() { api.SetMeterProvider(noop.NewMeterProvider()) })
	m, err := otel.New(otel.Options{})
	require.NoError(t, err)
	m.Event(failed) // to nobody
	p, reader := provider(t)
	require.NotEqual(t, before, p)
	api.SetMeterProvider(p)
	m.Event(failed)
	n, _ := failures(t, reader)
	require.EqualValues(t, 1, n)
}

// A refusing provider makes no instruments.
type refusing struct{ metric.MeterProvider }

type refusingMeter struct{ metric.Meter }

var errRefused = errors.New("no more instruments")

func (r refusing) Meter(name string, o ...metric.MeterOption) metric.Meter {
	return refusingMeter{r.MeterProvider.Meter(name, o...)}
}

func (refusingMeter) Float64Gauge(string, ...metric.Float64GaugeOption) (metric.Float64Gauge, error) {
	return nil, errRefused
}

func TestProviderRefuses(t *testing.T) {
	_, err := otel.New(otel.Options{MeterProvider: refusing{noop.NewMeterProvider()}})
	require.ErrorIs(t, err, errRefused)
}
