package reload

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// How a process hands over to the next version, in the words of both:
//
// The old process starts the new one by the protocol of github.com/cloudflare/tableflip v1.2.3: TABLEFLIP_HAS_PARENT_7DIU3 in
// the environment; descriptor 3 is a pipe on which the new process writes one byte, 42, when it is ready; descriptor 4 one
// from which it reads the names of the descriptors from 5 on (encoding/gob, a list of three strings each), and whose end
// tells it that the old process has ended. All names are of tableflip's kind "fd"; the second string is a label as JSON.
//
// One of the descriptors, labelled "control", is a stream socket between the two. On it go messages, one JSON object a line:
//
//	old -> new  {"do":"hello","version":1}  written before the new process starts
//	new -> old  the byte 42: it is ready to accept connections, and could take charge
//	old         tells systemd the new MAINPID, and waits until systemd has seen that
//	old -> new  {"do":"lead"}               from now on the new process owns records, lock files and socket files
//	new         writes records and PID file, tells systemd READY=1
//	new -> old  {"do":"lead"}               it does; now the old one can drain
//	either way  {"do":"upgrade"}            somebody asked the old process for one more upgrade: it is the new one's to do
//
// Where the new process ends before "lead", or anything else goes wrong, nothing has changed. Where the old process ends
// before "lead", the control socket ends, and the new process leads. What a process does not know it ignores.
//
// Under a supervisor every version is started by that, in the same way, and its control socket stays open. The supervisor
// leads nothing: one version does, and hands over to the next through it.
//
//	supervisor -> new  {"do":"hello","version":1,"supervised":true,"pid":O}  O leads now; without it nobody does
//	new -> supervisor  {"do":"keep","label":...}   with a descriptor, which the version after it is to have, should it crash
//	new -> supervisor  {"do":"forget","label":...} with the end of a pipe, which is closed when that is done
//	new -> supervisor  the byte 42
//	supervisor -> old  {"do":"yield","pid":N}      N is about to lead: leave records, lock files and socket files to it; with the
//	                                               end of a pipe on which N will write a byte when it leads ("witness")
//	old -> supervisor  {"do":"yield","pid":N}      it has
//	supervisor -> new  {"do":"lead"}
//	new -> supervisor  {"do":"lead"}               it does
//	supervisor -> old  {"do":"retire"}             drain and end
//	                   {"do":"lead"}               or, where the new one has failed: lead again
//	old -> supervisor  {"do":"lead"}               it does
//
//	any -> supervisor  {"do":"upgrade","id":I}     upgrade; without an id no answer is wanted
//	any -> supervisor  {"do":"cancel","id":I}      nobody waits for that any more
//	supervisor -> any  {"do":"upgraded","id":I,"failure":...}
//
// Where the supervisor ends, so do all control sockets. The one that leads goes on alone. One that has not been told to lead does
// so if O has ended, and otherwise gives up and closes its witness. One that has yielded reads that: if N leads, it drains as
// after "retire", until N ends; if N never will, it leads again.

// protocol is the version of all that.
const protocol = 1

// A label says what a descriptor that is handed on is. Exactly one of Socket, File and Stream is set, or Control or Witness.
type label struct {
	Socket  *identity `json:"socket,omitempty"`
	File    string    `json:"file,omitempty"`   // name given to KeepFile
	Stream  string    `json:"stream,omitempty"` // what becomes standard output or error: see output.go
	Of      int       `json:"of,omitempty"`     // of which descriptor, for Stream: 1 or 2
	Control bool      `json:"control,omitempty"`
	Witness bool      `json:"witness,omitempty"` // a pipe on which a supervised version says that it leads
}

// An identity is what a socket is asked for by.
type identity struct {
	Packet  bool        `json:"packet,omitempty"`
	Name    string      `json:"name,omitempty"`
	Network string      `json:"network"`
	Address string      `json:"address"`          // as asked for
	Order   int         `json:"order,omitempty"`  // among those alike, which only sockets without a fixed address can be
	Member  int         `json:"member,omitempty"` // of a group, which shares the rest
	File    *socketFile `json:"file,omitempty"`   // of a Unix socket that this program bound, and has to remove
}

// same tells whether two are asked for alike, up to their order and place in a group.
func (i identity) same(j identity) bool {
	return i.Packet == j.Packet && i.Name == j.Name && i.Network == j.Network && i.Address == j.Address
}

// before tells which of two that fit a request is the one: what was asked for alike, in its order, and the first of a group.
func (i identity) before(a, b identity) bool {
	if a.same(i) != b.same(i) {
		return a.same(i)
	}
	if a.Order != b.Order {
		return a.Order < b.Order
	}
	return a.Member < b.Member
}

