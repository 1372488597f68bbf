package middleware

import (
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/tcpinfo"
)

// A core is what the wrapper of a connection has beyond the connection: who wants to know when it is closed, and whether
// bytes move.
type core struct {
	conn  net.Conn // inside
	since time.Time

	mu       sync.Mutex
	isClosed bool     // levels do not change any more
	levels   [2]level // listeners that handed it on, innermost first; more than two are rare
	more     []level

	timed    bool          // somebody wants to know when bytes move
	expired  atomic.Bool   // Deadline has ended it: no deadline of its user lifts that
	activity atomic.Uint32 // another number whenever bytes moved
}

// A level is a listener and the connection as it handed it on: outside of TLS it is another one than inside.
type level struct {
	listener *listener
	conn     net.Conn
}

type tcpConn struct {
	*net.TCPConn
	core
}

type unixConn struct {
	*net.UnixConn
	core
}

// otherConn has the methods of net.Conn and no more: what else the connection inside can do is unknown.
type otherConn struct {
	net.Conn
	core
}

var (
	_ io.ReaderFrom = (*tcpConn)(nil)
	_ io.WriterTo   = (*tcpConn)(nil)
)

func (c *core) coreOf() *core { return c }

// coreOf finds the core of a connection, also inside of a *tls.Conn or whatever else has NetConn.
func coreOf(conn net.Conn) *core {
	for conn != nil {
		if wrapped, ok := conn.(interface{ coreOf() *core }); ok {
			return wrapped.coreOf()
		}
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = outer.NetConn()
	}
	return nil
}

// withCore gives the connection with a core, in a wrapper where it has none yet.
func withCore(conn net.Conn, since time.Time) (net.Conn, *core) {
	if c := coreOf(conn); c != nil {
		return conn, c
	}
	switch inside := conn.(type) {
	case *net.TCPConn:
		w := &tcpConn{TCPConn: inside, core: core{conn: inside, since: since}}
		return w, &w.core
	case *net.UnixConn:
		w := &unixConn{UnixConn: inside, core: core{conn: inside, since: since}}
		return w, &w.core
	}
	w := &otherConn{Conn: conn, core: core{conn: conn, since: since}}
	return w, &w.core
}

// attach makes the closing of a connection known to a listener.
func attach(conn net.Conn, l *listener, since time.Time) net.Conn {
	conn, c := withCore(conn, since)
	at := level{l, conn}
	c.mu.Lock()
	for i := range l.parts {
		if admitted := l.parts[i].admitted; admitted != nil {
			admitted(c)
		}
	}
	c.timed = c.timed || l.timed
	isClosed := c.isClosed
	switch {
	case isClosed: // by Track or by a server that knows the connection inside
	case c.levels[0].listener == nil:
		c.levels[0] = at
	case c.levels[1].listener == nil:
		c.levels[1] = at
	default:
		c.more = append(c.more, at)
	}
	c.mu.Unlock()
	if isClosed {
		at.close(c)
	}
	return conn
}

// outer is the connection as the outermost listener handed it on.
func (c *core) outer() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.more); n > 0 {
		return c.more[n-1].conn
	}
	if c.levels[1].conn != nil {
		return c.levels[1].conn
	}
	return c.levels[0].conn
}

// Close closes the connection, and tells those who want to know.
func (c *core) Close() error {
	err := c.conn.Close()
	c.mu.Lock()
	again := c.isClosed
	c.isClosed = true
	c.mu.Unlock()
	if again {
		return err
	}
	for i := len(c.more) - 1; i >= 0; i-- {
		c.more[i].close(c)
	}
	for i := len(c.levels) - 1; i >= 0; i-- {
		c.levels[i].close(c)
	}
	return err
}

func (at level) close(c *core) {
	if at.listener == nil {
		return
	}
	for i := len(at.listener.parts) - 1; i >= 0; i-- {
		p := &at.listener.parts[i]
		if p.left != nil {
			p.left(c)
		}
		if p.closed != nil {
			at.listener.stack.call(p, func() { p.closed(at.conn, time.Since(c.since)) })
		}
	}
}

// NetConn is the connection inside.
func (c *core) NetConn() net.Conn { return c.conn }

func (c *core) moved(n int64) {
	if n > 0 {
		c.activity.Store(c.activity.Load() + 1) // whoever is overwritten meanwhile has changed it as well
	}
}

func (c *core) Read(p []byte) (int, error) {
	n, err := c.conn.Read(p)
	c.moved(int64(n))
	return n, err
}

func (c *core) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	c.moved(int64(n))
	return n, err
}

func (c *core) SetDeadline(t time.Time) error      { return c.setDeadline(t, c.conn.SetDeadline) }
func (c *core) SetReadDeadline(t time.Time) error  { return c.setDeadline(t, c.conn.SetReadDeadline) }
func (c *core) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, c.conn.SetWriteDeadline) }

// setDeadline is for the user. Once Deadline has ended the connection, no later time lifts that.
func (c *core) setDeadline(t time.Time, set func(time.Time) error) error {
	err := set(t)
	if err == nil && c.expired.Load() { // before or meanwhile
		err = set(past)
	}
	return err
}

