//go:build unix

package bound

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Socket is for one goroutine until it is bound; then its methods may be called from several.
type Socket struct {
	kind    Kind
	remains bool // connections of an earlier socket remain on the address

	mu sync.Mutex
	fd int // -1: closed
}

// Open makes a socket. It sets what package net sets before a bind, but for SO_REUSEADDR.
func Open(k Kind) (*Socket, error) {
	family, sotype := unix.AF_INET, unix.SOCK_STREAM
	if k.V6 {
		family = unix.AF_INET6
	}
	if k.Network == "udp" {
		sotype = unix.SOCK_DGRAM
	}
	fd := -1
	var err error
	if k.Multipath && k.Network == "tcp" {
		fd, err = openMultipath(family)
	}
	if fd < 0 {
		fd, err = open(family, sotype, 0)
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if k.V6 {
		only := 0
		if k.V6Only {
			only = 1
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only) // as package net: some systems know one way only
	}
	if k.Network == "udp" {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
			_ = unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
		deafen(fd)
	}
	return &Socket{kind: k, fd: fd}, nil
}

// Kind is what the socket was made for.
func (s *Socket) Kind() Kind { return s.kind }

// Bind takes the address, which nobody else can have from then on. Where it fails, the socket can be used again.
func (s *Socket) Bind(addr netip.AddrPort) error {
	name, err := s.sockaddr(addr)
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", ignoringEINTR(func() error { return unix.Bind(s.fd, name) }))
}

// BindOverRemains is Bind where nothing but what remains of earlier connections, in TIME_WAIT for one, may be in the way. It
// costs more, so it is for an address that Bind has found taken, with a socket for this try alone. One with Multipath is no
// use: a client could be let in for an instant, and thrown out again.
//
// Whoever has bound the address with SO_REUSEADDR and does not listen yet would lose it to this one. So sole is asked
// whether anybody has, before that can happen; nil is not asked.
func (s *Socket) BindOverRemains(addr netip.AddrPort, sole func() bool) error {
	name, err := s.sockaddr(addr)
	if err != nil {
		return err
	}
	if err := s.reuse(true); err != nil {
		return err
	}
	if err := ignoringEINTR(func() error { return unix.Bind(s.fd, name) }); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if sole != nil && !sole() {
		return os.NewSyscallError("bind", unix.EADDRINUSE)
	}
	s.remains = true
	return s.exclude()
}

func (s *Socket) sockaddr(addr netip.AddrPort) (unix.Sockaddr, error) {
	ip := addr.Addr()
	if !s.kind.V6 {
		name := &unix.SockaddrInet4{Port: int(addr.Port())}
		if ip.IsValid() {
			name.Addr = ip.Unmap().As4()
		}
		return name, nil
	}
	name := &unix.SockaddrInet6{Port: int(addr.Port())}
	if ip.IsValid() {
		name.Addr = ip.As16()
	}
	if zone := ip.Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			name.ZoneId = uint32(n)
		} else if device, err := net.InterfaceByName(zone); err == nil {
			name.ZoneId = uint32(device.Index)
		}
	}
	return name, nil
}

// Serve opens the socket for clients: it listens, or takes datagrams. Nobody else can get the address meanwhile. Called
// again it does nothing new.
func (s *Socket) Serve() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	if s.kind.Network == "udp" {
		undeafen(s.fd)
		return nil
	}
	// The kernel cuts it to net.core.somaxconn, which is what package net asks for.
	const backlog = 1<<16 - 1
	// While two sockets have SO_REUSEADDR and neither listens, both may have the address. So it is set on one that listens
	// already. Connections inherit it, and what remains of them must not keep the next run from its address; between the two
	// calls none has the time to be made.
	err := unix.Listen(s.fd, backlog)
	if s.remains && errors.Is(err, unix.EADDRINUSE) {
		// What remains does not go away, and two that have SO_REUSEADDR can only be told apart by a listen. Whoever binds the
		// address in this microsecond and listens first has it.
		if err = s.reuse(true); err != nil {
			return err
		}
		err = unix.Listen(s.fd, backlog)
	}
	if err != nil {
		return os.NewSyscallError("listen", err)
	}
	return s.reuse(true)
}

func (s *Socket) reuse(on bool) error {
	value := 0
	if on {
		value = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, value))
}

// Addr is the address as the kernel reports it, with the zone in digits.
func (s *Socket) Addr() (netip.AddrPort, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return netip.AddrPort{}, net.ErrClosed
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port)), nil
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(name.Addr)
		if name.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(name.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(name.Port)), nil
	}
	return netip.AddrPort{}, os.NewSyscallError("getsockname", unix.EAFNOSUPPORT)
}

// File is a duplicate, for another process or for package net. The caller closes it, which does not close the socket. It is
// blocking, as exec makes it anyway; otherwise the runtime would watch it, and each connection would wake this process.
func (s *Socket) File(name string) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil, net.ErrClosed
	}
	if err := unix.SetNonblock(s.fd, false); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Close gives the address back. Once closed it stays so, and the error is nil.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd := s.fd
	if fd < 0 {
		return nil
	}
	s.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// SyscallConn gives access to the descriptor, as package net does to that of a socket which is not bound yet.
func (s *Socket) SyscallConn() (syscall.RawConn, error) { return raw{s}, nil }

type raw struct{ *Socket }

// Control calls f with the descriptor.
func (r raw) Control(f func(fd uintptr)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(r.fd))
	return nil
}

// Read is unsupported: there is nothing to read.
func (raw) Read(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// Write is unsupported.
func (raw) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// DualStack tells whether one IPv6 socket can serve IPv4 too, found out as package net does.
var DualStack = sync.OnceValue(func() bool {
	s, err := Open(Kind{Network: "tcp", V6: true})
	if err != nil {
		return false
	}
	defer func() { _ = s.Close() }() // it was only a question
	return s.Bind(netip.MustParseAddrPort("[::ffff:127.0.0.1]:0")) == nil
})
