package listener_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/systemdtest"
	"github.com/berth-go/berth/listener"
)

func init() {
	roles["bequeath"] = role.playBequeath
	roles["inherit"] = role.playInherit
	roles["init"] = role.playInit
	roles["daemon"] = role.playDaemon
}

// playBequeath is "config" with a child that has the socket too.
func (r role) playBequeath() error {
	ln, err := r.listen()
	if err != nil {
		return err
	}
	file, err := ln.File()
	if err != nil {
		return err
	}
	cmd := exec.Command(r.Child[0], r.Child[1:]...)
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		return err
	}
	file.Close()
	// os/exec has made the socket blocking, for both. Then Close would wait for the next connection.
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), true) }); controlErr != nil || err != nil {
		return errors.Join(controlErr, err)
	}
	fmt.Println("child", cmd.Process.Pid)
	return r.serve(ln)
}

// playInherit serves the listening socket that is its descriptor 3.
func (r role) playInherit() error {
	file := os.NewFile(3, "inherited")
	ln, err := net.FileListener(file)
	if err != nil {
		return err
	}
	file.Close()
	return r.serve(ln)
}

// playInit is a server that is pid 1 of a namespace of its own.
func (r role) playInit() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	ln, err := net.Listen(r.Network, r.Address)
	if err != nil {
		return err
	}
	return r.serve(ln)
}

// playDaemon is "config" as a service of systemd: its stdin is empty, and it tells systemd that it is ready.
func (r role) playDaemon() error {
	ln, err := r.listen()
	if err != nil {
		return err
	}
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return err
	}
	stdin, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer open.Close()
	os.Stdin = stdin
	return r.serve(ln)
}

// needRoot is for what only root can set up.
func needRoot(t testing.TB) {
	t.Helper()
	need(t, os.Geteuid() == 0, "root")
}

func needCommand(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	need(t, err == nil, name)
	return path
}

// child waits for the line that tells the pid of a process's child, and holds on to that. The child ends with the test.
func (p *process) child(t testing.TB) *proc.Handle {
	t.Helper()
	line, _ := p.line(t)
	return heldByLine(t, line)
}

// heldByLine is child for a line that was read already.
func heldByLine(t testing.TB, line string) *proc.Handle {
	t.Helper()
	text, ok := strings.CutPrefix(line, "child ")
	require.True(t, ok, "got %q", line)
	pid, err := strconv.Atoi(text)
	require.NoError(t, err)
	h, err := proc.Open(pid)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = h.Kill()
		waitEnd(t, h)
		h.Close()
	})
	return h
}

// waitEnd waits until a process has ended that is no child of the test.
func waitEnd(t testing.TB, h *proc.Handle) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	require.NoError(t, h.Wait(ctx))
}

func TestReclaimSuspended(t *testing.T) {
	r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir()}
	stale := play(t, r)
	r.Do, r.Address, r.Strategy, r.Grace = "", stale.ready(t), "aggressive", deadline
	require.NoError(t, stale.Process.Signal(syscall.SIGSTOP))
	// It stays to be waited for, so that its end is not missed.
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, stale.pid(), &info, unix.WSTOPPED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			require.NoError(t, err)
			break
		}
	}

	begin := time.Now()
	_, origin := claim(t, r)
	require.Equal(t, []int{stale.pid()}, stopped(origin))
	require.NoError(t, stale.exit(t), "it was continued to act on SIGTERM")
	require.Less(t, time.Since(begin), r.Grace/2)
}

// Killing the first pid that a tool prints frees nothing while a child has the socket too.
func TestReclaimInheritedSocket(t *testing.T) {
	r := role{Do: "bequeath", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Child: []string{"sleep", "300"}}
	stale := play(t, r)
	child := stale.child(t)
	r.Do, r.Address, r.Child, r.Strategy = "", stale.ready(t), nil, "aggressive"

	fresh, origin := claim(t, r)
	require.Equal(t, listener.Reclaimed, origin.Kind)
	require.ElementsMatch(t, []int{stale.pid(), child.PID()}, stopped(origin))
	require.NoError(t, stale.exit(t))
	require.False(t, child.Alive())
	lives(fresh, "tcp", r.Address)(t)
}

