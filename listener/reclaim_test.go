//go:build unix

package listener_test

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
)

func init() {
	// A program with the race detector in it takes a second to end, otherwise.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")

	roles["origin"] = role.playOrigin
	roles["packet"] = role.playPacket
	roles["twice"] = role.playTwice
	roles["client"] = role.playClient
	roles["parent"] = role.playParent
	roles["relay"] = role.playRelay
}

// playOrigin is "config", and tells the Origin on a line of its own before it is ready.
func (r role) playOrigin() error {
	ln, err := r.listen()
	if err != nil {
		return err
	}
	if err := printOrigin(ln.Origin()); err != nil {
		return err
	}
	return r.serve(ln)
}

// playPacket is playOrigin for datagrams: each is answered with the pid.
func (r role) playPacket() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	conn, err := cfg.ListenPacket(context.Background(), r.Network, r.Address)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte(strconv.Itoa(os.Getpid())), from)
		}
	}()
	if err := printOrigin(conn.Origin()); err != nil {
		return err
	}
	fmt.Println("ready", conn.LocalAddr())
	select {
	case <-stop:
	case <-endOfInput():
	}
	return conn.Close()
}

func printOrigin(origin listener.Origin) error {
	origin.History = nil // an interface cannot be read back
	text, err := json.Marshal(origin)
	if err == nil {
		fmt.Println("origin", string(text))
	}
	return err
}

func endOfInput() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	return ended
}

// playTwice listens on an address and tries to reclaim it from itself.
func (r role) playTwice() error {
	ln, err := net.Listen(r.Network, r.Address)
	if err != nil {
		return err
	}
	cfg, err := r.config()
	if err != nil {
		return err
	}
	if _, err = cfg.Listen(context.Background(), r.Network, ln.Addr().String()); err == nil {
		return errors.New("it listens twice")
	}
	fmt.Println("failed", err)
	return r.serve(ln)
}

// playClient connects to the address and is ready with its own.
func (r role) playClient() error {
	conn, err := net.Dial(r.Network, r.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("ready", conn.LocalAddr())
	<-endOfInput()
	return nil
}

const addressPlaceholder = "ADDRESS"

// playParent listens, tells where, and starts one more process with the role in Child, which wants the same address.
func (r role) playParent() error {
	ln, err := net.Listen(r.Network, r.Address)
	if err != nil {
		return err
	}
	cmd, err := descendant(strings.ReplaceAll(r.Child[0], addressPlaceholder, ln.Addr().String()))
	if err != nil {
		return err
	}
	if _, err := cmd.StdinPipe(); err != nil { // it stays open as long as this process lives
		return err
	}
	fmt.Println("listening", ln.Addr())
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	return r.serve(ln)
}

// playRelay is a process between two others.
func (r role) playRelay() error {
	cmd, err := descendant(r.Child[0])
	if err != nil {
		return err
	}
	cmd.Stdin = os.Stdin // it ends with whoever started this one
	return cmd.Run()
}

// descendant is a process with a role. It writes to the stdout of this one.
func descendant(text string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+text)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd, nil
}

// encode is a role as text.
func encode(t testing.TB, r role) string {
	t.Helper()
	text, err := json.Marshal(r)
	require.NoError(t, err)
	return string(text)
}

// claim starts a role that has to get its address, and returns when it has, with how.
func claim(t testing.TB, r role, change ...func(*exec.Cmd)) (*process, listener.Origin) {
	t.Helper()
	if r.Do == "" {
		r.Do = "origin"
	}
	p := play(t, r, change...)
	origin := p.origin(t)
	require.Equal(t, origin.Address, p.ready(t))
	return p, origin
}

// origin waits until the process tells how it got its address.
func (p *process) origin(t testing.TB) listener.Origin {
	t.Helper()
	line, _ := p.line(t)
	text, ok := strings.CutPrefix(line, "origin ")
	require.True(t, ok, "got %q; stderr:\n%s", line, p.stderr)
	var origin listener.Origin
	require.NoError(t, json.Unmarshal([]byte(text), &origin))
	return origin
}

// stopped gives the pids of those who were in the way, in order.
func stopped(origin listener.Origin) []int {
	var pids []int
	for _, h := range origin.InTheWay {
		pids = append(pids, h.PID)
	}
	slices.Sort(pids)
	return pids
}

// both are the strategies that stop anybody at all.
var both = []string{"aggressive", "mine"}

