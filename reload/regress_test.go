//go:build unix

package reload_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// alone is a role with one TCP listener.
func (h house) alone() role {
	r := h.role()
	r.Listen = r.Listen[:1]
	return r
}

// loggedTimes waits until the programs have logged a text so often.
func (l *line) loggedTimes(text string, n int) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); strings.Count(l.log.String(), text) < n; time.Sleep(time.Millisecond) {
		require.True(l.t, time.Now().Before(deadline), "it does not log %q %d times:\n%s", text, n, l.log)
	}
}

// A version that does not ask for a socket, and fails in the last moment, has not taken it away.
func TestFailedVersionLeavesWhatItDoesNotWant(t *testing.T) {
	for _, step := range []string{"leads", "in charge"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			l := begin(t, h.role())
			_, addresses := l.said("listens")
			address, _, _ := strings.Cut(addresses, " ")
			first, _ := l.said("ready")
			r := h.alone()
			r.At = "kill " + step
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			l.said("at " + step)
			l.logged("no upgrade")
			h.owner(t, first, address)
		})
	}
}

// An upgrade that is asked for when another one is nearly done is made too: the program may be newer by then.
func TestUpgradeAskedForLate(t *testing.T) {
	for _, step := range []string{"ready", "told", "led"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			r := h.alone()
			r.At, r.Version = "wait "+step, "1"
			l := begin(t, r)
			_, address := l.said("listens")
			first, _ := l.said("ready")
			r.At, r.Version = "", "2"
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			l.said("at " + step)
			r.Version = "3"
			l.next(r)
			signalTo(t, first, syscall.SIGHUP)
			l.loggedTimes("upgrade asked for", 2)
			signalTo(t, first, syscall.SIGUSR2)
			l.said("ready")
			l.said("ready")
			_, version := get(t, "tcp", address)
			require.Equal(t, "3", version)
		})
	}
}

// One that waits behind an upgrade that fails is made after it.
func TestUpgradeBehindOneThatFails(t *testing.T) {
	h := newHouse(t)
	r := h.alone()
	r.At = "wait ready"
	l := begin(t, r)
	_, address := l.said("listens")
	first, _ := l.said("ready")
	r.At, r.Version = "kill leads", "2"
	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	l.said("at ready")
	r.At, r.Version = "", "3"
	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	l.loggedTimes("upgrade asked for", 2)
	signalTo(t, first, syscall.SIGUSR2)
	l.said("at ready") // of the second upgrade
	l.logged("no upgrade")
	signalTo(t, first, syscall.SIGUSR2)
	l.said("ready")
	_, version := get(t, "tcp", address)
	require.Equal(t, "3", version)
}

// Once systemd could have been told, whoever asked cannot give up any more: it would end the main process.
func TestUpgradeIsNotGivenUpLate(t *testing.T) {
	h := newHouse(t)
	r := h.alone()
	r.Do, r.At = "upgrades", "wait announced"
	l := begin(t, r)
	_, address := l.said("listens")
	first, _ := l.said("ready")
	r.At = ""
	l.next(r)
	require.Equal(t, "context deadline exceeded", body(t, address, "/upgrade?for=500ms"))
	l.said("at announced")
	// Until the new version leads, whoever connects is answered by the old one.
	for range 10 {
		pid, _ := get(t, "tcp", address)
		require.Equal(t, first, pid)
	}
	signalTo(t, first, syscall.SIGUSR2)
	second, _ := l.said("ready")
	l.said("ended <nil>")
	pid, _ := get(t, "tcp", address)
	require.Equal(t, second, pid)
}

