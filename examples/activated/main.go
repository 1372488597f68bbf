// Activated is an HTTP server that systemd can start: it takes over the socket that a socket unit holds, says when it is
// ready and when it stops. Started by hand, it binds the address itself, and nothing else changes.
//
//	go run ./examples/activated -addr 127.0.0.1:8080
//	go build -o activated ./examples/activated && systemd-socket-activate -l 127.0.0.1:8080 ./activated -addr 127.0.0.1:8080
//
// The unit files beside it install it as a service; README.md has the steps.
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

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("activated", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", ":8080", "`address` to listen on, or fd:NAME for a socket that must have been passed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(stderr, nil))

	// "web" is the FileDescriptorName= in activated.socket. With that name it is this socket, whatever its address.
	cfg := listener.Config{Name: "web", Logger: logger}
	ln, err := cfg.Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	// Listen has taken over what was passed, so there is no error here. Nobody will ask for more.
	passed, _ := activation.FromEnv()
	for _, socket := range passed.Unused() {
		logger.Warn("systemd passed a socket that this program does not use", "socket", socket, "asked", *addr)
	}

	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "pid %d on %v, which is %v\n", os.Getpid(), ln.Addr(), ln.Origin().Kind)
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	// With Type=notify, systemctl start returns now, and what is ordered after the service starts. A notification that
	// cannot be sent is no reason to serve nobody.
	if err := activation.Ready(); err != nil {
		logger.Warn("systemd does not know that this is ready", "error", err)
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	if err := activation.Stopping(); err != nil {
		logger.Warn("systemd does not know that this stops", "error", err)
	}
	// The socket unit keeps the port open: who connects now waits for the next start.
	// Shutdown waits 5 s for connections on which nothing was sent yet.
	drain, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(drain)
}
