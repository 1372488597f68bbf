// Health is an HTTP server that shows itself: as a page to people, as JSON to scripts, and by two probes to load balancers.
//
//	go build -o health ./examples/health && ./health -addr 127.0.0.1:8080
//	curl http://127.0.0.1:8080/                                   # what it is for
//	curl http://127.0.0.1:8080/health/                            # its listeners, and the ports of this machine
//	curl http://127.0.0.1:8080/health/api/health/ports/8080       # one port
//	curl -i http://127.0.0.1:8080/readyz                          # 200: send requests here
//
// Open http://127.0.0.1:8080/health/ in a browser, change the program, build it again, and send the process SIGHUP: the page
// follows to the new version. After SIGTERM the program serves on for as long as -notice says, while /readyz answers 503 and
// load balancers look elsewhere. Who can reach the server can see the page: a program that is not for everybody mounts it
// on a listener of its own, or behind what asks for a password.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/reload"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	notice := flag.Duration("notice", 0, "how long a stop is announced before it begins")
	flag.Parse()
	if err := run(context.Background(), *addr, *notice); err != nil {
		slog.Error("failed", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string, notice time.Duration) error {
	// The monitor comes first: it is told of everything from then on. Without reload, on Windows, it is ready when it listens.
	monitor := health.Handler(health.Options{Name: "health", Reload: true, Logger: slog.Default(), OnEvent: alert})
	defer monitor.Close()
	upgrader, err := reload.New(reload.Config{Notice: notice, Logger: slog.Default(), OnEvent: monitor.Upgrade})
	if errors.Is(err, errors.ErrUnsupported) { // there, the nil Upgrader does, and tells nothing
		monitor.Upgrade(reload.EventReady, 0, nil)
	} else if err != nil {
		return err
	}
	passed, err := activation.FromEnv()
	if err != nil {
		return err
	}
	cfg := listener.Config{Name: "health", Sources: []listener.Source{upgrader, passed}, Logger: slog.Default(), OnEvent: monitor.Event}
	ln, err := cfg.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/health/", http.StripPrefix("/health", monitor))
	mux.Handle("/livez", monitor)
	mux.Handle("/readyz", monitor)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "pid %d\n", os.Getpid()) })
	return upgrader.Serve(ctx, &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, ln)
}

// alert is where a person would be told.
func alert(e health.Event) {
	if e.Level >= slog.LevelWarn {
		slog.LogAttrs(context.Background(), e.Level, "ALERT: "+e.Text, slog.String("kind", string(e.Kind)), slog.String("address", e.Address))
	}
}
