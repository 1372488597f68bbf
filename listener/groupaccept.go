package listener

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/reuseport"
)

// A listening socket of a group that is closed takes with it the connections that wait there, and those that are being made.
// So one that is not in use any more is left open for a while: the kernel is told to deal to the others alone, and whoever
// accepts from one of these is given what the abandoned one still gets. When nothing can be under way to it any more, it is
// closed. Nothing is accepted ahead, so nothing is lost with a version that only holds what another one leads.

// quiet is how long nothing has come to an abandoned socket that is closed. A connection that is being made is given up after
// 63 seconds (net.ipv4.tcp_synack_retries is 5).
var quiet = 75 * time.Second

// A group is the listening sockets of one address in this process.
type group struct {
	tenure *tenure // nil: this process is always in charge
	log    *slog.Logger

	offers   atomic.Int64 // abandoned members with something
	watching sync.WaitGroup

	mu      sync.Mutex
	queues  []*member // each with a queue of its own, as the kernel has them in its order
	open    []*member // that the caller has not closed
	closed  chan struct{}
	steered time.Time // since then nothing new comes to what is abandoned; zero: it does
}

// stream is a listener of package net.
type stream interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
	File() (*os.File, error)
}

// A member is a listener of a group.
type member struct {
	stream
	group  *group
	shares *member // whose queue it has; nil: its own

	left  atomic.Bool // by the caller
	close func() error

	mu       sync.Mutex // of what follows
	deadline time.Time  // set by the caller
	woken    bool       // Accept has been interrupted to look elsewhere

	// Of one that was abandoned, under the group's mu:
	queue   *reuseport.Queue // nil: nobody has to look after it
	offered bool             // there is something
	again   chan struct{}    // somebody has looked
}

var _ stream = (*member)(nil)

func newGroup(all *seats[net.Listener], t *tenure, log *slog.Logger) (*group, error) {
	g := &group{tenure: t, log: log, closed: make(chan struct{})}
	seat := func(ln net.Listener) (*member, error) {
		s, ok := ln.(stream)
		if !ok {
			return nil, unsupported("group", ln.Addr())
		}
		m := &member{stream: s, group: g, again: make(chan struct{}, 1)}
		m.close = sync.OnceValue(func() error { return g.leave(m) })
		return m, nil
	}
	for i, ln := range all.own {
		m, err := seat(ln)
		if err != nil {
			return nil, err
		}
		g.queues = append(g.queues, m)
		if i < all.n {
			g.open = append(g.open, m)
		}
	}
	for _, ln := range all.shared {
		m, err := seat(ln)
		if err != nil {
			return nil, err
		}
		m.shares = g.queues[0]
		g.open = append(g.open, m)
	}
	g.mu.Lock()
	for _, m := range g.queues {
		if !slices.Contains(g.open, m) {
			g.abandonLocked(m)
		}
	}
	g.mu.Unlock()
	t.onCharge(g.steer)
	return g, nil
}

// inCharge tells whether it is this process that says who gets connections.
func (g *group) inCharge() bool { return g.tenure == nil || g.tenure.lineage.InCharge() }

// steer has the kernel deal to the members that are open.
func (g *group) steer() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.steerLocked()
}

func (g *group) steerLocked() {
	g.steered = time.Time{}
	if len(g.queues) < 2 {
		return
	}
	var to []int
	for i, m := range g.queues {
		used := func(o *member) bool { return o == m || o.shares == m }
		if slices.ContainsFunc(g.open, used) {
			to = append(to, i)
		}
	}
	var err error
	for _, m := range g.queues { // one of MPTCP cannot, others can
		if err = reuseport.Steer(m.stream, to); err == nil {
			g.steered = time.Now()
			return
		}
	}
	// Without, all goes on: what comes to abandoned sockets is accepted, and they stay.
	g.log.LogAttrs(context.Background(), slog.LevelDebug, "connections are dealt to whoever has joined", slog.Any("error", err))
}

// leave takes a member out of use. With the last of them all sockets are closed.
func (g *group) leave(m *member) error {
	g.mu.Lock()
	g.open = slices.DeleteFunc(g.open, func(o *member) bool { return o == m })
	m.left.Store(true)
	m.wake()
	switch {
	case len(g.open) == 0:
		return g.closeAll(m) // unlocks
	case m.shares != nil:
		defer g.mu.Unlock()
		return m.stream.Close()
	}
	defer g.mu.Unlock()
	g.abandonLocked(m)
	if g.inCharge() {
		g.steerLocked()
	}
	return nil
}

