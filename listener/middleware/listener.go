package middleware

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A part is what one middleware does. Functions that are nil cost nothing.
type part struct {
	// before is called before the socket's Accept and may wait there, so that connections stay in the kernel's queue.
	before func(*shared) error
	// admit is asked about a connection; an error refuses it. It may wait by the means of shared, and then be asked again.
	admit func(net.Conn, *shared) error
	// admitted is told the core of each connection that every part lets pass, before it is handed out; left is told when
	// it is closed.
	admitted func(*core)
	left     func(*core)
	// accepted is told each connection that is handed out.
	accepted func(net.Conn)
	// closed undoes admit, or where that is nil accepted: once.
	closed  func(net.Conn, time.Duration)
	refused func(net.Conn, *Refusal)
	failed  func(error)
	// retry is asked about an error of the socket's Accept: the connection that it got after all, or whether to go on. It
	// may wait by the means of shared.
	retry func(*listener, error) (conn net.Conn, again bool)
	// stop is called once, when the listener is closed.
	stop func()

	foreign bool // the functions are the user's and may panic
	timed   bool // needs to know when bytes move
}

// needsCore tells whether a connection has to be wrapped for the part.
func (p *part) needsCore() bool { return p.closed != nil || p.left != nil || p.admitted != nil }

// A listener is the one flat wrapper: it does what all parts ask for.
type listener struct {
	inner net.Listener
	parts []part // innermost first
	core  bool   // some part needs a core
	timed bool   // some part is timed
	*shared
}

// shared is what the copies of a listener have in common, which come from adding parts.
type shared struct {
	inner    net.Listener
	addr     net.Addr
	done     chan struct{} // closed by Close
	deadline deadline
	draining atomic.Bool
	stack    *stack

	mu       sync.Mutex
	isClosed bool
	parked   []arrival
	stops    []func()
	once     sync.Once // Close
	err      error     // of Close
}

// An arrival is an accepted connection that the parts from next on are still to be asked about.
type arrival struct {
	conn  net.Conn
	since time.Time
	next  int
}

// A stack is what all listeners of this package that wrap one another share, also where others stand between them.
type stack struct {
	mu     sync.Mutex
	told   atomic.Pointer[[]part]              // who observes, wherever it happens
	guard  atomic.Pointer[func(recovered any)] // of Recover
	lowest *shared                             // the innermost: who tells of failures, once
}

// observers are those who are told of refusals and failures.
func (s *stack) observers() []part {
	if list := s.told.Load(); list != nil {
		return *list
	}
	return nil
}

func (s *stack) add(p part) {
	if p.refused == nil && p.failed == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append(slices.Clip(s.observers()), p)
	s.told.Store(&list)
}

// call calls a function of a part. Where that is foreign and Recover is there, a panic is told to it, and is the result.
func (s *stack) call(p *part, do func()) (panicked bool) {
	if guard := s.guard.Load(); p.foreign && guard != nil {
		defer func() {
			if r := recover(); r != nil {
				panicked = true
				(*guard)(r)
			}
		}()
	}
	do()
	return false
}

// refuse closes a connection and tells so. Those who let it pass have to be told before.
func (s *stack) refuse(conn net.Conn, why *Refusal) {
	conn.Close()
	for _, o := range s.observers() {
		if o.refused != nil {
			s.call(&o, func() { o.refused(conn, why) })
		}
	}
}

// within finds the first of type T in a listener and what it wraps.
func within[T any](ln net.Listener) (found T, ok bool) {
	for ; ln != nil; ln = unwrap(ln) {
		if found, ok = ln.(T); ok {
			return found, true
		}
	}
	return found, false
}

// unwrap is what a listener wraps; nil where there is nothing.
func unwrap(ln net.Listener) net.Listener {
	if wrapper, ok := ln.(interface{ Unwrap() net.Listener }); ok {
		return wrapper.Unwrap()
	}
	return nil
}

// stackOf finds the stack that a listener is part of, and makes one where there is none.
func stackOf(ln net.Listener) *stack {
	if member, ok := within[interface{ stackOf() *stack }](ln); ok {
		return member.stackOf()
	}
	return new(stack)
}

func newShared(inner net.Listener) *shared {
	return &shared{inner: inner, addr: inner.Addr(), done: make(chan struct{}), stack: stackOf(inner)}
}

func (s *shared) stackOf() *stack { return s.stack }

