package activation

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-go/berth/internal/descriptor"
)

// base splits the family off a network: "tcp4" is "tcp" and '4'. The family is 0 where both will do.
func base(network string) (string, byte) {
	if n := len(network) - 1; n >= 0 && (network[n] == '4' || network[n] == '6') {
		return network[:n], network[n]
	}
	return network, 0
}

// ofNetwork tells whether a socket is what a caller who names the network expects.
func ofNetwork(s *descriptor.Socket, network string) bool {
	if s.Network == network {
		return s.Network != ""
	}
	name, family := base(network)
	return s.Network == name && s.Addr.IsValid() && s.Addr.Addr().Is4() == (family == '4')
}

// target is an address that a caller asks for, resolved.
type target struct {
	family byte           // '4' or '6' where the network restricts it
	addr   netip.AddrPort // tcp, udp: unmapped, the zone in digits; without an address where the caller gave none
	path   string         // unix
}

// resolve finds out what [net.Listen] or [net.ListenPacket] would bind.
func resolve(network, address string) (target, error) {
	_, family := base(network)
	switch network {
	case "tcp", "tcp4", "tcp6":
		addr, err := net.ResolveTCPAddr(network, address)
		if err != nil || addr == nil {
			return target{}, err
		}
		return target{family: family, addr: normal(addr.AddrPort())}, nil
	case "udp", "udp4", "udp6":
		addr, err := net.ResolveUDPAddr(network, address)
		if err != nil || addr == nil {
			return target{}, err
		}
		return target{family: family, addr: normal(addr.AddrPort())}, nil
	case "unix", "unixpacket", "unixgram":
		if strings.HasPrefix(address, "\x00") { // package net takes both spellings of an abstract name
			address = "@" + address[1:]
		}
		return target{path: address}, nil
	}
	return target{}, net.UnknownNetworkError(network)
}

// normal gives the one form in which addresses are compared.
func normal(addr netip.AddrPort) netip.AddrPort {
	ip := addr.Addr().Unmap()
	if zone := ip.Zone(); zone != "" {
		if i, err := net.InterfaceByName(zone); err == nil {
			ip = ip.WithZone(strconv.Itoa(i.Index))
		}
	}
	return netip.AddrPortFrom(ip, addr.Port())
}

// fit tells how well a socket of the right network serves the target; 0 is not at all.
func (t target) fit(s *descriptor.Socket) int {
	if !s.Addr.IsValid() {
		return fitPath(t.path, s.Path)
	}
	have := normal(s.Addr)
	if have.Port() == 0 || have.Port() != t.addr.Port() {
		return 0
	}
	want, ip := t.addr.Addr(), have.Addr()
	if want.IsValid() && !want.IsUnspecified() {
		// A link-local address without a zone cannot be bound, so whoever omits it means the one that is there.
		if want == ip || want.Zone() == "" && want == ip.WithZone("") {
			return 1
		}
		return 0
	}
	if !ip.IsUnspecified() {
		return 0
	}
	// For "tcp" and "udp", package net binds ":p", "0.0.0.0:p" and "[::]:p" alike, for both families. So each matches
	// every wildcard, and the spelling says which is best where there are several. Too little is an IPv6-only socket
	// for a caller who wrote an IPv4 address; too much, one of both families for a caller who wants one.
	switch v4, dual := ip.Is4(), ip.Is6() && !s.V6Only; {
	case t.family == '6':
		return one(s.V6Only)
	case want.Is4(): // also tcp4, where dual is ruled out by its family
		return 3*one(v4) + 2*one(dual)
	case want.Is6():
		return 1 + 2*one(!v4)
	default:
		return 1 + one(v4) + 2*one(dual)
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// fitPath compares paths of Unix sockets. The names that the kernel keeps are those of the bind: relative ones, which are
// taken as of this process's directory, and ones through links, as /var/run is.
func fitPath(want, have string) int {
	switch {
	case want == "" || have == "":
		return 0
	case want == have:
		return 1
	case want[0] == '@' || have[0] == '@':
		return 0
	}
	a, errA := filepath.Abs(want)
	b, errB := filepath.Abs(have)
	if errA == nil && errB == nil && a == b {
		return 1
	}
	there, errA := os.Stat(want)
	same, errB := os.Stat(have)
	return one(errA == nil && errB == nil && os.SameFile(there, same))
}
