package listener_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/bound"
	"github.com/berth-go/berth/internal/testneed"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// A role is what a re-executed test binary does instead of running tests. It writes one line to stdout when it is ready,
// "ready ADDRESS", or "failed ERROR" and exits 1; then it lives until a signal ends it or its stdin is closed, and
// exits 0.
type role struct {
	Do       string // "config": Config.Listen; "plain": net.Listen; or a name in roles
	Network  string
	Address  string
	Strategy string // "development", "staging", "production", "aggressive", "mine" (Aggressive with AnyOfMine); "" production
	Ranges   string // for development and staging
	Grace    time.Duration
	Name     string
	StateDir string
	PortFile string
	Store    bool
	Ignore   bool     // SIGTERM is ignored
	Barrier  string   // Unix socket that is dialled before the listening starts, which its closing releases
	Child    []string // a command that is started once listening, with the listening socket as its descriptor 3
	Log      bool     // decision log to stderr
	Set      bool     // the sources are named: one that has nothing, and what systemd passed
	Control  string   // Unix socket by which a "kin" gets its orders
}

const roleVariable = "BERTH_TEST_ROLE"

// roles are further things to do; a test file adds its own.
var roles = map[string]func(role) error{}

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		os.Unsetenv(roleVariable)
		var r role
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		if err := r.play(); err != nil {
			fmt.Println("failed", strings.ReplaceAll(err.Error(), "\n", " "))
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func (r role) strategy() (strategy.Strategy, error) {
	var ranges []strategy.Range
	if r.Ranges != "" {
		var err error
		if ranges, err = strategy.ParseRanges(r.Ranges); err != nil {
			return nil, err
		}
	}
	switch r.Strategy {
	case "development":
		return strategy.Development(ranges...), nil
	case "staging":
		return strategy.Staging(ranges...), nil
	case "spread":
		return strategy.Chain(strategy.Fallback{Ranges: ranges, Spread: true}, strategy.FailFast{}), nil
	case "aggressive":
		return strategy.Aggressive{Grace: r.Grace}, nil
	case "mine":
		return strategy.Aggressive{Allow: strategy.AnyOfMine, Grace: r.Grace}, nil
	case "", "production":
		return strategy.Production(), nil
	}
	return nil, fmt.Errorf("strategy %q is unknown", r.Strategy)
}

func (r role) config() (*listener.Config, error) {
	s, err := r.strategy()
	if err != nil {
		return nil, err
	}
	cfg := &listener.Config{Strategy: s, Name: r.Name, StateDir: r.StateDir, PortFile: r.PortFile, Store: r.Store}
	if r.Set {
		set, err := activation.FromEnv()
		if err != nil {
			return nil, err
		}
		cfg.Sources = []listener.Source{&source{take: nothing}, set}
	}
	if r.Log {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return cfg, nil
}

// listen is Config.Listen as the role says.
func (r role) listen() (*listener.Listener, error) {
	cfg, err := r.config()
	if err != nil {
		return nil, err
	}
	return cfg.Listen(context.Background(), r.Network, r.Address)
}

func (r role) play() error {
	if r.Ignore {
		signal.Ignore(syscall.SIGTERM)
	}
	if r.Barrier != "" {
		conn, err := net.Dial("unix", r.Barrier)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, conn) // until all have come
		conn.Close()
	}
	if do := roles[r.Do]; do != nil {
		return do(r)
	}
	var ln net.Listener
	switch r.Do {
	case "plain":
		l, err := net.Listen(r.Network, r.Address)
		if err != nil {
			return err
		}
		ln = l
	case "config":
		l, err := r.listen()
		if err != nil {
			return err
		}
		ln = l
	default:
		return fmt.Errorf("role %q is unknown", r.Do)
	}
	if len(r.Child) > 0 {
		file, err := ln.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return err
		}
		cmd := exec.Command(r.Child[0], r.Child[1:]...)
		cmd.ExtraFiles = []*os.File{file}
		if err := cmd.Start(); err != nil {
			return err
		}
		file.Close()
		fmt.Println("child", cmd.Process.Pid)
	}
	return r.serve(ln)
}

// serve answers every connection with the pid, until SIGTERM or the end of stdin.
func (r role) serve(ln net.Listener) error {
	stop := make(chan os.Signal, 1)
	if !r.Ignore {
		signal.Notify(stop, syscall.SIGTERM)
	}
	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, os.Getpid())
			conn.Close()
		}
	}()
	fmt.Println("ready", ln.Addr())
	select {
	case <-stop:
	case <-orphaned:
	}
	return ln.Close()
}

