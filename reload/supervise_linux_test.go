package reload_test

import (
	"bufio"
	"encoding/json"
	"fmt"
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
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/systemdtest"
	"github.com/berth-go/berth/internal/testneed"
)

// children are the processes whose parent is pid, zombies included, by their commands.
func children(t *testing.T, pid int) map[string]int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	found := map[string]int{}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		number, rest, _ := strings.Cut(string(text), " (")
		command, rest, _ := strings.Cut(rest, ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			found[command], err = strconv.Atoi(number)
			require.NoError(t, err)
		}
	}
	return found
}

// As process 1 of a container it reaps orphans, lives through upgrades and crashes, and its end is the container's.
func TestSuperviseInit(t *testing.T) {
	testneed.That(t, os.Geteuid() == 0, "root, for a pid namespace")
	t.Parallel()
	h := newHouse(t)
	r := h.role()
	r.Do, r.Supervise, r.Pause = "steered", true, time.Millisecond
	text, err := json.Marshal(r)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "role")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	// Not by begin: pids mean something else in there.
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+path, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and with it all others
		_ = cmd.Wait()
	})
	in := bufio.NewReader(stdout)
	said := func(what string) (int, string) {
		for {
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			number, text, _ := strings.Cut(strings.TrimSpace(line), " ")
			if rest, ok := strings.CutPrefix(text, what); ok {
				pid, err := strconv.Atoi(number)
				require.NoError(t, err)
				return pid, strings.TrimSpace(rest)
			}
		}
	}
	_, addresses := said("listens")
	address, _, _ := strings.Cut(addresses, " ")
	first, _ := said("ready")
	for range 3 {
		require.Equal(t, "<nil>", steer(t, address, "/orphan"))
		var orphan int
		for deadline := time.Now().Add(patience); orphan == 0; orphan = children(t, cmd.Process.Pid)["sleep"] {
			require.True(t, time.Now().Before(deadline), "no orphan")
		}
		signalTo(t, orphan, syscall.SIGKILL)
		dies(t, orphan) // a zombie would stay
	}
	signalTo(t, cmd.Process.Pid, syscall.SIGHUP)
	second, _ := said("ready")
	require.NotEqual(t, first, second)
	for len(children(t, cmd.Process.Pid)) != 1 { // the first drains
		time.Sleep(time.Millisecond)
	}
	for _, pid := range children(t, cmd.Process.Pid) {
		signalTo(t, pid, syscall.SIGKILL)
	}
	said("ready")
	signalTo(t, cmd.Process.Pid, syscall.SIGTERM)
	require.NoError(t, cmd.Wait())
	h.empty(t)
}

// What systemd passed to the supervisor goes to every version that asks, by name or address, and nothing else of it does.
func TestSuperviseActivated(t *testing.T) {
	t.Parallel()
	var files []*os.File
	var want []string
	for range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		file, err := ln.(*net.TCPListener).File()
		require.NoError(t, err)
		files, want = append(files, file), append(want, ln.Addr().String())
		require.NoError(t, ln.Close())
	}
	r := role{Do: "steered", Supervise: true, Config: listenConfig{StateDir: t.TempDir()}, Listen: []request{{"web", "tcp", ":80"}, {"", "tcp", want[1]}}}
	s := &supervised{role: r, line: begin(t, r, func(cmd *exec.Cmd) {
		cmd.ExtraFiles = files
		cmd.Env = append(cmd.Env, "LISTEN_FDS=3", "LISTEN_FDNAMES=web:other:late", "NOTIFY_SOCKET=", "WATCHDOG_PID=1")
	})}
	for _, f := range files {
		require.NoError(t, f.Close())
	}
	listens := func(want ...string) {
		t.Helper()
		_, got := s.said("listens")
		require.Equal(t, strings.Join(want, " "), got)
		s.child, _ = s.said("ready")
		for _, address := range want {
			environ := steer(t, address, "/environ")
			for _, name := range []string{"LISTEN_", "WATCHDOG_", "TABLEFLIP"} {
				require.NotContains(t, environ, name)
			}
		}
	}
	listens(want[:2]...)
	require.Equal(t, 2, strings.Count(s.log.String(), "origin=activated"))
	old := s.child
	signalTo(t, s.pid(), syscall.SIGHUP)
	listens(want[:2]...)
	s.saidBy(t, old, "ended <nil>")

	r.Listen = append(r.Listen, request{"late", "tcp", ":81"}) // nobody has taken it yet
	s.next(r)
	signalTo(t, s.child, syscall.SIGKILL)
	listens(want...)
	require.Equal(t, 3, strings.Count(s.log.String(), "origin=activated"))
	signalTo(t, s.pid(), syscall.SIGTERM)
	require.Equal(t, 0, s.code(t))
}

