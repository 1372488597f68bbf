package listener

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// A PacketConn is what [Config.ListenPacket] returns. Beside [net.PacketConn] it has the methods of [*net.UDPConn] that
// QUIC and DNS servers look for, so they keep their fast paths; on a Unix datagram socket those for UDP give
// errors.ErrUnsupported. Unwrap gives the standard library's own type; code that asks for *net.UDPConn by name needs it, as
// ReadFrom and WriteTo of golang.org/x/net/ipv4 and ipv6 do (ReadBatch and WriteBatch do not).
type PacketConn struct {
	packetConn
	hold  hold
	close func() error
}

// packetConn is embedded under a name that nobody outside can assign to.
type packetConn = net.PacketConn

var (
	_ net.Conn     = (*PacketConn)(nil) // golang.org/x/net/ipv4 and ipv6 ask for it
	_ syscall.Conn = (*PacketConn)(nil)
)

func newPacketConn(base net.PacketConn, h hold) *PacketConn {
	c := &PacketConn{packetConn: base, hold: h}
	c.close = sync.OnceValue(func() error { return c.hold.close(c.packetConn.Close) })
	return c
}

// Close releases the address, lock, record, port file and Unix socket file, as [Listener.Close] does. Called again, it
// repeats its first result.
func (c *PacketConn) Close() error { return c.close() }

// Origin tells how the connection came by its address.
func (c *PacketConn) Origin() Origin { return c.hold.origin }

// Unwrap is the connection inside: *net.UDPConn or *net.UnixConn.
func (c *PacketConn) Unwrap() net.PacketConn { return c.packetConn }

// SetUnlinkOnClose says whether Close removes the file of a Unix socket. It does by default where ListenPacket bound the
// socket, and never otherwise.
func (c *PacketConn) SetUnlinkOnClose(unlink bool) { c.hold.setUnlink(unlink) }

// File is a duplicate of the socket for another process. The caller closes it.
func (c *PacketConn) File() (*os.File, error) { return fileOf(c.packetConn, c.LocalAddr()) }

// SyscallConn gives access to the socket.
func (c *PacketConn) SyscallConn() (syscall.RawConn, error) {
	return rawOf(c.packetConn, c.LocalAddr())
}

// inside is the connection as T, or the error of a method that only T has.
func inside[T any](c *PacketConn, op string) (T, error) {
	t, ok := c.packetConn.(T)
	if !ok {
		return t, unsupported(op, c.LocalAddr())
	}
	return t, nil
}

// Read is [net.UDPConn.Read].
func (c *PacketConn) Read(b []byte) (int, error) {
	conn, err := inside[net.Conn](c, "read")
	if err != nil {
		return 0, err
	}
	return conn.Read(b)
}

// Write is [net.UDPConn.Write]; it fails, since the socket is not connected.
func (c *PacketConn) Write(b []byte) (int, error) {
	conn, err := inside[net.Conn](c, "write")
	if err != nil {
		return 0, err
	}
	return conn.Write(b)
}

// RemoteAddr is nil: the socket is not connected.
func (c *PacketConn) RemoteAddr() net.Addr { return nil }

// SetReadBuffer is [net.UDPConn.SetReadBuffer].
func (c *PacketConn) SetReadBuffer(bytes int) error {
	conn, err := inside[interface{ SetReadBuffer(int) error }](c, "set read buffer")
	if err != nil {
		return err
	}
	return conn.SetReadBuffer(bytes)
}

// SetWriteBuffer is [net.UDPConn.SetWriteBuffer].
func (c *PacketConn) SetWriteBuffer(bytes int) error {
	conn, err := inside[interface{ SetWriteBuffer(int) error }](c, "set write buffer")
	if err != nil {
		return err
	}
	return conn.SetWriteBuffer(bytes)
}

// ReadMsgUDP is [net.UDPConn.ReadMsgUDP].
func (c *PacketConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	conn, err := inside[*net.UDPConn](c, "read")
	if err != nil {
		return 0, 0, 0, nil, err
	}
	return conn.ReadMsgUDP(b, oob)
}

// WriteMsgUDP is [net.UDPConn.WriteMsgUDP].
func (c *PacketConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	conn, err := inside[*net.UDPConn](c, "write")
	if err != nil {
		return 0, 0, err
	}
	return conn.WriteMsgUDP(b, oob, addr)
}

// ReadFromUDPAddrPort is [net.UDPConn.ReadFromUDPAddrPort].
func (c *PacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	conn, err := inside[*net.UDPConn](c, "read")
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	return conn.ReadFromUDPAddrPort(b)
}

// WriteToUDPAddrPort is [net.UDPConn.WriteToUDPAddrPort].
func (c *PacketConn) WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error) {
	conn, err := inside[*net.UDPConn](c, "write")
	if err != nil {
		return 0, err
	}
	return conn.WriteToUDPAddrPort(b, addr)
}

// SetDeadline bounds reads and writes, as [net.UDPConn.SetDeadline] does.
func (c *PacketConn) SetDeadline(t time.Time) error { return c.packetConn.SetDeadline(t) }