// expire ends what is going on on the connection, and what comes, with os.ErrDeadlineExceeded.
func (c *core) expire() {
	c.expired.Store(true)
	_ = c.conn.SetDeadline(past) // fails only once it is closed
}

// past is long ago.
var past = time.Unix(1, 0)

// piece is how much ReadFrom sends in one go where only its end shows that something has moved.
const piece = 1 << 20

// ReadFrom is that of the TCP connection inside: sendfile and splice, where the system has them, also where r is a
// connection of this package.
func (c *tcpConn) ReadFrom(r io.Reader) (n int64, err error) {
	rest, source := int64(math.MaxInt64), r
	limited, isLimited := r.(*io.LimitedReader)
	if isLimited {
		rest, source = max(0, limited.N), limited.R
	}
	source, from := bareReader(source)
	inPieces := c.timed && !tcpinfo.Known
	if from == nil && !inPieces {
		n, err = c.TCPConn.ReadFrom(r)
		c.moved(n)
		return n, err
	}
	step := rest
	if inPieces {
		step = piece
	}
	for n < rest {
		part := io.LimitedReader{R: source, N: min(step, rest-n)}
		var m int64
		m, err = c.TCPConn.ReadFrom(&part)
		n += m
		c.moved(m)
		if from != nil {
			from.moved(m)
		}
		if err != nil || part.N > 0 {
			break
		}
	}
	if isLimited {
		limited.N -= n
	}
	return n, err
}

// bareReader gives the connection inside of one of this package, and its core: package net splices its own types alone. It
// must still be seen when something moves.
func bareReader(r io.Reader) (io.Reader, *core) {
	switch c := r.(type) {
	case *tcpConn:
		if !c.timed || tcpinfo.Known {
			return c.TCPConn, &c.core
		}
	case *unixConn:
		if !c.timed {
			return c.UnixConn, &c.core
		}
	}
	return r, nil
}

// WriteTo is that of the TCP connection inside: splice, where the system has it, also where w is a connection of this
// package.
func (c *tcpConn) WriteTo(w io.Writer) (n int64, err error) {
	if to, ok := w.(*unixConn); ok && !to.timed {
		w = to.UnixConn
		defer func() { to.moved(n) }()
	}
	n, err = c.TCPConn.WriteTo(w)
	c.moved(n)
	return n, err
}

// SyscallConn gives access to the socket. Where somebody wants to know when bytes move, it is not one that package os sends
// files with: that would go past Write, and of a Unix socket the kernel does not say what has moved.
func (c *unixConn) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.UnixConn.SyscallConn()
	if err != nil || !c.timed {
		return raw, err
	}
	return struct{ syscall.RawConn }{raw}, nil
}

// What else moves bytes on a Unix socket has to be seen as well.

func (c *unixConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, addr, err := c.UnixConn.ReadFrom(b)
	c.moved(int64(n))
	return n, addr, err
}

func (c *unixConn) ReadFromUnix(b []byte) (int, *net.UnixAddr, error) {
	n, addr, err := c.UnixConn.ReadFromUnix(b)
	c.moved(int64(n))
	return n, addr, err
}

func (c *unixConn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	n, oobn, flags, addr, err = c.UnixConn.ReadMsgUnix(b, oob)
	c.moved(int64(n + oobn))
	return n, oobn, flags, addr, err
}

func (c *unixConn) WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error) {
	n, oobn, err = c.UnixConn.WriteMsgUnix(b, oob, addr)
	c.moved(int64(n + oobn))
	return n, oobn, err
}

// These choose between the two that are embedded.

func (c *tcpConn) Read(p []byte) (int, error)         { return c.core.Read(p) }
func (c *tcpConn) Write(p []byte) (int, error)        { return c.core.Write(p) }
func (c *tcpConn) Close() error                       { return c.core.Close() }
func (c *tcpConn) SetDeadline(t time.Time) error      { return c.core.SetDeadline(t) }
func (c *tcpConn) SetReadDeadline(t time.Time) error  { return c.core.SetReadDeadline(t) }
func (c *tcpConn) SetWriteDeadline(t time.Time) error { return c.core.SetWriteDeadline(t) }

func (c *unixConn) Read(p []byte) (int, error)         { return c.core.Read(p) }
func (c *unixConn) Write(p []byte) (int, error)        { return c.core.Write(p) }
func (c *unixConn) Close() error                       { return c.core.Close() }
func (c *unixConn) SetDeadline(t time.Time) error      { return c.core.SetDeadline(t) }
func (c *unixConn) SetReadDeadline(t time.Time) error  { return c.core.SetReadDeadline(t) }
func (c *unixConn) SetWriteDeadline(t time.Time) error { return c.core.SetWriteDeadline(t) }

func (c *otherConn) Read(p []byte) (int, error)         { return c.core.Read(p) }
func (c *otherConn) Write(p []byte) (int, error)        { return c.core.Write(p) }
func (c *otherConn) Close() error                       { return c.core.Close() }
func (c *otherConn) SetDeadline(t time.Time) error      { return c.core.SetDeadline(t) }
func (c *otherConn) SetReadDeadline(t time.Time) error  { return c.core.SetReadDeadline(t) }
func (c *otherConn) SetWriteDeadline(t time.Time) error { return c.core.SetWriteDeadline(t) }
