// Package reuseport makes groups of sockets that share one address, each with a queue of its own (SO_REUSEPORT), and
// decides which of them get what arrives.
package reuseport

import (
	"errors"
	"fmt"
	"syscall"
)

// The kernel has the sockets of a group in the order in which they came to listen, or were bound where they are of packets. When
// one is closed, the last takes its place.

// Control lets a socket join the group at its address, or begin one. It is for [net.ListenConfig].
func Control(_, _ string, raw syscall.RawConn) error { return allow(raw) }

// Allow lets others join the group of a socket that is bound already. They have to be of its user, and to ask for it.
func Allow(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return allow(raw)
}

// MaxSteered is to how many members a group can be steered.
const MaxSteered = 1024

// Steer has a group deal what arrives to some of its members, given by their place in the group, and to none else: nor to
// those that join later. Each peer (address and port) stays with one. What has arrived stays where it is, and so do
// connections that are being made. Any member can be used for it; one of MPTCP cannot, and one alone is no group. It lasts until
// another call, whatever process that is from.
func Steer(member syscall.Conn, to []int) error {
	if len(to) == 0 || len(to) > MaxSteered {
		return fmt.Errorf("steer to %d sockets: %w", len(to), errors.ErrUnsupported)
	}
	raw, err := member.SyscallConn()
	if err != nil {
		return err
	}
	return steer(raw, to)
}