// An orphan is a stranger by itself. The record of who started it makes it ours.
func TestReclaimOrphan(t *testing.T) {
	r := role{Do: "bequeath", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir(), Child: []string{"sleep", "300"}}
	dead := play(t, r)
	orphan := dead.child(t)
	r.Do, r.Address, r.Child = "", dead.ready(t), nil
	require.NoError(t, dead.Process.Kill())
	require.Equal(t, syscall.SIGKILL, dead.signalled(t))
	sleeps := func(t testing.TB) {
		t.Helper()
		require.True(t, orphan.Alive())
	}
	reason := fmt.Sprintf("pid %d is not stopped: it is no earlier run of this program", orphan.PID())

	t.Run("no record", func(t *testing.T) {
		r := r
		r.StateDir = t.TempDir()
		refused(t, []string{"aggressive"}, r, nil, sleeps, reason)
	})
	t.Run("record of another service", func(t *testing.T) {
		r := r
		other := filepath.Join(t.TempDir(), "other")
		install(t, other)
		elsewhere := func(cmd *exec.Cmd) {
			program(other)(cmd)
			in(t.TempDir())(cmd)
		}
		refused(t, []string{"aggressive"}, r, elsewhere, sleeps, reason)
	})
	t.Run("record", func(t *testing.T) {
		r := r
		r.Strategy = "aggressive"
		fresh, origin := claim(t, r)
		require.Equal(t, listener.Reclaimed, origin.Kind)
		require.Equal(t, []int{orphan.PID()}, stopped(origin))
		require.False(t, orphan.Alive())
		lives(fresh, "tcp", r.Address)(t)
	})
}

// supervisor opens a socket and gives it to a program, as its descriptor 3.
const supervisor = `
import os, socket, subprocess, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 0))
s.listen()
assert s.fileno() == 3
child = subprocess.Popen([sys.argv[1]], pass_fds=[3], stdin=subprocess.PIPE)
print("child", child.pid, flush=True)
child.wait()
`

// Whoever had the socket before ours is a supervisor. Without it ours would come back, so it is all or none.
func TestSharedWithSupervisor(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(python(t), "-c", supervisor, exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+encode(t, role{Do: "inherit"}))
	parent := start(t, cmd)
	var child *proc.Handle
	r := role{Network: "tcp", StateDir: t.TempDir()}
	for range 2 { // they tell in any order
		line, _ := parent.line(t)
		if address, ok := strings.CutPrefix(line, "ready "); ok {
			r.Address = address
			continue
		}
		child = heldByLine(t, line)
	}
	refused(t, []string{"aggressive", "development"}, withRange(t, r), nil, func(t testing.TB) {
		t.Helper()
		require.True(t, parent.alive())
		require.True(t, child.Alive())
		require.Equal(t, strconv.Itoa(child.PID()), answers(t, "tcp", r.Address))
	}, fmt.Sprintf("pid %d is not stopped: it is no earlier run of this program", parent.pid()))

	r.Strategy = "mine"
	fresh, origin := claim(t, r)
	require.ElementsMatch(t, []int{parent.pid(), child.PID()}, stopped(origin))
	require.Equal(t, syscall.SIGTERM, parent.signalled(t))
	waitEnd(t, child)
	lives(fresh, "tcp", r.Address)(t)
}

// A connection that a server closed keeps the port for a minute, unless the server set SO_REUSEADDR, as Go's do.
func TestRefuseTimeWait(t *testing.T) {
	const server = `
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen()
print("ready 127.0.0.1:%d" % s.getsockname()[1], flush=True)
s.accept()[0].close()
`
	closed := start(t, exec.Command(python(t), "-c", server))
	r := role{Network: "tcp", Address: closed.ready(t), StateDir: t.TempDir()}
	require.Empty(t, answers(t, "tcp", r.Address))
	require.NoError(t, closed.exit(t))
	refused(t, both, r, nil, func(testing.TB) {}, "not stopped: it is what remains of a closed connection; "+
		"the system keeps it for a minute after its end: try again later")
}

// nobody is another user than root, who may run the program at path.
const nobody = 65534

func public(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // those of testing are private
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "app")
	install(t, path)
	return path
}

func userName(t testing.TB, uid int) string {
	t.Helper()
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return strconv.Itoa(uid)
	}
	return u.Username
}

func as(uid uint32) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
}

