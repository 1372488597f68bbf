//go:build unix

package descriptor

import (
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Supported tells whether this system passes descriptors by number.
const Supported = true

// Passed tells whether fd came into this process by exec. What this process opened itself, and what its runtime did
// (epoll, kqueue), is closed on exec; what survived an exec is not. The error says that fd is not open.
func Passed(fd int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		return false, os.NewSyscallError("fcntl", err)
	}
	return flags&unix.FD_CLOEXEC == 0, nil
}

// Keep makes fd close-on-exec, so that no child inherits it.
func Keep(fd int) { unix.CloseOnExec(fd) }

// Close closes fd.
func Close(fd int) error { return os.NewSyscallError("close", unix.Close(fd)) }

// Look returns the facts about the socket fd. It fails where fd is no socket.
func Look(fd int) (Socket, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return Socket{}, os.NewSyscallError("getsockopt", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return Socket{}, nil // a family that has no names, such as AF_ALG, or that x/sys has no type for
	}
	var s Socket
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		s.Network = ipNetwork(fd, kind)
		s.Addr = netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port))
	case *unix.SockaddrInet6:
		s.Network = ipNetwork(fd, kind)
		ip := netip.AddrFrom16(name.Addr)
		if name.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(name.ZoneId), 10))
		}
		s.Addr = netip.AddrPortFrom(ip, uint16(name.Port))
		if ip.IsUnspecified() {
			only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
			s.V6Only = err == nil && only != 0
		}
	case *unix.SockaddrUnix:
		s.Path = name.Name
		switch kind {
		case unix.SOCK_STREAM:
			s.Network = "unix"
		case unix.SOCK_SEQPACKET:
			s.Network = "unixpacket"
		case unix.SOCK_DGRAM:
			s.Network = "unixgram"
		}
	}
	if s.Stream() {
		listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		s.Listening = err == nil && listening != 0
	}
	if !s.Listening {
		_, err := unix.Getpeername(fd)
		s.Connected = err == nil
	}
	return s, nil
}

func ipNetwork(fd, kind int) string {
	switch {
	case kind == unix.SOCK_STREAM && isProtocol(fd, unix.IPPROTO_TCP, mptcp):
		return "tcp"
	case kind == unix.SOCK_DGRAM && isProtocol(fd, unix.IPPROTO_UDP, unix.IPPROTO_UDP):
		return "udp"
	}
	return "" // SCTP, raw ...
}