func (i identity) String() string {
	text := i.Network + " " + i.Address
	if i.Name != "" {
		text = i.Name + " (" + text + ")"
	}
	return text
}

// notFixed tells whether each bind of the address gives another one: port 0, ports of a range, or a Unix socket without a name.
func (i identity) notFixed() bool {
	if strings.HasPrefix(i.Network, "unix") {
		return i.Address == "" || i.Address == "@"
	}
	_, port, err := net.SplitHostPort(i.Address)
	if err != nil {
		return false
	}
	number := strings.TrimLeft(port, "0123456789") // a service can have a hyphen in its name
	isRange := number != port && strings.ContainsAny(port, "-,")
	return isRange || strings.Trim(port, "0") == ""
}

// isObtained tells whether the address that a socket has is the one that is asked for, spelled out: a new version may
// ask for it by another name or in another spelling, and could not bind it as long as it is open.
func (i identity) isObtained(address string) bool {
	if i.notFixed() || address == "" {
		return false
	}
	return sameAddress(i.Address, address)
}

func sameAddress(a, b string) bool {
	if a == b {
		return a != ""
	}
	first, ok := canonical(a)
	second, known := canonical(b)
	return ok && known && first == second
}

// canonical is the address with its wildcards alike, IPv4 in its own notation and zones by number; names are not resolved.
func canonical(address string) (netip.AddrPort, bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, false
	}
	if host == "" {
		host = "::"
	}
	addr, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return netip.AddrPort{}, false
	}
	ip := addr.Addr().Unmap()
	if ip.IsUnspecified() {
		ip = netip.IPv6Unspecified()
	}
	if link, err := net.InterfaceByName(ip.Zone()); err == nil {
		ip = ip.WithZone(strconv.Itoa(link.Index))
	}
	return netip.AddrPortFrom(ip, addr.Port()), true
}

func (l label) encode() string {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err) // strings, numbers and truths always can
	}
	return string(text)
}

// parseLabel reads the name of a file as tableflip gives it: "fd:" + label + ":".
func parseLabel(name string) (label, error) {
	text, ok := strings.CutPrefix(name, "fd:")
	if !ok {
		return label{}, fmt.Errorf("the descriptor %.80q is not from this package", name)
	}
	var l label
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, ":")), &l); err != nil {
		return label{}, fmt.Errorf("the descriptor %.80q has no label of this package: %w", name, err)
	}
	kinds := 0
	for _, is := range []bool{l.Socket != nil, l.File != "", l.Stream != "", l.Control, l.Witness} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return label{}, fmt.Errorf("the descriptor %.80q is of %d kinds", name, kinds)
	case l.Socket != nil && (l.Socket.Network == "" || l.Socket.Order < 0 || l.Socket.Member < 0):
		return label{}, fmt.Errorf("the descriptor %.80q is a socket without a network", name)
	case l.Stream != "" && l.Of != 1 && l.Of != 2:
		return label{}, fmt.Errorf("the descriptor %.80q is a stream of %d", name, l.Of)
	}
	return l, nil
}

// A message goes over the control socket.
type message struct {
	Do      string `json:"do"`
	Version int    `json:"version,omitempty"`

	Attached   bool     `json:"attached,omitempty"`   // a descriptor comes with it
	Supervised bool     `json:"supervised,omitempty"` // hello: the other side is a supervisor, and stays
	Sibling    bool     `json:"sibling,omitempty"`    // hello: the new process is a child of systemd, as the old one is
	PID        int      `json:"pid,omitempty"`        // hello from a supervisor: who leads; yield: who is about to
	Label      *label   `json:"label,omitempty"`      // keep, forget
	ID         int      `json:"id,omitempty"`         // upgrade, cancel, upgraded: of one request; 0: no answer is wanted
	Failure    *failure `json:"failure,omitempty"`    // upgraded
}

// What messages ask for.
const (
	doHello    = "hello"
	doLead     = "lead"     // old to new: take charge
	doUpgrade  = "upgrade"  // start the next version
	doKeep     = "keep"     // to a supervisor: a descriptor that the next process is to have
	doForget   = "forget"   // to a supervisor: not any more
	doCancel   = "cancel"   // to a supervisor: an upgrade is not wanted any more
	doUpgraded = "upgraded" // from a supervisor: how the upgrade went that was asked for
	doYield    = "yield"    // from a supervisor: another process is about to lead; to it: it may
	doRetire   = "retire"   // from a supervisor: another process leads
)

// maxMessage bounds a line on the control socket; an address has at most 4 KiB.
const maxMessage = 64 << 10

var errMessage = errors.New("the other process speaks another protocol")

func parseMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("%w: %.80q", errMessage, line)
	}
	return m, nil
}
