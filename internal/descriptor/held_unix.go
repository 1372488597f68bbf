//go:build unix

package descriptor

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Held is a descriptor that is kept for others. Unlike an [os.File] the runtime does not watch it, so that a
// process which holds a listening socket is not woken by each connection to it.
type Held int

// Hold opens the descriptor of conn once more.
func Hold(conn syscall.Conn) (Held, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	held := Held(-1)
	controlErr := raw.Control(func(fd uintptr) { held, err = Held(fd).duplicate() })
	if controlErr != nil {
		return -1, controlErr
	}
	return held, err
}

func (h Held) duplicate() (Held, error) {
	fd, err := unix.FcntlInt(uintptr(h), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return Held(fd), nil
}

// File is a duplicate, for a process that is started.
func (h Held) File(name string) (*os.File, error) {
	duplicate, err := h.duplicate()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(duplicate), name), nil
}

// Same tells whether both are one socket or file.
func (h Held) Same(other Held) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(h), &a) == nil && unix.Fstat(int(other), &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// Close closes it.
func (h Held) Close() error { return Close(int(h)) }
