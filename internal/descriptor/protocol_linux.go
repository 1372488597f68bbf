package descriptor

import "golang.org/x/sys/unix"

// mptcp is what package net listens with by default.
const mptcp = unix.IPPROTO_MPTCP

// isProtocol tells whether the socket speaks one of two protocols: SCTP has streams too.
func isProtocol(fd, a, b int) bool {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && (protocol == a || protocol == b)
}
