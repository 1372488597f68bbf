// Quickstart is an HTTP server that gets its port, whatever stands in the way. Run it in two terminals:
//
//	go run ./examples/quickstart                     # the second stops the first
//	go run ./examples/quickstart -env staging        # the second moves to 3001
//	go run ./examples/quickstart -env production     # the second says who has the port, and exits
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func main() {
	// A server that ends when it is asked to, as a newer start of it does in development.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(stderr)
	env := flags.String("env", "development", "what to do when the port is taken: `development, staging or production`")
	addr := flags.String("addr", ":3000", "`address` to listen on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	strategies := map[string]strategy.Strategy{
		"development": strategy.Development(),
		"staging":     strategy.Staging(),
		"production":  strategy.Production(),
	}
	chosen, ok := strategies[*env]
	if !ok {
		return fmt.Errorf("-env %q is unknown: use development, staging or production", *env)
	}

	cfg := listener.Config{Strategy: chosen, Name: "quickstart", Logger: slog.Default()}
	ln, err := cfg.Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "pid %d on %v, which is %v\n", os.Getpid(), ln.Addr(), ln.Origin().Kind)
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		slog.Info("stopping", "cause", context.Cause(ctx))
	}
	// Shutdown closes the listener first, so the port is free for the newcomer while requests are finished.
	drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(drain)
}