// refused shows that a role does not get its address, under any of the strategies, that the error says why, and that
// the holder goes on.
func refused(t *testing.T, strategies []string, r role, change func(*exec.Cmd), lives func(testing.TB), reasons ...string) {
	t.Helper()
	for _, s := range strategies {
		t.Run(s, func(t *testing.T) {
			r.Strategy = s
			if r.Do == "" {
				r.Do = "origin"
			}
			if change == nil {
				change = func(*exec.Cmd) {}
			}
			p := play(t, r, change)
			requireRefusal(t, p.failed(t), reasons...)
			require.Error(t, p.exit(t), "whoever is refused fails")
			lives(t)
		})
	}
}

func requireRefusal(t testing.TB, text string, reasons ...string) {
	t.Helper()
	require.Contains(t, text, "address already in use; held by ")
	for _, reason := range reasons {
		require.Contains(t, text, reason)
	}
}

// lives shows that a process that plays a role has not ended and serves.
func lives(p *process, network, address string) func(testing.TB) {
	return func(t testing.TB) {
		t.Helper()
		require.Equal(t, strconv.Itoa(p.pid()), answers(t, network, address))
		require.True(t, p.alive())
	}
}

// python finds the interpreter itself: a version manager's shim cannot be run by other users.
func python(t testing.TB) string {
	t.Helper()
	path := "/usr/bin/python3"
	if _, err := os.Stat(path); err != nil {
		path, err = exec.LookPath("python3")
		need(t, err == nil, "python3")
	}
	return path
}

// stranger starts a foreign server, and returns when it listens on the address, whose port may be 0.
func stranger(t testing.TB, address string) (p *process, obtained string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	p = start(t, exec.Command(python(t), "-u", "-m", "http.server", "--bind", host, port), in(t.TempDir()))
	line, _ := p.line(t) // Serving HTTP on 127.0.0.1 port 3000 (http://127.0.0.1:3000/) ...
	_, rest, ok := strings.Cut(line, " port ")
	require.True(t, ok, "got %q; stderr:\n%s", line, p.stderr)
	port, _, _ = strings.Cut(rest, " ")
	return p, net.JoinHostPort(host, port)
}

// livesHTTP shows that a web server has not ended and serves.
func livesHTTP(p *process, address string) func(testing.TB) {
	return func(t testing.TB) {
		t.Helper()
		requireHTTP(t, address)
		require.True(t, p.alive())
	}
}

func requireHTTP(t testing.TB, address string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, deadline)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
	_, err = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	require.NoError(t, err)
	status, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, status, " 200 ")
}

// in lets a command start in a directory.
func in(dir string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Dir = dir }
}

// program lets a role be played by another program file.
func program(path string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Path, cmd.Args[0] = path, path }
}

// install copies the test binary to a path. A file that is there is replaced, as a build does.
func install(t testing.TB, path string) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	from, err := os.Open(exe)
	require.NoError(t, err)
	defer from.Close()
	if err := os.Remove(path); err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	// Another test's process may be forked while the file is open for writing, and then keep it from being executed
	// (ETXTBSY, golang/go #22315). These tests run one after the other.
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(to, from)
	require.NoError(t, err)
	require.NoError(t, to.Close())
}

func TestReclaimStaleCopy(t *testing.T) {
	// Nothing but the record tells that the two are one service: name, program file and directory differ or decide.
	elsewhere := filepath.Join(t.TempDir(), "moved")
	install(t, elsewhere)
	tests := []struct {
		name     string
		stateDir string
		change   []func(*exec.Cmd)
	}{
		{"record", t.TempDir(), []func(*exec.Cmd){program(elsewhere), in(t.TempDir())}},
		{"no state directory", unusable(t), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: test.stateDir, Name: "api"}
			stale := play(t, r, test.change...)
			r.Do, r.Address, r.Strategy = "origin", stale.ready(t), "development"

			fresh, origin := claim(t, r)
			require.Equal(t, listener.Reclaimed, origin.Kind)
			require.Equal(t, r.Address, origin.Requested)
			require.Equal(t, r.Address, origin.Address)
			require.Len(t, origin.InTheWay, 1)
			require.Equal(t, stale.pid(), origin.InTheWay[0].PID)
			require.Equal(t, r.Address, origin.InTheWay[0].Address)
			require.Equal(t, "listening", origin.InTheWay[0].State)
			require.True(t, origin.InTheWay[0].Ours)
			require.NoError(t, stale.exit(t), "it was asked to end, and could finish")
			require.Equal(t, strconv.Itoa(fresh.pid()), answers(t, "tcp", r.Address))
		})
	}
}

