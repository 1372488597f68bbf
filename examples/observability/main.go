// Observability is an HTTP server that can be watched: its metrics for Prometheus, a page and alerts for people.
//
//	go run ./examples/observability -addr 127.0.0.1:8080 -admin 127.0.0.1:9180
//	curl http://127.0.0.1:8080/
//	curl http://127.0.0.1:9180/metrics
//	curl -i http://127.0.0.1:9180/readyz    # or open http://127.0.0.1:9180/ in a browser
//
// The dashboard and the alert rules beside it are for these metrics; README.md says how to use them. What a person should
// know at once is posted to a webhook, if the variable ALERT_WEBHOOK has its URL: a variable, since such a URL is a secret.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/listener/middleware"
	"github.com/berth-go/berth/listener/middleware/prom"
	"github.com/berth-go/berth/reload"
	"github.com/berth-go/berth/strategy"
)

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", ":8080", "`address` to serve on")
	flag.StringVar(&o.admin, "admin", "127.0.0.1:9180", "`address` to show metrics on")
	flag.IntVar(&o.perIP, "max-per-ip", 100, "connections that one source may have open")
	flag.Parse()
	o.webhook = os.Getenv("ALERT_WEBHOOK")
	if err := run(context.Background(), o); err != nil {
		slog.Error("failed", "error", err)
		os.Exit(1)
	}
}

type options struct {
	addr, admin string
	perIP       int
	webhook     string
}

func run(ctx context.Context, o options) error {
	metrics := prom.New(prom.Options{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	alerts := startAlerts(o.webhook, 5*time.Second)
	defer alerts.close()
	monitor := health.Handler(health.Options{Name: "web", Reload: true, Logger: slog.Default(), OnEvent: alerts.event})
	defer monitor.Close()

	upgrader, err := reload.New(reload.Config{Logger: slog.Default(), OnEvent: func(event string, took time.Duration, err error) {
		metrics.Upgrade(event, took, err)
		monitor.Upgrade(event, took, err)
	}})
	if errors.Is(err, errors.ErrUnsupported) { // there, the nil Upgrader does, and tells nothing
		monitor.Upgrade(reload.EventReady, 0, nil)
	} else if err != nil {
		return err
	}
	passed, err := activation.FromEnv()
	if err != nil {
		return err
	}
	listen := func(name, address string, s strategy.Strategy, wrap ...listener.Middleware) (*listener.Listener, error) {
		cfg := listener.Config{
			Name: name, Strategy: s, Sources: []listener.Source{upgrader, passed}, Logger: slog.Default(),
			// First is outermost: it counts what the server gets.
			Middleware: append([]listener.Middleware{metrics.Connections(name)}, wrap...),
			OnEvent: func(e listener.Event) {
				metrics.Event(e)
				monitor.Event(e)
			},
		}
		return cfg.Listen(ctx, "tcp", address)
	}
	web, err := listen("web", o.addr, strategy.Staging(), // another port, rather than none; there is an alert for that
		middleware.Recover{}.Wrap,
		middleware.Backoff{}.Wrap,
		(&middleware.Log{}).Wrap,
		(&middleware.LimitPerIP{Max: o.perIP}).Wrap,
		(&middleware.Limit{Max: 10_000}).Wrap,
	)
	if err != nil {
		return err
	}
	admin, err := listen("admin", o.admin, strategy.Production()) // Prometheus looks there and nowhere else
	if err != nil {
		return errors.Join(err, web.Close())
	}

	public := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "pid %d on %v, which is %v\n", os.Getpid(), web.Addr(), web.Origin().Kind)
	})
	private := http.NewServeMux()
	private.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	private.Handle("/", monitor)
	type isPrivate struct{}
	server := &http.Server{
		// One server for both, so that an upgrade drains both: a scrape finds the version that leads.
		BaseContext: func(ln net.Listener) context.Context {
			return context.WithValue(ctx, isPrivate{}, ln.Addr().String() == admin.Addr().String())
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Context().Value(isPrivate{}) == true {
				private.ServeHTTP(w, r)
				return
			}
			public(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	return upgrader.Serve(ctx, server, web, admin)
}
