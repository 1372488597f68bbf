package proc

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A system is what a handle asks of the kernel. Tests put other kernels in its place.
type system struct {
	pidfdOpen       func(pid, flags int) (fd int, err error)
	pidfdSendSignal func(fd int, signal unix.Signal, info *unix.Siginfo, flags int) error
	kill            func(pid int, signal unix.Signal) error
	stat            func(pid int) (stat, error)
}

var kernel = system{
	pidfdOpen:       unix.PidfdOpen,
	pidfdSendSignal: unix.PidfdSendSignal,
	kill:            unix.Kill,
	stat:            readStat,
}

type handle struct {
	system *system
	pid    int
	start  uint64 // without a pidfd: which process of this pid is meant

	mu     sync.RWMutex // held while fd is used, so that Close does not give its number to another file
	fd     int          // the pidfd, non-blocking; -1 where the kernel gives none
	closed bool
}

func openHandle(pid int) (*handle, error) { return kernel.open(pid) }

func (s *system) open(pid int) (*handle, error) {
	h := &handle{system: s, pid: pid, fd: -1}
	fd, err := s.openPidfd(pid)
	switch {
	case err == nil:
		h.fd = fd
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		// Before Linux 5.3, or forbidden by seccomp(2): the call itself has no such error.
		st, err := s.stat(pid)
		if err != nil {
			return nil, err
		}
		h.start = st.start
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		// EINVAL, ENOENT in later versions: it is a thread, not the first of its process.
		return nil, &goneError{pid}
	default:
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	if !h.alive() {
		h.close()
		return nil, &goneError{pid} // pidfd_open succeeds for a zombie
	}
	return h, nil
}

// openPidfd opens a pidfd that can be registered in the poller, which wants it non-blocking. The descriptor is closed
// on exec by itself.
func (s *system) openPidfd(pid int) (int, error) {
	const nonblock = unix.O_NONBLOCK // PIDFD_NONBLOCK, since Linux 5.10
	fd, err := s.pidfdOpen(pid, nonblock)
	if !errors.Is(err, unix.EINVAL) {
		return fd, err
	}
	if fd, err = s.pidfdOpen(pid, 0); err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (h *handle) ask(signal unix.Signal) error {
	if err := h.signal(signal); err != nil {
		return err
	}
	// The signal is pending now and comes first when the process goes on. SIGCONT is not sent to one that runs: it
	// may have a handler for it.
	st, err := h.system.stat(h.pid)
	if err != nil || !st.stopped() {
		return nil
	}
	if err := h.signal(unix.SIGCONT); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (h *handle) kill() error { return h.signal(unix.SIGKILL) }

// signal sends a signal to the process that h was opened for, and to no other.
func (h *handle) signal(signal unix.Signal) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return os.ErrClosed
	}
	// Asked first, since the kernel takes signals to a zombie without an error, and since without a pidfd nothing
	// else keeps the signal from another process. Where the answer is not known, none is sent.
	if alive, err := h.check(); err != nil {
		return err
	} else if !alive {
		return os.ErrProcessDone
	}
	call, err := "pidfd_send_signal", error(unix.ENOSYS)
	if h.fd >= 0 {
		err = h.system.pidfdSendSignal(h.fd, signal, nil, 0)
	}
	if errors.Is(err, unix.ENOSYS) {
		call, err = "kill", h.system.kill(h.pid, signal)
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError(call, err)
}

func (h *handle) alive() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return false
	}
	// Only what is known to have ended is not alive: an error must not pass for the end of the process.
	alive, err := h.check()
	return alive || err != nil
}

// check finds out whether the process has not ended. It is called with mu held while there is a pidfd.
func (h *handle) check() (alive bool, err error) {
	if h.fd >= 0 {
		done, err := ended(h.fd)
		return !done, err
	}
	st, err := h.system.stat(h.pid)
	if errors.Is(err, os.ErrProcessDone) {
		return false, nil
	}
	return err == nil && st.start == h.start && !st.dead(), err
}

// ended reports whether a pidfd is readable: whether all threads of the process have ended, pidfd_open(2).
func ended(pidfd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0, os.NewSyscallError("poll", err)
		}
	}
}

func (h *handle) wait(ctx context.Context) error {
	f, err := h.file()
	if err != nil {
		return err
	}
	if f == nil {
		return poll(ctx, h.check)
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	check := func() (alive bool, err error) {
		done := false
		if failed := conn.Control(func(fd uintptr) { done, err = ended(int(fd)) }); failed != nil {
			err = failed
		}
		return !done, err
	}
	if f.SetReadDeadline(time.Time{}) != nil {
		return poll(ctx, check) // a kernel whose epoll(7) takes no pidfd
	}

	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = f.SetReadDeadline(time.Unix(1, 0)) // the one above was accepted
	})
	var failed error
	err = conn.Read(func(fd uintptr) (done bool) {
		done, failed = ended(int(fd))
		return done || failed != nil
	})
	if !stop() {
		<-fired
	}
	switch {
	case err == nil:
		return failed
	case ctx.Err() != nil:
		// Where the deadline is over, nothing was looked at.
		if alive, err := check(); err == nil && !alive {
			return nil
		}
		return ctx.Err()
	default:
		return err
	}
}

// file returns a file of its own for one wait, nil without a pidfd: each has another deadline, and the poller wakes one
// reader a file.
func (h *handle) file() (*os.File, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return nil, os.ErrClosed
	}
	if h.fd < 0 {
		return nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil // in the poller, as it is non-blocking
}

// poll waits without a pidfd, or without a poller for it. A check that fails is made again.
func poll(ctx context.Context, check func() (alive bool, err error)) error {
	const shortest, longest = time.Millisecond, 50 * time.Millisecond
	timer := time.NewTimer(shortest)
	defer timer.Stop()
	for pause := shortest; ; pause = min(2*pause, longest) {
		if alive, err := check(); err == nil && !alive {
			return nil
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (h *handle) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	if h.fd < 0 {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(h.fd))
}

func (h *handle) killGroup() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed || h.fd < 0 {
		return errors.ErrUnsupported
	}
	err := unix.PidfdSendSignal(h.fd, unix.SIGKILL, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.EINVAL):
		return errors.ErrUnsupported
	}
	return err
}
