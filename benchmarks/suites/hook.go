// Package suites runs the tests of others with net.Listen replaced by ours: those of package net, net/http, crypto/tls and
// more of the standard library, of grpc and of fasthttp. What they expect of a listener and its connections is what
// programs rely on, and no list of ours is as long.
//
//	go test . -parallel 4               the packages that listen most: two minutes
//	go test . -parallel 4 -complete     all of them: make suites
//
// The tests run as their authors wrote them. The build is given another net.Listen (go build -overlay), which asks a
// hook first, and this file as one more test file of each package, which sets the hook. What does not pass is run with
// net.Listen too: what fails or is skipped there says nothing of ours. Only short tests run: the others ask the Internet.
package suites

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
)

// berthListen is what stands in for net.Listen in this process; nil for net.Listen itself. The file is compiled into
// foreign packages, so it stands alone: its variant and the file in which it counts come by the environment.
func berthListen() func(network, address string) (net.Listener, error) {
	cfg := listener.Config{StateDir: os.Getenv("BERTH_SUITE_STATE")}
	listen := func(network, address string) (net.Listener, error) {
		ln, err := cfg.Listen(context.Background(), network, address)
		if err != nil {
			return nil, err // not a nil *Listener
		}
		return ln, nil
	}
	switch variant := os.Getenv("BERTH_SUITE"); variant {
	case "", "net":
		return nil
	case "listen":
		listen = listener.Listen
	case "config":
	case "middleware":
		cfg.Middleware = berthMiddleware()
	default:
		panic(fmt.Sprintf("BERTH_SUITE=%q is unknown", variant))
	}
	return func(network, address string) (net.Listener, error) {
		// A byte a call. A file that stays open would be found by the tests that look for leaks.
		if f, err := os.OpenFile(os.Getenv("BERTH_SUITE_CALLS"), os.O_WRONLY|os.O_APPEND, 0); err == nil {
			_, _ = f.WriteString(".")
			_ = f.Close()
		}
		return listen(network, address)
	}
}

// berthMiddleware is all that leaves the bytes alone, none of which refuses anything here. All listeners share it.
func berthMiddleware() []listener.Middleware {
	none := middleware.NewPrefixes()
	all := middleware.NewPrefixes(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	const plenty = 1 << 30
	return []listener.Middleware{
		middleware.Recover{}.Wrap,
		(&middleware.Log{Logger: slog.New(slog.DiscardHandler), Sample: 1}).Wrap,
		middleware.Backoff{}.Wrap,
		(&middleware.Track{}).Wrap,
		(&middleware.Limit{Max: plenty}).Wrap,
		(&middleware.LimitPerIP{Max: plenty}).Wrap,
		(&middleware.Rate{PerSecond: plenty, Burst: plenty, SourcePerSecond: plenty, SourceBurst: plenty}).Wrap,
		middleware.Deadline{Idle: time.Hour, Total: time.Hour}.Wrap,
		middleware.KeepAlive{}.Wrap,
		middleware.Deny{Prefixes: none}.Wrap,
		middleware.Allow{Prefixes: all}.Wrap,
		middleware.Hook{Accept: func(net.Conn) error { return nil }, Closed: func(net.Conn, time.Duration) {}}.Wrap,
	}
}
