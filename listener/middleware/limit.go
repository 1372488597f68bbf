package middleware

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limit bounds the number of connections that are open at once. A connection counts from its acceptance until it is closed.
//
// One Limit may be put around several listeners, which then share it. It must not be copied or changed once it is in use.
type Limit struct {
	// Max is how many may be open. Zero or less means no limit: they are counted only.
	Max int

	// Refuse closes what comes while all places are taken. Otherwise nothing is accepted until there is a place: further
	// connections wait in the kernel's queue, whose length is the system's (net.core.somaxconn on Linux) and beyond which
	// clients try again by themselves. Where several listeners share the Limit, or several goroutines call Accept, each may
	// have accepted one connection that waits.
	Refuse bool

	// Queue is how many connections may be accepted and wait for a place before, with Refuse, the next is closed. While it
	// is not zero, each listener has a goroutine, from its first Accept until it is closed.
	Queue int

	mu    sync.Mutex
	open  int
	freed chan struct{} // not nil: somebody waits; closed when a place is free
}

// Wrap puts the limit around a listener.
func (l *Limit) Wrap(ln net.Listener) net.Listener {
	p := part{closed: func(net.Conn, time.Duration) { l.release() }}
	switch {
	case l.Refuse && l.Queue > 0 && l.Max > 0:
		ln = newQueue(ln, l)
		p.admit = func(net.Conn, *shared) error { return nil } // the queue has taken the place
	case l.Refuse:
		p.admit = func(net.Conn, *shared) error {
			if _, ok := l.acquire(false); !ok {
				return limitRefusal
			}
			return nil
		}
	default:
		p.before = l.vacancy
		p.admit = func(_ net.Conn, s *shared) error {
			for {
				freed, ok := l.acquire(true)
				if ok {
					return nil
				}
				if err := s.hold(freed); err != nil {
					return err
				}
			}
		}
	}
	return wrap(ln, p)
}

// Open is how many connections are open now.
func (l *Limit) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

var limitRefusal = &Refusal{Reason: ReasonLimit}

// vacancy waits until there is a place, and does not take it: a listener to which nobody comes must not keep it from
// another one.
func (l *Limit) vacancy(s *shared) error {
	for {
		l.mu.Lock()
		if l.freeLocked() {
			l.mu.Unlock()
			return nil
		}
		freed := l.freedLocked()
		l.mu.Unlock()
		if err := s.wait(freed); err != nil {
			return err
		}
	}
}

// vacant is how many places are free.
func (l *Limit) vacant() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, l.Max-l.open)
}

func (l *Limit) freeLocked() bool { return l.Max <= 0 || l.open < l.Max }

func (l *Limit) freedLocked() <-chan struct{} {
	if l.freed == nil {
		l.freed = make(chan struct{})
	}
	return l.freed
}

// acquire takes a place. Where there is none, it gives a channel to wait for, if asked to.
func (l *Limit) acquire(wait bool) (freed <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.freeLocked() {
		l.open++
		return nil, true
	}
	if wait {
		freed = l.freedLocked()
	}
	return freed, false
}

func (l *Limit) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}

// LimitPerIP bounds the number of connections that are open at once from one source: further ones are refused. Connections
// without an IP address, as on Unix sockets, are not bounded.
//
// One LimitPerIP may be put around several listeners, which then share it. It must not be copied or changed once it is in
// use. What it remembers is bounded by the number of open connections.
type LimitPerIP struct {
	// Max is how many may be open from one source. Zero or less means no limit.
	Max int

	// IPv6Bits is the length of the IPv6 prefix that counts as one source. Zero means 64, which is what a network at home
	// has, and often a single machine.
	IPv6Bits int

	mu   sync.Mutex
	open table[netip.Addr, int]
}

// Wrap puts the limit around a listener.
func (l *LimitPerIP) Wrap(ln net.Listener) net.Listener {
	if l.Max <= 0 {
		return ln
	}
	return wrap(ln, part{
		admit: func(conn net.Conn, _ *shared) error {
			source := sourceOf(conn, l.IPv6Bits)
			if !source.IsValid() {
				return nil
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			n := l.open.m[source]
			if n >= l.Max {
				return limitPerIPRefusal
			}
			l.open.set(source, n+1)
			return nil
		},
		closed: func(conn net.Conn, _ time.Duration) {
			if source := sourceOf(conn, l.IPv6Bits); source.IsValid() {
				l.mu.Lock()
				defer l.mu.Unlock()
				if n := l.open.m[source]; n > 1 {
					l.open.set(source, n-1)
				} else {
					l.open.remove(source)
				}
			}
		},
	})
}

// Open is how many connections are open from the source of an address.
func (l *LimitPerIP) Open(addr netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open.m[sourceOfAddr(addr, l.IPv6Bits)]
}

var limitPerIPRefusal = &Refusal{Reason: ReasonLimitPerIP}
