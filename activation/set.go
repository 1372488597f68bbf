package activation

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/berth-go/berth/internal/descriptor"
)

// A Set is the sockets that were passed to this process. Each is given out once; the Set owns what nobody took. It is a
// Source of package listener. Its methods may be called from several goroutines, and on a nil Set, which holds nothing.
type Set struct {
	sockets []*passed // in the order of their descriptors

	mu       sync.Mutex // of what follows, and of gone and file of the sockets
	closed   bool
	closeErr error
}

// A Socket is one that was passed.
type Socket struct {
	FD      int    // the number under which it came
	Name    string // from LISTEN_FDNAMES; "unknown" where it gives none
	Network string // "tcp", "udp", "unix", "unixpacket", "unixgram", or "unknown" for what package net has no type for
	Address string // its own, as the kernel has it
}

// String is one line for a log: "descriptor 3 (web), tcp [::]:8080".
func (s Socket) String() string {
	text := "descriptor " + strconv.Itoa(s.FD)
	if s.Name != "" && s.Name != unnamed {
		text += " (" + s.Name + ")"
	}
	text += ", " + s.Network
	if s.Address != "" {
		text += " " + s.Address
	}
	return text
}

// use is what a socket is good for.
type use string

const (
	listens  use = "listening stream socket"
	packets  use = "datagram socket"
	connects use = "connection"
	nothing  use = "socket that neither listens nor is connected"
)

// passed is a Socket with what was found out about it when it came.
type passed struct {
	Socket
	facts descriptor.Socket
	use   use
	gone  bool     // taken or closed
	file  *os.File // owner of FD, once it was to be taken; else nil
}

func newPassed(fd int, name string, facts descriptor.Socket) *passed {
	p := &passed{
		Socket: Socket{FD: fd, Name: name, Network: facts.Network, Address: facts.Address()},
		facts:  facts,
		use:    nothing,
	}
	switch {
	case facts.Network == "":
		p.Network = "unknown"
	case !facts.Stream():
		p.use = packets
	case facts.Listening:
		p.use = listens
	case facts.Connected:
		p.use = connects
	}
	return p
}

func (p *passed) fits(u use, network string) bool {
	return !p.gone && p.use == u && ofNetwork(&p.facts, network)
}

// Take gives out a listening stream socket for the networks "tcp", "tcp4", "tcp6", "unix" and "unixpacket", as a
// [*net.TCPListener] or [*net.UnixListener]. An error that is [fs.ErrNotExist] says that none matches.
//
// Where the address is "fd:" and a number (from 3) or a name of LISTEN_FDNAMES, it is that one or an error that is not
// fs.ErrNotExist. (A Unix socket in a file of such a name is asked for as "./fd:3".)
//
// Otherwise, where name is not "" and a socket has it in LISTEN_FDNAMES, it is that one, whatever its address: the unit
// file decides. Of several with that name it is the one with the address, or else the first. So a program that listens
// on several addresses gives each its own name, or none.
//
// Otherwise it is one with the address, as the kernel has it: names and services are resolved as [net.Listen] does it,
// ":8080", "0.0.0.0:8080" and "[::]:8080" are the same for "tcp", and paths are compared by the file they lead to. With
// "tcp4" and "tcp6" it is a socket of that family alone. Port 0 matches nothing.
//
// The network holds for the first two ways too. Accepted TCP connections have the keep-alive and TCP_NODELAY that package
// net sets by default, whatever a [net.ListenConfig] or the socket unit says. Close leaves the file of a Unix socket alone:
// it belongs to the passer.
func (s *Set) Take(name, network, address string) (net.Listener, error) {
	return take(s, listens, name, network, address, net.FileListener)
}

// TakePacket is [Set.Take] for "udp", "udp4", "udp6" and "unixgram". It gives a [*net.UDPConn] or [*net.UnixConn].
func (s *Set) TakePacket(name, network, address string) (net.PacketConn, error) {
	return take(s, packets, name, network, address, net.FilePacketConn)
}

// Named gives out all listening stream sockets of that name. One that cannot be opened, for want of descriptors, is left
// among the [Set.Unused].
func (s *Set) Named(name string) []net.Listener {
	return takeNamed(s, listens, name, net.FileListener)
}

// PacketNamed is [Set.Named] for datagram sockets.
func (s *Set) PacketNamed(name string) []net.PacketConn {
	return takeNamed(s, packets, name, net.FilePacketConn)
}

// Conn gives out the connection for which systemd started this process (Accept=yes), a [*net.TCPConn] or [*net.UnixConn].
// An error that is [fs.ErrNotExist] says that there is none.
func (s *Set) Conn() (net.Conn, error) {
	if s == nil {
		return nil, errEmpty
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.sockets {
		if !p.gone && p.use == connects {
			return open(p, net.FileConn)
		}
	}
	return nil, &missingError{want: "connection"}
}

// Unused lists what nobody took, in the order in which it was passed.
func (s *Set) Unused() []Socket {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var unused []Socket
	for _, p := range s.sockets {
		if !p.gone {
			unused = append(unused, p.Socket)
		}
	}
	return unused
}

// Close closes what nobody took; what was taken is not affected. Called again, it repeats its first result.
func (s *Set) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.closeErr
	}
	s.closed = true
	var failed []error
	for _, p := range s.sockets {
		if p.gone {
			continue
		}
		p.gone = true
		if p.file != nil {
			failed = append(failed, p.file.Close())
		} else {
			failed = append(failed, descriptor.Close(p.FD))
		}
	}
	s.closeErr = errors.Join(failed...)
	return s.closeErr
}

