//go:build unix

package reload_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/registry"
)

// A house is where the versions of one program leave files.
type house struct {
	state, port, pid, socket string
}

func newHouse(t *testing.T) house {
	dir, err := os.MkdirTemp("", "berth") // short: the path of a Unix socket has about 100 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return house{filepath.Join(dir, "state"), filepath.Join(dir, "port"), filepath.Join(dir, "pid"), filepath.Join(dir, "socket")}
}

func (h house) role() role {
	return role{
		Listen: []request{{"", "tcp", "127.0.0.1:0"}, {"", "unix", h.socket}},
		Config: listenConfig{StateDir: h.state, PortFile: ""},
		Reload: reloadConfig{PIDFile: h.pid},
	}
}

// owner requires that everything names this process: it answers on both sockets, and record and PID file are its.
func (h house) owner(t *testing.T, pid int, address string) {
	t.Helper()
	for network, address := range map[string]string{"tcp": address, "unix": h.socket} {
		answered, _ := get(t, network, address)
		require.Equal(t, pid, answered, network)
	}
	dir, err := registry.Existing(h.state)
	require.NoError(t, err)
	for network, address := range map[string]string{"tcp": address, "unix": h.socket} {
		entry, err := dir.Lookup(network, address)
		require.NoError(t, err, network)
		require.NoError(t, entry.Err, network)
		require.Equal(t, pid, entry.Record.PID, network)
		require.True(t, entry.Held(), network)
	}
	text, err := os.ReadFile(h.pid)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(pid), strings.TrimSpace(string(text)))
}

// empty requires that nothing is left.
func (h house) empty(t *testing.T) {
	t.Helper()
	for _, path := range []string{h.port, h.pid, h.socket} {
		require.NoFileExists(t, path)
	}
	entries, err := os.ReadDir(h.state)
	require.NoError(t, err)
	require.Empty(t, entries)
	entries, err = os.ReadDir(filepath.Dir(h.state))
	require.NoError(t, err)
	require.Len(t, entries, 1, "%v", entries)
}

// The old version is killed at each step: the new one serves.
func TestParentKilled(t *testing.T) {
	for _, step := range []string{"started", "ready", "announced", "told", "led"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			r := h.role()
			r.At = "kill " + step
			l := begin(t, r)
			_, addresses := l.said("listens")
			address, _, _ := strings.Cut(addresses, " ")
			first, _ := l.said("ready")
			h.owner(t, first, address)
			r.At = ""
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			_ = l.cmd.Wait()
			second, _ := l.said("ready")
			require.NotEqual(t, first, second)
			h.owner(t, second, address)

			// The next upgrade is as ever, and what the new version says is still heard.
			signalTo(t, second, syscall.SIGHUP)
			third, _ := l.said("ready")
			ended, _ := l.said("ended <nil>")
			require.Equal(t, second, ended)
			h.owner(t, third, address)
			signalTo(t, third, syscall.SIGTERM)
			ended, _ = l.said("ended <nil>")
			require.Equal(t, third, ended)
			h.empty(t)
		})
	}
}

// The old version is killed before it has started the new one: a first version starts as ever.
func TestKilledBeforeStart(t *testing.T) {
	h := newHouse(t)
	r := h.role()
	r.At = "kill start"
	l := begin(t, r)
	first, _ := l.said("ready")
	signalTo(t, first, syscall.SIGHUP)
	_ = l.cmd.Wait()
	h.startsAgain(t)
}

// startsAgain requires that what is left from killed processes blocks nobody.
func (h house) startsAgain(t *testing.T) {
	t.Helper()
	l := begin(t, h.role())
	_, addresses := l.said("listens")
	address, _, _ := strings.Cut(addresses, " ")
	pid, _ := l.said("ready")
	h.owner(t, pid, address)
	signalTo(t, pid, syscall.SIGTERM)
	l.said("ended <nil>")
	require.NoError(t, l.cmd.Wait())
	require.NoFileExists(t, h.socket)
	require.NoFileExists(t, h.pid)
}