// Who stops the new version while the old one drains stops the service.
func TestStopWhileTheOldVersionDrains(t *testing.T) {
	h := newHouse(t)
	l := begin(t, h.role())
	_, addresses := l.said("listens")
	address, _, _ := strings.Cut(addresses, " ")
	first, _ := l.said("ready")
	idle := dial(t, address)
	require.Equal(t, first, requestOn(t, idle, "/"))
	signalTo(t, first, syscall.SIGHUP)
	second, _ := l.said("ready")
	l.logged("draining")
	signalTo(t, second, syscall.SIGTERM)
	l.said("ended <nil>")
	l.said("ended <nil>")
	require.NoError(t, l.cmd.Wait())
	dies(t, second)
	h.empty(t)
}

// A storm of SIGHUP takes no room from the signal that ends the program at once.
func TestStormBeforeSecondInterrupt(t *testing.T) {
	r := newHouse(t).alone()
	r.Reload.Drain = time.Hour
	l := begin(t, r)
	_, address := l.said("listens")
	pid, _ := l.said("ready")
	slow := dial(t, address)
	_, err := io.WriteString(slow, "GET /?wait=1h HTTP/1.1\r\nHost: server\r\n\r\n")
	require.NoError(t, err)
	require.Equal(t, pid, requestOn(t, dial(t, address), "/")) // it has read the other one, or will at once
	signalTo(t, pid, syscall.SIGINT)
	l.logged("msg=stopping")
	for range 100 {
		signalTo(t, pid, syscall.SIGHUP)
	}
	signalTo(t, pid, syscall.SIGINT)
	l.said("ended <nil>")
	require.NoError(t, l.cmd.Wait())
}

// Nobody reads what the program writes any more: an upgrade still fails in time, and a stop still stops.
func TestStalledOutput(t *testing.T) {
	r := newHouse(t).alone()
	r.Do, r.Reload.Timeout = "flood", 300*time.Millisecond
	stalled, full, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { stalled.Close() })
	l := begin(t, r, func(cmd *exec.Cmd) { cmd.Stdout = full })
	require.NoError(t, full.Close())
	l.logged("serving on")
	signalTo(t, l.cmd.Process.Pid, syscall.SIGHUP)
	l.logged("no upgrade")
	signalTo(t, l.cmd.Process.Pid, syscall.SIGTERM)
	l.logged("msg=stopped")
}

func init() { roles["flood"] = playFlood }

// playFlood writes more than a pipe holds before it is ready, where it is a new version.
func playFlood(p *played) error {
	if p.upgrader.HasParent() {
		_, _ = io.WriteString(os.Stdout, strings.Repeat("x", 1<<20))
	}
	return playHTTP(p)
}

// A PID file is where it was meant to be when the program was started, also after it has changed its directory.
func TestRelativePIDFile(t *testing.T) {
	dir := t.TempDir()
	r := newHouse(t).alone()
	r.Do, r.Reload.PIDFile = "elsewhere", "pid"
	l := begin(t, r, func(cmd *exec.Cmd) { cmd.Dir = dir })
	for _, next := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		pid, _ := l.said("ready")
		text, err := os.ReadFile(filepath.Join(dir, "pid"))
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(pid)+"\n", string(text))
		signalTo(t, pid, next)
		l.said("ended <nil>")
	}
	require.NoFileExists(t, filepath.Join(dir, "pid"))
}

func init() {
	roles["elsewhere"] = func(p *played) error {
		if err := os.Chdir("/"); err != nil {
			return err
		}
		return playHTTP(p)
	}
}

// Of listeners without a fixed address the next version gets the first that is left.
func TestEphemeralPortThatIsLeft(t *testing.T) {
	r := newHouse(t).role()
	r.Do = "closes the first"
	r.Listen = []request{{"", "tcp", "127.0.0.1:0"}, {"", "tcp", "127.0.0.1:0"}}
	next := r
	next.Do, next.Listen = "", r.Listen[:1]
	_, _, before, after := upgraded(t, r, next)
	require.Equal(t, before[1:], after)
}

func init() {
	roles["closes the first"] = func(p *played) error {
		_ = p.listeners[0].Close()
		p.listeners = append([]net.Listener(nil), p.listeners[1:]...)
		return playHTTP(p)
	}
}
