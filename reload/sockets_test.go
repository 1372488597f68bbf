//go:build unix

package reload_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/reload"
)

// upgraded starts a version of the first role and has it replaced by one of the second. It gives the addresses of both.
func upgraded(t *testing.T, first, second role) (l *line, pid int, before, after []string) {
	t.Helper()
	l = begin(t, first)
	_, text := l.said("listens")
	before = strings.Fields(text)
	old, _ := l.said("ready")
	l.next(second)
	signalTo(t, old, syscall.SIGHUP)
	_, text = l.said("listens")
	after = strings.Fields(text)
	pid, _ = l.said("ready")
	ended, _ := l.said("ended <nil>")
	require.Equal(t, old, ended)
	return l, pid, before, after
}

// A service that moved to another port stays there, also when the first one is free again.
func TestFallbackStays(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(freePort(t)))
	require.NoError(t, err)
	defer taken.Close()
	requested := taken.Addr().String()
	r := role{Listen: []request{{"", "tcp", requested}}, Config: listenConfig{Strategy: "staging", StateDir: t.TempDir()}}
	l := begin(t, r)
	_, obtained := l.said("listens")
	require.NotEqual(t, requested, obtained)
	first, _ := l.said("ready")
	require.NoError(t, taken.Close())
	signalTo(t, first, syscall.SIGHUP)
	second, again := l.said("listens")
	require.Equal(t, obtained, again)
	l.said("ended <nil>")
	pid, _ := get(t, "tcp", obtained)
	require.Equal(t, second, pid)
	_, err = net.Dial("tcp", requested)
	require.Error(t, err)
}

// Listeners that ask for any port stay apart: by their names, else by their order.
func TestEphemeralPortsStayApart(t *testing.T) {
	r := role{Listen: []request{
		{"", "tcp", "127.0.0.1:0"}, {"", "tcp", "127.0.0.1:0"}, {"b", "tcp", "127.0.0.1:0"}, {"a", "tcp", "127.0.0.1:0"}, {"", "udp", "127.0.0.1:0"}, {"", "udp", "127.0.0.1:0"},
	}, Config: listenConfig{StateDir: t.TempDir()}}
	next := r
	next.Listen = []request{r.Listen[0], r.Listen[1], r.Listen[3], r.Listen[2], r.Listen[4], r.Listen[5]}
	_, _, before, after := upgraded(t, r, next)
	require.Len(t, before, 6)
	require.Equal(t, []string{before[0], before[1], before[3], before[2], before[4], before[5]}, after)
}

// TCP and UDP have one port, each its socket; what was sent between the versions is not lost.
func TestOnePortTwoProtocols(t *testing.T) {
	address := "127.0.0.1:" + strconv.Itoa(freePort(t))
	dir, err := os.MkdirTemp("", "berth")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "datagrams")
	r := role{Do: "packets", Listen: []request{{"", "tcp", address}, {"", "udp", address}, {"", "unixgram", path}}, Config: listenConfig{StateDir: t.TempDir()}}
	l, pid, before, after := upgraded(t, r, r)
	require.Equal(t, before, after)
	answered, _ := get(t, "tcp", address)
	require.Equal(t, pid, answered)
	client, err := net.Dial("udp", address)
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("who?"))
	require.NoError(t, err)
	text := make([]byte, 100)
	n, err := client.Read(text)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(pid), string(text[:n]))
	require.FileExists(t, path)
	signalTo(t, pid, syscall.SIGTERM)
	l.said("ended <nil>")
	require.NoFileExists(t, path)
}

func init() { roles["packets"] = playPackets }

// playPackets is playHTTP, and answers each datagram of UDP with its pid.
func playPackets(p *played) error {
	go func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := p.packets[0].ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = p.packets[0].WriteTo([]byte(strconv.Itoa(os.Getpid())), from)
		}
	}()
	err := playHTTP(p)
	for _, conn := range p.packets {
		_ = conn.Close()
	}
	return err
}

