package reload_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/internal/systemdtest"
)

func init() {
	roles["service"] = playService
	roles["watched"] = func(p *played) error {
		go func() { _ = activation.Watchdog(context.Background(), nil) }()
		return playService(p)
	}
}

// playService answers clients of losstest, "PID VERSION" to others, and tells systemd what it is asked to by ?notify=.
func playService(p *played) error {
	load := losstest.Handler()
	err := p.upgrader.Serve(context.Background(), &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch query := r.URL.Query(); {
		case query.Has("wait"):
			load.ServeHTTP(w, r)
			return
		case query.Has("notify"):
			if err := activation.Notify(query["notify"]...); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		fmt.Fprintf(w, "%d %s", os.Getpid(), p.Version)
	})}, p.listeners...)
	p.say("ended %v", err)
	return err
}

const (
	unit       = "app.service"
	socketUnit = "app.socket"
)

// A service is a line that systemd runs, in a manager of its own.
type service struct {
	*line
	m       *systemdtest.Manager
	program string // a link to the test binary
	pids    []int  // of the versions that said that they are ready
}

// install has systemd know a program. The lines go to the section Service of its unit.
func install(t *testing.T, r role, lines string, more map[string]string) *service {
	t.Helper()
	dir := t.TempDir()
	l := &line{t: t, path: filepath.Join(dir, "role"), log: &syncBuffer{}, pids: map[int]bool{}}
	l.more = sync.NewCond(&l.mu)
	if r.Do == "" {
		r.Do = "service"
	}
	l.next(r)
	s := &service{line: l, program: filepath.Join(dir, "program")}
	s.link(t)
	fifo := filepath.Join(dir, "output")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	output, err := os.OpenFile(fifo, os.O_RDWR, 0)
	require.NoError(t, err)
	var reading sync.WaitGroup
	reading.Go(func() { l.read(output) })
	t.Cleanup(func() {
		output.Close()
		reading.Wait()
	})
	units := map[string]string{unit: fmt.Sprintf(`[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
ExecStart=/bin/sh -c 'exec %s >%s'
ExecReload=/bin/kill -HUP $MAINPID
Environment=%s=%s GORACE=atexit_sleep_ms=0
LimitCORE=0
%s
`, s.program, fifo, roleVariable, l.path, lines)}
	for name, text := range more {
		units[name] = text
	}
	s.m = systemdtest.Start(t, units)
	s.m.Systemctl(t, "log-level", "debug") // it logs each state and each message
	return s
}

// link makes the program the test binary.
func (s *service) link(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	_ = os.Remove(s.program)
	require.NoError(t, os.Symlink(exe, s.program))
}

// up waits until a version is ready that systemd has as the main process, and gives its pid.
func (s *service) up(t *testing.T) int {
	t.Helper()
	pid, _ := s.said("ready")
	s.pids = append(s.pids, pid)
	require.Equal(t, strconv.Itoa(pid), s.property(t, "MainPID"))
	return pid
}

func (s *service) start(t *testing.T) (pid int, addresses []string) {
	t.Helper()
	s.m.Systemctl(t, "start", unit)
	return s.listening(t)
}

// listening is up, with the addresses.
func (s *service) listening(t *testing.T) (pid int, addresses []string) {
	t.Helper()
	_, all := s.said("listens")
	return s.up(t), strings.Fields(all)
}

// upgraded reloads and gives the new version.
func (s *service) upgraded(t *testing.T) (pid int, addresses []string) {
	t.Helper()
	before := len(s.pids)
	s.m.Systemctl(t, "reload", unit)
	pid, addresses = s.listening(t)
	require.NotContains(t, s.pids[:before], pid)
	return pid, addresses
}

func (s *service) property(t *testing.T, name string) string {
	t.Helper()
	return s.m.Property(t, unit, name)
}

// running requires that systemd sees nothing but a service that runs, and never saw anything else since its start.
func (s *service) running(t *testing.T) {
	t.Helper()
	require.Equal(t, "active", s.property(t, "ActiveState"))
	require.Equal(t, "running", s.property(t, "SubState"))
	require.Equal(t, "0", s.property(t, "NRestarts"))
	require.Equal(t, "success", s.property(t, "Result"))
	states := s.states()
	require.Equal(t, []string{"start", "running"}, states[:2])
	for _, state := range states[2:] {
		require.Contains(t, []string{"running", "reload"}, state)
	}
}

