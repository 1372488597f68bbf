package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/windows"
)

type handle struct {
	mu      sync.RWMutex
	process windows.Handle
	closed  bool
}

func openHandle(pid int) (*handle, error) {
	process, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_TERMINATE, false, uint32(pid))
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return nil, &goneError{pid}
	}
	if err != nil {
		return nil, os.NewSyscallError("OpenProcess", err)
	}
	h := &handle{process: process}
	if !h.alive() { // somebody else's handle keeps what is left of it
		h.close()
		return nil, &goneError{pid}
	}
	return h, nil
}

func (h *handle) ask(syscall.Signal) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return os.ErrClosed
	}
	if done, err := exited(h.process); err != nil {
		return err
	} else if done {
		return os.ErrProcessDone
	}
	return fmt.Errorf("terminate a process on Windows: %w", errors.ErrUnsupported)
}

func (h *handle) kill() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return os.ErrClosed
	}
	err := windows.TerminateProcess(h.process, 1)
	// Of a process that has ended, TerminateProcess says that access is denied.
	if done, waitErr := exited(h.process); err != nil && waitErr == nil && done {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("TerminateProcess", err)
}

func (h *handle) alive() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return false
	}
	done, err := exited(h.process)
	return err != nil || !done // an error must not pass for the end of the process
}

func exited(process windows.Handle) (bool, error) {
	event, err := windows.WaitForSingleObject(process, 0)
	if err != nil {
		return false, os.NewSyscallError("WaitForSingleObject", err)
	}
	return event == windows.WAIT_OBJECT_0, nil
}

// wait uses a duplicate of the handle, so that Close may come meanwhile, and an event by which ctx wakes it.
func (h *handle) wait(ctx context.Context) error {
	process, err := h.duplicate()
	if err != nil {
		return err
	}
	defer windows.CloseHandle(process)
	const manualReset = 1
	wake, err := windows.CreateEvent(nil, manualReset, 0, nil)
	if err != nil {
		return os.NewSyscallError("CreateEvent", err)
	}
	defer windows.CloseHandle(wake)
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = windows.SetEvent(wake) // fails for an invalid handle only
	})
	defer func() {
		if !stop() {
			<-fired // before the event is closed
		}
	}()
	// Where both are signalled, the lower index is returned: the process.
	event, err := windows.WaitForMultipleObjects([]windows.Handle{process, wake}, false, windows.INFINITE)
	switch {
	case err != nil:
		return os.NewSyscallError("WaitForMultipleObjects", err)
	case event == windows.WAIT_OBJECT_0:
		return nil
	default:
		return ctx.Err()
	}
}

func (h *handle) duplicate() (windows.Handle, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return 0, os.ErrClosed
	}
	var process windows.Handle
	self := windows.CurrentProcess()
	err := windows.DuplicateHandle(self, h.process, self, &process, 0, false, windows.DUPLICATE_SAME_ACCESS)
	return process, os.NewSyscallError("DuplicateHandle", err)
}

func (h *handle) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	return os.NewSyscallError("CloseHandle", windows.CloseHandle(h.process))
}

func (*handle) killGroup() error { return errors.ErrUnsupported }
