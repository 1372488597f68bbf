// Microservices is a shop of three services and a gateway, started by one command. None of them has a port that somebody
// had to choose:
//
//	go run ./examples/microservices        # in two terminals: two shops, side by side
//	curl http://127.0.0.1:8080/            # who is where
//	curl http://127.0.0.1:8080/orders      # from a service, through the gateway
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

var services = []string{"orders", "stock", "users"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A shop is one copy of the whole.
type shop struct {
	gateways, ports []strategy.Range
	dir             string // of the port files, one directory a copy
	state           string // of records, as for listener.Config
	part            string // what this process is: "" all of it, "gateway", or a service
	copy            string // the name of the copy: "shop-0"
}

func run(ctx context.Context, args []string) error {
	s := shop{
		gateways: []strategy.Range{{First: 8080, Last: 8089}},
		ports:    []strategy.Range{{First: 20100, Last: 20199}},
	}
	flags := flag.NewFlagSet("microservices", flag.ContinueOnError)
	flags.Func("gateways", "`ports` of the gateways, one for each copy (default 8080-8089)", ranges(&s.gateways))
	flags.Func("ports", "`ports` of the services of all copies (default 20100-20199)", ranges(&s.ports))
	flags.StringVar(&s.dir, "dir", filepath.Join(os.TempDir(), "microservices"), "`directory` of port files")
	flags.StringVar(&s.state, "state", "", "state `directory`; \"\" for that of this user")
	flags.StringVar(&s.part, "part", "", "run one `part` alone; for the command itself")
	flags.StringVar(&s.copy, "copy", "", "of the `shop` of that name")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch s.part {
	case "":
		return s.all(ctx)
	case "gateway":
		return s.gateway(child(ctx))
	default:
		return s.service(child(ctx))
	}
}

func ranges(into *[]strategy.Range) func(string) error {
	return func(text string) (err error) {
		*into, err = strategy.ParseRanges(text)
		return err
	}
}

// all runs the gateway and the services until the context ends, each in a process of its own, and again when it ends.
func (s *shop) all(ctx context.Context) error {
	// This copy is the n-th: its number, its name and the port of its gateway are nobody else's.
	fleet := listener.Fleet{Name: "shop", Pool: listener.Pool{Config: listener.Config{StateDir: s.state}, Host: "127.0.0.1", Ranges: s.gateways}}
	// Its reservation ends after the parts that are started with it, and not with the context.
	instance, err := fleet.Join(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer instance.Close()
	s.copy = instance.Name()
	if err := os.MkdirAll(s.portDir(), 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(s.portDir())
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	slog.Info("starting "+s.copy, "gateway", instance.Addr())

	var parts sync.WaitGroup
	parts.Go(func() {
		// The gateway is given the socket that is reserved for it, so a client waits while it is started again.
		keep(ctx, "gateway", func(ctx context.Context) *exec.Cmd {
			return instance.Reservation().Command(ctx, exe, s.args("gateway", instance.Addr().String())...)
		})
	})
	for _, name := range services {
		parts.Go(func() {
			keep(ctx, name, func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, exe, s.args(name)...) })
		})
	}
	parts.Wait()
	slog.Info(s.copy + " has ended")
	return nil
}

func (s *shop) portDir() string { return filepath.Join(s.dir, s.copy) }

func (s *shop) args(part string, rest ...string) []string {
	texts := make([]string, len(s.ports))
	for i, r := range s.ports {
		texts[i] = r.String()
	}
	args := []string{"-part", part, "-copy", s.copy, "-dir", s.dir, "-state", s.state, "-ports", strings.Join(texts, ",")}
	return append(args, rest...)
}

// keep runs a command, and again when it ends, until the context does. The end of its standard input tells it to end, so it
// also ends with this process, whatever ended that.
func keep(ctx context.Context, name string, command func(context.Context) *exec.Cmd) {
	for ctx.Err() == nil {
		cmd := command(ctx)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		input, err := cmd.StdinPipe()
		if err == nil {
			cmd.Cancel = input.Close
			cmd.WaitDelay = 10 * time.Second
			if err = cmd.Start(); err == nil {
				err = cmd.Wait()
			}
		}
		if ctx.Err() != nil {
			return
		}
		slog.Warn(name+" has ended, and is started again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// child is a context that ends with the standard input, too.
func child(parent context.Context) context.Context {
	ctx, cancel := context.WithCancel(parent)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// pool has the ports of all services, of all copies.
func (s *shop) pool() *listener.Pool {
	return &listener.Pool{Config: listener.Config{StateDir: s.state}, Host: "127.0.0.1", Ranges: s.ports, Sticky: true}
}

// service serves one service, on the port that it had last time if possible, and writes where.
func (s *shop) service(ctx context.Context) error {
	pool := s.pool()
	pool.Config.PortFile = s.portFile(s.part)
	lease, err := pool.Lease(ctx, s.copy+"/"+s.part)
	if err != nil {
		return err
	}
	ln, err := lease.Listen()
	if err != nil {
		return err
	}
	return serve(ctx, ln, s.copy+"/"+s.part, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s/%s pid=%d on %v\n", s.copy, s.part, os.Getpid(), ln.Addr())
	}))
}

func (s *shop) portFile(service string) string { return filepath.Join(s.portDir(), service+".port") }

// gateway passes /orders on to the service orders, and lists them all at /.
func (s *shop) gateway(ctx context.Context) error {
	ln, err := listener.Listen("tcp", "fd:"+s.copy) // that of the command, by the name that it has there
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.list)
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		name, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return s.dial(ctx, network, name)
	}}
	for _, name := range services {
		mux.Handle("/"+name, &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", name
		}})
	}
	return serve(ctx, ln, s.copy+"/gateway", mux)
}

// dial connects to a service of this copy, wherever it is now, and waits a while for one that is being started again.
func (s *shop) dial(ctx context.Context, network, name string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := s.dialOnce(ctx, network, name)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s/%s: %w", s.copy, name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *shop) dialOnce(ctx context.Context, network, name string) (net.Conn, error) {
	text, err := os.ReadFile(s.portFile(name))
	if err != nil {
		return nil, err
	}
	address := strings.TrimSpace(string(text))
	// The file outlives a service that is killed, and the port may be another's by now. The record tells.
	report, err := inspect.Options{StateDir: s.state}.Address(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if report.Service != s.copy+"/"+name {
		return nil, errors.New(report.String())
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// list says which services there are, of this copy and of others, from their records.
func (s *shop) list(w http.ResponseWriter, r *http.Request) {
	status, err := s.pool().Status(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, p := range status.Taken {
		fmt.Fprintf(w, "%-16s %s pid=%d since %s\n", p.Name, p.Holder.Address, p.Holder.PID, p.Since.Format(time.DateTime))
	}
	fmt.Fprintf(w, "%d of %d ports are free\n", status.Free, status.Ports)
}

func serve(ctx context.Context, ln net.Listener, name string, handler http.Handler) error {
	slog.Info(fmt.Sprintf("serving on %v", ln.Addr()), "name", name, "pid", os.Getpid())
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(drain)
}