// wrap adds a part to a listener: to a copy of it where it is one of this type.
func wrap(inner net.Listener, p part) net.Listener {
	l := &listener{inner: inner}
	if flat, ok := inner.(*listener); ok {
		*l = *flat
	} else {
		l.shared = newShared(inner)
		l.stack.mu.Lock()
		if l.stack.lowest == nil {
			l.stack.lowest = l.shared
		}
		l.stack.mu.Unlock()
	}
	l.parts = append(slices.Clip(l.parts), p)
	l.core = l.core || p.needsCore()
	l.timed = l.timed || p.timed
	l.stack.add(p)
	if p.stop != nil {
		l.mu.Lock()
		l.stops = append(l.stops, p.stop)
		l.mu.Unlock()
	}
	return l
}

// Accept waits for the next connection that every part lets pass.
func (l *listener) Accept() (net.Conn, error) {
	for {
		a, err := l.next()
		if err != nil {
			return nil, err
		}
		if conn, err := l.admit(a); conn != nil || err != nil {
			return conn, err
		}
	}
}

// next is the next connection to decide on.
func (l *listener) next() (arrival, error) {
	for {
		if a, ok := l.unpark(); ok {
			return a, nil
		}
		for i := range l.parts {
			if before := l.parts[i].before; before != nil {
				if err := before(l.shared); err != nil {
					return arrival{}, err
				}
			}
		}
		conn, err := l.inner.Accept()
		if err != nil {
			if conn, err = l.failed(err); err != nil {
				return arrival{}, err
			}
		}
		if conn != nil {
			a := arrival{conn: conn}
			if l.core {
				a.since = time.Now()
			}
			return a, nil
		}
	}
}

// failed deals with an error of the inner listener: a connection that was got nevertheless, an error to return, or neither
// to go on.
func (l *listener) failed(err error) (net.Conn, error) {
	if isClosed(l.done) {
		return nil, l.closed()
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, err
	}
	if l.stack.lowest == l.shared {
		for _, o := range l.stack.observers() {
			if o.failed != nil {
				l.stack.call(&o, func() { o.failed(err) })
			}
		}
	}
	for i := range l.parts {
		if retry := l.parts[i].retry; retry != nil {
			if conn, again := retry(l, err); conn != nil || again {
				return conn, nil
			}
		}
	}
	return nil, err
}

// admit asks the parts, from the innermost out, and gives what is handed out: nothing where the connection was refused.
// The error is that of a wait.
func (l *listener) admit(a arrival) (net.Conn, error) {
	for ; a.next < len(l.parts); a.next++ {
		p := &l.parts[a.next]
		if p.admit == nil {
			continue
		}
		var err error
		if l.stack.call(p, func() { err = p.admit(a.conn, l.shared) }) {
			err = panicRefusal
		}
		if err == nil {
			continue
		}
		if !p.foreign && errors.Is(err, os.ErrDeadlineExceeded) && l.park(a) { // that of a Hook is a verdict
			return nil, err
		}
		l.undo(a)
		l.stack.refuse(a.conn, refusalOf(err))
		return nil, nil
	}
	conn := a.conn
	if l.core {
		conn = attach(conn, l, a.since)
	}
	for i := range l.parts {
		if p := &l.parts[i]; p.accepted != nil && l.stack.call(p, func() { p.accepted(conn) }) {
			l.stack.refuse(conn, panicRefusal)
			return nil, nil
		}
	}
	return conn, nil
}

// undo tells those who let a connection pass that it goes no further.
func (l *listener) undo(a arrival) {
	for i := a.next - 1; i >= 0; i-- {
		if p := &l.parts[i]; p.admit != nil && p.closed != nil {
			l.stack.call(p, func() { p.closed(a.conn, time.Since(a.since)) })
		}
	}
}

// park keeps a connection for the next Accept. It is false once the listener is closed.
func (l *listener) park(a arrival) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isClosed {
		l.parked = append(l.parked, a)
	}
	return !l.isClosed
}

func (l *listener) unpark() (a arrival, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.parked) == 0 {
		return arrival{}, false
	}
	a = l.parked[0]
	l.parked = slices.Delete(l.parked, 0, 1)
	return a, true
}

// Close closes the listener inside, and ends every wait in Accept, which gives net.ErrClosed from then on. Connections that
// were handed out stay. Called again, it repeats its first result.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.mu.Lock()
		l.isClosed = true
		close(l.done)
		parked, stops := l.parked, l.stops
		l.parked = nil
		l.mu.Unlock()

		l.err = l.inner.Close()
		for _, stop := range stops {
			stop()
		}
		for _, a := range parked {
			l.undo(a)
			l.stack.refuse(a.conn, closedRefusal)
		}
	})
	return l.err
}