// missingError says that nothing matches.
type missingError struct{ want string }

var errEmpty error = &missingError{}

func (e *missingError) Error() string {
	if e.want == "" {
		return "activation: no sockets were passed"
	}
	return "activation: no passed socket is a " + e.want
}

// Is makes it [fs.ErrNotExist], whose text would speak of files.
func (e *missingError) Is(target error) bool { return target == fs.ErrNotExist }

func take[T any](s *Set, u use, name, network, address string, from func(*os.File) (T, error)) (T, error) {
	var none T
	reference, exact := strings.CutPrefix(address, "fd:")
	switch {
	case exact:
		return takeExactly(s, u, network, address, reference, from)
	case s == nil:
		return none, errEmpty
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	named, some := s.candidates(u, name, network)
	if named == 1 {
		return open(s.best(u, name, network, target{}), from)
	}
	var t target
	if some {
		// Names may need a server to be asked, which nobody else has to wait for.
		s.mu.Unlock()
		var err error
		t, err = resolve(network, address)
		s.mu.Lock()
		if err != nil {
			t = target{} // fits nothing; the bind that follows says what is wrong with the address
		}
	}
	if p := s.best(u, name, network, t); p != nil {
		return open(p, from)
	}
	return none, &missingError{want: fmt.Sprintf("%s for %s %s", u, network, address)}
}

// candidates counts the sockets of the right type that have the name, and tells whether there is one with any name.
func (s *Set) candidates(u use, name, network string) (named int, some bool) {
	for _, p := range s.sockets {
		if p.fits(u, network) {
			some = true
			named += one(name != "" && p.Name == name)
		}
	}
	return named, some
}

// best is the socket to take, nil for none: of those with the name the one that fits best, else the first; else of all
// the one that fits best.
func (s *Set) best(u use, name, network string, t target) *passed {
	var found *passed
	foundFit, foundNamed := 0, false
	for _, p := range s.sockets {
		if !p.fits(u, network) {
			continue
		}
		named, fit := name != "" && p.Name == name, t.fit(&p.facts)
		switch {
		case foundNamed && !named, !named && fit == 0:
		case found == nil, named && !foundNamed, fit > foundFit:
			found, foundFit, foundNamed = p, fit, named
		}
	}
	return found
}

// takeExactly takes the socket of a number or name. The caller asked for nothing else, so that a failure is final.
func takeExactly[T any](s *Set, u use, network, address, reference string, from func(*os.File) (T, error)) (T, error) {
	var none T
	fail := func(format string, args ...any) (T, error) {
		return none, fmt.Errorf("activation: %s: %s", address, fmt.Sprintf(format, args...))
	}
	if s == nil {
		return fail("no sockets were passed; start the program through systemd or another passer, or give it an address")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, err := strconv.Atoi(reference)
	byNumber := err == nil
	var taken, wrong *passed
	for _, p := range s.sockets {
		switch {
		case byNumber && p.FD != fd, !byNumber && p.Name != reference:
		case p.gone:
			taken = p
		case !p.fits(u, network):
			wrong = p
		default:
			return open(p, from)
		}
	}
	switch {
	case wrong != nil:
		return fail("%v is a %s, and a %s for %s is asked for; correct the address or the socket unit", wrong, wrong.use, u, network)
	case taken != nil:
		return fail("%v was taken or closed already; each is given out once", taken)
	default:
		return fail("no such socket was passed, but %s; correct the address or the socket unit", s.summary())
	}
}

// summary lists everything that was passed.
func (s *Set) summary() string {
	all := make([]string, len(s.sockets))
	for i, p := range s.sockets {
		all[i] = p.String()
	}
	return strings.Join(all, "; ")
}

func takeNamed[T any](s *Set, u use, name string, from func(*os.File) (T, error)) []T {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []T
	for _, p := range s.sockets {
		if p.gone || p.use != u || p.Name != name {
			continue
		}
		if taken, err := open(p, from); err == nil {
			all = append(all, taken)
		}
	}
	return all
}

// open makes a passed socket what the caller gets. Package net duplicates the descriptor, close-on-exec and
// non-blocking; the one that was passed is closed then. On failure it stays in the Set.
func open[T any](p *passed, from func(*os.File) (T, error)) (T, error) {
	if p.file == nil {
		// Not before it is taken: the runtime's poller would watch a non-blocking one that nobody wants.
		p.file = os.NewFile(uintptr(p.FD), p.Name)
	}
	taken, err := from(p.file)
	if err != nil {
		return taken, fmt.Errorf("activation: %v: %w", p, err)
	}
	p.gone = true
	_ = p.file.Close() // the duplicate is what counts
	return taken, nil
}
