package middleware

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/pires/go-proxyproto"
)

// Proxy reads the header of the PROXY protocol, version 1 or 2, by which a proxy says whom it speaks for. RemoteAddr and
// LocalAddr of the connections are then those of the client, for every middleware further out too, such as LimitPerIP;
// [ProxyHeader] gives the rest. What follows the header is read from the socket itself, so sendfile and splice stay.
//
//	proxy := middleware.Proxy{Trusted: middleware.NewPrefixes(netip.MustParsePrefix("10.0.0.0/8"))}
//	cfg := listener.Config{Middleware: []listener.Middleware{proxy.Wrap}}
//
// Anybody can write such a header, so it is believed from trusted sources only, and none is trusted by default. The zero
// value refuses every connection.
//
// The header is read outside of Accept, and who is silent holds up nobody: see MaxPending. What Wrap gives has two methods
// more: Pending() int, how many are waited for, and SetDraining(bool), by which package reload gets them before it closes the
// listener. Close closes them. With a command LOCAL, by which
// proxies check health, and with the protocol UNKNOWN, the addresses remain those of the connection.
type Proxy struct {
	// Trusted are the sources that send the header: those of the proxies. Loopback is no exception.
	Trusted *Prefixes

	// TrustUnix trusts whoever connects to a Unix socket: the permissions of its file decide.
	TrustUnix bool

	// Optional lets trusted sources leave the header out, so that one listener has clients with and without. Otherwise they
	// are refused without it. One that sends nothing for as long as Timeout is taken for a client without.
	Optional bool

	// PassUntrusted hands out connections from other sources as they are. What looks like a header is data there, to which
	// nobody listens. Otherwise they are refused.
	PassUntrusted bool

	// Timeout is how long a proxy may take to send the header. Zero means 5 seconds. Deadlines of the connection do not
	// come into it, and are not touched.
	Timeout time.Duration

	// MaxHeader is how long a header of version 2 may be, in bytes. Zero means 4096. For more than 4112, raise MaxV2HeaderSize
	// of package proxyproto too. A header of version 1 is at most 107 bytes long.
	MaxHeader int

	// MaxPending is how many connections may be waiting for their header: about 4 KiB of memory each. With one more, the
	// oldest is closed. Zero means 4096.
	MaxPending int
}

const (
	maxVersion1    = 107 // bytes of a header of version 1
	prefixVersion2 = 16  // bytes before what its length tells
)

// Wrap puts it around a listener. Later changes of p have no effect on that.
func (p Proxy) Wrap(ln net.Listener) net.Listener {
	if p.MaxHeader <= 0 {
		p.MaxHeader = 4096
	}
	in := newIntake(&p, ReasonProxyHeader)
	in.maxBytes = max(p.MaxHeader, maxVersion1, prefixVersion2)
	in.open(ln, orDefault(p.Timeout, 5*time.Second), p.MaxPending)
	return in
}

// ProxyHeader is the header that a connection began with, also behind TLS, with what the proxy says about it (TLVs). It is
// false where there was none. It must not be changed.
func ProxyHeader(conn net.Conn) (*proxyproto.Header, bool) {
	for conn != nil {
		if c, ok := conn.(interface{ frontOf() *front }); ok {
			if header := c.frontOf().header; header != nil {
				return header, true
			}
		}
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = outer.NetConn()
	}
	return nil, false
}

var (
	errUntrusted  = errors.New("proxy: the source is not a trusted proxy; name it in Trusted if it is one")
	errNoHeader   = errors.New("proxy: no PROXY header came from a trusted source; have the proxy send it, or set Optional")
	errIncomplete = errors.New("proxy: the connection ended within the PROXY header")
	errLateHeader = errors.New("proxy: the PROXY header took too long")
	errLongHeader = errors.New("proxy: the PROXY header is too long")
)

func (p *Proxy) trusts(conn net.Conn) bool {
	if isLocal(conn) {
		return p.TrustUnix
	}
	source := addrOf(conn)
	return source.IsValid() && p.Trusted.Contains(source)
}

func (p *Proxy) look(c *pending, received []byte, final bool) bool {
	if !final && len(received) == 0 {
		if p.trusts(c.conn) {
			return false
		}
		if !p.PassUntrusted {
			c.fault = errUntrusted
		}
		return true
	}
	size, err := headerSize(received, p.MaxHeader)
	if errors.Is(err, errIncomplete) {
		switch {
		case !final:
			return false
		case !bytes.HasPrefix(received, proxyproto.SIGV1) && !bytes.HasPrefix(received, proxyproto.SIGV2):
			err = errNoHeader // it has become something else
		}
	}
	switch {
	case err == nil:
		c.size = size
		c.header, err = parseHeader(received[:size])
	case errors.Is(err, errNoHeader) && p.Optional:
		err = nil
	}
	c.fault = err
	return true
}

func (p *Proxy) finish(c *pending) error {
	if c.fault != nil {
		return c.fault
	}
	rest := c.taken
	if c.header == nil && len(rest) == 0 {
		return nil
	}
	switch {
	case c.header == nil:
	case c.socket == nil:
		rest = rest[c.size:]
	default:
		// It is there: look has seen it.
		if _, err := io.CopyN(io.Discard, c.conn, int64(c.size)); err != nil {
			return err
		}
	}
	c.out = newFront(c.conn, c.since, c.header, rest)
	return nil
}

func (p *Proxy) late(c *pending) error {
	switch {
	case c.spoke:
		return errLateHeader
	case p.Optional:
		return nil
	}
	return errNoHeader
}

// headerSize is how long the header is with which received begins. It is errIncomplete while that may still become one.
func headerSize(received []byte, maxVersion2 int) (int, error) {
	begins := func(signature []byte) bool {
		n := min(len(received), len(signature))
		return bytes.Equal(received[:n], signature[:n])
	}
	switch {
	case begins(proxyproto.SIGV2):
		if len(received) < prefixVersion2 {
			return 0, errIncomplete
		}
		size := prefixVersion2 + int(binary.BigEndian.Uint16(received[14:]))
		switch {
		case size > maxVersion2:
			return 0, errLongHeader
		case len(received) < size:
			return 0, errIncomplete
		}
		return size, nil
	case begins(proxyproto.SIGV1):
		if end := bytes.IndexByte(received[:min(len(received), maxVersion1)], '\n'); end >= 0 {
			return end + 1, nil
		}
		if len(received) >= maxVersion1 {
			return 0, errLongHeader
		}
		return 0, errIncomplete
	}
	return 0, errNoHeader
}

// parseHeader parses a header that is complete.
func parseHeader(b []byte) (*proxyproto.Header, error) {
	return proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), len(b)))
}
