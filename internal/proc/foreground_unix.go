//go:build unix

package proc

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Foreground tells whether this process is in the foreground process group of its terminal: what is typed there to interrupt
// or quit reaches every process of that group, tcsetpgrp(3).
func Foreground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return false // there is no terminal
	}
	defer func() { _ = tty.Close() }() // it was only asked
	conn, err := tty.SyscallConn()
	if err != nil {
		return false
	}
	group := 0
	err = conn.Control(func(fd uintptr) { group, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	return err == nil && group == unix.Getpgrp()
}
