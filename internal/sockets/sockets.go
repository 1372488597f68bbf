// Package sockets reads the kernel's table of sockets: which addresses are taken, by which socket.
//
// An address is compared as the kernel compares it, never as text or by its port alone:
//
//	target, ok := sockets.TargetOf("tcp", opError.Addr)
//	if ok {
//		holders, err := sockets.InTheWay(target)
//		...
//	}
//
// On Linux the table is asked for by sock_diag(7), filtered inside the kernel, and read from /proc/net where
// that is denied. It is the table of this process's network namespace. Elsewhere the platform's own tools are
// asked, which takes milliseconds to seconds, and knows less.
//
// An answer is history when it arrives. It explains a failed bind; only another bind tells whether the address
// is free now.
package sockets

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// State is what a socket does with its address.
type State uint8

// The states of a socket. A datagram socket is Bound, or Connected where it has a peer.
const (
	Listening State = iota + 1
	Bound           // has the address, accepts nothing on it
	Connected       // one end of a connection, or what remains of one (TIME_WAIT)
)

// String returns "listening", "bound" or "connected".
func (s State) String() string {
	switch s {
	case Listening:
		return "listening"
	case Bound:
		return "bound"
	case Connected:
		return "connected"
	default:
		return fmt.Sprintf("State(%d)", uint8(s))
	}
}

// Socket is one line of the kernel's table.
type Socket struct {
	Network       string         // "tcp", "udp" or "unix"
	Local, Remote netip.AddrPort // zero for unix; never IPv4-mapped: such a socket counts as IPv4
	Path          string         // unix: as it was bound, perhaps relative; abstract names start with "@"
	V6Only        bool           // an IPv6 socket that leaves IPv4 alone, as all but wildcards do; false where unknown
	State         State
	Inode         uint64 // Linux: as in /proc/PID/fd; 0 where no process has the socket, or unknown
	UID           int    // creator; -1 unknown
	Device        uint32 // index of the interface it is bound to, 0 none or unknown
	PIDs          []int  // holders, where the platform's table names them; nil on Linux

	kind kind   // unix: abstract names of different types do not meet
	file fileID // unix: the file that the path was when it was bound
}

// Target is an address that somebody wants to bind or asks about.
type Target struct {
	Network string         // "tcp", "udp", "unix" (stream), "unixpacket" or "unixgram"
	Addr    netip.AddrPort // invalid or unspecified Addr: wildcard
	V4, V6  bool           // families that a wildcard covers; anything else is of its own family
	Path    string         // unix: a path, or "@name"
}

// TargetOf returns what a bind of addr would take: network as given to net.Listen or net.ListenPacket, addr as
// found in net.OpError.Addr (*net.TCPAddr, *net.UDPAddr, *net.UnixAddr). A wildcard with network "tcp" or "udp"
// covers both families, even 0.0.0.0, because package net binds it as [::] with IPV6_V6ONLY off; "tcp4" and
// "tcp6" cover one. ok is false where the table has no answer: IP networks, unnamed Unix sockets, nil.
func TargetOf(network string, addr net.Addr) (t Target, ok bool) {
	return targetOf(runtime.GOOS, network, addr)
}

func targetOf(goos, network string, addr net.Addr) (Target, bool) {
	switch addr := addr.(type) {
	case *net.TCPAddr:
		if addr == nil {
			return Target{}, false
		}
		return targetOfIP(goos, "tcp", network, addr.AddrPort())
	case *net.UDPAddr:
		if addr == nil {
			return Target{}, false
		}
		return targetOfIP(goos, "udp", network, addr.AddrPort())
	case *net.UnixAddr:
		if addr == nil || addr.Name == "" || kindOf(network) == 0 {
			return Target{}, false
		}
		path := addr.Name
		if path[0] == 0 { // package net takes both spellings of an abstract name
			path = "@" + path[1:]
		}
		return Target{Network: network, Path: path}, true
	}
	return Target{}, false
}

// targetOfIP follows favoriteAddrFamily in net/ipsock_posix.go.
func targetOfIP(goos, base, network string, addr netip.AddrPort) (Target, bool) {
	family, ok := strings.CutPrefix(network, base)
	if !ok {
		return Target{}, false
	}
	ip := addr.Addr().Unmap()
	t := Target{Network: base, Addr: netip.AddrPortFrom(ip, addr.Port())}
	wildcard := !ip.IsValid() || ip.IsUnspecified()
	switch {
	case family == "4":
		t.V4 = true
	case family == "6":
		t.V6 = true
	case family != "":
		return Target{}, false
	case wildcard && dualStack(goos):
		t.V4, t.V6 = true, true
	case wildcard && !ip.IsValid():
		t.V4 = true
	default:
		t.V4, t.V6 = ip.Is4(), ip.Is6()
	}
	return t, true
}

