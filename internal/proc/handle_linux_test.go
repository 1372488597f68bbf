package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// kernels are the kernels on which a handle has to do the same: this one, one from before PIDFD_NONBLOCK (5.10), one
// with pidfds that takes no signals by them (they came apart), and those without: too old, or forbidden.
var kernels = map[string]system{
	"this": kernel,
	"before 5.10": with(func(s *system) {
		s.pidfdOpen = func(pid, flags int) (int, error) {
			if flags != 0 {
				return -1, unix.EINVAL
			}
			return unix.PidfdOpen(pid, 0)
		}
	}),
	"no pidfd_send_signal": with(func(s *system) {
		s.pidfdSendSignal = func(int, unix.Signal, *unix.Siginfo, int) error { return unix.ENOSYS }
	}),
	"before 5.3": with(func(s *system) {
		s.pidfdOpen = func(int, int) (int, error) { return -1, unix.ENOSYS }
	}),
	"seccomp": with(func(s *system) {
		s.pidfdOpen = func(int, int) (int, error) { return -1, unix.EPERM }
	}),
}

func with(change func(*system)) system {
	s := kernel
	change(&s)
	return s
}

// onEach runs a test on each kernel.
func onEach(t *testing.T, test func(t *testing.T, open func(pid int) *Handle)) {
	for name, s := range kernels {
		t.Run(name, func(t *testing.T) {
			test(t, func(pid int) *Handle {
				h, err := s.open(pid)
				require.NoError(t, err)
				handle := &Handle{pid: pid, h: h}
				t.Cleanup(func() { handle.Close() })
				return handle
			})
		})
	}
}

func TestHandleWait(t *testing.T) {
	onEach(t, func(t *testing.T, open func(int) *Handle) {
		c := helper(t, "wait")
		h := open(c.Process.Pid)
		require.Equal(t, c.Process.Pid, h.PID())
		require.True(t, h.Alive())

		waited := make(chan error, 1)
		go func() { waited <- h.Wait(deadline(t)) }()
		c.stdin.Close()
		require.NoError(t, <-waited)

		// It is a zombie now: nobody has waited for it.
		require.False(t, h.Alive())
		require.NoError(t, h.Wait(context.Background()), "again")
		require.Equal(t, os.ErrProcessDone, h.Terminate())
		require.Equal(t, os.ErrProcessDone, h.Kill())
		_, err := Open(c.Process.Pid)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorIs(t, err, os.ErrProcessDone)

		require.NoError(t, c.Wait())
		require.False(t, h.Alive())
		require.NoError(t, h.Wait(context.Background()))
		require.Equal(t, os.ErrProcessDone, h.Terminate())
		require.Equal(t, os.ErrProcessDone, h.Kill())
		_, err = Open(c.Process.Pid)
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
}

// What is waited for need not be a child.
func TestHandleWaitGrandchild(t *testing.T) {
	c := helper(t, "", func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", "sleep 600 >/dev/null & echo $!; wait"}
	})
	var pid int
	_, err := fmt.Sscan(c.line(t), &pid)
	require.NoError(t, err)
	h, err := Open(pid)
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, h.Kill())
	require.NoError(t, h.Wait(deadline(t)))
}

func TestHandleWaitContext(t *testing.T) {
	onEach(t, func(t *testing.T, open func(int) *Handle) {
		c := helper(t, "wait")
		h := open(c.Process.Pid)

		ctx, cancel := context.WithCancel(context.Background())
		other := make(chan error, 1)
		go func() { other <- h.Wait(deadline(t)) }()
		cancelled := make(chan error, 1)
		go func() { cancelled <- h.Wait(ctx) }()
		cancel()
		require.ErrorIs(t, <-cancelled, context.Canceled)
		require.ErrorIs(t, h.Wait(ctx), context.Canceled, "has ended before")
		short, cancelShort := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancelShort()
		require.ErrorIs(t, h.Wait(short), context.DeadlineExceeded)
		require.True(t, h.Alive(), "waiting does nothing to it")

		require.NoError(t, h.Kill())
		require.NoError(t, <-other, "the other wait is not disturbed")
		require.NoError(t, h.Wait(ctx), "it has ended: what else ctx has done does not matter")
	})
}

func TestHandleLeaksNothing(t *testing.T) {
	pid := helper(t, "wait").Process.Pid
	h, err := Open(pid)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	before := openDescriptors(t)
	for range 20 {
		h, err := Open(pid)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		waited := make(chan error, 1)
		go func() { waited <- h.Wait(ctx) }()
		cancel()
		require.ErrorIs(t, <-waited, context.Canceled)
		require.NoError(t, h.Close())
		_, err = Open(1 << 30)
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
	require.Equal(t, before, openDescriptors(t))
}

// A Wait costs no thread and no time while it waits: its goroutine is parked in the network poller.
func TestHandleWaitParks(t *testing.T) {
	const waits = 100
	c := helper(t, "wait")
	h, err := Open(c.Process.Pid)
	require.NoError(t, err)
	defer h.Close()
	var wg sync.WaitGroup
	for range waits {
		wg.Go(func() { h.Wait(context.Background()) })
	}
	parked := func() int {
		stacks := make([]byte, 1<<20)
		n := 0
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			head, frames, _ := strings.Cut(stack, "\n")
			if strings.Contains(head, "[IO wait") && strings.Contains(frames, ".(*Handle).Wait") {
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool { return parked() == waits }, patience, time.Millisecond)

	threads, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	require.Less(t, len(threads), waits/2)
	var before, after unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &before))
	<-time.After(200 * time.Millisecond) // there is no event to wait for: nothing may happen
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &after))
	spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	require.Less(t, spent, 50*time.Millisecond)

	require.NoError(t, h.Kill())
	wg.Wait()
}