// What the new version does not ask for is closed when the old one has ended; what it newly asks for is bound.
func TestAnotherSet(t *testing.T) {
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprintf("bare=%v", bare), func(t *testing.T) {
			h := newHouse(t)
			kept, dropped, added := freePort(t), freePort(t), freePort(t)
			on := func(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
			r := role{Listen: []request{{"", "tcp", on(kept)}, {"", "tcp", on(dropped)}, {"", "unix", h.socket}}, Config: listenConfig{StateDir: h.state, Bare: bare}}
			next := r
			next.Listen = []request{{"", "tcp", on(added)}, {"web", "tcp", on(kept)}} // by another name than before
			l, pid, _, after := upgraded(t, r, next)
			require.Equal(t, []string{on(added), on(kept)}, after)
			require.NoError(t, l.cmd.Wait())
			for _, address := range after {
				answered, _ := get(t, "tcp", address)
				require.Equal(t, pid, answered)
			}
			ln, err := net.Listen("tcp", on(dropped))
			require.NoError(t, err)
			require.NoError(t, ln.Close())
			// The rest goes when the new version has noticed that the old one is gone.
			require.Eventually(t, func() bool {
				_, err := os.Lstat(h.socket)
				return errors.Is(err, fs.ErrNotExist)
			}, patience, time.Millisecond)
			if !bare {
				dir, err := registry.Existing(h.state)
				require.NoError(t, err)
				require.Eventually(t, func() bool {
					entries, err := dir.Entries("", 0, 0)
					return err == nil && len(entries) == 2
				}, patience, time.Millisecond)
			}

			// And back: it is bound anew.
			l.next(r)
			signalTo(t, pid, syscall.SIGHUP)
			l.said("listens")
			last, _ := l.said("ready")
			l.said("ended <nil>")
			require.FileExists(t, h.socket)
			signalTo(t, last, syscall.SIGTERM)
			l.said("ended <nil>")
			require.NoFileExists(t, h.socket)
		})
	}
}

// A second socket for a fixed address would be lost in an upgrade: it is refused, before anything is bound elsewhere.
func TestDuplicate(t *testing.T) {
	address := "127.0.0.1:" + strconv.Itoa(freePort(t))
	l := begin(t, role{Listen: []request{{"", "tcp", address}, {"", "tcp", address}}, Config: listenConfig{Strategy: "staging", StateDir: t.TempDir()}})
	require.Error(t, l.cmd.Wait())
	require.Contains(t, l.log.String(), "tcp "+address+" is open in this process already")
}

func TestAbstractSocket(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // there are none
	}
	name := "@berth-test-" + strconv.Itoa(os.Getpid())
	r := role{Listen: []request{{"", "unix", name}}, Config: listenConfig{StateDir: t.TempDir()}}
	_, pid, before, after := upgraded(t, r, r)
	require.Equal(t, before, after)
	answered, _ := get(t, "unix", name)
	require.Equal(t, pid, answered)
}

// The next version is what the path leads to by then: a link that points elsewhere, a file that was replaced; and a
// directory that is gone keeps nobody from starting.
func TestProgramIsLookedUpAgain(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	for _, release := range []string{"1", "2"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, release), 0o755))
		out, err := exec.Command("cp", exe, filepath.Join(dir, release, "app")).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	current := filepath.Join(dir, "current")
	require.NoError(t, os.Symlink("1", current))
	for name, start := range map[string]func(*exec.Cmd){
		"absolute": func(cmd *exec.Cmd) { cmd.Path = filepath.Join(current, "app"); cmd.Args = []string{cmd.Path} },
		"relative": func(cmd *exec.Cmd) { cmd.Path, cmd.Args, cmd.Dir = "./current/app", []string{"./current/app"}, dir },
		"PATH": func(cmd *exec.Cmd) {
			cmd.Path, cmd.Args = filepath.Join(current, "app"), []string{"app"}
			cmd.Env = append(cmd.Env, "PATH="+current)
		},
		"misnomer": func(cmd *exec.Cmd) { cmd.Path = filepath.Join(dir, "1", "app"); cmd.Args = []string{"-sh"} },
		"directory": func(cmd *exec.Cmd) {
			cmd.Path = filepath.Join(current, "app")
			cmd.Args = []string{cmd.Path}
			cmd.Dir = mkdir(t, dir, "gone")
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.Remove(current))
			require.NoError(t, os.Symlink("1", current))
			r := role{Listen: []request{{"", "tcp", "127.0.0.1:0"}}, Config: listenConfig{StateDir: t.TempDir()}}
			l := begin(t, r, start)
			first, _ := l.said("ready")
			require.Equal(t, filepath.Join(dir, "1", "app"), executable(t, first))
			require.NoError(t, os.Remove(current))
			require.NoError(t, os.Symlink("2", current))
			_ = os.Remove(filepath.Join(dir, "gone"))
			if name == "misnomer" { // the file itself is replaced
				require.NoError(t, os.Rename(filepath.Join(dir, "2", "app"), filepath.Join(dir, "1", "app")))
				defer func() { require.NoError(t, os.Link(filepath.Join(dir, "1", "app"), filepath.Join(dir, "2", "app"))) }()
			}
			signalTo(t, first, syscall.SIGHUP)
			second, _ := l.said("ready")
			l.said("ended <nil>")
			want := "2"
			if name == "misnomer" {
				want = "1"
			}
			require.Equal(t, filepath.Join(dir, want, "app"), executable(t, second))
		})
	}
}

func mkdir(t *testing.T, dir, name string) string {
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(path, 0o755))
	return path
}

func executable(t *testing.T, pid int) string {
	t.Helper()
	path, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	require.NoError(t, err)
	return path
}