var changed = regexp.MustCompile(`(?m)^app\.service: Changed \S+ -> (\S+)$`)

// states are all those that the unit has been in.
func (s *service) states() (all []string) {
	for _, match := range changed.FindAllStringSubmatch(s.m.Log(), -1) {
		all = append(all, match[1])
	}
	return all
}

// heard requires that systemd ignored no message.
func (s *service) heard(t *testing.T) {
	t.Helper()
	require.NotContains(t, s.m.Log(), "reception only permitted")
}

// stop ends the service, cleanly: nothing of it is left.
func (s *service) stop(t *testing.T) {
	t.Helper()
	group := s.property(t, "ControlGroup")
	s.m.Systemctl(t, "stop", unit)
	require.Equal(t, "inactive", s.property(t, "ActiveState"))
	require.Equal(t, "success", s.property(t, "Result"))
	for _, root := range systemdtest.Hierarchies(t) {
		require.NoDirExists(t, filepath.Join(root, group))
	}
	for _, pid := range s.pids {
		require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	}
	require.NotContains(t, s.m.Log(), "State 'stop-sigterm' timed out")
}

// A load is clients of the service.
type load struct {
	*losstest.Load
	mixes int
}

func clients(t *testing.T, addresses map[string]string) load {
	var mixes []losstest.Mix
	for network, address := range addresses {
		mixes = append(mixes,
			losstest.Mix{Name: network + " kept", Client: losstest.KeepAlive, Network: network, Address: address, Clients: 8, Think: 2 * time.Millisecond},
			losstest.Mix{Name: network + " new", Client: losstest.NewConnection, Network: network, Address: address, Clients: 2, Think: 2 * time.Millisecond})
	}
	l := load{losstest.Start(mixes...), len(mixes)}
	t.Cleanup(func() { l.Stop() })
	return l
}

// reach waits until the process has answered clients of each kind.
func (l load) reach(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		reached := 0
		results := l.Results()
		for _, r := range results {
			if r.PIDs[pid] >= 10 {
				reached++
			}
		}
		if reached == l.mixes {
			return
		}
		require.True(t, time.Now().Before(end), "%d does not answer: %s", pid, results)
	}
}

// lostNothing ends it.
func (l load) lostNothing(t *testing.T) {
	t.Helper()
	results := l.Stop()
	require.Zero(t, results.Sum().Lost, results)
}

func TestSystemdReload(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		access   string
		upgrades int
	}{{"main", 20}, {"all", 3}} {
		t.Run("NotifyAccess="+test.access, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			s := install(t, h.role(), "NotifyAccess="+test.access, nil)
			first, addresses := s.start(t)
			h.owner(t, first, addresses[0])
			load := clients(t, map[string]string{"tcp": addresses[0], "unix": h.socket})
			load.reach(t, first)
			for range test.upgrades {
				pid, again := s.upgraded(t)
				require.Equal(t, addresses, again)
				h.owner(t, pid, addresses[0])
				load.reach(t, pid)
			}
			load.lostNothing(t)
			for _, pid := range s.pids[:test.upgrades] {
				dies(t, pid)
			}
			s.running(t)
			s.heard(t)
			require.Regexp(t, `^serving on `+regexp.QuoteMeta(addresses[0])+`, `, s.property(t, "StatusText"))
			s.stop(t)
			h.empty(t)
		})
	}
}

// A version that does not become ready changes nothing but the status, which says why.
func TestSystemdFailure(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.role()
	r.Do, r.Reload.Timeout = "service", time.Second
	s := install(t, r, "", nil)
	first, addresses := s.start(t)
	load := clients(t, map[string]string{"tcp": addresses[0]})
	for _, test := range []struct {
		fail    string
		prepare func() error
		why     string
	}{
		{fail: "exit 7", why: `: systemd has its exit status; its last line: "the configuration is bad"`},
		{fail: "hang", why: "it was not ready within 1s"},
		{why: "exec format error", prepare: func() error {
			if err := os.Remove(s.program); err != nil {
				return err
			}
			return os.WriteFile(s.program, []byte("garbage"), 0o700)
		}},
		{why: "put the program back", prepare: func() error { return os.Remove(s.program) }},
	} {
		r.Fail = test.fail
		s.next(r)
		if test.prepare != nil {
			require.NoError(t, test.prepare())
		}
		s.m.Systemctl(t, "reload", unit)
		s.m.AwaitLog(t, test.why)
		require.Contains(t, s.property(t, "StatusText"), test.why)
		require.Regexp(t, "^upgrade to "+regexp.QuoteMeta(s.program)+`( \(pid \d+\))? failed, this version goes on: |^upgrade to the next version failed`, s.property(t, "StatusText"))
		require.Equal(t, strconv.Itoa(first), s.property(t, "MainPID"))
		h.owner(t, first, addresses[0])
		s.running(t)
	}
	r.Fail = ""
	s.next(r)
	s.link(t)
	second, _ := s.upgraded(t)
	h.owner(t, second, addresses[0])
	load.reach(t, second)
	load.lostNothing(t)
	dies(t, first)
	s.running(t)
	s.heard(t)
	s.stop(t)
	h.empty(t)
}

