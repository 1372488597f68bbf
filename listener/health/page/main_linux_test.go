package page_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/strategy"
)

// A role is what a re-executed test binary does instead of running tests. It writes "ready" to stdout, lives until its stdin is
// closed, and ends in order.
type role struct {
	Do       string // "plain": net.Listen; "service": listener.Config; "bound": without listening; "monitor": a service with the page
	Address  string
	Name     string // of the service
	Command  string // what the process calls itself
	StateDir string
	Ranges   string // of the page
	Fallback string // of its service, where the address is taken
	Machine  bool   // the page is about the machine alone
}

// An occasion is what becomes of a monitor's process, which it is told by its stdin.
type occasion struct {
	Event string
	Took  time.Duration
	Error string
}

const roleVariable = "BERTH_TEST_ROLE"

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		var r role
		err := json.Unmarshal([]byte(text), &r)
		if err == nil {
			err = r.play()
		}
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func (r role) play() error {
	if r.Command != "" {
		if err := os.WriteFile("/proc/self/comm", []byte(r.Command), 0); err != nil {
			return err
		}
	}
	switch r.Do {
	case "plain":
		ln, err := net.Listen("tcp", r.Address)
		if err != nil {
			return err
		}
		defer ln.Close()
	case "service":
		cfg := listener.Config{Name: r.Name, StateDir: r.StateDir}
		ln, err := cfg.Listen(context.Background(), "tcp", r.Address)
		if err != nil {
			return err
		}
		defer ln.Close()
	case "bound":
		at, err := net.ResolveTCPAddr("tcp4", r.Address)
		if err != nil {
			return err
		}
		socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(socket)
		if err := syscall.Bind(socket, &syscall.SockaddrInet4{Port: at.Port, Addr: [4]byte(at.IP.To4())}); err != nil {
			return err
		}
	case "monitor":
		monitor, stop, err := r.monitor()
		if err != nil {
			return err
		}
		defer stop()
		fmt.Println("ready")
		for orders := json.NewDecoder(os.Stdin); ; {
			var told occasion
			if err := orders.Decode(&told); err != nil {
				return nil
			}
			var failure error
			if told.Error != "" {
				failure = errors.New(told.Error)
			}
			monitor.Upgrade(told.Event, told.Took, failure)
		}
	default:
		return fmt.Errorf("role %q is unknown", r.Do)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// monitor serves the page of a service that is asked for at one address and, where somebody has that, is at another.
func (r role) monitor() (monitor *health.Monitor, stop func(), err error) {
	ranges, err := strategy.ParseRanges(r.Ranges)
	if err != nil {
		return nil, nil, err
	}
	fallback, err := strategy.ParseRanges(cmp.Or(r.Fallback, r.Ranges))
	if err != nil {
		return nil, nil, err
	}
	var open connections
	monitor = health.Handler(health.Options{
		Name: r.Name, Machine: r.Machine, Ranges: ranges, StateDir: r.StateDir, Connections: &open,
		Details: func(*http.Request) bool { return true },
		Cache:   20 * time.Millisecond, Interval: 50 * time.Millisecond,
	})
	cfg := listener.Config{
		Name: r.Name, StateDir: r.StateDir, OnEvent: monitor.Event, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Strategy: strategy.Chain(strategy.Fallback{Ranges: fallback}, strategy.FailFast{}),
	}
	ln, err := cfg.Listen(context.Background(), "tcp", r.Address)
	if err != nil {
		monitor.Close()
		return nil, nil, err
	}
	fmt.Println("at", ln.Addr())
	mux := http.NewServeMux()
	mux.Handle("/ops/", http.StripPrefix("/ops", monitor))
	server := &http.Server{Handler: mux, ConnState: open.follow}
	served := make(chan struct{})
	go func() {
		_ = server.Serve(ln) // until it is closed
		close(served)
	}()
	return monitor, func() {
		monitor.Close()
		server.Close()
		<-served
	}, nil
}

// connections counts those of an http.Server.
type connections struct{ n atomic.Int64 }

func (c *connections) Open() int { return int(c.n.Load()) }

func (c *connections) follow(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		c.n.Add(1)
	case http.StateClosed, http.StateHijacked:
		c.n.Add(-1)
	}
}

// A process plays a role.
type process struct {
	pid   int
	stdin io.WriteCloser
	ended chan struct{}
	at    string // address of a monitor
}

// deadline bounds every wait. It is only reached when something is broken.
const deadline = 30 * time.Second

// play starts a role and waits until it is ready. It ends with the test at the latest.
func play(t *testing.T, r role, change ...func(*exec.Cmd)) *process {
	t.Helper()
	text, err := json.Marshal(r)
	require.NoError(t, err)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	// Under the race detector a process sleeps a second before it exits, unless told otherwise.
	cmd.Env = append(os.Environ(), roleVariable+"="+string(text), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	for _, c := range change {
		c(cmd)
	}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{pid: cmd.Process.Pid, stdin: stdin, ended: make(chan struct{})}
	lines := bufio.NewScanner(stdout)
	t.Cleanup(func() { p.end(t) })
	for lines.Scan() && lines.Text() != "ready" {
		at, ok := strings.CutPrefix(lines.Text(), "at ")
		if !ok {
			break
		}
		p.at = at
	}
	last := lines.Text()
	go func() {
		_ = cmd.Wait() // it may be killed
		close(p.ended)
	}()
	require.Equal(t, "ready", last)
	return p
}

// end has the process end, and waits for that.
func (p *process) end(t *testing.T) {
	t.Helper()
	p.stdin.Close()
	select {
	case <-p.ended:
	case <-time.After(deadline):
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		<-p.ended
		t.Error("the process does not end")
	}
}

// tell tells a monitor what becomes of its process.
func (p *process) tell(t *testing.T, told occasion) {
	t.Helper()
	require.NoError(t, json.NewEncoder(p.stdin).Encode(told))
}

// kill is a crash.
func (p *process) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, syscall.Kill(p.pid, syscall.SIGKILL))
	<-p.ended
}

// A quay is some ports in a row that nobody has, below those that systems and other tests use.
type quay struct{ first int }

const berths = 12

func newQuay(t *testing.T) quay {
	t.Helper()
	for range 100 {
		q := quay{1100 + rand.IntN(1800)}
		if q.isFree() {
			return q
		}
	}
	require.FailNow(t, "no free ports")
	return quay{}
}

func (q quay) isFree() bool {
	for i := range berths {
		ln, err := net.Listen("tcp", ":"+q.port(i))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

func (q quay) port(i int) string    { return strconv.Itoa(q.first + i) }
func (q quay) address(i int) string { return net.JoinHostPort("127.0.0.1", q.port(i)) }
func (q quay) ranges() string       { return q.port(0) + "-" + q.port(berths-1) }
