package holder

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// What happens between the looks of Stop. Each helper is "stop", for which something happens there.
func init() {
	helpers["stop freed"] = helperStopFreed
	helpers["stop taken"] = helperStopTaken
	helpers["stop ended"] = helperStopEnded
	helpers["stop gone"] = helperStopGone
	helpers["stop killed"] = helperStopKilled
	helpers["await"] = helperAwait
}

// secondLook has something else answer when the table is read again.
func secondLook(answer func(sockets.Target) ([]sockets.Socket, error)) {
	first := kernel.inTheWay
	kernel.inTheWay = func(target sockets.Target) ([]sockets.Socket, error) {
		kernel.inTheWay = answer
		return first(target)
	}
}

// helperStopFreed finds nothing in the way any more.
func helperStopFreed() int {
	secondLook(func(sockets.Target) ([]sockets.Socket, error) { return nil, nil })
	return helperStop()
}

// helperStopTaken finds another socket in the way, of a process that is not pinned: this one.
func helperStopTaken() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer ln.Close()
	secondLook(func(sockets.Target) ([]sockets.Socket, error) {
		target, _ := sockets.TargetOf("tcp", ln.Addr())
		return sockets.InTheWay(target)
	})
	return helperStop()
}

// helperStopEnded has pinned a process that then ended. Its pid is another's by the second look, one that has the socket.
func helperStopEnded() int {
	pinned, err := startEcho()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	kernel.open = func(int) (*proc.Handle, error) { return proc.Open(pinned.Process.Pid) }
	secondLook(func(target sockets.Target) ([]sockets.Socket, error) {
		pinned.end()
		return sockets.InTheWay(target)
	})
	return helperStop()
}

// helperStopGone finds no process to pin. By the second look the pid is another's, one that has the socket.
func helperStopGone() int {
	kernel.open = func(int) (*proc.Handle, error) { return proc.Open(nowhere) }
	return helperStop()
}

// helperStopKilled kills the process of the third argument when it is asked about another one, and allows no second one.
func helperStopKilled() int {
	search, err := searchFor(os.Args[1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	asked := 0
	stopped, err := search.Stop(context.Background(), func(strategy.Holder) bool {
		pid, _ := strconv.Atoi(os.Args[3])
		if other, err := proc.Open(pid); err == nil {
			defer other.Close()
			_ = other.Kill()
			_ = other.Wait(context.Background())
		}
		asked++
		return asked == 1
	}, -1, slog.New(slog.DiscardHandler))
	for _, h := range stopped {
		fmt.Print(h.PID, " ")
	}
	fmt.Println(err)
	return 0
}

// sharers are processes that have one listening socket, which this one does not keep. The first is the oldest.
func sharers(t testing.TB, n int) (address string, all []*echo) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()
	for range n {
		cmd := exec.Command("cat")
		cmd.ExtraFiles = []*os.File{file}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		e := &echo{cmd, stdin, bufio.NewReader(stdout)}
		t.Cleanup(e.end)
		all = append(all, e)
	}
	return ln.Addr().String(), all
}

// requireUnharmed sends something and waits for the answer, before which a signal that is pending would come.
func (e *echo) requireUnharmed(t testing.TB) {
	t.Helper()
	_, err := io.WriteString(e.stdin, "alive\n")
	require.NoError(t, err)
	line, err := e.stdout.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "alive\n", line)
}

func TestStopBetweenTheLooks(t *testing.T) {
	for _, what := range []string{"stop freed", "stop taken", "stop ended", "stop gone"} {
		for _, allowed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/allowed=%v", what, allowed), func(t *testing.T) {
				address, holders := sharers(t, 1)
				args := []string{address, "-1ns"}
				if !allowed {
					args = append(args, strconv.Itoa(holders[0].Process.Pid))
				}
				require.Equal(t, "<nil>", helper(t, what, args...).line(t), "nobody is stopped, and nobody refused")
				holders[0].requireUnharmed(t)
			})
		}
	}
	// None of this is so when nothing happens in between.
	address, holders := sharers(t, 1)
	require.Equal(t, fmt.Sprintf("%d <nil>", holders[0].Process.Pid), helper(t, "stop", address, "-1ns").line(t))
}

// A holder that ends while another one is judged is neither stopped nor refused.
func TestStopOneEnds(t *testing.T) {
	address, holders := sharers(t, 2)
	older, newer := holders[0].Process.Pid, holders[1].Process.Pid
	stop := helper(t, "stop killed", address, "-1ns", strconv.Itoa(older))
	require.Equal(t, fmt.Sprintf("%d <nil>", newer), stop.line(t))
}

// A watched context is background for who calls look each time that a deadline is derived from it: once a wait.
type watched struct {
	context.Context
	look func()
}

func (w watched) Deadline() (time.Time, bool) {
	w.look()
	return w.Context.Deadline()
}

const withoutDescriptors = 200 * time.Millisecond

// helperAwait waits for the process of the first argument without a descriptor to do it with: for a time, and then for its
// end, which comes with the first wait. It prints how a wait fails with a descriptor and without, and after each of the two
// how many processes are alive, how many waits and lines in the log there were, and the error.
func helperAwait() int {
	pid, _ := strconv.Atoi(os.Args[1])
	handle, err := proc.Open(pid)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer handle.Close()
	processes := []suspect{{holding{holder: strategy.Holder{PID: pid}}, handle}}
	// The runtime opens its poller for the first wait or timer, and dies where it cannot.
	over, cancel := context.WithCancel(context.Background())
	cancel()
	fmt.Println(handle.Wait(over))
	// Not 0: poll(2) takes as many descriptors as may be open.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(handle.Wait(context.Background()))
	for _, test := range []struct {
		atMost time.Duration
		kill   bool
	}{{withoutDescriptors, false}, {time.Minute, true}} {
		var log strings.Builder
		waits := 0
		ctx := watched{context.Background(), func() {
			waits++
			if test.kill && waits == 1 {
				_ = handle.Kill()
			}
		}}
		alive, err := await(ctx, processes, test.atMost, slog.New(slog.NewTextHandler(&log, nil)))
		fmt.Println(len(alive), waits, strings.Count(log.String(), "\n"), err)
	}
	return 0
}

// Where the process has no descriptor left for a wait, it looks now and then: it does not spin, and does not fill the log.
func TestAwaitWithoutDescriptors(t *testing.T) {
	holder, err := startEcho()
	require.NoError(t, err)
	t.Cleanup(holder.end)
	c := helper(t, "await", strconv.Itoa(holder.Process.Pid))
	require.Equal(t, "context canceled", c.line(t), "it can wait")
	require.Equal(t, "fcntl: too many open files", c.line(t), "it cannot wait")

	var alive, waits, lines int
	var failure string
	read := func() {
		_, err := fmt.Sscan(c.line(t), &alive, &waits, &lines, &failure)
		require.NoError(t, err)
		require.Equal(t, "<nil>", failure)
	}
	read()
	require.Equal(t, 1, alive)
	require.Positive(t, waits)
	require.LessOrEqual(t, waits, int(withoutDescriptors/(20*time.Millisecond))+1)
	require.Zero(t, lines)

	read()
	require.Zero(t, alive, "its end is seen")
	require.Positive(t, waits)
}
