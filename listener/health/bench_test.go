package health_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// A request, when the look at the machine is there, and the look.
func BenchmarkRequest(b *testing.B) {
	monitor := health.Handler(health.Options{Machine: true, Cache: time.Hour, StateDir: b.TempDir()})
	defer monitor.Close()
	for _, path := range []string{"/readyz", "/api/health/ports/80", "/api/health/ports", "/api/health/ports?ranges=1-4096"} {
		b.Run("path="+path, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				monitor.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
			}
		})
	}
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			_, err := inspect.System(context.Background(), inspect.Options{Ranges: []strategy.Range{{First: 1, Last: 65535}}})
			require.NoError(b, err)
		}
	})
}
