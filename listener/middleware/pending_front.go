package middleware

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
)

// A front is what a connection has that began otherwise than its user sees it: with a PROXY header, or with bytes that had
// to be read to be looked at.
type front struct {
	header        *proxyproto.Header // nil: none
	remote, local net.Addr

	hasRest atomic.Bool
	mu      sync.Mutex
	rest    []byte // read before what the connection has
}

type tcpFront struct {
	*tcpConn
	front
}

type unixFront struct {
	*unixConn
	front
}

type otherFront struct {
	net.Conn
	front
}

var (
	_ io.ReaderFrom = (*tcpFront)(nil)
	_ io.WriterTo   = (*tcpFront)(nil)
)

// newFront gives a connection a front. All of them have a core, so that one type does for those with and without.
func newFront(conn net.Conn, since time.Time, header *proxyproto.Header, rest []byte) net.Conn {
	conn, _ = withCore(conn, since)
	switch conn := conn.(type) {
	case *tcpConn:
		c := &tcpFront{tcpConn: conn}
		c.set(conn, header, rest)
		return c
	case *unixConn:
		c := &unixFront{unixConn: conn}
		c.set(conn, header, rest)
		return c
	}
	c := &otherFront{Conn: conn}
	c.set(conn, header, rest)
	return c
}

func (f *front) set(conn net.Conn, header *proxyproto.Header, rest []byte) {
	f.header, f.remote, f.local = header, conn.RemoteAddr(), conn.LocalAddr()
	if header != nil && header.Command.IsProxy() && header.SourceAddr != nil && header.DestinationAddr != nil {
		f.remote, f.local = header.SourceAddr, header.DestinationAddr
	}
	if len(rest) > 0 {
		f.rest = rest
		f.hasRest.Store(true)
	}
}

func (f *front) frontOf() *front { return f }

// RemoteAddr is the client that the proxy speaks for.
func (f *front) RemoteAddr() net.Addr { return f.remote }

// LocalAddr is the address that the client has connected to.
func (f *front) LocalAddr() net.Addr { return f.local }

// readBefore reads what is left of rest, and then from the connection.
func (f *front) readBefore(conn net.Conn, p []byte) (int, error) {
	if f.hasRest.Load() {
		f.mu.Lock()
		n := copy(p, f.rest)
		f.rest = f.rest[n:]
		f.hasRest.Store(len(f.rest) > 0)
		f.mu.Unlock()
		if n > 0 {
			return n, nil
		}
	}
	return conn.Read(p)
}

// writeTo writes what is left of rest.
func (f *front) writeTo(w io.Writer) (int64, error) {
	if !f.hasRest.Load() {
		return 0, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := w.Write(f.rest)
	f.rest = f.rest[n:]
	f.hasRest.Store(len(f.rest) > 0)
	return int64(n), err
}

// NetConn is the connection inside.
func (c *otherFront) NetConn() net.Conn { return c.Conn }

func (c *tcpFront) Read(p []byte) (int, error)   { return c.front.readBefore(c.tcpConn, p) }
func (c *unixFront) Read(p []byte) (int, error)  { return c.front.readBefore(c.unixConn, p) }
func (c *otherFront) Read(p []byte) (int, error) { return c.front.readBefore(c.Conn, p) }

// WriteTo is that of the TCP connection, after the bytes that were read before.
func (c *tcpFront) WriteTo(w io.Writer) (int64, error) {
	before, err := c.front.writeTo(w)
	if err != nil {
		return before, err
	}
	n, err := c.tcpConn.WriteTo(w)
	return before + n, err
}

// These choose between the two that are embedded.

func (c *otherFront) RemoteAddr() net.Addr { return c.remote }
func (c *otherFront) LocalAddr() net.Addr  { return c.local }