// Addr is the address of the listener inside.
func (l *listener) Addr() net.Addr { return l.addr }

// Unwrap is the listener inside.
func (l *listener) Unwrap() net.Listener { return l.inner }

// SetDeadline bounds Accept, with the waits of the middlewares.
func (l *listener) SetDeadline(t time.Time) error {
	d, ok := within[interface{ SetDeadline(time.Time) error }](l.inner)
	if !ok {
		return l.unsupported("set")
	}
	l.deadline.set(t)
	return d.SetDeadline(t)
}

// File is that of the listener inside.
func (l *listener) File() (*os.File, error) {
	if f, ok := within[interface{ File() (*os.File, error) }](l.inner); ok {
		return f.File()
	}
	return nil, l.unsupported("file")
}

// SyscallConn gives access to the socket.
func (l *listener) SyscallConn() (syscall.RawConn, error) {
	if c, ok := within[syscall.Conn](l.inner); ok {
		return c.SyscallConn()
	}
	return nil, l.unsupported("raw-control")
}

func (l *listener) unsupported(op string) error {
	return &net.OpError{Op: op, Net: l.addr.Network(), Addr: l.addr, Err: errors.ErrUnsupported}
}

// closed is what Accept gives after Close.
func (s *shared) closed() error { return s.acceptError(net.ErrClosed) }

func (s *shared) acceptError(err error) error {
	return &net.OpError{Op: "accept", Net: s.addr.Network(), Addr: s.addr, Err: err}
}

// SetDraining says that a deadline which has passed (SetDeadline) is only to interrupt Accept when no connection waits in it, or
// further in, any more. A server that hands its socket to another process stops accepting by a deadline in the past; with this,
// it goes on to accept until the deadline's error comes, and loses none.
func (s *shared) SetDraining(draining bool) { s.draining.Store(draining) }

// keeps tells whether this listener has connections that it has not handed on.
func (l *listener) keeps() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parked) > 0
}

// goesOn tells whether a deadline does not count, since it drains and a listener inside still keeps connections.
func (s *shared) goesOn() bool {
	if !s.draining.Load() {
		return false
	}
	for ln := s.inner; ln != nil; ln = unwrap(ln) {
		if k, ok := ln.(interface{ keeps() bool }); ok && k.keeps() {
			return true
		}
	}
	return false
}

// wait waits for the channel. Before that, the end of the listener or its deadline give the error that is Accept's.
func (s *shared) wait(on <-chan struct{}) error {
	select {
	case <-s.done:
	case <-on:
	case <-s.deadline.passed():
		for s.goesOn() && !isClosed(on) && !isClosed(s.done) {
			select {
			case <-s.done:
			case <-on:
			case <-time.After(glance):
			}
		}
	}
	return s.ended()
}

// glance is how often one who drains looks whether a listener inside still keeps connections.
const glance = 5 * time.Millisecond

// hold is wait for who has a connection in hand.
func (s *shared) hold(on <-chan struct{}) error {
	passed := s.deadline.passed()
	if s.draining.Load() && isClosed(passed) {
		passed = nil
	}
	select {
	case <-s.done:
		return s.closed()
	case <-on:
		return nil
	case <-passed:
		if s.draining.Load() {
			return s.hold(on)
		}
		return s.acceptError(os.ErrDeadlineExceeded)
	}
}

// pause waits for some time, by wait or hold.
func pause(d time.Duration, wait func(<-chan struct{}) error) error {
	over := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(over) })
	defer timer.Stop()
	return wait(over)
}

// ended is the error of Accept once the listener is closed or its deadline has passed, nil before.
func (s *shared) ended() error {
	switch {
	case isClosed(s.done):
		return s.closed()
	case isClosed(s.deadline.passed()) && !s.goesOn():
		return s.acceptError(os.ErrDeadlineExceeded)
	}
	return nil
}

// A deadline closes a channel when it passes. Its zero value never does.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{}
}

// passed gives a channel that is closed when the deadline passes.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}

// set sets the time, also for those who wait already; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.ch == nil || isClosed(d.ch) {
		d.ch = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	ch := d.ch
	if left := time.Until(t); left > 0 {
		var timer *time.Timer
		timer = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.timer == timer { // not stopped too late
				close(ch)
			}
		})
		d.timer = timer
		return
	}
	close(ch)
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