// A process is a child of the test that plays a role, or any other command.
type process struct {
	*exec.Cmd
	lines  chan string // of stdout, closed at its end
	exited chan struct{}
	err    error // of Wait, once exited is closed
	stderr *lockedBuffer
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// deadline bounds every wait in these tests. It is only reached when something is broken.
const deadline = 30 * time.Second

// play starts a role. The process ends with the test at the latest.
func play(t testing.TB, r role, change ...func(*exec.Cmd)) *process {
	t.Helper()
	text, err := json.Marshal(r)
	require.NoError(t, err)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	// Under the race detector a process sleeps a second before it exits, unless told otherwise.
	cmd.Env = append(os.Environ(), roleVariable+"="+string(text), "GORACE=atexit_sleep_ms=0")
	return start(t, cmd, change...)
}

// start starts a command whose stdin stays open until the test ends.
func start(t testing.TB, cmd *exec.Cmd, change ...func(*exec.Cmd)) *process {
	t.Helper()
	for _, c := range change {
		c(cmd)
	}
	p := &process{Cmd: cmd, lines: make(chan string, 100), exited: make(chan struct{}), stderr: new(lockedBuffer)}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = p.stderr
	require.NoError(t, cmd.Start())
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	go func() {
		state, err := cmd.Process.Wait()
		if err == nil && !state.Success() {
			err = &exec.ExitError{ProcessState: state}
		}
		p.err = err
		close(p.exited)
	}()
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		<-p.exited
		stdout.Close()
		for range p.lines { // the reader ends with the pipe
		}
		if t.Failed() && p.stderr.String() != "" {
			t.Logf("stderr of pid %d:\n%s", cmd.Process.Pid, p.stderr)
		}
	})
	return p
}

// pid is the process's id.
func (p *process) pid() int { return p.Process.Pid }

// line waits for the next line of stdout; ok is false at its end.
func (p *process) line(t testing.TB) (string, bool) {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		return line, ok
	case <-time.After(deadline):
		require.FailNow(t, "no line from the process", "pid %d; stderr:\n%s", p.pid(), p.stderr)
		return "", false
	}
}

// ready waits until the process listens, and gives the address.
func (p *process) ready(t testing.TB) string {
	t.Helper()
	line, _ := p.line(t)
	address, ok := strings.CutPrefix(line, "ready ")
	require.True(t, ok, "got %q; stderr:\n%s", line, p.stderr)
	return address
}

// failed waits for the process to say why it does not listen.
func (p *process) failed(t testing.TB) string {
	t.Helper()
	line, _ := p.line(t)
	text, ok := strings.CutPrefix(line, "failed ")
	require.True(t, ok, "got %q; stderr:\n%s", line, p.stderr)
	return text
}

// exit waits until the process has ended.
func (p *process) exit(t testing.TB) error {
	t.Helper()
	select {
	case <-p.exited:
		return p.err
	case <-time.After(deadline):
		require.FailNow(t, "the process does not end", "pid %d; stderr:\n%s", p.pid(), p.stderr)
		return nil
	}
}

// logged waits until the log has so many listeners that were obtained, and gives it. It comes by another way than lines.
func (p *process) logged(t testing.TB, listeners int) string {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Count(p.stderr.String(), "level=INFO msg=\"listening on") == listeners },
		deadline, time.Millisecond)
	return p.stderr.String()
}

// signalled tells by which signal the process was ended, 0 for none.
func (p *process) signalled(t testing.TB) syscall.Signal {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(p.exit(t), &exit) {
		return 0
	}
	status := exit.Sys().(syscall.WaitStatus)
	if !status.Signaled() {
		return 0
	}
	return status.Signal()
}

// alive tells whether the process has not ended.
func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// answers tells which pid serves the address.
func answers(t testing.TB, network, address string) string {
	t.Helper()
	conn, err := net.DialTimeout(network, address, deadline)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
	text, err := io.ReadAll(conn)
	require.NoError(t, err)
	return strings.TrimSpace(string(text))
}

var need = testneed.That

// freePort is a port that was free a moment ago, for tests in which somebody has to ask for it by number. It is outside
// of the ephemeral range, from which everything else that runs meanwhile takes its ports.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		if port := 10000 + rand.IntN(10000); isFree(port) {
			return strconv.Itoa(port)
		}
	}
	require.FailNow(t, "no free port")
	return ""
}

// isFree tells whether nobody has the port, and nothing remains on it of connections, which a reservation would go round.
func isFree(port int) bool {
	s, err := bound.Open(bound.Kind{Network: "tcp", V6: bound.DualStack()})
	if err == nil {
		defer s.Close()
		return s.Bind(netip.AddrPortFrom(netip.Addr{}, uint16(port))) == nil
	}
	ln, err := net.Listen("tcp", ":"+strconv.Itoa(port)) // where there are no reservations
	if err == nil {
		ln.Close()
	}
	return err == nil
}
