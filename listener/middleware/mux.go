package middleware

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Mux gives each protocol on one port a listener of its own, by the first bytes that a client sends. Those bytes stay where
// they are (MSG_PEEK), so what Accept hands out is the connection as it came, a [*net.TCPConn] if nothing has wrapped it. On
// Windows, and of connections that are no sockets, they are read and put before the rest.
//
//	mux := &middleware.Mux{}
//	secure := mux.Match(middleware.MatchTLS)
//	plain := mux.Match(middleware.MatchHTTP1)
//	cfg := listener.Config{Middleware: []listener.Middleware{mux.Wrap}}
//	others, err := cfg.Listen(ctx, "tcp", ":443") // what matches nothing
//
// The listeners are asked in the order in which they were made. Each may be given to a server, or to another middleware: to
// TLS, say. Closing one closes that one alone, and its protocol is refused from then on; closing the one from Wrap closes
// all. An error of Accept goes to all who are waiting in Accept of any of them.
//
// A client that is silent, or slow, holds up nobody: see MaxPending. Nor does a listener that nobody accepts from: see Queue.
// What Wrap gives has the methods Pending and SetDraining, as with [Proxy].
type Mux struct {
	// Timeout is how long a client may take to say what it speaks. Zero means 10 seconds, and with Silent 1 second.
	Timeout time.Duration

	// MaxBytes is how much of what a client sends is looked at. A matcher that is undecided then does not match. Zero means
	// 4096.
	MaxBytes int

	// MaxPending is how many clients may be silent at once: about 4 KiB of memory each. With one more, the oldest is closed.
	// Zero means 4096.
	MaxPending int

	// Queue is how many connections of one protocol may wait to be accepted while those of others are; more are closed. Zero
	// means 4096. While nobody accepts at all, connections wait in the kernel's queue.
	Queue int

	// Refuse closes what matches nothing. Otherwise the listener from Wrap has it.
	Refuse bool

	once   sync.Once
	in     *intake
	mu     sync.Mutex
	rules  []rule
	silent *outlet
}

type rule struct {
	match Matcher
	to    *outlet
}

// A Verdict is what a [Matcher] makes of the first bytes.
type Verdict int

// The verdicts.
const (
	NoMatch  Verdict = iota // and no further byte can change that
	Match                   // and no further byte can change that
	NeedMore                // it depends on what follows
)

// A Matcher tells whether what a client sent first is in its protocol. It gets all of it each time, at least a byte, and must
// not keep or change it. It must be quick, and may be called by several goroutines at once. A panic refuses the connection
// where there is a [Recover].
type Matcher func(received []byte) Verdict

// Match gives a listener for the connections that match, and no listener that was made before takes. Made after
// connections have come, it has those that come later.
func (m *Mux) Match(match Matcher) net.Listener {
	in := m.intake()
	to := in.addOutlet(m.queue())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rules = append(slices.Clip(m.rules), rule{match, to})
	return &muxMember{outlet: to}
}

// Silent gives a listener for clients who say nothing for as long as Timeout, as is right where the server speaks first.
func (m *Mux) Silent() net.Listener {
	in := m.intake()
	to := in.addOutlet(m.queue())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silent = to
	return &muxMember{outlet: to}
}

// Wrap puts the Mux around a listener, once; it panics the second time. What it gives has the connections that none of the
// other listeners takes.
func (m *Mux) Wrap(ln net.Listener) net.Listener {
	in := m.intake()
	if in.isOpen() {
		panic("middleware: a Mux is for one listener; make another Mux for the other")
	}
	m.mu.Lock()
	silent := m.silent != nil
	m.mu.Unlock()
	in.maxBytes = 4096
	if m.MaxBytes > 0 {
		in.maxBytes = m.MaxBytes
	}
	in.first.capacity = m.queue()
	timeout := 10 * time.Second
	if silent {
		timeout = time.Second
	}
	in.open(ln, orDefault(m.Timeout, timeout), m.MaxPending)
	return in
}

func (m *Mux) intake() *intake {
	m.once.Do(func() { m.in = newIntake(m, ReasonMux) })
	return m.in
}

func (m *Mux) queue() int {
	if m.Queue <= 0 {
		return 4096
	}
	return m.Queue
}

func (m *Mux) look(p *pending, received []byte, final bool) bool {
	if len(received) == 0 {
		return final
	}
	m.mu.Lock()
	rules := m.rules
	m.mu.Unlock()
	for _, r := range rules {
		verdict := NoMatch
		if p.in.stack.call(foreignPart, func() { verdict = r.match(received) }) {
			p.fault = panicRefusal
			return true
		}
		switch verdict {
		case Match:
			p.to = r.to
			return true
		case NeedMore:
			if !final {
				return false
			}
		}
	}
	return true
}

var (
	errNobody = errors.New("mux: no listener takes what the client speaks")
	muxLate   = &Refusal{Reason: ReasonMuxTimeout, Err: errors.New("mux: the client has not said in time what it speaks")}
)

func (m *Mux) finish(p *pending) error {
	switch {
	case p.fault != nil:
		return p.fault
	case p.to == nil && m.Refuse:
		return errNobody
	}
	p.out = p.untouched()
	return nil
}

func (m *Mux) late(p *pending) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.silent == nil || p.spoke {
		return muxLate
	}
	p.to = m.silent
	return nil
}

// A muxMember is the listener of one protocol.
type muxMember struct {
	*outlet
}

// Accept waits for the next connection of the protocol. Before Wrap it waits for that too.
func (l *muxMember) Accept() (net.Conn, error) { return l.accept() }

// Close closes this listener only: Accept gives [net.ErrClosed].
func (l *muxMember) Close() error {
	in := l.in
	in.mu.Lock()
	left := l.shutLocked()
	l.arrived.Broadcast()
	in.mu.Unlock()
	for _, conn := range left {
		in.stack.refuse(conn, closedRefusal)
	}
	return nil
}

// Addr is the address of the listener that the Mux wraps; before Wrap it is empty.
func (l *muxMember) Addr() net.Addr {
	if !l.in.isOpen() {
		return &net.TCPAddr{}
	}
	return l.in.Addr()
}

// Unwrap is the listener that the Mux wraps; before Wrap there is none.
func (l *muxMember) Unwrap() net.Listener {
	if !l.in.isOpen() {
		return nil
	}
	return l.in.Unwrap()
}

// SetDeadline bounds Accept, of all listeners of the Mux.
func (l *muxMember) SetDeadline(t time.Time) error {
	if !l.in.isOpen() {
		return errors.ErrUnsupported
	}
	return l.in.SetDeadline(t)
}

// SetDraining is that of the listener that Wrap gave.
func (l *muxMember) SetDraining(draining bool) { l.in.SetDraining(draining) }

// File is that of the listener that the Mux wraps.
func (l *muxMember) File() (*os.File, error) {
	if !l.in.isOpen() {
		return nil, errors.ErrUnsupported
	}
	return l.in.File()
}

// SyscallConn gives access to the socket.
func (l *muxMember) SyscallConn() (syscall.RawConn, error) {
	if !l.in.isOpen() {
		return nil, errors.ErrUnsupported
	}
	return l.in.SyscallConn()
}

func (l *muxMember) stackOf() *stack {
	if !l.in.isOpen() {
		return new(stack)
	}
	return l.in.stack
}
