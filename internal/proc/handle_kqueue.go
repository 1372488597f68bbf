//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package proc

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// handle is a kqueue with one filter: the end of the process. The filter belongs to the process, not to its pid.
type handle struct {
	pid int

	mu     sync.Mutex
	kq     int
	done   bool // the end is reported once
	closed bool
}

func openHandle(pid int) (*handle, error) {
	kq, err := watch(pid)
	if err != nil {
		return nil, err
	}
	h := &handle{pid: pid, kq: kq}
	if !h.alive() { // some systems register a zombie, and report it at once
		h.close()
		return nil, &goneError{pid}
	}
	return h, nil
}

// watch returns a kqueue to which the kernel reports the end of a process, kqueue(2) EVFILT_PROC.
func watch(pid int) (int, error) {
	kq, err := unix.Kqueue()
	if err != nil {
		return -1, os.NewSyscallError("kqueue", err)
	}
	unix.CloseOnExec(kq)
	exit := make([]unix.Kevent_t, 1)
	unix.SetKevent(&exit[0], pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	exit[0].Fflags = unix.NOTE_EXIT
	if err := add(kq, exit); err != nil {
		unix.Close(kq)
		if errors.Is(err, unix.ESRCH) {
			return -1, &goneError{pid}
		}
		return -1, os.NewSyscallError("kevent", err)
	}
	return kq, nil
}

// add registers filters without taking events.
func add(kq int, changes []unix.Kevent_t) error {
	for {
		_, err := unix.Kevent(kq, changes, nil, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

func (h *handle) ask(signal unix.Signal) error {
	if err := h.signal(signal); err != nil {
		return err
	}
	// The signal is pending now and comes first when the process goes on. Whether it is suspended is not looked up:
	// it takes a program, ps(1), to know.
	if err := h.signal(unix.SIGCONT); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (h *handle) kill() error { return h.signal(unix.SIGKILL) }

func (h *handle) signal(signal unix.Signal) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	if alive, err := h.aliveLocked(); err != nil {
		return err
	} else if !alive {
		return os.ErrProcessDone
	}
	err := unix.Kill(h.pid, signal)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("kill", err)
}

func (h *handle) alive() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	alive, err := h.aliveLocked()
	return alive || err != nil // an error must not pass for the end of the process
}

func (h *handle) aliveLocked() (bool, error) {
	events := make([]unix.Kevent_t, 1)
	var now unix.Timespec
	for !h.done {
		n, err := unix.Kevent(h.kq, nil, events, &now)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, os.NewSyscallError("kevent", err)
		case n == 0:
			return true, nil
		}
		h.done = true
	}
	return false, nil
}

// wait has a kqueue of its own, which reports the end of the process to it alone, and a pipe by which ctx wakes it.
func (h *handle) wait(ctx context.Context) error {
	h.mu.Lock()
	closed := h.closed
	h.mu.Unlock()
	if closed {
		return os.ErrClosed
	}
	kq, err := watch(h.pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(kq)
	// Alive still: so what was registered is this process, and not another one that has got its pid.
	if !h.alive() {
		return nil
	}

	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		w.Close() // r reaches its end
	})
	defer func() {
		if !stop() {
			<-fired
		}
		w.Close()
	}()
	conn, err := r.SyscallConn()
	if err != nil {
		return err
	}
	failed := conn.Control(func(fd uintptr) {
		wake := make([]unix.Kevent_t, 1)
		unix.SetKevent(&wake[0], int(fd), unix.EVFILT_READ, unix.EV_ADD)
		err = add(kq, wake)
	})
	if err = errors.Join(failed, err); err != nil {
		return os.NewSyscallError("kevent", err)
	}
	events := make([]unix.Kevent_t, 2)
	for {
		n, err := unix.Kevent(kq, nil, events, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("kevent", err)
		}
		for _, event := range events[:n] {
			if event.Filter == unix.EVFILT_PROC {
				return nil
			}
		}
		if err := ctx.Err(); err != nil {
			return err
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
	return os.NewSyscallError("close", unix.Close(h.kq))
}

func (*handle) killGroup() error { return errors.ErrUnsupported }
