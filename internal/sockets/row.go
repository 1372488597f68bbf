package sockets

import (
	"math"
	"net/netip"
	"strings"
)

// row is a line of the tables that other systems have, as their tools (lsof, netstat, GetExtendedTcpTable) tell it.
type row struct {
	network               string // "tcp", "udp" or "unix"
	v6                    bool
	local, remote         string // addresses; "*" or "" for a wildcard; a path for unix
	localPort, remotePort uint32
	status                string // of TCP; "" where it has none
	pid                   int
}

// socket returns what the row says. ok is false where that is no socket with an address.
func (r *row) socket() (s Socket, ok bool) {
	s = Socket{Network: r.network, UID: -1, State: Bound}
	if r.pid > 0 {
		s.PIDs = []int{r.pid}
	}
	if r.network == "unix" {
		// lsof tells the peer ("->0x...") of a socket without a name, and no state.
		s.Path = r.local
		return s, r.local != "" && !strings.HasPrefix(r.local, "->")
	}
	if s.Local, ok = rowAddrPort(r.local, r.localPort, r.v6); !ok || r.localPort == 0 {
		return Socket{}, false
	}
	s.V6Only = specificV6(s.Local.Addr())
	if r.remotePort != 0 {
		s.Remote, _ = rowAddrPort(r.remote, r.remotePort, r.v6)
	}
	switch status := strings.ToUpper(r.status); {
	case status == "LISTEN":
		s.State = Listening
	case strings.HasPrefix(status, "SYN_R"): // a request to a listener, which has a row of its own
		return Socket{}, false
	case r.remotePort != 0:
		s.State = Connected
	}
	return s, true
}

func rowAddrPort(host string, port uint32, v6 bool) (netip.AddrPort, bool) {
	if port > math.MaxUint16 {
		return netip.AddrPort{}, false
	}
	ip := netip.IPv4Unspecified()
	switch host {
	case "", "*":
		if v6 {
			ip = netip.IPv6Unspecified()
		}
	default:
		var err error
		if ip, err = netip.ParseAddr(strings.Trim(host, "[]")); err != nil {
			return netip.AddrPort{}, false
		}
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(port)), true
}