// A first version that has its sockets from systemd hands them on like those that it binds. They stay systemd's.
func TestSystemdActivated(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	address := fmt.Sprint("127.0.0.1:", freePort(t))
	r := h.role()
	r.Listen = []request{{"web", "tcp", "fd:web"}, {"", "unix", h.socket}} // by name, and by address
	s := install(t, r, "", map[string]string{socketUnit: fmt.Sprintf("[Socket]\nListenStream=%s\nFileDescriptorName=web\nService=%s\n", address, unit),
		"app-unix.socket": fmt.Sprintf("[Socket]\nListenStream=%s\nService=%s\n", h.socket, unit)})
	s.m.Systemctl(t, "start", socketUnit, "app-unix.socket")
	load := clients(t, map[string]string{"tcp": address, "unix": h.socket})
	pid, addresses := s.listening(t)
	require.Equal(t, []string{address, h.socket}, addresses)
	load.reach(t, pid)
	for range 3 {
		next, again := s.upgraded(t)
		require.Equal(t, addresses, again)
		load.reach(t, next)
		h.owner(t, next, address)
	}
	load.lostNothing(t)
	s.running(t)
	s.heard(t)
	s.stop(t)

	// It begins anew with the next client.
	require.Equal(t, "active", s.m.Property(t, socketUnit, "ActiveState"))
	require.FileExists(t, h.socket)
	for _, to := range []struct{ network, address string }{{"tcp", address}, {"unix", h.socket}} {
		answered, _ := get(t, to.network, to.address)
		pid, _ := s.listening(t)
		require.Equal(t, pid, answered)
		s.stop(t)
	}
}

// What is stored is what the version in charge asks for.
func TestSystemdStore(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	r := h.role()
	r.Do = "service"
	r.Config.Store, r.Config.Strategy = true, "staging"
	r.Listen[0].Address = taken.Addr().String()
	s := install(t, r, "FileDescriptorStoreMax=4", nil)
	stored := func(n int) {
		t.Helper()
		require.Equal(t, strconv.Itoa(n), s.property(t, "NFileDescriptorStore"))
	}
	restarted := func(want []string) {
		t.Helper()
		s.m.Systemctl(t, "restart", unit)
		pid, addresses := s.listening(t)
		require.Equal(t, want, addresses)
		for i, request := range r.Listen {
			answered, _ := get(t, request.Network, addresses[i])
			require.Equal(t, pid, answered)
		}
		stored(len(want))
	}
	_, addresses := s.start(t)
	require.NotEqual(t, taken.Addr().String(), addresses[0], "a fallback")
	stored(2)
	for range 2 {
		_, again := s.upgraded(t)
		require.Equal(t, addresses, again)
		stored(2)
	}
	restarted(addresses)
	_, again := s.upgraded(t)
	require.Equal(t, addresses, again)
	restarted(addresses)

	// One that is new.
	r.Listen = append(r.Listen, request{"new", "tcp", "127.0.0.1:0"})
	s.next(r)
	_, more := s.upgraded(t)
	require.Equal(t, addresses, more[:2])
	stored(3)
	restarted(more)

	// Two that are not wanted any more: one that was stored from the start, and one that a later version stored.
	r.Listen = r.Listen[1:2]
	s.next(r)
	before := s.pids[len(s.pids)-1]
	_, fewer := s.upgraded(t)
	require.Equal(t, addresses[1:], fewer)
	dies(t, before)
	s.m.Await(t, unit, "NFileDescriptorStore", "1") // not before the old one has ended, which may have to serve again
	for _, address := range []string{more[0], more[2]} {
		ln, err := net.Listen("tcp", address)
		require.NoError(t, err)
		require.NoError(t, ln.Close())
	}
	restarted(fewer)
	s.heard(t)
	s.stop(t)
}

