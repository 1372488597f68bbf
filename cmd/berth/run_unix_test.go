//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/reload"
)

func init() { programs["app"] = func() { os.Exit(app()) } }

// app is a program for berth to run. It says "ready PID ...", answers each connection with its pid, and ends by a signal with
// 100 and its number.
func app() int {
	bind := flag.Bool("bind", false, "bind PORT")
	child := flag.Bool("child", false, "be the parent of who does that")
	notify := flag.Bool("notify", false, "say READY=1, when a line comes in at stdin, or at once")
	unready := flag.String("unready", "", "end with status 9 where this file exists")
	stubborn := flag.Bool("stubborn", false, "ignore SIGTERM")
	window := flag.Duration("window", 50*time.Millisecond, "how long to wait for a second signal")
	reloads := flag.Bool("reload", false, "use package reload")
	flag.Parse()
	if *unready != "" {
		if _, err := os.Stat(*unready); err == nil {
			return 9
		}
	}
	if *reloads {
		return reloadingApp()
	}
	told := make(chan os.Signal, 16)
	signal.Notify(told, passedOn...)
	if *stubborn {
		signal.Ignore(syscall.SIGTERM)
	}
	if *child {
		cmd := exec.Command("/proc/self/exe", "-bind")
		cmd.Args[0] = "app"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			fmt.Println("failed", err)
			return 1
		}
		go func() { _ = cmd.Process.Signal(<-told) }()
		_ = cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
	var ln net.Listener
	var err error
	if *bind {
		ln, err = net.Listen("tcp4", ":"+os.Getenv("PORT"))
	} else {
		ln, err = net.FileListener(os.NewFile(3, "socket"))
	}
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
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
	environ := os.Environ()
	has := func(name string) string {
		i := slices.IndexFunc(environ, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		if i < 0 {
			return "-"
		}
		return strings.TrimPrefix(environ[i], name+"=")
	}
	fmt.Println("ready", os.Getpid(), has("PORT"), has("HOST"), has("LISTEN_PID"), has("LISTEN_FDS"), has("LISTEN_FDNAMES"), has("LISTEN_ADDRESS"))
	if *notify {
		if err := activation.Ready(); err != nil {
			fmt.Println("failed", err)
		}
	}
	sig := <-told
	fmt.Println("signal", os.Getpid(), sig)
	select { // a second one would be one too many
	case again := <-told:
		fmt.Println("signal", os.Getpid(), again)
		return 99
	case <-time.After(*window):
	}
	return 100 + int(sig.(syscall.Signal))
}

func reloadingApp() int {
	upgrader, err := reload.New(reload.Config{})
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	config := listener.Config{Sources: []listener.Source{upgrader}}
	ln, err := config.Listen(context.Background(), "tcp", ":"+os.Getenv("PORT"))
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	fmt.Println("ready", os.Getpid(), os.Getenv("PORT"), "-", "-", "-", "-", "-")
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getpid()) }
	if err := upgrader.Serve(context.Background(), &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: time.Second}, ln); err != nil {
		return 1
	}
	return 0
}

// A place is where berth and app are on the path, with a state directory of its own.
type place struct {
	dir, state string
	port       int
}

func newPlace(t *testing.T) place {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	p := place{dir: t.TempDir(), port: freePorts(1)}
	p.state = filepath.Join(p.dir, "state")
	require.NoError(t, os.Symlink(exe, filepath.Join(p.dir, "berth")))
	app := filepath.Join(p.dir, "app")
	if os.Link(exe, app) != nil { // another path is another program; on another file system it has to be a copy
		text, err := os.ReadFile(exe)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(app, text, 0o700))
	}
	return p
}

func (p place) address() string { return "127.0.0.1:" + strconv.Itoa(p.port) }

// A running is a berth run.
type running struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // of stdout and stderr; closed when nobody has them any more
}

