package middleware

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// Prefixes is a set of IP networks that can be replaced while it is in use. A look-up takes as long in a hundred thousand
// networks as in ten. The zero value, and nil, are empty. It must not be copied.
type Prefixes struct {
	set atomic.Pointer[prefixSet]
}

// NewPrefixes is a set of the networks given. See [Prefixes.Set].
func NewPrefixes(networks ...netip.Prefix) *Prefixes {
	p := new(Prefixes)
	p.Set(networks)
	return p
}

// Set replaces the whole set at once. Bits behind the length of a network do not count, nor do invalid networks, which
// contain nothing. IPv4 networks hold also for IPv4 addresses that are written as IPv6 (::ffff:10.0.0.0/104 is
// 10.0.0.0/8); IPv6 networks, ::/0 among them, hold for IPv6 alone.
func (p *Prefixes) Set(networks []netip.Prefix) { p.set.Store(newPrefixSet(networks)) }

// Load replaces the set by a list as of [ParsePrefixes]. After an error it is what it was.
func (p *Prefixes) Load(list io.Reader) error {
	networks, err := ParsePrefixes(list)
	if err != nil {
		return err
	}
	p.Set(networks)
	return nil
}

// Contains tells whether one of the networks contains the address. Zones do not count.
func (p *Prefixes) Contains(addr netip.Addr) bool {
	if p == nil {
		return false
	}
	set := p.set.Load()
	return set != nil && set.contains(plain(addr))
}

// maxListErrors is how many errors ParsePrefixes reports.
const maxListErrors = 10

// ParsePrefixes reads a list: a network ("10.0.0.0/8") or an address a line. What follows a # is a comment; empty lines do
// not count. The error has a line for each of the first lines that are wrong, with its number; nothing else is given then.
func ParsePrefixes(list io.Reader) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	var wrong []error
	lines := bufio.NewScanner(list)
	number := 0
	for lines.Scan() {
		number++
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		network, err := parsePrefix(text)
		if err != nil {
			if wrong = append(wrong, fmt.Errorf("line %d: %w", number, err)); len(wrong) == maxListErrors {
				break
			}
			continue
		}
		networks = append(networks, network)
	}
	if err := lines.Err(); err != nil {
		wrong = append(wrong, fmt.Errorf("line %d: %w", number+1, err))
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return networks, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no IP address or network", text)
		}
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	network, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no IP network", text)
	}
	return network, nil
}

// A key is an address as a number of 128 bits, from the left; IPv4 has 32 of them.
type key struct{ hi, lo uint64 }

