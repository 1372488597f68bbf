package listener_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// Listen replaces net.Listen. Its error says who has the port.
func ExampleListen() {
	ln, err := listener.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	_, isTCP := ln.(*net.TCPListener)
	fmt.Println("the standard library's own type:", isTCP)

	_, err = listener.Listen("tcp", ln.Addr().String())
	fmt.Println("taken:", errors.Is(err, syscall.EADDRINUSE))
	var e *listener.Error
	if errors.As(err, &e) {
		for _, h := range e.Diagnosis().Holders {
			fmt.Println("by this very process:", h.PID == os.Getpid())
		}
		fmt.Println(e.Advice())
	}
	// Output:
	// the standard library's own type: true
	// taken: true
	// by this very process: true
	// close or share the first listener of this process or choose another port
}

// A program names its service and what to do when the port is taken; the rest has useful zero values.
func ExampleConfig() {
	cfg := listener.Config{
		Name: "web",
		Strategy: strategy.Chain(
			strategy.Fallback{Ranges: []strategy.Range{{First: 0, Last: 0}}}, // any free port
			strategy.FailFast{},
		),
	}
	first, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer first.Close()
	second, err := cfg.Listen(context.Background(), "tcp", first.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer second.Close()
	fmt.Println(first.Origin().Kind, second.Origin().Kind)
	fmt.Println(second.Origin().History)
	// Output:
	// bound fallback
	// [rebind to 0]
}

// What Listen returns goes wherever a net.Listener goes.
func ExampleConfig_Listen() {
	var cfg listener.Config // the zero value binds the address or fails at once
	ln, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "the address was %v", ln.Origin().Kind)
	})}
	go server.Serve(ln)
	defer server.Close()

	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	io.Copy(os.Stdout, resp.Body)
	http.DefaultClient.CloseIdleConnections()
	// Output: the address was bound
}

// As finds the standard library's listener below middleware.
func ExampleAs() {
	shy := func(inside net.Listener) net.Listener { return seeThrough{inside} }
	cfg := listener.Config{Middleware: []listener.Middleware{shy}}
	ln, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	tcp, ok := listener.As[*net.TCPListener](ln)
	fmt.Println(ok, tcp.Addr().String() == ln.Addr().String())
	// Output: true true
}
