//go:build unix

package descriptor

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Duplicate opens the descriptor of conn once more, for a process that is started. Unlike the File methods of package
// net it leaves the mode of the socket alone: what is blocking for one descriptor is blocking for all of them. The error
// is net.ErrClosed or os.ErrClosed where conn is closed.
func Duplicate(conn syscall.Conn, name string) (*os.File, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	var failed error
	err = raw.Control(func(fd uintptr) {
		duplicate, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			failed = os.NewSyscallError("fcntl", err)
			return
		}
		file = os.NewFile(uintptr(duplicate), name)
	})
	if err == nil {
		err = failed
	}
	return file, err
}

// Pipe tells whether fd is an end of a pipe, and whether it is the one to write to.
func Pipe(fd int) (is, writes bool) {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false, false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil, flags&unix.O_ACCMODE == unix.O_WRONLY
}

// Nonblocking tells whether reads and writes of fd return at once.
func Nonblocking(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK != 0
}
