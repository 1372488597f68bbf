package proc

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"syscall"
)

// A Handle holds on to exactly one process, from [Open] to [Handle.Close]. Where the process has ended, no method
// reaches another one that was given its pid. Its methods may be called concurrently.
//
// On Linux it is a pidfd, pidfd_open(2), since Linux 5.3. On older kernels, and where a sandbox forbids the call, it
// is the pid together with the start of the process, which is compared just before each signal: then a pid that is
// recycled within these microseconds is hit. On macOS and the BSDs the kernel reports the end of the process to a
// kqueue(2), which is asked just before each signal; the same microseconds remain. On Windows it is a process handle,
// as long as which is open the pid is not given away.
type Handle struct {
	pid int
	h   *handle
}

// Open returns a handle of the process that has this pid now. Whether it is the one that was meant is to be verified
// after, by its [Start].
//
// The error is both fs.ErrNotExist and os.ErrProcessDone where there is no such process, or it has ended and was not
// waited for yet. A pid below 1 is refused: kill(2) would take it for a group of processes, or for all.
func Open(pid int) (*Handle, error) {
	if pid < 1 {
		return nil, fmt.Errorf("open process %d: a pid is positive: %w", pid, fs.ErrInvalid)
	}
	if pid > math.MaxInt32 {
		return nil, &goneError{pid} // the system calls would cut it to 32 bits, and reach another one
	}
	h, err := openHandle(pid)
	if err != nil {
		return nil, err
	}
	return &Handle{pid: pid, h: h}, nil
}

// PID returns the pid that the process has, or had.
func (h *Handle) PID() int { return h.pid }

// Terminate asks the process to end, by SIGTERM. A process that job control has suspended is also continued, since it
// could not act on it otherwise. The error is os.ErrProcessDone where the process has ended, fs.ErrPermission where it
// may not be signalled, and os.ErrClosed after Close.
//
// On Windows nothing asks a process of another console to end: there the error is errors.ErrUnsupported, and what is
// left is [Handle.Kill].
func (h *Handle) Terminate() error { return h.h.ask(syscall.SIGTERM) }

// Ask is [Handle.Terminate] by another signal.
func (h *Handle) Ask(signal syscall.Signal) error { return h.h.ask(signal) }

// Kill ends the process, by SIGKILL. It does not wait for the end. Errors are those of Terminate.
func (h *Handle) Kill() error { return h.h.kill() }

// KillGroup ends the process group that the process leads, by SIGKILL, also where the process itself has ended. It means
// that group, and no later one of its number. Needs Linux 6.9; the error is errors.ErrUnsupported without.
func (h *Handle) KillGroup() error { return h.h.killGroup() }

// Alive reports whether the process has not ended yet. One that has ended, and was not waited for by its parent
// (a zombie), is not alive. After Close it reports false.
func (h *Handle) Alive() bool { return h.h.alive() }

// Wait waits until the process has ended, which need not be a child of this one, and returns nil. Where ctx ends first,
// it returns ctx's error. Close does not end a Wait that goes on.
//
// On Linux a wait takes a descriptor and no thread: it parks in Go's network poller. Without a pidfd it looks at
// /proc every 1 to 50 ms. On macOS, the BSDs and Windows it keeps a thread.
func (h *Handle) Wait(ctx context.Context) error { return h.h.wait(ctx) }

// Close releases the handle; it does nothing to the process. Closing again does nothing.
func (h *Handle) Close() error { return h.h.close() }