func TestRefuseOtherUser(t *testing.T) {
	needRoot(t)
	path := public(t)
	setpriv := needCommand(t, "setpriv")
	with := func(option string) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.Path, cmd.Args = setpriv, []string{setpriv, option, path}
		}
	}
	for name, change := range map[string]func(*exec.Cmd){
		"user":           as(nobody),
		"real user":      with("--ruid=65534"), // as a setuid program has it
		"effective user": with("--euid=65534"),
	} {
		t.Run(name, func(t *testing.T) {
			// The same program in the same directory: it would be ours.
			holder := play(t, role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0"}, program(path), change)
			r := role{Network: "tcp", Address: holder.ready(t), StateDir: t.TempDir()}
			refused(t, both, r, program(path), lives(holder, "tcp", r.Address),
				fmt.Sprintf("pid %d is not stopped: it belongs to user %s", holder.pid(), userName(t, nobody)))
		})
	}

	t.Run("root's, invisible", func(t *testing.T) {
		holder := play(t, role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0"}, program(path))
		r := role{Network: "tcp", Address: holder.ready(t), StateDir: t.TempDir()}
		refused(t, both, r, func(cmd *exec.Cmd) {
			program(path)(cmd)
			as(nobody)(cmd)
		}, lives(holder, "tcp", r.Address), fmt.Sprintf("a process of user %[1]s that cannot be seen; not stopped: it cannot be seen; "+
			"run as root to see the process; it belongs to user %[1]s", userName(t, 0)))
	})
}

// The holder is pid 1 of a namespace, and who wants its port comes from outside, so it is no descendant.
func TestRefusePID1(t *testing.T) {
	needRoot(t)
	nsenter := needCommand(t, "nsenter")
	exe, err := os.Executable()
	require.NoError(t, err)
	holder := play(t, role{Do: "init", Network: "tcp", Address: "127.0.0.1:0"}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	})
	r := role{Network: "tcp", Address: holder.ready(t), StateDir: t.TempDir()}
	refused(t, both, r, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = nsenter, []string{nsenter, "--target", strconv.Itoa(holder.pid()), "--pid", "--mount", "--", exe}
	}, func(t testing.TB) {
		t.Helper()
		require.Equal(t, "1", answers(t, "tcp", r.Address))
		require.True(t, holder.alive())
	}, "pid 1 is not stopped: it is pid 1, which runs the system or the container")
}

// join puts a process into a cgroup below dir.
func join(t testing.TB, dir, path string, p *process) {
	t.Helper()
	dir = filepath.Join(dir, path)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.pid())), 0o600))
}

func TestRefuseContainer(t *testing.T) {
	needRoot(t)
	id := strings.Repeat("0123456789abcdef", 4)
	for _, root := range systemdtest.Hierarchies(t) {
		for _, path := range []string{"docker-" + id + ".scope", "docker/" + id} {
			t.Run(filepath.Base(root)+"/"+strings.TrimSuffix(path, ".scope"), func(t *testing.T) {
				dir := systemdtest.Cgroup(t, filepath.Join(root, fmt.Sprintf("berth-test-%d", os.Getpid())))
				r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir()}
				holder := play(t, r)
				r.Do, r.Address = "", holder.ready(t)
				join(t, dir, path, holder)
				refused(t, both, r, nil, lives(holder, "tcp", r.Address),
					fmt.Sprintf("pid %d is not stopped: it runs in a container, whose runtime would start it again; stop container %s", holder.pid(), id[:12]))

				// From the same container it is a copy like any other.
				b := newBarrier(t)
				r.Do, r.Strategy, r.Barrier = "origin", "aggressive", b.path
				fresh := play(t, r)
				b.wait(t, 1)
				join(t, dir, path, fresh)
				b.release()
				require.Equal(t, []int{holder.pid()}, stopped(fresh.origin(t)))
				fresh.ready(t)
				require.NoError(t, holder.exit(t))
			})
		}
	}
}

func TestRefuseSystemd(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	state, port := t.TempDir(), filepath.Join(t.TempDir(), "port")
	r := role{Do: "daemon", Network: "tcp", Address: "127.0.0.1:0", StateDir: state, PortFile: port}
	script := filepath.Join(t.TempDir(), "start")
	require.NoError(t, os.WriteFile(script, fmt.Appendf(nil, "export %s='%s'\nexec %s\n", roleVariable, encode(t, r), exe), 0o600))
	activated := net.JoinHostPort("127.0.0.1", freePort(t))
	s := systemdtest.Start(t, map[string]string{
		"app.service":       "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh " + script + "\n",
		"activated.socket":  "[Socket]\nListenStream=" + activated + "\n",
		"activated.service": "[Service]\nExecStart=/bin/sleep 300\n",
	})

	t.Run("service", func(t *testing.T) {
		s.Systemctl(t, "start", "app.service")
		pid := s.Property(t, "app.service", "MainPID")
		address, err := os.ReadFile(port)
		require.NoError(t, err)
		r := role{Network: "tcp", Address: strings.TrimSpace(string(address)), StateDir: state}
		refused(t, both, r, nil, func(t testing.TB) {
			t.Helper()
			require.Equal(t, pid, answers(t, "tcp", r.Address))
			require.Equal(t, "active", s.Systemctl(t, "is-active", "app.service"))
		}, "unit app.service", "pid "+pid+" is not stopped: systemd manages it and would start it again; systemctl stop app")
	})
	t.Run("socket", func(t *testing.T) {
		s.Systemctl(t, "start", "activated.socket")
		r := role{Network: "tcp", Address: activated, StateDir: state}
		refused(t, both, r, nil, func(t testing.TB) {
			t.Helper()
			require.True(t, s.Alive())
			require.Equal(t, "active", s.Systemctl(t, "is-active", "activated.socket"))
		}, fmt.Sprintf("pid %d is not stopped: it is a systemd manager, which holds the socket for a .socket unit; "+
			"systemctl list-sockets shows the unit to stop", s.PID()))
	})
}