func TestHandleTerminate(t *testing.T) {
	onEach(t, func(t *testing.T, open func(int) *Handle) {
		for _, stopped := range []bool{false, true} {
			c := helper(t, "term")
			h := open(c.Process.Pid)
			if stopped {
				stop(t, c.Process.Pid)
			}
			require.NoError(t, h.Terminate())
			require.NoError(t, h.Wait(deadline(t)))
			err := c.Wait()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			if stopped {
				require.Contains(t, []int{10, 11}, exit.ExitCode(), "its own handler has ended it")
			} else {
				require.Equal(t, 10, exit.ExitCode(), "and no SIGCONT came to one that ran")
			}
		}
	})
}

func TestHandleAsk(t *testing.T) {
	onEach(t, func(t *testing.T, open func(int) *Handle) {
		c := helper(t, "term") // it has no handler for this one
		h := open(c.Process.Pid)
		stop(t, c.Process.Pid)
		require.NoError(t, h.Ask(syscall.SIGHUP))
		require.EqualError(t, c.Wait(), "signal: hangup")
		require.ErrorIs(t, h.Ask(syscall.SIGHUP), os.ErrProcessDone)
	})
}

func TestHandleKill(t *testing.T) {
	onEach(t, func(t *testing.T, open func(int) *Handle) {
		c := helper(t, "term")
		stop(t, c.Process.Pid)
		h := open(c.Process.Pid)
		require.NoError(t, h.Kill())
		require.NoError(t, h.Wait(deadline(t)))
		err := c.Wait()
		require.EqualError(t, err, "signal: killed")
	})
}

func TestHandleClose(t *testing.T) {
	onEach(t, func(t *testing.T, open func(int) *Handle) {
		before := openDescriptors(t)
		c := helper(t, "wait")
		h := open(c.Process.Pid)
		ctx, cancel := context.WithCancel(context.Background())
		waited := make(chan error, 1)
		go func() { waited <- h.Wait(ctx) }()
		require.NoError(t, h.Close())
		require.NoError(t, h.Close())
		require.ErrorIs(t, h.Terminate(), os.ErrClosed)
		require.ErrorIs(t, h.Kill(), os.ErrClosed)
		require.False(t, h.Alive())
		require.NoError(t, unix.Kill(c.Process.Pid, 0), "it lives on")
		cancel()
		err := <-waited
		require.True(t, errors.Is(err, context.Canceled) || errors.Is(err, os.ErrClosed), "%v", err)

		c.stdin.Close()
		io.Copy(io.Discard, c.stdout)
		require.NoError(t, c.Wait())
		require.Equal(t, before, openDescriptors(t))
	})
}

func TestHandlePermission(t *testing.T) {
	for name, s := range map[string]system{
		"pidfd": with(func(s *system) {
			s.pidfdSendSignal = func(int, unix.Signal, *unix.Siginfo, int) error { return unix.EPERM }
		}),
		"no pidfd": with(func(s *system) {
			s.pidfdOpen = func(int, int) (int, error) { return -1, unix.ENOSYS }
			s.kill = func(int, unix.Signal) error { return unix.EPERM }
		}),
	} {
		t.Run(name, func(t *testing.T) {
			h, err := s.open(helper(t, "wait").Process.Pid)
			require.NoError(t, err)
			defer h.close()
			require.ErrorIs(t, h.ask(unix.SIGTERM), fs.ErrPermission)
			require.ErrorIs(t, h.kill(), fs.ErrPermission)
		})
	}
}

func TestOpenFails(t *testing.T) {
	s := with(func(s *system) { s.pidfdOpen = func(int, int) (int, error) { return -1, unix.EMFILE } })
	_, err := s.open(os.Getpid())
	require.ErrorIs(t, err, unix.EMFILE)
}

