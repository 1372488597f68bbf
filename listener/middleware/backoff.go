package middleware

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Backoff goes on after errors of Accept that pass: too many open files in the process or the system, no memory or buffers,
// a client that is gone before it was accepted, a network that is down. It pauses 5 ms, and twice as long each time as
// long as nothing else comes. All other errors are Accept's own, unchanged.
//
// It has a descriptor to spare. When the process has none left, it gives that up for a moment to accept a connection and
// close it, so that clients are told at once instead of waiting in the queue, unless there are descriptors again by then.
//
// No connection is wrapped. Where there is a Proxy, TLS or Mux, which accept by themselves, Backoff belongs further in.
type Backoff struct {
	// Max is the longest pause. Zero means one second.
	Max time.Duration
	// Logger gets a warning when errors begin, one for all that follow with less than ten seconds between them. Nil discards.
	Logger *slog.Logger
}

const (
	firstPause = 5 * time.Millisecond
	// quietTime is how long there must be no error until the next one is logged again.
	quietTime = 10 * time.Second
)

var descriptorsRefusal = &Refusal{Reason: ReasonDescriptors}

// Wrap puts it around a listener.
func (b Backoff) Wrap(ln net.Listener) net.Listener {
	if b.Max <= 0 {
		b.Max = time.Second
	}
	e := &errorPauses{Backoff: b}
	e.reserve()
	return wrap(ln, part{retry: e.retry, stop: e.stop})
}

// errorPauses is a Backoff at work on one listener.
type errorPauses struct {
	Backoff

	mu      sync.Mutex
	spare   *os.File
	stopped bool
	pause   time.Duration // the last
	until   time.Time     // its end
	logged  time.Time     // the last error, if it was logged or belongs to one that was
}

// reserve sees to it that there is a spare descriptor, if that can be.
func (e *errorPauses) reserve() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.spare == nil && !e.stopped {
		e.spare, _ = os.Open(os.DevNull) // nil where there is no descriptor left: that is what is asked
	}
	return e.spare != nil
}

// release gives the spare descriptor up; false where there is none.
func (e *errorPauses) release() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.spare == nil {
		return false
	}
	e.spare.Close()
	e.spare = nil
	return true
}

func (e *errorPauses) stop() {
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	e.release()
}

func (e *errorPauses) retry(l *listener, err error) (net.Conn, bool) {
	if !passes(err) {
		return nil, false
	}
	now := time.Now()
	e.note(l.addr, err, now)
	if noDescriptors(err) && e.release() {
		conn, err := l.inner.Accept()
		if e.reserve() || err != nil {
			return conn, true // there are descriptors again, or the error shows at the next Accept
		}
		l.stack.refuse(conn, descriptorsRefusal)
		e.reserve()
		return nil, true
	}
	_ = pause(e.next(now), l.wait) // where it ends early, so does the next Accept
	e.reserve()                    // if another has taken the spare one
	return nil, true
}

// next is how long to pause.
func (e *errorPauses) next(now time.Time) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.until) > e.pause { // that worked
		e.pause = 0
	}
	e.pause = min(max(2*e.pause, firstPause), e.Max)
	e.until = now.Add(e.pause)
	return e.pause
}

func (e *errorPauses) note(addr net.Addr, err error, now time.Time) {
	e.mu.Lock()
	first := e.logged.IsZero() || now.Sub(e.logged) > quietTime
	e.logged = now
	e.mu.Unlock()
	if first && e.Logger != nil {
		e.Logger.LogAttrs(context.Background(), slog.LevelWarn, "connections cannot be accepted now, trying on",
			slog.String("address", addr.String()), slog.Any("error", err))
	}
}

func passes(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && (slices.Contains(passing, errno) || noDescriptors(errno))
}

func noDescriptors(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains(outOfDescriptors, errno)
}
