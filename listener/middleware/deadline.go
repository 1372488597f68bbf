package middleware

import (
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/tcpinfo"
)

// Deadline ends connections over which nothing moves, and those that have been open for too long: reads and writes, also
// those in progress, give [os.ErrDeadlineExceeded] from then on, whatever deadline the server sets. It is the server that
// closes the connection, as after any deadline. The server's own deadlines hold beside it: the earlier one wins.
//
// There is no goroutine and no timer for a connection, and the server's reads and writes do not cost a system call more: all
// connections of a listener are looked at eight times in the shorter of Idle and Total, while there are any. So a
// connection may last up to a quarter longer than they say.
type Deadline struct {
	// Idle is how long nothing may move, neither in nor out. Zero means for ever. On Linux what moves on TCP is known from
	// the kernel, so that a slow client may take as long as it likes for one large write or one sendfile. Elsewhere, and
	// on Unix sockets, one call of Write must not take longer, and of ReadFrom no megabyte; and what a [net.Buffers]
	// writes to a Unix socket, or what goes through its SyscallConn, does not count.
	Idle time.Duration

	// Total is how long a connection may be open, whatever moves. Zero means for ever.
	Total time.Duration
}

// Wrap puts the deadline around a listener.
func (d Deadline) Wrap(ln net.Listener) net.Listener {
	if d.Idle <= 0 && d.Total <= 0 {
		return ln
	}
	w := &watch{Deadline: d, every: max(shorter(d.Idle, d.Total)/8, time.Millisecond)}
	return wrap(ln, part{timed: d.Idle > 0, admitted: w.add, left: w.remove})
}

// shorter is the shorter of two times of which zero means for ever.
func shorter(a, b time.Duration) time.Duration {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}

// A watch looks at the connections of a listener now and then.
type watch struct {
	Deadline
	every time.Duration

	mu    sync.Mutex
	open  table[*core, pulse]
	armed bool
}

// A pulse is what was seen of a connection.
type pulse struct {
	activity uint32    // core.activity
	last     time.Time // when that had changed, or bytes had moved
	bytes    uint64    // tcpinfo.Moved, once asked
	asked    bool      // since it is quiet
}

func (w *watch) add(c *core) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open.set(c, pulse{activity: c.activity.Load(), last: time.Now()}) // a handshake may have come before
	if !w.armed {
		w.armed = true
		time.AfterFunc(w.every, w.look)
	}
}

func (w *watch) remove(c *core) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open.remove(c)
}

// look looks at every connection. The kernel is not asked under the lock, which those who accept and close wait for.
func (w *watch) look() {
	type seen struct {
		c    *core
		p    pulse
		over bool
	}
	w.mu.Lock()
	all := make([]seen, 0, len(w.open.m))
	for c, p := range w.open.m {
		all = append(all, seen{c: c, p: p})
	}
	w.mu.Unlock()

	now := time.Now()
	for i := range all {
		if s := &all[i]; w.over(s.c, &s.p, now) {
			s.c.expire()
			s.over = true
		}
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range all {
		if _, open := w.open.m[s.c]; open && s.over {
			w.open.remove(s.c)
		} else if open {
			w.open.set(s.c, s.p)
		}
	}
	if w.armed = len(w.open.m) > 0; w.armed {
		time.AfterFunc(w.every, w.look)
	}
}

// over tells whether a connection has to end, and updates what is known of it.
func (w *watch) over(c *core, p *pulse, now time.Time) bool {
	if w.Total > 0 && now.Sub(c.since) >= w.Total {
		return true
	}
	if w.Idle <= 0 {
		return false
	}
	if activity := c.activity.Load(); activity != p.activity {
		*p = pulse{activity: activity, last: now}
		return false
	}
	quiet := now.Sub(p.last) >= w.Idle
	if p.asked && !quiet {
		return false
	}
	// The kernel is asked when nothing has gone through the wrapper for a while, and again before the end.
	bytes := c.bytes()
	if p.asked && bytes != p.bytes {
		p.last, quiet = now, false
	}
	quiet = quiet && p.asked
	p.bytes, p.asked = bytes, true
	return quiet
}

// bytes is tcpinfo.Moved of the connection, always 0 where that cannot be known.
func (c *core) bytes() uint64 {
	conn, ok := c.conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	n, _ := tcpinfo.Moved(syscall.Conn(conn))
	return n
}