func keyOf(addr netip.Addr) key {
	if addr.Is4() {
		b := addr.As4()
		return key{hi: uint64(binary.BigEndian.Uint32(b[:])) << 32}
	}
	b := addr.As16()
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// byte is the i-th, from the left.
func (k key) byte(i uint8) uint8 {
	if i < 8 {
		return uint8(k.hi >> (56 - 8*i))
	}
	return uint8(k.lo >> (120 - 8*i))
}

// common is how many bits from the left are alike.
func (k key) common(other key) int {
	if x := k.hi ^ other.hi; x != 0 {
		return bits.LeadingZeros64(x)
	}
	return 64 + bits.LeadingZeros64(k.lo^other.lo)
}

// A prefixSet is a trie for each family. The networks in it do not overlap.
type prefixSet struct{ v4, v6 branch }

// A branch is a network, or where node is not nil, all that lies below it.
type branch struct {
	key
	length int // bits that count
	node   *node
}

// A node tells networks apart by one byte, the first in which they differ. The bytes before it, which are alike, are
// looked at only where a network is found.
type node struct {
	at       uint8     // which byte
	whole    [4]uint64 // its values for which everything below is in the set
	more     [4]uint64 // its values that have a branch
	branches []branch  // in the order of these values
}

func newPrefixSet(networks []netip.Prefix) *prefixSet {
	var v4, v6 []branch
	for _, network := range networks {
		addr, length := network.Addr(), network.Bits()
		if addr.Is4In6() && length >= 96 {
			addr, length = addr.Unmap(), length-96
		}
		network = netip.PrefixFrom(addr, length).Masked()
		switch {
		case !network.IsValid():
		case addr.Is4():
			v4 = append(v4, branch{key: keyOf(network.Addr()), length: length})
		default:
			v6 = append(v6, branch{key: keyOf(network.Addr()), length: length})
		}
	}
	return &prefixSet{grow(disjoint(v4)), grow(disjoint(v6))}
}

// disjoint sorts networks and leaves out those that lie in others.
func disjoint(list []branch) []branch {
	slices.SortFunc(list, func(a, b branch) int {
		switch {
		case a.hi != b.hi:
			return compare(a.hi, b.hi)
		case a.lo != b.lo:
			return compare(a.lo, b.lo)
		}
		return a.length - b.length
	})
	kept := list[:0]
	for _, b := range list {
		if n := len(kept); n == 0 || !kept[n-1].contains(b.key) {
			kept = append(kept, b)
		}
	}
	return kept
}

func compare(a, b uint64) int {
	if a < b {
		return -1
	}
	return 1
}

// none contains nothing.
var none = branch{length: 129}

// grow makes one branch of networks that are sorted and disjoint.
func grow(list []branch) branch {
	switch len(list) {
	case 0:
		return none
	case 1:
		return list[0]
	}
	first, last := list[0].key, list[len(list)-1].key
	n := &node{at: uint8(first.common(last) / 8)}
	for len(list) > 0 {
		value := list[0].byte(n.at)
		if free := 8*(int(n.at)+1) - list[0].length; free >= 0 {
			for i := range 1 << free {
				set(&n.whole, value+uint8(i))
			}
			list = list[1:]
			continue
		}
		end := 1
		for end < len(list) && list[end].byte(n.at) == value {
			end++
		}
		set(&n.more, value)
		n.branches = append(n.branches, grow(list[:end]))
		list = list[end:]
	}
	n.branches = slices.Clip(n.branches)
	return branch{key: first, length: 8 * int(n.at), node: n}
}

func set(bitmap *[4]uint64, i uint8) { bitmap[i/64] |= 1 << (i % 64) }

func (s *prefixSet) contains(addr netip.Addr) bool {
	switch {
	case addr.Is4():
		return s.v4.find(keyOf(addr))
	case addr.Is6():
		return s.v6.find(keyOf(addr))
	}
	return false
}

// contains tells whether the bits that count are those of the key.
func (b *branch) contains(k key) bool { return b.common(k) >= b.length }

func (b *branch) find(k key) bool {
	for b.node != nil {
		n := b.node
		value := k.byte(n.at)
		word, bit := value/64, uint64(1)<<(value%64)
		if n.more[word]&bit == 0 {
			return n.whole[word]&bit != 0 && b.contains(k)
		}
		i := bits.OnesCount64(n.more[word] & (bit - 1))
		for _, before := range n.more[:word] {
			i += bits.OnesCount64(before)
		}
		b = &n.branches[i]
	}
	return b.contains(k)
}

// Allow refuses connections from addresses that are not in Prefixes; nil and empty allow nobody. Connections over Unix
// sockets pass, since there the permissions of the file decide; any other connection without an IP address is refused. No
// connection is wrapped.
type Allow struct{ Prefixes *Prefixes }

// Deny refuses connections from addresses that are in Prefixes. No connection is wrapped.
type Deny struct{ Prefixes *Prefixes }

var deniedRefusal = &Refusal{Reason: ReasonDenied}

// Wrap puts the rule around a listener.
func (a Allow) Wrap(ln net.Listener) net.Listener {
	return wrap(ln, part{admit: func(conn net.Conn, _ *shared) error {
		if isLocal(conn) || a.Prefixes.Contains(addrOf(conn)) {
			return nil
		}
		return deniedRefusal
	}})
}

// Wrap puts the rule around a listener.
func (d Deny) Wrap(ln net.Listener) net.Listener {
	return wrap(ln, part{admit: func(conn net.Conn, _ *shared) error {
		if d.Prefixes.Contains(addrOf(conn)) {
			return deniedRefusal
		}
		return nil
	}})
}
