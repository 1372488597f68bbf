package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
)

// What a server in the open wants. The first is outermost, and the last is asked first.
func Example() {
	logger := slog.New(slog.DiscardHandler)
	open := new(middleware.Track)
	bad := middleware.NewPrefixes(netip.MustParsePrefix("192.0.2.0/24"))
	cfg := listener.Config{Middleware: []listener.Middleware{
		middleware.Recover{Logger: logger}.Wrap,
		(&middleware.Log{Logger: logger}).Wrap,
		middleware.Backoff{Logger: logger}.Wrap,
		open.Wrap,
		(&middleware.Limit{Max: 10_000}).Wrap,
		(&middleware.LimitPerIP{Max: 100}).Wrap,
		middleware.Deadline{Idle: 5 * time.Minute}.Wrap,
		middleware.Deny{Prefixes: bad}.Wrap,
	}}
	ln, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%d connection is open", open.Open())
	})}
	go server.Serve(ln)
	defer server.Close()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
	// Output: 1 connection is open
}

// A middleware of one's own is a Hook. An error refuses the connection.
func ExampleHook() {
	told := make(chan string)
	hook := middleware.Hook{
		Accept:  func(net.Conn) error { return errors.New("closed on Sundays") },
		Refused: func(_ net.Conn, refusal *middleware.Refusal) { told <- refusal.Error() },
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ln = hook.Wrap(ln)
	defer ln.Close()
	go ln.Accept()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(<-told)
	// Output: connection refused: hook: closed on Sundays
}

// A list is replaced while the listener is in use. One that is wrong changes nothing.
func ExamplePrefixes() {
	bad := new(middleware.Prefixes)
	err := bad.Load(strings.NewReader("192.0.2.0/24 # a test network\n198.51.100.7\n"))
	fmt.Println(err, bad.Contains(netip.MustParseAddr("192.0.2.66")))
	err = bad.Load(strings.NewReader("203.0.113.0/24\n203.0.113.0/240\n"))
	fmt.Println(err)
	fmt.Println(bad.Contains(netip.MustParseAddr("192.0.2.66")))
	// Output:
	// <nil> true
	// line 2: "203.0.113.0/240" is no IP network
	// true
}