// Without a pidfd the start of the process stands for it. Where that cannot be read, no signal is sent.
func TestHandleWithoutPidfd(t *testing.T) {
	now := stat{state: 'S', threads: 1, start: 7}
	var failure error
	var sent []unix.Signal
	s := system{
		pidfdOpen: func(int, int) (int, error) { return -1, unix.ENOSYS },
		kill: func(pid int, signal unix.Signal) error {
			require.Equal(t, 42, pid)
			sent = append(sent, signal)
			return nil
		},
		stat: func(int) (stat, error) { return now, failure },
	}
	h, err := s.open(42)
	require.NoError(t, err)
	require.NoError(t, h.ask(unix.SIGTERM))
	require.Equal(t, []unix.Signal{unix.SIGTERM}, sent)

	now.state = 'T'
	require.NoError(t, h.ask(unix.SIGTERM))
	require.Equal(t, []unix.Signal{unix.SIGTERM, unix.SIGTERM, unix.SIGCONT}, sent)
	sent = nil

	failure = fs.ErrPermission
	require.ErrorIs(t, h.kill(), fs.ErrPermission)
	require.True(t, h.alive(), "not known to have ended")
	failure = nil
	now.start++
	require.ErrorIs(t, h.kill(), os.ErrProcessDone, "the pid is another process's")
	require.False(t, h.alive())
	now.start--
	now.state = 'Z'
	require.ErrorIs(t, h.kill(), os.ErrProcessDone)
	now.state = 'S'
	failure = &goneError{42}
	require.ErrorIs(t, h.kill(), os.ErrProcessDone)
	require.Empty(t, sent)
	_, err = s.open(42)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// A pid that is given to another process is that of the other: the handle does not reach it.
func TestHandleRecycledPID(t *testing.T) {
	c := helper(t, "recycle", newNamespace(t))
	require.Equal(t, "ok", c.line(t))
}

// helperRecycle is pid 1 of its namespace, where it makes the kernel give a pid twice.
func helperRecycle() int {
	if err := recycle(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ok")
	return 0
}

func recycle() error {
	if err := mountProc(); err != nil {
		return err
	}
	for name, s := range kernels {
		first := exec.Command("sleep", "600")
		if err := first.Start(); err != nil {
			return err
		}
		pid := first.Process.Pid
		h, err := s.open(pid)
		if err != nil {
			return err
		}
		dir, err := openProc(pid)
		if err != nil {
			return err
		}
		first.Process.Kill()
		first.Wait()
		// Starts are counted in 10 ms, and pids take much longer than that to come round: so must this one.
		for died := time.Now(); time.Since(died) < 30*time.Millisecond; {
			runtime.Gosched()
		}
		second, err := startAs(pid)
		if err != nil {
			return err
		}
		alive := h.alive()
		terminate, kill, wait := h.ask(unix.SIGTERM), h.kill(), h.wait(context.Background())
		_, read := readAt(dir, "stat")
		if st, err := readStat(pid); err != nil || st.dead() {
			return fmt.Errorf("%s: the other process was hit: %v %w", name, st, err)
		}
		if alive || !errors.Is(terminate, os.ErrProcessDone) || !errors.Is(kill, os.ErrProcessDone) || wait != nil {
			return fmt.Errorf("%s: %v %w %w %w", name, alive, terminate, kill, wait)
		}
		if !isGone(read) {
			return fmt.Errorf("%s: facts of the other process were read: %w", name, read)
		}
		h.close()
		unix.Close(dir)
		second.Process.Kill()
		second.Wait()
	}
	return nil
}

// startAs starts a process that gets this pid. Threads take pids as well, so it may take more than one try.
func startAs(pid int) (*exec.Cmd, error) {
	for range 1000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Appendf(nil, "%d", pid-1), 0); err != nil {
			return nil, err
		}
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if cmd.Process.Pid == pid {
			return cmd, nil
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	return nil, errors.New("the pid was not given again")
}

func BenchmarkHandle(b *testing.B) {
	pid := sleepers(b, 1)[0]
	b.Run("op=open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h, err := Open(pid)
			if err != nil {
				b.Fatal(err)
			}
			h.Close()
		}
	})
	// From the signal to the end of Wait, with the start of the process in it: sleep has no handler.
	b.Run("op=kill-wait", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.Command("sleep", "600")
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			h, err := Open(cmd.Process.Pid)
			if err != nil {
				b.Fatal(err)
			}
			begin := time.Now()
			if err := errors.Join(h.Kill(), h.Wait(b.Context())); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(begin).Nanoseconds()), "last-ns")
			h.Close()
			cmd.Wait()
		}
	})
}

// What a process has started is ended with it, also when the process itself has been reaped, and no other group of that number.
func TestKillGroup(t *testing.T) {
	c := helper(t, "leader", func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} })
	member, err := strconv.Atoi(c.line(t))
	require.NoError(t, err)
	leader, err := Open(c.Process.Pid)
	require.NoError(t, err)
	defer leader.Close()
	left, err := Open(member)
	require.NoError(t, err)
	defer left.Close()
	require.NoError(t, c.stdin.Close())
	require.NoError(t, c.Wait())
	require.True(t, left.Alive())
	err = leader.KillGroup()
	if errors.Is(err, errors.ErrUnsupported) { // before Linux 6.9
		require.NoError(t, left.Kill())
		return
	}
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, left.Wait(ctx))
	require.NoError(t, leader.KillGroup(), "nobody is left")
	require.NoError(t, leader.Close())
	require.ErrorIs(t, leader.KillGroup(), errors.ErrUnsupported)
}

// helperLeader starts a process that stays in its group, and ends with its standard input.
func helperLeader() int {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(cmd.Process.Pid)
	io.Copy(io.Discard, os.Stdin)
	return 0
}