// dualStack tells whether one IPv6 socket can serve IPv4 too (supportsIPv4map in package net).
func dualStack(goos string) bool { return goos != "openbsd" && goos != "dragonfly" }

// Conflicts tells whether s keeps t from being bound on this system. It looks at addresses only: a Connected
// socket that set SO_REUSEADDR, as accepted ones inherit it from a Go listener, does not keep anybody, and the
// table does not tell.
//
// On Linux a wildcard conflicts with every address of the families it covers. On the BSDs, macOS and Windows it
// coexists with specific addresses, and [::] with 0.0.0.0, so two sockets conflict where family and address
// are equal. A path conflicts with the socket that made the file there now, whatever it called it.
func (t Target) Conflicts(s Socket) bool {
	return conflicts(runtime.GOOS, t, placeOf(t), s)
}

// conflicts is Conflicts on the named system, at a place looked up before.
func conflicts(goos string, t Target, p place, s Socket) bool {
	if kindOf(t.Network) != 0 {
		return s.Network == "unix" && conflictsUnix(t, p, s)
	}
	if t.Network != s.Network || t.Addr.Port() != s.Local.Port() || t.Addr.Port() == 0 {
		return false
	}
	if p.device != 0 && s.Device != 0 && p.device != s.Device {
		return false
	}
	a, b := t.span(), s.span()
	if goos == "linux" || goos == "android" {
		// inet_rcv_saddr_equal in net/ipv4/inet_connection_sock.c
		return (a.v4 && b.v4 || a.v6 && b.v6) && (a.wildcard || b.wildcard || a.ip == b.ip)
	}
	if a.v6 != b.v6 { // a dual-stack wildcard is an IPv6 socket
		return false
	}
	if s.Network == "udp" && goos != "windows" && (a.wildcard || b.wildcard) {
		return true // package net sets SO_REUSEADDR, which lets the two coexist on the BSDs, for TCP only
	}
	return a.wildcard && b.wildcard || a.ip == b.ip
}

// span is what an address covers.
type span struct {
	ip               netip.Addr // specific address, the zero Addr for a wildcard
	v4, v6, wildcard bool
}

func (t Target) span() span {
	ip := bare(t.Addr.Addr())
	if !ip.IsValid() {
		return span{v4: t.V4, v6: t.V6, wildcard: true}
	}
	return span{ip: ip, v4: ip.Is4(), v6: ip.Is6()}
}

func (s *Socket) span() span {
	ip := s.Local.Addr()
	if b := bare(ip); b.IsValid() {
		return span{ip: b, v4: b.Is4(), v6: b.Is6()}
	}
	return span{v4: ip.Is4() || ip.Is6() && !s.V6Only, v6: ip.Is6(), wildcard: true}
}

// bare is ip as the table has it: unmapped and without a zone, which is a matter of devices there. Wildcards
// become the zero Addr.
func bare(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if ip.IsUnspecified() {
		return netip.Addr{}
	}
	return ip
}

// specificV6 tells whether ip alone says that its socket leaves IPv4 alone.
func specificV6(ip netip.Addr) bool { return ip.Is6() && !ip.IsUnspecified() }

// kind is the type of a Unix socket as Linux numbers them (SOCK_STREAM ...); 0 unknown or no Unix socket.
type kind uint8

const (
	stream    kind = 1
	datagram  kind = 2
	seqpacket kind = 5
)

func kindOf(network string) kind {
	switch network {
	case "unix":
		return stream
	case "unixgram":
		return datagram
	case "unixpacket":
		return seqpacket
	}
	return 0
}

// fileID names a file. The zero fileID is an unknown one.
type fileID struct {
	device uint64 // as in stat(2)
	inode  uint32 // lower half: all that unix_diag tells
	known  bool
}

// place is what only the running system knows about a Target.
type place struct {
	device  uint32 // index of the interface in the zone of a link-local address
	path    string // absolute
	file    fileID // at that path now
	missing bool   // nothing at that path
}

