package listener

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/berth-go/berth/internal/bound"
	"github.com/berth-go/berth/strategy"
)

// An offer is one of the addresses that a reservation may have: a host, and the ports to choose from in their order.
type offer struct {
	host   string
	ports  []strategy.Range
	fixed  bool    // one port, and not 0
	places []place // one for each socket, which all get the same port
}

// A place is where one socket of an offer goes.
type place struct {
	network  string     // as package net knows it: "tcp4"
	ip       netip.Addr // invalid: none was given
	kind     bound.Kind
	optional bool   // the machine may lack the address: one of the two of localhost
	address  string // by which a new version of the program asks for the socket
}

// parseNetworks takes the parts of "tcp+udp" apart.
func parseNetworks(network string) ([]string, error) {
	parts := strings.Split(network, "+")
	for i, part := range parts {
		switch part {
		case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		case "unix", "unixpacket", "unixgram":
			return nil, fmt.Errorf("network %s: %w: a path cannot be reserved, only ports", part, errors.ErrUnsupported)
		default:
			return nil, net.UnknownNetworkError(network)
		}
		for _, before := range parts[:i] {
			if strings.HasPrefix(part, before) || strings.HasPrefix(before, part) { // "tcp" is of both families
				return nil, fmt.Errorf("network %s: %s and %s are in each other's way; write for example tcp4+tcp6 or tcp+udp", network, before, part)
			}
		}
	}
	return parts, nil
}

// parseOffer reads "host:ports". The ports are those of strategy.ParseRanges, the name of a service, or none for any.
func parseOffer(ctx context.Context, network, address string) (offer, error) {
	if address == "" {
		address = ":0"
	}
	host, ports, err := net.SplitHostPort(address)
	if err != nil {
		return offer{}, err
	}
	o := offer{host: host}
	switch {
	case ports == "":
		o.ports = []strategy.Range{{}}
	case isLetter(ports[0]):
		number, err := net.DefaultResolver.LookupPort(ctx, network, ports)
		if err != nil {
			return offer{}, err
		}
		o.ports = []strategy.Range{{First: uint16(number), Last: uint16(number)}}
	default:
		if o.ports, err = strategy.ParseRanges(ports); err != nil {
			return offer{}, fmt.Errorf("address %s: %w", address, err)
		}
	}
	o.fixed = isFixed(o.ports)
	return o, nil
}

func isFixed(ports []strategy.Range) bool {
	return len(ports) == 1 && ports[0].First == ports[0].Last && ports[0].First != 0
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// portText is the ports in one notation, whatever their order.
func (o offer) portText() string {
	if len(o.ports) == 1 {
		return rangesText(o.ports)
	}
	ports := slices.Clone(o.ports)
	slices.SortFunc(ports, func(a, b strategy.Range) int { return int(a.First) - int(b.First) })
	var merged []strategy.Range
	for i := 0; i < len(ports); {
		r := ports[i]
		for i++; i < len(ports) && r.Last != 0 && int(ports[i].First) <= int(r.Last)+1; i++ {
			r.Last = max(r.Last, ports[i].Last)
		}
		merged = append(merged, r)
	}
	return rangesText(merged)
}

var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// resolve finds the places of an offer: one for each part of the network, and two for localhost.
func (o *offer) resolve(ctx context.Context, parts []string, multipath bool) error {
	o.places = nil
	ports := o.portText()
	for _, network := range parts {
		ips, err := resolveHost(ctx, network, o.host)
		if err != nil {
			return err
		}
		for _, ip := range ips {
			if ip.IsMulticast() {
				return fmt.Errorf("address %s: %w: a multicast address is shared by its nature", ip, errors.ErrUnsupported)
			}
			p := place{network: network, ip: ip, optional: len(ips) > 1, address: net.JoinHostPort(o.host, ports)}
			if len(ips) > 1 {
				p.address = net.JoinHostPort(ip.String(), ports)
			}
			p.kind = kindOf(network, ip)
			p.kind.Multipath = multipath
			o.places = append(o.places, p)
		}
	}
	return nil
}

// kindOf follows favoriteAddrFamily in net/ipsock_posix.go.
func kindOf(network string, ip netip.Addr) bound.Kind {
	k := bound.Kind{Network: network[:3]}
	switch {
	case strings.HasSuffix(network, "4"):
	case strings.HasSuffix(network, "6"):
		k.V6, k.V6Only = true, true
	case !ip.IsValid() || ip.IsUnspecified():
		k.V6 = bound.DualStack() || ip.Is6()
	default:
		k.V6 = ip.Is6()
	}
	return k
}

// resolveHost gives the address that package net would bind, both loopbacks for localhost, and an invalid one for no host.
func resolveHost(ctx context.Context, network, host string) ([]netip.Addr, error) {
	v4, v6 := !strings.HasSuffix(network, "6"), !strings.HasSuffix(network, "4")
	var ips []netip.Addr
	switch ip, err := netip.ParseAddr(host); {
	case host == "":
		return []netip.Addr{{}}, nil
	case strings.EqualFold(host, "localhost"):
		ips = loopbacks
	case err == nil && ip == netip.IPv6Unspecified() && !v6:
		ips = []netip.Addr{netip.IPv4Unspecified()}
	case err == nil:
		ips = []netip.Addr{ip.Unmap()}
	default:
		if ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
			return nil, err
		}
		for i := range ips {
			ips[i] = ips[i].Unmap()
		}
		slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() }) // IPv4 first, as package net
	}
	fits := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if ip.Is4() && v4 || ip.Is6() && v6 {
			fits = append(fits, ip)
		}
	}
	if len(fits) == 0 {
		return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
	}
	if !strings.EqualFold(host, "localhost") {
		fits = fits[:1]
	}
	return fits, nil
}

// addr is an address of the place, for an error.
func (p place) addr(port uint16) net.Addr { return addrOf(p.kind.Network, p.ip, port) }

// addrOf is an address as package net has it. An invalid IP is none.
func addrOf(network string, ip netip.Addr, port uint16) net.Addr {
	if network == "udp" {
		return &net.UDPAddr{IP: ip.AsSlice(), Port: int(port), Zone: ip.Zone()}
	}
	return &net.TCPAddr{IP: ip.AsSlice(), Port: int(port), Zone: ip.Zone()}
}

// bindable is what is given to bind(2): an IPv6 wildcard covers IPv4 too.
func (p place) bindable(port uint16) netip.AddrPort {
	if p.ip.IsUnspecified() {
		return netip.AddrPortFrom(netip.Addr{}, port)
	}
	return netip.AddrPortFrom(p.ip, port)
}

// controlNetwork is the network that ListenConfig.Control is told.
func (p place) controlNetwork() string {
	switch {
	case len(p.network) > len("tcp"):
		return p.network
	case p.kind.V6:
		return p.network + "6"
	}
	return p.network + "4"
}