func TestReclaimByUnixAndUDP(t *testing.T) {
	dir, err := os.MkdirTemp("", "berth")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, test := range []struct{ do, network, address string }{
		{"origin", "unix", filepath.Join(dir, "stream")},
		{"packet", "udp", "127.0.0.1:0"},
		{"packet", "unixgram", filepath.Join(dir, "datagram")},
	} {
		for _, stateDir := range []string{t.TempDir(), unusable(t)} {
			t.Run(test.network+"/"+filepath.Base(stateDir), func(t *testing.T) {
				r := role{Do: test.do, Network: test.network, Address: test.address, StateDir: stateDir, Strategy: "aggressive"}
				stale, before := claim(t, r)
				require.Equal(t, listener.Bound, before.Kind)
				r.Address = before.Address

				fresh, origin := claim(t, r)
				require.Equal(t, listener.Reclaimed, origin.Kind)
				require.Equal(t, []int{stale.pid()}, stopped(origin))
				require.NoError(t, stale.exit(t))
				require.Equal(t, strconv.Itoa(fresh.pid()), reply(t, dir, r))
			})
		}
	}
}

// reply asks who serves the address of a role, also one of datagrams.
func reply(t testing.TB, dir string, r role) string {
	t.Helper()
	if r.Do != "packet" {
		return answers(t, r.Network, r.Address)
	}
	var conn net.Conn
	var err error
	if r.Network == "unixgram" {
		own := &net.UnixAddr{Name: filepath.Join(dir, "client"), Net: r.Network}
		defer os.Remove(own.Name)
		conn, err = net.DialUnix(r.Network, own, &net.UnixAddr{Name: r.Address, Net: r.Network})
	} else {
		conn, err = net.Dial(r.Network, r.Address)
	}
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
	_, err = io.WriteString(conn, "who")
	require.NoError(t, err)
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	require.NoError(t, err)
	return string(buffer[:n])
}

func TestReclaimKillsAfterGrace(t *testing.T) {
	for _, ignores := range []bool{true, false} {
		t.Run(fmt.Sprintf("ignores SIGTERM=%v", ignores), func(t *testing.T) {
			r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Ignore: ignores}
			stale := play(t, r)
			r.Do, r.Address, r.Ignore, r.Strategy = "origin", stale.ready(t), false, "aggressive"
			r.Grace = 200 * time.Millisecond
			if !ignores {
				r.Grace = deadline // it ends before, and nobody waits for the rest
			}
			begin := time.Now()
			_, origin := claim(t, r)
			require.Equal(t, listener.Reclaimed, origin.Kind)
			require.Equal(t, []int{stale.pid()}, stopped(origin))
			if ignores {
				require.Equal(t, syscall.SIGKILL, stale.signalled(t))
				require.GreaterOrEqual(t, time.Since(begin), r.Grace, "it had its grace")
			} else {
				require.NoError(t, stale.exit(t))
				require.Less(t, time.Since(begin), r.Grace/2)
			}
		})
	}
}

// What is reclaimed is the service, not the program file: a name divides one program and joins two.
func TestReclaimByName(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	install(t, other)

	t.Run("two names of one program", func(t *testing.T) {
		r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Name: "a"}
		a := play(t, r)
		r.Address, r.Name, r.Do = a.ready(t), "b", ""
		refused(t, []string{"aggressive", "development"}, withRange(t, r), nil, lives(a, "tcp", r.Address), "it is no earlier run of this program")
		r.Strategy = "mine"
		_, origin := claim(t, r)
		require.Equal(t, []int{a.pid()}, stopped(origin))
		require.NoError(t, a.exit(t))
	})
	t.Run("one name of two programs", func(t *testing.T) {
		r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Name: "a"}
		stale := play(t, r, program(other), in(t.TempDir()))
		r.Do, r.Address, r.Strategy = "", stale.ready(t), "aggressive"
		_, origin := claim(t, r)
		require.Equal(t, other, origin.InTheWay[0].Executable)
		require.Equal(t, []int{stale.pid()}, stopped(origin))
		require.NoError(t, stale.exit(t))
	})
}

// withRange gives development nothing to fall back to, so that it has to say why it stopped nobody.
func withRange(t testing.TB, r role) role {
	t.Helper()
	_, port, err := net.SplitHostPort(r.Address)
	require.NoError(t, err)
	r.Ranges = port
	return r
}