func placeOf(t Target) (p place) {
	if kindOf(t.Network) == 0 {
		// bind(2) ties a socket with a link-local address to the interface in sin6_scope_id, and no other.
		if ip := t.Addr.Addr(); ip.Zone() != "" && ip.IsLinkLocalUnicast() {
			p.device = zoneIndex(ip.Zone())
		}
		return p
	}
	if !isAbstract(t.Path) {
		p.path, _ = filepath.Abs(t.Path) // "" equals no name
		p.file, p.missing = fileOf(t.Path)
	}
	return p
}

func isAbstract(path string) bool { return strings.HasPrefix(path, "@") }

func conflictsUnix(t Target, p place, s Socket) bool {
	if isAbstract(t.Path) {
		// unix_abstract_hash in net/unix/af_unix.c: each type of socket has its own names.
		return t.Path == s.Path && (s.kind == 0 || s.kind == kindOf(t.Network))
	}
	if p.missing || s.Path == "" || isAbstract(s.Path) {
		return false
	}
	if p.file.known && s.file.known {
		same := p.file.inode == s.file.inode
		if p.file.device == s.file.device {
			return same // also when the name says otherwise: the file was replaced, or reached by another way
		}
		// stat(2) on btrfs and overlayfs tells another device than the kernel keeps for the socket.
		if same && filepath.Base(p.path) == filepath.Base(s.Path) {
			return true
		}
	}
	// A relative name is of a directory that nobody knows: unlike p.path, it never matches.
	return filepath.Clean(s.Path) == p.path
}

// InTheWay lists the sockets that keep t from being bound, each once: the listening ones; where there are none,
// bound ones; where there are none either, connected ones, because the ephemeral port of a client is taken too.
// Connected ones are an explanation and no more: which of them is to blame, the table does not tell. None are
// listed for port 0, for a path where no file is, and for one whose file outlived its socket.
//
// A TCP listener in the way is found at once, in the time of a few binds. What does not listen takes the kernel a
// walk through its whole table, a matter of milliseconds.
func InTheWay(t Target) ([]Socket, error) {
	return inTheWay(t, tables)
}

func inTheWay(t Target, tables []table) ([]Socket, error) {
	p := placeOf(t)
	if p.missing || kindOf(t.Network) == 0 && t.Addr.Port() == 0 {
		return nil, nil
	}
	var found [Connected + 1]set
	for _, states := range looks(t.Network) {
		q := queryFor(t, t.Addr.Port(), t.Addr.Port(), states)
		err := read(q, tables, func(s *Socket) {
			if conflicts(runtime.GOOS, t, p, *s) {
				found[s.State].add(s)
			}
		})
		if err != nil {
			return nil, err
		}
		for i := range found {
			if len(found[i].sockets) > 0 {
				return found[i].sockets, nil
			}
		}
	}
	return nil, nil
}

// looks returns which states to ask for, look by look, until something is found. One system call may ask for
// several, but TCP keeps listeners in a small table and everything else in two large ones, and most Unix sockets
// are connected.
func looks(network string) []states {
	switch {
	case wholeTable || network == "udp":
		return []states{anyState}
	case network == "tcp":
		return []states{only(Listening), anyState &^ only(Listening)}
	default:
		return []states{only(Listening) | only(Bound), only(Connected)}
	}
}

// Taken tells which ports of [first,last] a bind of t's address on that port would find taken, from one look at the
// kernel's table. t's own port does not matter. It is a hint to skip binds, never an answer: a port may have been
// taken or freed since, and of TCP only listeners are looked for. Finding sockets that are merely bound takes the
// kernel milliseconds, and a bind finds them too.
func Taken(t Target, first, last uint16) (Ports, error) {
	return taken(t, first, last, tables)
}

func taken(t Target, first, last uint16, tables []table) (Ports, error) {
	if kindOf(t.Network) != 0 {
		return Ports{}, net.UnknownNetworkError(t.Network)
	}
	if first > last {
		return Ports{}, nil
	}
	ports := Ports{first: first, bits: make([]uint64, (int(last)-int(first))/64+1)}
	p, ip := placeOf(t), t.Addr.Addr()
	states := only(Listening)
	if t.Network == "udp" {
		states = only(Bound)
	}
	err := read(queryFor(t, first, last, states), tables, func(s *Socket) {
		t.Addr = netip.AddrPortFrom(ip, s.Local.Port())
		if s.State != Connected && conflicts(runtime.GOOS, t, p, *s) {
			ports.add(s.Local.Port())
		}
	})
	if err != nil {
		return Ports{}, err
	}
	return ports, nil
}

