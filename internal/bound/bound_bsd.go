//go:build unix && !linux

package bound

import (
	"syscall"

	"golang.org/x/sys/unix"
)

func open(family, sotype, protocol int) (int, error) {
	// Not all of these systems make a socket close-on-exec at once; package net does it so.
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(family, sotype, protocol)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func openMultipath(int) (int, error) { return -1, unix.EPROTONOSUPPORT }

// deafen does nothing: datagrams wait for whoever serves the socket.
func deafen(int) {}

func undeafen(int) {}

// exclude does nothing: on these systems SO_REUSEADDR lets nobody have the very same address.
func (*Socket) exclude() error { return nil }