func TestReclaimRebuilt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	install(t, path)
	r := role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0", StateDir: unusable(t)}
	stale := play(t, r, program(path), in(t.TempDir()))
	r.Do, r.Address, r.Strategy = "", stale.ready(t), "aggressive"

	install(t, path)
	// Another directory, so that nothing but the path of the program says that it is the same.
	_, origin := claim(t, r, program(path), in(t.TempDir()))
	require.Equal(t, listener.Reclaimed, origin.Kind)
	require.Equal(t, []int{stale.pid()}, stopped(origin))
	require.Equal(t, path, origin.InTheWay[0].Executable)
	require.NoError(t, stale.exit(t))
}

// go run and live-reload tools build to changing paths, and start the program in the directory of its source.
func TestReclaimOtherBuild(t *testing.T) {
	first, second := filepath.Join(t.TempDir(), "main"), filepath.Join(t.TempDir(), "main")
	install(t, first)
	install(t, second)
	source := t.TempDir()
	r := role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0", StateDir: unusable(t)}
	stale := play(t, r, program(first), in(source))
	r.Do, r.Address = "", stale.ready(t)

	elsewhere := func(cmd *exec.Cmd) {
		program(second)(cmd)
		in(t.TempDir())(cmd)
	}
	refused(t, []string{"aggressive"}, r, elsewhere, lives(stale, "tcp", r.Address), "it is no earlier run of this program")

	r.Strategy = "aggressive"
	_, origin := claim(t, r, program(second), in(source))
	require.Equal(t, []int{stale.pid()}, stopped(origin))
	require.NoError(t, stale.exit(t))
}

// All that is built from named files has one name, command-line-arguments: of these, one directory may have many.
func TestReclaimGoRunFile(t *testing.T) {
	goCommand, err := exec.LookPath("go")
	need(t, err == nil, "the go command")
	built := filepath.Join(t.TempDir(), "a")
	build := exec.Command(goCommand, "build", "-o", built, "main.go")
	build.Dir = filepath.Join("..", "examples", "quickstart")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	main, err := buildinfo.ReadFile(built)
	require.NoError(t, err)
	require.Equal(t, "command-line-arguments", main.Path)
	text, err := os.ReadFile(built)
	require.NoError(t, err)
	again, other := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	require.NoError(t, os.WriteFile(again, text, 0o755))
	require.NoError(t, os.WriteFile(other, text, 0o755))

	source, port := t.TempDir(), freePort(t)
	serve := func(path string) *process {
		cmd := exec.Command("/bin/sh", "-c", `exec "$0" -addr 127.0.0.1:`+port+` 2>&1`, path)
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir()) // they know nothing of each other's records
		return start(t, cmd, in(source))
	}
	until := func(p *process, message string) string {
		for {
			line, more := p.line(t)
			if !more || strings.Contains(line, message) {
				require.Contains(t, line, message)
				return line
			}
		}
	}
	a := serve(built)
	until(a, "listening on 127.0.0.1:"+port)
	until(serve(other), fmt.Sprintf("port %s is in use by a (pid %d", port, a.pid()))
	require.True(t, a.alive())
	until(serve(again), "listening on 127.0.0.1:"+port)
	require.NoError(t, a.exit(t))
}

func TestRefuseStranger(t *testing.T) {
	p, address := stranger(t, "127.0.0.1:0")
	r := role{Network: "tcp", Address: address, StateDir: t.TempDir()}
	refused(t, []string{"aggressive", "development"}, withRange(t, r), nil, livesHTTP(p, address),
		fmt.Sprintf("pid %d is not stopped: it is no earlier run of this program; stop it yourself or allow it (strategy.AnyOfMine)", p.pid()),
		fmt.Sprintf("kill %d", p.pid()))

	r.Strategy = "mine"
	_, origin := claim(t, r)
	require.Equal(t, listener.Reclaimed, origin.Kind)
	require.Equal(t, []int{p.pid()}, stopped(origin))
	require.Equal(t, syscall.SIGTERM, p.signalled(t))
}

func TestRefuseAncestor(t *testing.T) {
	for _, s := range both {
		claimant := role{Do: "origin", Network: "tcp", Address: addressPlaceholder, StateDir: t.TempDir(), Strategy: s}
		for name, child := range map[string]role{
			"parent":      claimant,
			"grandparent": {Do: "relay", Child: []string{encode(t, claimant)}},
		} {
			t.Run(s+"/"+name, func(t *testing.T) {
				p := play(t, role{Do: "parent", Network: "tcp", Address: "127.0.0.1:0", Child: []string{encode(t, child)}})
				line, _ := p.line(t)
				address, ok := strings.CutPrefix(line, "listening ")
				require.True(t, ok, line)
				var failed string
				for range 2 { // its own line, and that of its descendant
					line, _ := p.line(t)
					if text, ok := strings.CutPrefix(line, "failed "); ok {
						failed = text
					} else {
						require.Equal(t, "ready "+address, line)
					}
				}
				requireRefusal(t, failed, fmt.Sprintf("pid %d is not stopped: it is an ancestor of this process", p.pid()), "choose another port")
				lives(p, "tcp", address)(t)
			})
		}
	}
}