// Whichever version was heard last, its successor has the whole interval.
func TestSystemdWatchdog(t *testing.T) {
	t.Parallel()
	const interval = 3 * time.Second
	t.Run("each version is healthy", func(t *testing.T) {
		t.Parallel()
		r := newHouse(t).role()
		r.Do = "watched"
		s := install(t, r, fmt.Sprint("WatchdogSec=", interval), nil)
		s.start(t)
		for begin := time.Now(); time.Since(begin) < 3*interval/2; time.Sleep(interval / 10) {
			s.upgraded(t)
		}
		s.running(t)
		s.stop(t)
	})
	t.Run("at the last moment", func(t *testing.T) {
		t.Parallel()
		s := install(t, newHouse(t).role(), fmt.Sprint("WatchdogSec=", interval), nil)
		first, addresses := s.start(t)
		time.Sleep(interval * 6 / 10) // since READY
		second, _ := s.upgraded(t)
		time.Sleep(interval * 6 / 10)
		require.Equal(t, second, requestOn(t, dial(t, addresses[0]), "/?notify=WATCHDOG%3D1"))
		s.running(t)
		dies(t, first)

		// And no longer.
		s.m.AwaitLog(t, unit+": Watchdog timeout")
		s.m.Await(t, unit, "Result", "watchdog")
	})
}

// The end of the main process is one for systemd, also as long as the version before it drains.
func TestSystemdCrash(t *testing.T) {
	t.Parallel()
	for _, drains := range []bool{false, true} {
		t.Run(fmt.Sprintf("drains=%v", drains), func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, "")
			if drains {
				require.Equal(t, c.pids[0], requestOn(t, dial(t, c.address), "/")) // and is silent from now on
			}
			second, _ := c.upgraded(t)
			if !drains {
				dies(t, c.pids[0])
			}
			signalTo(t, second, syscall.SIGKILL)
			c.recovers(t, 1)
			dies(t, second)
		})
	}
	// In an upgrade it is the one or the other, from one step to the next.
	for step, restarts := range map[string]int{"ready": 1, "announced": 0, "told": 0} {
		t.Run("the old at "+step, func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, "kill "+step)
			c.reload()
			c.said("at " + step)
			c.recovers(t, restarts)
		})
	}
	for _, step := range []string{"leads", "in charge"} {
		t.Run("the new at "+step, func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, "")
			r := c.role
			r.At = "kill " + step
			c.next(r)
			c.reload()
			c.said("at " + step)
			c.next(c.role)
			c.recovers(t, 1)
		})
	}
}

// A crash is a service that is about to have one.
type crash struct {
	*service
	house
	role    role // of later versions
	address string
}

// newCrash starts a version with a fate.
func newCrash(t *testing.T, at string) *crash {
	h := newHouse(t)
	r := h.role()
	r.Do, r.At = "service", at
	r.Listen[0].Address = fmt.Sprint("127.0.0.1:", freePort(t))
	c := &crash{install(t, r, "Restart=on-failure\nRestartSec=0", nil), h, r, r.Listen[0].Address}
	c.start(t)
	c.role.At = ""
	c.next(c.role)
	return c
}

// reload may fail: the crash can come first.
func (c *crash) reload() { _, _ = c.m.Try("reload", unit) }

// recovers waits for a version that serves after all, requires that all others end, and that what follows is as ever.
func (c *crash) recovers(t *testing.T, restarts int) {
	t.Helper()
	c.m.Await(t, unit, "NRestarts", strconv.Itoa(restarts))
	pid, _ := c.said("ready")
	for strconv.Itoa(pid) != c.property(t, "MainPID") {
		dies(t, pid) // it led for a moment, until systemd ended it with the main process
		pid, _ = c.said("ready")
	}
	require.NotContains(t, c.pids, pid)
	c.pids = append(c.pids, pid)
	c.owner(t, pid, c.address)
	require.Equal(t, strconv.Itoa(restarts), c.property(t, "NRestarts"))
	dies(t, c.pids[0])
	next, _ := c.upgraded(t)
	c.owner(t, next, c.address)
	require.Equal(t, "running", c.property(t, "SubState"))
	c.stop(t)
	c.empty(t)
}
