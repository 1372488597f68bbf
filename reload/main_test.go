//go:build unix

package reload_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/reload"
	"github.com/berth-go/berth/strategy"
)

// A role is what a re-executed test binary does instead of running tests: a program that is upgraded. It is read from a
// file, so that a test can make the next version another program.
type role struct {
	Do     string // name in roles; "" is "http"
	Listen []request
	Config listenConfig
	Reload reloadConfig

	Supervise bool          // reload.Supervise comes first
	Pause     time.Duration // of the supervisor; 0: as ever
	Above     string        // the At of the supervisor, with a Pause

	// Fail says how a version fails before it is ready: "exit 0", "exit 7", "panic", "hang". It is for a version that has a parent alone.
	Fail string
	// At is the step at which this process is killed by SIGKILL ("kill STEP"), stops for good ("stop STEP"; with
	// "block STEP" one goroutine does) or waits for SIGUSR2 ("wait STEP").
	At string
	// Child is started before Ready, in the version that has a parent: a process that an upgrade which fails has to take
	// with it.
	Child bool
	// Version is what the program says of itself.
	Version string
}

// A request is a call of Config.Listen, or Config.ListenPacket for a network of packets.
type request struct{ Name, Network, Address string }

type listenConfig struct {
	Strategy string // "development", "staging" or "" for production
	StateDir string
	PortFile string
	Store    bool
	Group    int  // how many listeners, or packet sockets, for each request; 0: Config.Listen
	Bare     bool // no Config: Upgrader.Take and net.Listen and Upgrader.Keep
}

type reloadConfig struct {
	Timeout, Drain, Notice time.Duration
	PIDFile                string
	Command                []string
	Events                 bool // say what happens
}

const roleVariable = "BERTH_TEST_ROLE"

// roles are the programs; a test file adds its own. They return when they have ended.
var roles = map[string]func(*played) error{"http": playHTTP}

// foreign are programs that have no Upgrader: peers.
var foreign = map[string]func(role) error{}