// settledDescriptors counts the descriptors of a process when there are few enough, or they do not change any more: what
// the last upgrade has left goes in a moment.
func settledDescriptors(t *testing.T, pid, enough int) (n int) {
	t.Helper()
	for unchanged := 0; unchanged < 20; unchanged++ {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		require.NoError(t, err)
		if len(entries) != n {
			n, unchanged = len(entries), 0
		}
		if n <= enough {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return n
}

// Neither upgrades nor crashes leave a descriptor.
func TestSuperviseNoGrowth(t *testing.T) {
	t.Parallel()
	s := supervise(t, nil)
	turns := func(n int) {
		for i := range n {
			old := s.child
			if i%10 == 9 {
				signalTo(t, old, syscall.SIGKILL)
			} else {
				signalTo(t, s.pid(), syscall.SIGHUP)
				s.saidBy(t, old, "ended <nil>")
			}
			s.child, _ = s.said("ready")
		}
	}
	turns(20)
	supervisor, child := settledDescriptors(t, s.pid(), 0), settledDescriptors(t, s.child, 0)
	turns(200)
	require.LessOrEqual(t, settledDescriptors(t, s.pid(), supervisor), supervisor)
	require.LessOrEqual(t, settledDescriptors(t, s.child, child), child)
	require.Len(t, children(t, s.pid()), 1)
	s.stops(t)
}

// openTerminal opens a pseudo-terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	testneed.That(t, err == nil, "pseudo-terminals")
	t.Cleanup(func() { master.Close() })
	var n int
	raw, err := master.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}))
	require.NoError(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	return master, slave
}

// In a terminal the foreground stays with the supervisor, and Ctrl-C reaches the program once.
func TestSuperviseTerminal(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T) (*supervised, *os.File) {
		master, slave := openTerminal(t)
		s := supervise(t, nil, func(cmd *exec.Cmd) {
			cmd.Stdin = slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		})
		require.NoError(t, slave.Close())
		return s, master
	}
	foreground := func(t *testing.T, master *os.File) (group int) {
		raw, err := master.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) { group, err = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) }))
		require.NoError(t, err)
		return group
	}
	t.Run("Ctrl-C", func(t *testing.T) {
		t.Parallel()
		s, master := start(t)
		for range 3 {
			require.Equal(t, s.pid(), foreground(t, master))
			signalTo(t, s.pid(), syscall.SIGHUP)
			s.upgraded(t)
		}
		_, err := master.WriteString("\x03")
		require.NoError(t, err)
		s.saidBy(t, s.child, "ended <nil>")
		require.Equal(t, 0, s.code(t))
		s.empty(t)
		s.mu.Lock()
		defer s.mu.Unlock()
		require.Equal(t, 1, strings.Count(strings.Join(s.lines, "\n"), "got interrupt"))
	})
	t.Run("twice", func(t *testing.T) {
		t.Parallel()
		s, master := start(t)
		s.streams(t)
		_, err := master.WriteString("\x03")
		require.NoError(t, err)
		s.logged("msg=stopping")
		_, err = master.WriteString("\x03")
		require.NoError(t, err)
		s.saidBy(t, s.child, "ended <nil>")
		require.Equal(t, 0, s.code(t))
	})
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		s, master := start(t)
		require.NoError(t, master.Close())
		s.saidBy(t, s.child, "ended <nil>")
		require.Equal(t, 0, s.code(t))
		s.empty(t)
	})
}

// systemd knows the supervisor alone: it is ready when the program is, and stays the main process.
func TestSuperviseSystemd(t *testing.T) {
	h := newHouse(t)
	r := role{
		Do: "steered", Supervise: true, Listen: []request{{"", "unix", h.socket}}, Config: listenConfig{StateDir: h.state},
		Reload: reloadConfig{PIDFile: h.pid, Timeout: 4 * time.Second},
	}
	path := filepath.Join(filepath.Dir(h.state), "role")
	next := func(r role) {
		text, err := json.Marshal(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, text, 0o600))
	}
	next(r)
	exe, err := os.Executable()
	require.NoError(t, err)
	m := systemdtest.Start(t, map[string]string{"supervised.service": fmt.Sprintf(`[Service]
Type=notify
Environment=%s=%s
ExecStart=%s
ExecReload=kill -HUP $MAINPID
WatchdogSec=3
`, roleVariable, path, exe)})
	const unit = "supervised.service"
	main := func() string { return m.Property(t, unit, "MainPID") }

	m.Systemctl(t, "start", unit) // returns when it is ready
	first, _ := get(t, "unix", h.socket)
	pid := main()
	require.NotEqual(t, pid, strconv.Itoa(first))
	old := first
	for range 5 {
		m.Systemctl(t, "reload", unit)
		for deadline := time.Now().Add(patience); ; {
			now, _ := get(t, "unix", h.socket)
			if now != old {
				old = now
				break
			}
			require.True(t, time.Now().Before(deadline), m.Log())
		}
		m.Await(t, unit, "StatusText", "supervises pid "+strconv.Itoa(old))
		require.Equal(t, pid, main())
		require.Equal(t, "active", m.Property(t, unit, "ActiveState"))
	}
	bad := r
	bad.Fail = "hang"
	next(bad)
	m.Systemctl(t, "reload", unit)
	for deadline := time.Now().Add(patience); !strings.Contains(m.Property(t, unit, "StatusText"), "not ready within"); {
		require.True(t, time.Now().Before(deadline), m.Log())
	}
	m.Await(t, unit, "ActiveState", "active")
	answered, _ := get(t, "unix", h.socket)
	require.Equal(t, old, answered)
	m.Systemctl(t, "stop", unit)
	require.Equal(t, "success", m.Property(t, unit, "Result"))
	require.Equal(t, "0", m.Property(t, unit, "NRestarts"))
	require.NoFileExists(t, h.socket)
	require.NoFileExists(t, h.pid)
}
