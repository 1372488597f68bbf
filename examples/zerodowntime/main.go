// Zerodowntime is an HTTP server whose next version takes over without a client noticing: no connection is refused, and no
// request is lost.
//
//	go build -o zerodowntime ./examples/zerodowntime && ./zerodowntime -addr 127.0.0.1:8080
//	curl http://127.0.0.1:8080/     # pid 4242 on 127.0.0.1:8080, which is bound
//
// Now change the program and build it again. Then, in another terminal:
//
//	kill -HUP 4242
//	curl http://127.0.0.1:8080/     # pid 4250 on 127.0.0.1:8080, which is inherited
//
// The old version goes on until the new one serves, finishes what it has begun, and ends. A new version that does not
// come up is killed, the old one logs why and serves on. SIGTERM and Ctrl-C stop the server, after the requests in flight.
//
// The unit file beside it is for systemd, where systemctl reload upgrades. On Windows there are no upgrades, and the same
// program runs.
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
	"github.com/berth-go/berth/reload"
)

func main() {
	addr := flag.String("addr", ":8080", "`address` to listen on")
	flag.Parse()
	if err := run(context.Background(), *addr); err != nil {
		slog.Error("failed", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	// What the version before hands over comes first, then what systemd passed. Without either the address is bound.
	upgrader, err := reload.New(reload.Config{Logger: slog.Default()})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // there, the nil Upgrader does
		return err
	}
	passed, err := activation.FromEnv()
	if err != nil {
		return err
	}
	// With Store, systemd keeps the socket also over a restart of the service. Elsewhere it does nothing.
	cfg := listener.Config{Name: "zerodowntime", Sources: []listener.Source{upgrader, passed}, Store: true, Logger: slog.Default()}
	ln, err := cfg.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "pid %d on %v, which is %v\n", os.Getpid(), ln.Addr(), ln.Origin().Kind)
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	return upgrader.Serve(ctx, server, ln) // signals, readiness, upgrades, the end
}
