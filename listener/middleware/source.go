package middleware

import (
	"net"
	"net/netip"
)

// addrOf is the IP address that a connection comes from. It is invalid where there is none, as on Unix sockets.
func addrOf(conn net.Conn) netip.Addr {
	switch remote := conn.RemoteAddr().(type) {
	case nil:
		return netip.Addr{}
	case *net.TCPAddr:
		return remote.AddrPort().Addr()
	case *net.UnixAddr:
		return netip.Addr{}
	default:
		if ap, err := netip.ParseAddrPort(remote.String()); err == nil {
			return ap.Addr()
		}
		return netip.Addr{}
	}
}

// plain is the address as rules see it: without zone, and IPv4 also where it is written as IPv6.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// isLocal tells whether a connection comes over a Unix socket, where addresses mean nothing and the file's permissions
// decide.
func isLocal(conn net.Conn) bool {
	_, ok := conn.RemoteAddr().(*net.UnixAddr)
	return ok
}

// sourceOf is the source of a connection.
func sourceOf(conn net.Conn, bits int) netip.Addr { return sourceOfAddr(addrOf(conn), bits) }

// sourceOfAddr is what counts as one source: an IPv4 address, or an IPv6 network of so many bits, since a single machine has
// the addresses of a whole one; 0 means 64. It is invalid where there is no IP address.
func sourceOfAddr(a netip.Addr, bits int) netip.Addr {
	if a = plain(a); !a.Is6() {
		return a
	}
	if bits <= 0 {
		bits = 64
	}
	p, _ := a.Prefix(min(bits, 128)) // fails for other numbers only
	return p.Addr()
}