// patience bounds what should take milliseconds.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if path := os.Getenv(roleVariable); path != "" {
		if err := play(path); err != nil {
			fmt.Fprintln(os.Stderr, "failed", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A played is a role that has its listeners.
type played struct {
	role
	upgrader  *reload.Upgrader
	log       *slog.Logger
	listeners []net.Listener
	packets   []net.PacketConn
}

// say writes a line for the test, with the pid first.
func (p *played) say(format string, args ...any) {
	fmt.Printf("%d "+format+"\n", append([]any{os.Getpid()}, args...)...)
}

func play(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	p := &played{log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("pid", os.Getpid())}
	if err := json.Unmarshal(text, &p.role); err != nil {
		return err
	}
	if do, ok := foreign[p.Do]; ok {
		return do(p.role)
	}
	config := reload.Config{Timeout: p.Reload.Timeout, Drain: p.Reload.Drain, Notice: p.Reload.Notice, PIDFile: p.Reload.PIDFile, Logger: p.log}
	if p.Reload.Events {
		config.OnEvent = func(event string, took time.Duration, err error) { p.say("event %s, %v, %v", event, took > 0, err) }
	}
	if c := p.Reload.Command; c != nil {
		config.Command = func() (*exec.Cmd, error) { return exec.Command(c[0], c[1:]...), nil }
	}
	if p.Supervise {
		above := &played{role: role{At: p.Above}}
		if code, over := reload.SuperviseAt(context.Background(), config, above.at, p.Pause); over {
			os.Exit(code)
		}
	}
	if p.upgrader, err = reload.NewAt(config, p.at); err != nil {
		return err
	}
	if p.upgrader.HasParent() && p.Child {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			return err
		}
		p.say("child %d", cmd.Process.Pid)
	}
	if p.upgrader.HasParent() {
		p.fail()
	}
	if err := p.listen(); err != nil {
		return err
	}
	do := p.Do
	if do == "" {
		do = "http"
	}
	return roles[do](p)
}

func (p *played) at(step string) {
	if step == "serving" {
		p.say("ready")
	}
	what, at, _ := strings.Cut(p.At, " ")
	if at != step {
		return
	}
	told := make(chan os.Signal, 1)
	if what == "wait" {
		signal.Notify(told, syscall.SIGUSR2)
		defer signal.Stop(told)
	}
	p.say("at %s", step)
	switch what {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "block": // this goroutine, while the others go on
		select {}
	case "wait":
		<-told
	case "stop": // for good: the test kills it
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {} // another thread may take it
	}
}

func (p *played) fail() {
	kind, code, _ := strings.Cut(p.Fail, " ")
	switch kind {
	case "exit":
		n, _ := strconv.Atoi(code)
		fmt.Fprintln(os.Stderr, "the configuration is bad")
		os.Exit(n)
	case "panic":
		panic("cannot go on")
	case "hang":
		p.say("hangs")
		select {}
	}
}

func (p *played) listen() error {
	set, err := activation.FromEnv()
	if err != nil {
		return err
	}
	config := listener.Config{
		Sources: []listener.Source{p.upgrader, set}, StateDir: p.Config.StateDir, PortFile: p.Config.PortFile, Store: p.Config.Store,
		Logger: p.log,
	}
	switch p.Config.Strategy {
	case "development":
		config.Strategy = strategy.Development()
	case "staging":
		config.Strategy = strategy.Staging()
	}
	for _, r := range p.Listen {
		config := config
		config.Name = r.Name
		switch {
		case strings.HasPrefix(r.Network, "udp"), r.Network == "unixgram":
			conn, err := config.ListenPacket(context.Background(), r.Network, r.Address)
			if err != nil {
				return err
			}
			p.packets = append(p.packets, conn)
		case p.Config.Bare:
			ln, err := p.bare(r)
			if err != nil {
				return err
			}
			p.listeners = append(p.listeners, ln)
		default:
			ln, err := config.Listen(context.Background(), r.Network, r.Address)
			if err != nil {
				return err
			}
			p.listeners = append(p.listeners, ln)
		}
	}
	var all []string
	for _, ln := range p.listeners {
		all = append(all, ln.Addr().String())
	}
	for _, conn := range p.packets {
		all = append(all, conn.LocalAddr().String())
	}
	p.say("listens %s", strings.Join(all, " "))
	return nil
}

func (p *played) bare(r request) (net.Listener, error) {
	ln, err := p.upgrader.Take(r.Name, r.Network, r.Address)
	if err == nil {
		return ln, nil
	}
	ln, err = net.Listen(r.Network, r.Address)
	if err != nil {
		return nil, err
	}
	return ln, p.upgrader.Keep(r.Name, r.Network, r.Address, ln.(syscall.Conn))
}

// playHTTP answers "PID VERSION", after ?wait=DURATION, and echoes what is posted.
func playHTTP(p *played) error {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := r.FormValue("wait"); text != "" {
			time.Sleep(duration(text))
		}
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		fmt.Fprintf(w, "%d %s", os.Getpid(), p.Version)
	})}
	err := p.upgrader.Serve(context.Background(), server, p.listeners...)
	p.say("ended %v", err)
	return err
}

// A line is a program and all its versions.
type line struct {
	t    testing.TB
	path string // of the role
	cmd  *exec.Cmd
	log  *syncBuffer

	mu    sync.Mutex
	more  *sync.Cond
	lines []string     // not asked for yet
	over  bool         // there will be no more
	pids  map[int]bool // of its versions that have not ended
}