// Ports is a set of ports. The zero Ports is empty.
type Ports struct {
	first uint16
	bits  []uint64
}

// Has tells whether port is in the set.
func (p Ports) Has(port uint16) bool {
	i := int(port) - int(p.first)
	return i >= 0 && i/64 < len(p.bits) && p.bits[i/64]&(1<<(i%64)) != 0
}

func (p Ports) add(port uint16) {
	if i := int(port) - int(p.first); i >= 0 && i/64 < len(p.bits) {
		p.bits[i/64] |= 1 << (i % 64)
	}
}

// List returns every listening or bound socket of network "tcp" or "udp" with a local port in [first,last],
// in order of port and address.
func List(network string, first, last uint16) ([]Socket, error) {
	return list(network, first, last, tables)
}

func list(network string, first, last uint16, tables []table) ([]Socket, error) {
	if network != "tcp" && network != "udp" {
		return nil, net.UnknownNetworkError(network)
	}
	if first > last {
		return nil, nil
	}
	var found set
	q := query{network: network, v4: true, first: first, last: last, states: only(Listening) | only(Bound)}
	err := read(q, tables, func(s *Socket) {
		if s.State != Connected {
			found.add(s)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found.sockets, func(a, b Socket) int {
		return cmp.Or(
			cmp.Compare(a.Local.Port(), b.Local.Port()),
			a.Local.Addr().Compare(b.Local.Addr()),
			cmp.Compare(a.Inode, b.Inode),
		)
	})
	return found.sockets, nil
}

// Connection returns the TCP socket at the local end of a connection within this network namespace. ok is false where there is
// none. Until a server accepts, its end has no Inode on Linux, and no PIDs elsewhere.
func Connection(local, remote netip.AddrPort) (s Socket, ok bool, err error) {
	q := query{network: "tcp", v4: true, first: local.Port(), last: local.Port(), states: only(Connected)}
	err = read(q, tables, func(found *Socket) {
		if found.Local == local && found.Remote == remote {
			s, ok = *found, true
		}
	})
	return s, ok, err
}

// states is a set of states.
type states uint8

const anyState states = 1<<Listening | 1<<Bound | 1<<Connected

func only(s State) states { return 1 << s }

func (s states) has(state State) bool { return s&(1<<state) != 0 }

// query is one look at the table. A table may answer more than was asked.
type query struct {
	network     string // as in Target
	v4          bool   // IPv4 sockets count; IPv6 ones always do, as they may cover IPv4 too
	first, last uint16 // local ports; not for unix
	states      states
}

func queryFor(t Target, first, last uint16, states states) query {
	return query{network: t.Network, v4: t.span().v4, first: first, last: last, states: states}
}

// has tells whether q asks for s, where the kernel did not choose.
func (q *query) has(s *Socket) bool {
	return q.states.has(s.State) && (s.Network == "unix" || s.Local.Port() >= q.first && s.Local.Port() <= q.last)
}

// A table answers queries. The Socket is only lent to visit.
type table func(q query, visit func(*Socket)) error

// read asks the first table that works. One that fails half-way has its part visited again by the next.
func read(q query, tables []table, visit func(*Socket)) error {
	var first error
	for _, t := range tables {
		err := t(q, visit)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return fmt.Errorf("read the table of %s sockets: %w", q.network, first)
}

// set keeps sockets, each once: a table may repeat one (MPTCP does for each subflow), or name it for each of its
// holders.
type set struct {
	sockets []Socket
	index   map[identity]int
}

type identity struct {
	inode         uint64
	local, remote netip.AddrPort // only without an inode
	path          string
}

func (u *set) add(s *Socket) {
	id := identity{inode: s.Inode}
	if s.Inode == 0 {
		id = identity{local: s.Local, remote: s.Remote, path: s.Path}
	}
	if i, ok := u.index[id]; ok {
		for _, pid := range s.PIDs {
			if !slices.Contains(u.sockets[i].PIDs, pid) {
				u.sockets[i].PIDs = append(u.sockets[i].PIDs, pid)
			}
		}
		return
	}
	if u.index == nil {
		u.index = make(map[identity]int)
	}
	u.index[id] = len(u.sockets)
	u.sockets = append(u.sockets, *s)
}