// The variables of one process do not get into another one, neither the next version nor what the program starts; and
// one that got in from elsewhere disturbs nobody.
func TestEnvironment(t *testing.T) {
	r := role{Do: "environment", Listen: []request{{"", "tcp", "127.0.0.1:0"}}, Config: listenConfig{StateDir: t.TempDir()}}
	l := begin(t, r, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "TABLEFLIP_HAS_PARENT_7DIU3=yes", "WATCHDOG_PID=1", "LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=http")
	})
	for _, next := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		_, text := l.said("environment")
		for _, name := range []string{"TABLEFLIP", "LISTEN_"} {
			require.NotContains(t, text, name)
		}
		_, text = l.said("descriptors")
		require.Equal(t, "0 1 2 3", text, "3 is what the shell lists them with")
		pid, _ := l.said("ready")
		signalTo(t, pid, next)
		l.said("ended <nil>")
	}
}

func init() { roles["environment"] = playEnvironment }

// playEnvironment says what a program gets that it starts.
func playEnvironment(p *played) error {
	env, err := exec.Command("env").Output()
	if err != nil {
		return err
	}
	p.say("environment %s", strings.ReplaceAll(string(env), "\n", " "))
	cmd := exec.Command("sh", "-c", "echo /proc/$$/fd/*")
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	fds, err := cmd.Output()
	if err != nil {
		return err
	}
	var numbers []string
	for _, path := range strings.Fields(string(fds)) {
		numbers = append(numbers, filepath.Base(path))
	}
	p.say("descriptors %s", strings.Join(numbers, " "))
	return playHTTP(p)
}

// Upgrades that are asked for by the program: before it is ready, while one runs, while its parent drains. None is refused.
func TestUpgradesAreQueued(t *testing.T) {
	r := role{Do: "upgrades", Listen: []request{{"", "tcp", "127.0.0.1:0"}}, Config: listenConfig{StateDir: t.TempDir()}}
	l := begin(t, r)
	_, address := l.said("listens")
	first, _ := l.said("ready")
	idle := dial(t, address)
	require.Equal(t, first, requestOn(t, idle, "/"))

	require.Equal(t, "<nil>", body(t, address, "/upgrade"))
	second, _ := l.said("ready")
	l.logged("draining")

	// The first drains still. An upgrade that is given up is not made; others wait for its end.
	require.Equal(t, context.DeadlineExceeded.Error(), body(t, address, "/upgrade?for=50ms"))
	results := make(chan string)
	for range 3 {
		go func() { results <- body(t, address, "/upgrade") }()
	}
	for range 3 {
		l.said("asked")
	}
	pid, _ := get(t, "tcp", address)
	require.Equal(t, second, pid)
	idle.Close()
	for range 3 {
		require.Equal(t, "<nil>", <-results)
	}
	third, _ := l.said("ready")
	require.NotEqual(t, second, third)
	ended, _ := l.said("ended <nil>")
	require.Equal(t, first, ended)
	ended, _ = l.said("ended <nil>")
	require.Equal(t, second, ended)
	pid, _ = get(t, "tcp", address)
	require.Equal(t, third, pid, "one upgrade for the three")
}

func init() { roles["upgrades"] = playUpgrades }

// playUpgrades upgrades when /upgrade is asked for, and answers how that went.
func playUpgrades(p *played) error {
	handler := http.NewServeMux()
	handler.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%d ", os.Getpid()) })
	handler.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		ctx := context.Background()
		if text := r.FormValue("for"); text != "" {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, duration(text))
			defer cancel()
		} else {
			p.say("asked")
		}
		fmt.Fprint(w, p.upgrader.Upgrade(ctx))
	})
	err := p.upgrader.Serve(context.Background(), &http.Server{Handler: handler}, p.listeners...)
	p.say("ended %v", err)
	return err
}

func body(t *testing.T, address, path string) string {
	answer, err := (&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + address + path)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// A nil Upgrader is usable.
func TestNilUpgrader(t *testing.T) {
	var u *reload.Upgrader
	_, err := u.Take("", "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = u.TakePacket("", "udp", "127.0.0.1:0")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = u.TakeFile("lock")
	require.ErrorIs(t, err, os.ErrNotExist)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, u.Keep("", "tcp", "127.0.0.1:0", ln.(syscall.Conn)))
	u.KeepFile("lock", nil)()
	called := false
	u.OnCharge(func() { called = true })()
	require.True(t, called)
	require.True(t, u.InCharge())
	require.False(t, u.HasParent())
	require.NoError(t, u.Ready())
	require.ErrorContains(t, u.Upgrade(t.Context()), "unsupported")
	require.Nil(t, u.Done())

	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- u.Serve(ctx, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%d 0", os.Getpid()) })}, ln)
	}()
	pid, _ := get(t, "tcp", ln.Addr().String())
	require.Equal(t, os.Getpid(), pid)
	cancel()
	require.NoError(t, <-served)
	require.NoError(t, u.Close())
}
