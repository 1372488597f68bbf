// Rawtcp answers lines over TCP, in a protocol of its own, and is upgraded without a client losing one.
//
//	go build -o rawtcp ./examples/rawtcp && ./rawtcp -addr 127.0.0.1:7000
//	nc 127.0.0.1 7000               # hello is answered by "4242: hello"
//	kill -HUP 4242                  # in another terminal
//
// The connection stays with the process that accepted it. With its next answer the old version says "bye" and closes, and
// the client connects again, to the new one. That is what `Connection: close` is in HTTP; a protocol of one's own wants
// something like it, since nobody but the server knows where a client may be sent away. Clients that say nothing have
// until reload.Config.Drain; then the old version ends.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/reload"
)

func main() {
	addr := flag.String("addr", ":7000", "`address` to listen on")
	flag.Parse()
	if err := run(context.Background(), *addr); err != nil {
		slog.Error("failed", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	upgrader, err := reload.New(reload.Config{Drain: 10 * time.Second, Logger: slog.Default()})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	passed, err := activation.FromEnv()
	if err != nil {
		return err
	}
	cfg := listener.Config{Name: "rawtcp", Sources: []listener.Source{upgrader, passed}, Logger: slog.Default()}
	ln, err := cfg.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return upgrader.Serve(ctx, reload.Handler(func(conn net.Conn) { answer(conn, upgrader.Done()) }), ln)
}

// answer answers each line, until the client leaves, or the process is to end and has said so.
func answer(conn net.Conn, end <-chan struct{}) {
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Fprintf(conn, "%d: %s\n", os.Getpid(), lines.Text()); err != nil {
			return
		}
		select {
		case <-end:
			fmt.Fprintln(conn, "bye")
			return
		default:
		}
	}
}