// run starts berth run on the port with more arguments, and variables for it.
func (p place) run(t *testing.T, env []string, args ...string) *running {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(filepath.Join(p.dir, "berth"), append([]string{"run", "--port", strconv.Itoa(p.port)}, args...)...)
	cmd.Args[0] = "berth"
	cmd.Dir = p.dir
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Env = append(withoutVariables(os.Environ(), "PORT", "HOST", "APP_ENV"),
		"PATH="+p.dir+":"+os.Getenv("PATH"), "BERTH_STATE_DIR="+p.state, "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, env...)
	require.NoError(t, cmd.Start())
	w.Close()
	run := &running{t, cmd, make(chan string, 1024)}
	go func() {
		defer close(run.lines)
		defer r.Close()
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			run.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for range run.lines { // until the program has ended too
		}
	})
	return run
}

// says waits for a line with the text, and returns its fields.
func (r *running) says(text string) []string {
	r.t.Helper()
	var before []string
	timeout := time.After(deadline)
	for {
		select {
		case line, ok := <-r.lines:
			if !ok {
				require.FailNow(r.t, "it says no more", "%q is not among %q", text, before)
			}
			if strings.Contains(line, text) {
				return strings.Fields(line)
			}
			before = append(before, line)
		case <-timeout:
			require.FailNow(r.t, "it says nothing more", "%q is not among %q", text, before)
		}
	}
}

// silent waits until nobody has its stdout any more: berth and the program have ended.
func (r *running) silent() {
	r.t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case _, ok := <-r.lines:
			if !ok {
				return
			}
		case <-timeout:
			require.FailNow(r.t, "somebody still runs")
		}
	}
}

func (r *running) signal(sig syscall.Signal) {
	r.t.Helper()
	require.NoError(r.t, r.cmd.Process.Signal(sig))
}

// ends waits for the end, and wants a status.
func (r *running) ends(status int) {
	r.t.Helper()
	timer := time.AfterFunc(deadline, func() { _ = r.cmd.Process.Kill() })
	defer timer.Stop()
	_ = r.cmd.Wait()
	require.Equal(r.t, status, r.cmd.ProcessState.ExitCode(), "%v", r.cmd.ProcessState)
}

func pidIn(t *testing.T, fields []string) int {
	t.Helper()
	pid, err := strconv.Atoi(fields[1])
	require.NoError(t, err)
	return pid
}

// asks gives the pid of who answers.
func asks(t *testing.T, address string) int {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(answer)))
	require.NoError(t, err)
	return pid
}

func (p place) inspect(t *testing.T) inspect.Report {
	t.Helper()
	report, err := inspect.Options{StateDir: p.state}.Port(t.Context(), "tcp", p.port)
	require.NoError(t, err)
	return report
}

func (p place) nobodyListens(t *testing.T) {
	t.Helper()
	for _, h := range p.inspect(t).Holders {
		require.NotEqual(t, "listening", h.State, "%v", h) // connections that were closed may be left
	}
}

func (p place) records(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.state, "*"))
	require.NoError(t, err)
	return files
}

func pidsOf(report inspect.Report) (pids []int) {
	for _, h := range report.Holders {
		pids = append(pids, h.PID)
	}
	return pids
}

func TestRunPassesTheSocket(t *testing.T) {
	p := newPlace(t)
	r := p.run(t, []string{"HOST=127.0.0.1", "LISTEN_FDS=3", "LISTEN_FDNAMES=a:b:c", "LISTEN_PID=1"}, "--name", "web", "--", "app")
	ready := r.says("ready")
	pid := pidIn(t, ready)
	port := strconv.Itoa(p.port)
	require.Equal(t, []string{"ready", strconv.Itoa(pid), port, "127.0.0.1", strconv.Itoa(pid), "1", "web", "-"}, ready)
	require.Equal(t, pid, asks(t, p.address()))

	// The program alone has the socket, and the record is of it.
	require.Eventually(t, func() bool { return slices.Equal([]int{pid}, pidsOf(p.inspect(t))) }, deadline, 10*time.Millisecond)
	require.Eventually(t, func() bool { return p.inspect(t).State == inspect.Healthy }, deadline, 10*time.Millisecond)
	require.Equal(t, "web", p.inspect(t).Service)
	require.NotEqual(t, r.cmd.Process.Pid, pid)

	// It closes the socket, and nothing is left.
	r.signal(syscall.SIGTERM)
	r.says("signal " + strconv.Itoa(pid) + " terminated")
	r.ends(100 + int(syscall.SIGTERM))
	require.Empty(t, p.records(t))
	p.nobodyListens(t)
}