// The new version is killed at each step: the old one serves on, as if nothing had happened.
func TestChildKilled(t *testing.T) {
	for _, step := range []string{"said ready", "leads", "in charge"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			r := h.role()
			l := begin(t, r)
			_, addresses := l.said("listens")
			address, _, _ := strings.Cut(addresses, " ")
			first, _ := l.said("ready")
			r.At = "kill " + step
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			second, _ := l.said("at " + step)
			dies(t, second)
			l.logged("no upgrade")
			h.owner(t, first, address)

			r.At = ""
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			third, _ := l.said("ready")
			l.said("ended <nil>")
			h.owner(t, third, address)
			signalTo(t, third, syscall.SIGTERM)
			l.said("ended <nil>")
			h.empty(t)
		})
	}
}

// Both are killed while the new one waits: nothing blocks the next start.
func TestBothKilled(t *testing.T) {
	for _, step := range []string{"said ready", "leads", "in charge"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			r := h.role()
			l := begin(t, r)
			first, _ := l.said("ready")
			r.At = "stop " + step
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			second, _ := l.said("at " + step)
			signalTo(t, first, syscall.SIGKILL)
			signalTo(t, second, syscall.SIGKILL)
			_ = l.cmd.Wait()
			dies(t, second)
			h.startsAgain(t)
		})
	}
}

// A new version that ends while the old one drains: the old one serves again.
func TestSuccessorDiesWhileDraining(t *testing.T) {
	h := newHouse(t)
	r := h.role()
	l := begin(t, r)
	_, addresses := l.said("listens")
	address, _, _ := strings.Cut(addresses, " ")
	first, _ := l.said("ready")
	idle := dial(t, address) // what the drain waits for
	require.Equal(t, first, requestOn(t, idle, "/"))

	signalTo(t, first, syscall.SIGHUP)
	second, _ := l.said("ready")
	l.logged("draining")
	h.owner(t, second, address)
	signalTo(t, second, syscall.SIGKILL)
	l.logged("this one serves again")
	h.owner(t, first, address)
	require.Equal(t, first, requestOn(t, idle, "/"), "the connection that was never told to end")

	signalTo(t, first, syscall.SIGHUP)
	third, _ := l.said("ready")
	h.owner(t, third, address)
	idle.Close()
	ended, _ := l.said("ended <nil>")
	require.Equal(t, first, ended)
	signalTo(t, third, syscall.SIGTERM)
	l.said("ended <nil>")
	h.empty(t)
}

// A stop while the new version starts: it stops, and takes the new one with it.
func TestStopDuringUpgrade(t *testing.T) {
	h := newHouse(t)
	r := h.role()
	l := begin(t, r)
	first, _ := l.said("ready")
	r.Fail = "hang"
	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	second, _ := l.said("hangs")
	signalTo(t, first, syscall.SIGTERM)
	ended, _ := l.said("ended <nil>")
	require.Equal(t, first, ended)
	require.NoError(t, l.cmd.Wait())
	dies(t, second)
	h.empty(t)
}

// A hundred signals in a second: all is well in the end, and never do more than two versions live.
func TestStorm(t *testing.T) {
	h := newHouse(t)
	l := begin(t, h.role())
	_, addresses := l.said("listens")
	address, _, _ := strings.Cut(addresses, " ")
	l.said("ready")
	for range 100 {
		pid, _ := get(t, "tcp", address)
		_ = syscall.Kill(pid, syscall.SIGHUP) // it may have ended
		time.Sleep(10 * time.Millisecond)     // a hundred in a second
	}
	// Whoever serves now may have one more upgrade to do. Then it stays.
	var last int
	for begin := time.Now(); ; {
		pid, _ := get(t, "tcp", address)
		if pid != last {
			last, begin = pid, time.Now()
		}
		if time.Since(begin) > time.Second {
			break
		}
		require.LessOrEqual(t, len(l.alive()), 2)
		time.Sleep(5 * time.Millisecond)
	}
	h.owner(t, last, address)
	signalTo(t, last, syscall.SIGTERM)
	require.Eventually(t, func() bool { return len(l.alive()) == 0 }, patience, time.Millisecond)
	h.empty(t)
}
