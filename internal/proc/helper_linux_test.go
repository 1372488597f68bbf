package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// helpers are the programs that the test binary can be. Each prints a line when it is ready.
var helpers = map[string]func() int{
	"wait":     helperWait,
	"term":     helperTerm,
	"holders":  helperHolders,
	"recycle":  helperRecycle,
	"complete": helperComplete,
	"churn":    helperChurn,
	"leader":   helperLeader,
}

// helperWait lives until its standard input ends.
func helperWait() int {
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// helperTerm acts on SIGTERM and counts SIGCONT.
func helperTerm() int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGCONT)
	fmt.Println("ready")
	code := 10
	for s := range signals {
		if s == syscall.SIGTERM {
			// Both may be pending at once. What came before SIGTERM is queued.
			return code
		}
		code++
	}
	return 1
}

// helperHolders prints what Holders and Holds find for the inode and the pids in its arguments.
func helperHolders() int {
	inode, _ := strconv.ParseUint(os.Args[1], 10, 64)
	for _, first := range []bool{false, true} {
		found, complete, err := Holders(context.Background(), []uint64{inode}, first)
		fmt.Println(len(found), complete, err)
	}
	pid, _ := strconv.Atoi(os.Args[2])
	holds, err := Holds(pid, inode)
	fmt.Println(holds, errors.Is(err, fs.ErrPermission))
	p, err := Get(pid)
	fmt.Println(p.PID == pid, p.UID, p.Start != 0, p.Executable == "", p.Dir == "", len(p.Args) > 0, err)
	return 0
}

// A child is a process of a test. It ends with the test.
type child struct {
	*exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
}

// helper starts the test binary as a helper, and returns when that is ready.
func helper(t testing.TB, name string, change ...func(*exec.Cmd)) *child {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+name, "GORACE=atexit_sleep_ms=0") // else 1 s an exit
	cmd.Stderr = os.Stderr
	for _, f := range change {
		f(cmd)
	}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	c := &child{cmd, stdin, bufio.NewReader(stdout)}
	if name == "wait" || name == "term" {
		require.Equal(t, "ready", c.line(t))
	}
	return c
}

func (c *child) line(t testing.TB) string {
	t.Helper()
	line, err := c.stdout.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

// sleepers starts n processes that do nothing.
func sleepers(t testing.TB, n int) []int {
	t.Helper()
	var pids []int
	for range n {
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

// socket returns a listening socket with its inode.
func socket(t testing.TB) (*os.File, uint64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f, inodeOf(t, f)
}

func inodeOf(t testing.TB, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	conn, err := f.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, conn.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }))
	require.NoError(t, err)
	return st.Ino
}

// waitZombie returns when a child has ended. It is not reaped.
func waitZombie(t testing.TB, pid int) {
	t.Helper()
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			require.NoError(t, err)
			return
		}
	}
}

// stop suspends a child and returns when it is suspended.
func stop(t testing.TB, pid int) {
	t.Helper()
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WUNTRACED, nil)
		if err != unix.EINTR {
			require.NoError(t, err)
			require.True(t, status.Stopped())
			return
		}
	}
}

// openDescriptors counts the descriptors of this process.
func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

const patience = 10 * time.Second

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