func TestRunPassesNoOtherDescriptor(t *testing.T) {
	p := newPlace(t)
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("there is no /proc")
	}
	// What the test has inherited itself goes through; berth adds the socket and nothing else.
	count := func(args ...string) int {
		out, err := exec.Command(args[0], args[1:]...).Output()
		require.NoError(t, err)
		return len(strings.Fields(string(out)))
	}
	t.Setenv("BERTH_STATE_DIR", p.state)
	t.Setenv("PATH", p.dir+":"+os.Getenv("PATH"))
	plain := count("ls", "/proc/self/fd")
	require.Equal(t, plain+1, count(filepath.Join(p.dir, "berth"), "run", "--port", strconv.Itoa(p.port), "ls", "/proc/self/fd"))
	require.Equal(t, plain, count(filepath.Join(p.dir, "berth"), "run", "--port-only", "--port", strconv.Itoa(p.port), "ls", "/proc/self/fd"))
}

func TestRunSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		p := newPlace(t)
		r := p.run(t, nil, "--", "app")
		r.says("ready")
		r.signal(sig)
		r.says("signal")
		r.ends(100 + int(sig))
	}
}

func TestRunStatus(t *testing.T) {
	for _, test := range []struct {
		status int
		args   []string
	}{
		{0, []string{"true"}},
		{7, []string{"sh", "-c", "exit 7"}},
		{128 + 9, []string{"sh", "-c", "kill -9 $$"}},
		{127, []string{"there-is-no-such-program"}},
		{127, []string{"./there-is-no-such-file"}},
		{126, []string{"./data"}},
		{126, []string{"./no-format"}},
		{126, []string{"/"}},
	} {
		for _, mode := range [][]string{nil, {"--upgrade"}} {
			p := newPlace(t)
			require.NoError(t, os.WriteFile(filepath.Join(p.dir, "data"), nil, 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(p.dir, "no-format"), []byte("\x00\x01"), 0o755))
			r := p.run(t, nil, append(append(mode, "--"), test.args...)...)
			r.ends(test.status)
			require.Empty(t, p.records(t), "%v", test.args)
		}
	}
}

// Nothing is left of a run that is killed, whatever it runs.
func TestRunKilled(t *testing.T) {
	p := newPlace(t)
	if !dieTogether {
		t.Skip("only Linux ends a child with its parent")
	}
	for _, mode := range [][]string{nil, {"--port-only"}, {"--upgrade"}} {
		args := append(slices.Clone(mode), "--", "app")
		if slices.Contains(mode, "--port-only") {
			args = append(args, "-bind")
		}
		r := p.run(t, nil, args...)
		r.says("ready")
		r.signal(syscall.SIGKILL)
		r.silent()
		p.nobodyListens(t)
	}
	// And the record that is left is no obstacle, and goes with the next.
	p.run(t, nil, "--", "true").ends(0)
	require.Empty(t, p.records(t))
}