// A syncBuffer collects what the programs log.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// begin starts the first version. All versions are killed at the end of the test.
func begin(t testing.TB, r role, change ...func(*exec.Cmd)) *line {
	t.Helper()
	l := &line{t: t, path: filepath.Join(t.TempDir(), "role"), log: &syncBuffer{}, pids: map[int]bool{}}
	l.more = sync.NewCond(&l.mu)
	l.next(r)
	exe, err := os.Executable()
	require.NoError(t, err)
	l.cmd = exec.Command(exe)
	l.cmd.Env = append(os.Environ(), roleVariable+"="+l.path, "GORACE=atexit_sleep_ms=0")
	for _, f := range change {
		f(l.cmd)
	}
	stdout, writer, err := os.Pipe()
	require.NoError(t, err)
	if l.cmd.Stdout == nil {
		l.cmd.Stdout = writer
	}
	stderr, errWriter, err := os.Pipe()
	require.NoError(t, err)
	l.cmd.Stderr = errWriter
	require.NoError(t, l.cmd.Start())
	writer.Close()
	errWriter.Close()
	var reading sync.WaitGroup
	reading.Go(func() { l.read(stdout) })
	reading.Go(func() { _, _ = io.Copy(l.log, stderr) })
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill()
		_ = l.cmd.Wait()
		l.mu.Lock()
		for pid := range l.pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		l.mu.Unlock()
		_ = stdout.SetReadDeadline(time.Now().Add(patience))
		_ = stderr.SetReadDeadline(time.Now().Add(patience))
		reading.Wait()
		stdout.Close()
		stderr.Close()
		if t.Failed() {
			t.Log(l.log.String())
		}
	})
	return l
}

func (l *line) read(r io.Reader) {
	for scanner := bufio.NewScanner(r); scanner.Scan(); {
		text := scanner.Text()
		pid, what, _ := strings.Cut(text, " ")
		l.mu.Lock()
		if n, err := strconv.Atoi(pid); err == nil {
			if strings.HasPrefix(what, "ended") {
				delete(l.pids, n)
			} else {
				l.pids[n] = true
			}
		}
		l.lines = append(l.lines, text)
		l.mu.Unlock()
		l.more.Broadcast()
	}
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.more.Broadcast()
}

// next makes the next version this role.
func (l *line) next(r role) {
	text, err := json.Marshal(r)
	require.NoError(l.t, err)
	temporary := l.path + ".new" // a version that starts right now reads the one or the other
	require.NoError(l.t, os.WriteFile(temporary, text, 0o600))
	require.NoError(l.t, os.Rename(temporary, l.path))
}

// said waits for a line that begins so and was not asked for before, and returns who said it and the rest.
func (l *line) said(what string) (pid int, rest string) {
	l.t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() {
		l.mu.Lock()
		late = true
		l.mu.Unlock()
		l.more.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for i, text := range l.lines {
			number, said, _ := strings.Cut(text, " ")
			rest, ok := strings.CutPrefix(said, what)
			if !ok {
				continue
			}
			l.lines = slices.Delete(l.lines, i, i+1)
			pid, err := strconv.Atoi(number)
			require.NoError(l.t, err)
			return pid, strings.TrimSpace(rest)
		}
		if late || l.over {
			require.FailNow(l.t, "it does not say "+what, "ended: %v; it said %q and logged\n%s", l.over, l.lines, l.log)
		}
		l.more.Wait()
	}
}

// get asks the server once, on a connection of its own.
func get(t testing.TB, network, address string) (pid int, version string) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	answer, err := client.Get("http://server/")
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	number, version, _ := strings.Cut(string(text), " ")
	pid, err = strconv.Atoi(number)
	require.NoError(t, err)
	return pid, version
}

func signalTo(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, sig))
}

// logged waits until the programs have logged a text.
func (l *line) logged(text string) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(l.log.String(), text); time.Sleep(time.Millisecond) {
		require.True(l.t, time.Now().Before(deadline), "it does not log %q:\n%s", text, l.log)
	}
}

// alive are the versions that have said something and not ended.
func (l *line) alive() (pids []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for pid := range l.pids {
		if syscall.Kill(pid, 0) == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// dial opens a connection that the test closes.
func dial(t testing.TB, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// requestOn sends a request on a connection that goes on, and returns who answered.
func requestOn(t testing.TB, conn net.Conn, path string) (pid int) {
	t.Helper()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: server\r\n\r\n", path)
	require.NoError(t, err)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	number, _, _ := strings.Cut(string(text), " ")
	pid, err = strconv.Atoi(number)
	require.NoError(t, err)
	return pid
}

func duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		panic(err)
	}
	return d
}

// dies waits for the end of a process, whoever reaps it.
func dies(t *testing.T, pid int) {
	t.Helper()
	h, err := proc.Open(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	require.NoError(t, err)
	defer h.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, h.Wait(ctx), "process %d lives", pid)
}