// closeAll closes every socket that is left: last was in use until now.
func (g *group) closeAll(last *member) error {
	left := g.queues
	if last.shares != nil {
		left = append(left, last)
	}
	close(g.closed)
	g.queues = nil
	g.mu.Unlock()
	var errs []error
	for _, m := range left {
		if m.queue != nil {
			_ = m.queue.Close() // it has been read only
		}
		errs = append(errs, m.stream.Close())
	}
	g.watching.Wait()
	return errors.Join(errs...)
}

// abandonLocked has somebody look after a socket that nobody accepts from.
func (g *group) abandonLocked(m *member) {
	m.left.Store(true)
	queue, err := reuseport.Watch(m.stream)
	if err != nil {
		if reuseport.Supported {
			g.log.LogAttrs(context.Background(), slog.LevelWarn, "nobody accepts what comes to a listener that was closed", slog.Any("error", err))
		}
		return
	}
	m.queue = queue
	g.watching.Go(func() { g.watch(m) })
}

// watch offers what comes to an abandoned socket, until nothing does any more.
func (g *group) watch(m *member) {
	for {
		err := m.queue.Wait(time.Now().Add(quiet))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if g.dismiss(m) {
				return
			}
			continue
		case err != nil: // closed
			return
		}
		g.offer(m)
		select {
		case <-m.again:
		case <-g.closed:
			return
		}
	}
}

// offer wakes whoever accepts.
func (g *group) offer(m *member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m.offered = true
	g.offers.Add(1)
	for _, o := range g.open {
		o.wake()
	}
}

// spare takes a connection from an abandoned socket. Both results are nil where there is none.
func (g *group) spare() (net.Conn, error) {
	if g.offers.Load() == 0 {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.queues {
		if !m.offered {
			continue
		}
		m.offered = false
		g.offers.Add(-1)
		conn, err := m.queue.Accept()
		m.again <- struct{}{} // there may be more, for others too
		if conn != nil || err != nil {
			return conn, err
		}
	}
	return nil, nil
}

// dismiss closes an abandoned socket to which nothing can be under way. It has to be the last: if another were closed, the kernel
// would put the last in its place.
func (g *group) dismiss(m *member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	last := len(g.queues) - 1
	if last < 1 || g.queues[last] != m || g.steered.IsZero() || time.Since(g.steered) < quiet || !g.inCharge() || !m.queue.Empty() {
		return false
	}
	g.queues = g.queues[:last]
	_ = m.queue.Close() // it has been read, and the other is closed below
	if err := m.stream.Close(); err != nil {
		g.log.LogAttrs(context.Background(), slog.LevelWarn, "a listener that is not used any more was not closed", slog.Any("error", err))
	}
	return true
}

// Accept waits for a connection to this socket, or to one that was abandoned.
func (m *member) Accept() (net.Conn, error) {
	for {
		if m.left.Load() {
			return nil, m.errClosed("accept")
		}
		if conn, err := m.group.spare(); conn != nil || err != nil {
			return conn, err
		}
		conn, err := m.stream.Accept()
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || m.expired() {
			return conn, err
		}
	}
}

// wake interrupts Accept.
func (m *member) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.woken {
		m.woken = true
		_ = m.stream.SetDeadline(time.Unix(1, 0)) // fails only once it is closed
	}
}

// expired tells whether it was the caller's deadline that ended Accept.
func (m *member) expired() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.woken && !m.left.Load() {
		m.woken = false
		_ = m.stream.SetDeadline(m.deadline)
	}
	return !m.left.Load() && !m.deadline.IsZero() && !time.Now().Before(m.deadline)
}

// SetDeadline bounds Accept.
func (m *member) SetDeadline(t time.Time) error {
	if m.left.Load() {
		return m.errClosed("set deadline")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deadline = t
	if m.woken { // Accept sets it, when it has looked
		return nil
	}
	return m.stream.SetDeadline(t)
}

// Close takes the member out of use.
func (m *member) Close() error { return m.close() }

// File is a duplicate of its own socket.
func (m *member) File() (*os.File, error) {
	if m.left.Load() {
		return nil, m.errClosed("file")
	}
	return m.stream.File()
}

// SyscallConn gives access to its own socket.
func (m *member) SyscallConn() (syscall.RawConn, error) {
	if m.left.Load() {
		return nil, m.errClosed("raw-control")
	}
	return m.stream.SyscallConn()
}

// Unwrap is the listener of package net.
func (m *member) Unwrap() net.Listener { return m.stream }

func (m *member) errClosed(op string) error {
	return &net.OpError{Op: op, Net: m.Addr().Network(), Addr: m.Addr(), Err: net.ErrClosed}
}