func TestRunReclaims(t *testing.T) {
	const development = "APP_ENV=development"
	for _, test := range []struct {
		name          string
		first, second []string
		stale         bool // the first is an earlier run of the second
	}{
		{"same command", []string{"--", "app"}, []string{"--", "app"}, true},
		{"same command, upgraded", []string{"--upgrade", "--", "app"}, []string{"--upgrade", "--", "app"}, true},
		{"other arguments", []string{"--", "app"}, []string{"--", "app", "-notify"}, false},
		{"other arguments, upgraded", []string{"--upgrade", "--", "app"}, []string{"--upgrade", "--", "app", "-notify"}, false},
		{"same name", []string{"--name", "web", "--", "app"}, []string{"--name", "web", "--", "app", "-notify"}, true},
		{"other name", []string{"--name", "web", "--", "app"}, []string{"--name", "api", "--", "app"}, false},
		{"it binds the port itself", []string{"--port-only", "--", "app", "-bind"}, []string{"--port-only", "--", "app", "-bind"}, true},
		{"its child does", []string{"--port-only", "--", "app", "-child"}, []string{"--port-only", "--", "app", "-child"}, true},
		{"another does", []string{"--port-only", "--", "app", "-bind"}, []string{"--port-only", "--name", "web", "--", "app", "-bind"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlace(t)
			first := p.run(t, nil, test.first...)
			old := pidIn(t, first.says("ready"))
			second := p.run(t, []string{development}, test.second...)
			ready := second.says("ready")
			if test.stale {
				first.silent()
				require.Equal(t, strconv.Itoa(p.port), ready[2])
				require.Equal(t, pidIn(t, ready), asks(t, p.address()))
				return
			}
			require.NotEqual(t, strconv.Itoa(p.port), ready[2])
			require.Equal(t, old, asks(t, p.address()))
		})
	}
}

// clients connect without a pause, until stop; it returns how many were answered and the first failure.
func clients(address string) (stop func() (answered int, err error)) {
	ctx, cancel := context.WithCancel(context.Background())
	type result struct {
		answered int
		err      error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		for ctx.Err() == nil && r.err == nil {
			var conn net.Conn
			if conn, r.err = net.Dial("tcp", address); r.err == nil {
				_ = conn.SetDeadline(time.Now().Add(deadline))
				var answer []byte
				if answer, r.err = io.ReadAll(conn); r.err == nil && len(answer) == 0 {
					r.err = errors.New("closed without an answer")
				}
				conn.Close()
				r.answered++
			}
		}
		done <- r
	}()
	return func() (int, error) {
		cancel()
		r := <-done
		return r.answered, r.err
	}
}

func TestRunUpgrade(t *testing.T) {
	for _, mode := range []string{"-notify", "-notify=false"} {
		t.Run(mode, func(t *testing.T) {
			p := newPlace(t)
			veto := filepath.Join(p.dir, "veto")
			r := p.run(t, nil, "--upgrade", "--ready-after", "100ms", "--", "app", mode, "-unready", veto)
			old := pidIn(t, r.says("ready"))
			for range 3 {
				r.signal(syscall.SIGHUP)
				next := pidIn(t, r.says("ready"))
				require.NotEqual(t, old, next)
				r.says("signal " + strconv.Itoa(old) + " terminated")
				require.Eventually(t, func() bool { return asks(t, p.address()) == next }, deadline, time.Millisecond)
				old = next
			}

			// A version that does not come up changes nothing.
			require.NoError(t, os.WriteFile(veto, nil, 0o600))
			r.signal(syscall.SIGHUP)
			r.says("the old version goes on")
			require.Equal(t, old, asks(t, p.address()))
			require.NoError(t, os.Remove(veto))
			r.signal(syscall.SIGHUP)
			old = pidIn(t, r.says("ready"))

			// The record is of the supervisor, which comes first in everything that is done to the service.
			require.Contains(t, pidsOf(p.inspect(t)), r.cmd.Process.Pid)
			require.Equal(t, inspect.Healthy, p.inspect(t).State)
			r.says("pid " + strconv.Itoa(old) + " takes over")
			r.signal(syscall.SIGTERM)
			r.says("signal " + strconv.Itoa(old) + " terminated")
			r.ends(100 + int(syscall.SIGTERM))
			require.Empty(t, p.records(t))
		})
	}
}