func TestRefuseSelf(t *testing.T) {
	for _, s := range both {
		t.Run(s, func(t *testing.T) {
			p := play(t, role{Do: "twice", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Strategy: s})
			requireRefusal(t, p.failed(t), "it is this process itself; close or share the first listener of this process")
			lives(p, "tcp", p.ready(t))(t)
		})
	}
}

// The newest start wins: whoever is older gives way, also to a stranger.
func TestRefuseNewer(t *testing.T) {
	for _, s := range both {
		t.Run(s+"/stranger", func(t *testing.T) {
			b := newBarrier(t)
			address := net.JoinHostPort("127.0.0.1", freePort(t))
			older := play(t, role{Do: "origin", Network: "tcp", Address: address, StateDir: t.TempDir(), Strategy: s, Barrier: b.path})
			b.wait(t, 1)
			newer, _ := stranger(t, address)
			b.release()
			requireRefusal(t, older.failed(t), fmt.Sprintf("pid %d is not stopped: it was started after this process, and the newest start wins", newer.pid()))
			livesHTTP(newer, address)(t)
		})
		t.Run(s+"/ours", func(t *testing.T) {
			b := newBarrier(t)
			r := role{Do: "origin", Network: "tcp", Address: net.JoinHostPort("127.0.0.1", freePort(t)), StateDir: t.TempDir(), Strategy: s, Barrier: b.path}
			older := play(t, r)
			b.wait(t, 1)
			r.Barrier = ""
			newer, origin := claim(t, r)
			require.Equal(t, listener.Bound, origin.Kind)
			b.release()
			requireRefusal(t, older.failed(t), fmt.Sprintf("a newer start of this program (pid %d) has the address and this one gives way to it", newer.pid()))
			lives(newer, "tcp", r.Address)(t)
		})
	}
}

// The ephemeral port of a client is taken too. Its owner listens on nothing.
func TestRefuseClient(t *testing.T) {
	server := play(t, role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0"})
	client := play(t, role{Do: "client", Network: "tcp", Address: server.ready(t)})
	r := role{Network: "tcp", Address: client.ready(t), StateDir: t.TempDir()}
	refused(t, both, r, nil, func(t testing.TB) {
		t.Helper()
		require.True(t, client.alive())
		require.True(t, server.alive())
	}, "it is a client whose connection happens to use this port", "it ends with its connection")
}

// A record is a claim. The pid in it may belong to somebody else by now.
func TestRecycledPID(t *testing.T) {
	r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Name: "api"}
	dead := play(t, r)
	r.Do, r.Address, r.Strategy = "", dead.ready(t), "aggressive"
	require.NoError(t, dead.Process.Kill())
	require.Equal(t, syscall.SIGKILL, dead.signalled(t))

	dir, err := registry.Open(r.StateDir)
	require.NoError(t, err)
	entry, err := dir.Lookup("tcp", r.Address)
	require.NoError(t, err)
	require.NoError(t, entry.Err)
	require.Equal(t, dead.pid(), entry.Record.PID)
	require.False(t, entry.Held())

	// recycle makes it look as if the pid of the dead process had been given to p.
	recycle := func(t testing.TB, p *process) {
		t.Helper()
		record := entry.Record
		record.PID = p.pid()
		record.Start-- // counted in 10 ms; a pid takes longer than that to come round
		text, err := json.Marshal(record)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(entry.Path, text, 0o600))
	}

	t.Run("it holds the address", func(t *testing.T) {
		innocent, _ := stranger(t, r.Address)
		recycle(t, innocent)
		refused(t, []string{"aggressive"}, r, nil, livesHTTP(innocent, r.Address), "it is no earlier run of this program")
	})
	t.Run("it holds nothing", func(t *testing.T) {
		innocent, elsewhere := stranger(t, "127.0.0.1:0")
		stale := play(t, role{Do: "plain", Network: "tcp", Address: r.Address})
		stale.ready(t)
		recycle(t, innocent)
		fresh, origin := claim(t, r)
		require.Equal(t, []int{stale.pid()}, stopped(origin))
		require.NoError(t, stale.exit(t))
		lives(fresh, "tcp", r.Address)(t)
		livesHTTP(innocent, elsewhere)(t)
	})
}
