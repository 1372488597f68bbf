// Package descriptor looks at raw file descriptors that another program opened and passed on by exec.
package descriptor

import "net/netip"

// PassedVariable announces sockets that a supervisor of this module passes, as LISTEN_FDS does: the number of the first, and
// the name of each, separated by colons.
const PassedVariable = "BERTH_LISTEN"

// Socket is what the kernel tells about a socket.
type Socket struct {
	// Network is "tcp", "udp", "unix", "unixpacket" or "unixgram"; "" for a socket that package net has no type for.
	Network string

	// Addr is the local address of tcp and udp, of the family of the socket: an IPv6 socket with an IPv4 address has it
	// IPv4-mapped. The zone is the index of the interface, in digits.
	Addr netip.AddrPort

	// V6Only is set for an IPv6 wildcard that leaves IPv4 alone.
	V6Only bool

	// Path is that of a Unix socket as it was bound, perhaps relative, "" for an unnamed one; an abstract name starts
	// with "@".
	Path string

	Listening bool
	Connected bool
}

// Stream tells whether the socket makes or is a connection.
func (s *Socket) Stream() bool {
	return s.Network == "tcp" || s.Network == "unix" || s.Network == "unixpacket"
}

// Address is the local address as package net would print it.
func (s *Socket) Address() string {
	if s.Addr.IsValid() {
		return s.Addr.String()
	}
	return s.Path
}