// Whatever the versions do, the socket is open: no client is refused, although the old version may drop one that it has
// accepted when it ends.
func TestRunUpgradeRefusesNobody(t *testing.T) {
	p := newPlace(t)
	r := p.run(t, nil, "--upgrade", "--", "app", "-notify")
	r.says("ready")
	stop := clients(p.address())
	for range 5 {
		r.signal(syscall.SIGHUP)
		r.says("takes over")
	}
	answered, err := stop()
	require.NotErrorIs(t, err, syscall.ECONNREFUSED)
	require.Positive(t, answered)
}

func TestRunUpgradeStubborn(t *testing.T) {
	p := newPlace(t)
	r := p.run(t, []string{"BERTH_DRAIN=50ms"}, "--upgrade", "--", "app", "-notify", "-stubborn")
	old := pidIn(t, r.says("ready"))
	r.signal(syscall.SIGHUP)
	next := pidIn(t, r.says("ready"))
	r.says("killing the old version, pid " + strconv.Itoa(old))
	require.Eventually(t, func() bool { return !slices.Contains(pidsOf(p.inspect(t)), old) }, deadline, 10*time.Millisecond)
	require.Equal(t, next, asks(t, p.address()))
	require.NoError(t, syscall.Kill(next, syscall.SIGKILL)) // it would outlive the test
	r.ends(128 + int(syscall.SIGKILL))
}

// The end of the program is the end of run, with what it has left behind.
func TestRunUpgradeEnds(t *testing.T) {
	p := newPlace(t)
	r := p.run(t, nil, "--upgrade", "--", "sh", "-c", "sleep 1000 & echo ready; exit 5")
	r.says("ready")
	r.ends(5)
	r.silent()
}

func TestRunReload(t *testing.T) {
	p := newPlace(t)
	r := p.run(t, nil, "--upgrade=reload", "--", "app", "-reload")
	old := pidIn(t, r.says("ready"))
	r.says("the program is ready")
	ask := func() string {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get("http://" + p.address())
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return strings.TrimSpace(string(body))
	}
	require.Equal(t, strconv.Itoa(old), ask())
	r.signal(syscall.SIGHUP)
	next := pidIn(t, r.says("ready"))
	require.NotEqual(t, old, next)
	require.Eventually(t, func() bool { return ask() == strconv.Itoa(next) }, deadline, 10*time.Millisecond)
	r.signal(syscall.SIGTERM)
	r.ends(0)
}

// Programs that know nothing of berth.
func TestRunOtherLanguages(t *testing.T) {
	for _, test := range []struct{ command, file, program string }{
		{"python3", "server.py", `
import http.server, os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"python3 on %s" % os.environ["PORT"].encode())
server = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
print("ready", flush=True)
server.serve_forever()
`},
		{"node", "server.js", `
if (process.env.LISTEN_PID != process.pid || process.env.LISTEN_FDS != "1") process.exit(1)
require("http").createServer((request, response) => response.end("node on " + process.env.PORT)).listen({fd: 3}, () => console.log("ready"))
process.on("SIGTERM", () => process.exit(40))
`},
	} {
		t.Run(test.command, func(t *testing.T) {
			if _, err := exec.LookPath(test.command); err != nil {
				t.Skip(test.command + " is not here")
			}
			p := newPlace(t)
			require.NoError(t, os.WriteFile(filepath.Join(p.dir, test.file), []byte(test.program), 0o600))
			for _, mode := range [][]string{nil, {"--upgrade"}} {
				r := p.run(t, nil, append(mode, "--", test.command, test.file)...)
				r.says("ready")
				client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: deadline}
				response, err := client.Get("http://" + p.address())
				require.NoError(t, err)
				body, err := io.ReadAll(response.Body)
				require.NoError(t, err)
				response.Body.Close()
				require.Equal(t, fmt.Sprintf("%s on %d", test.command, p.port), string(body))
				r.signal(syscall.SIGTERM)
				r.ends(map[string]int{"python3": 128 + 15, "node": 40}[test.command])
				require.Empty(t, p.records(t))
			}
		})
	}
}
