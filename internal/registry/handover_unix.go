//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package registry

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

var errNotFound = errors.New("the descriptor that has it is not to be found")

// duplicate opens the descriptor of this process that has the lock once more. gofrs/flock keeps its own to itself, so it
// is looked for among all of them, the lowest first: a server opened it before it had connections.
func duplicate(locked fs.FileInfo, path string) (*os.File, error) {
	const most = 1 << 20 // which the kernel gives to a process: fs.nr_open of Linux
	for fd := range most {
		// Only what looks right is duplicated: the duplicate of somebody's connection would keep it open.
		if _, err := verify(fd, locked); err != nil {
			continue
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed in the meantime
		}
		if err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		// The number may have become another file's meanwhile; the duplicate is ours. One of the right file does not have the
		// lock where it was opened by itself, as a reader does: then the lock is in its way.
		if _, err := verify(own, locked); err == nil && unix.Flock(own, unix.LOCK_EX|unix.LOCK_NB) == nil {
			return os.NewFile(uintptr(own), path), nil
		}
		_ = unix.Close(own) // it was only looked at
	}
	return nil, errNotFound
}

// lockDescriptor makes sure that the descriptor has the lock. It does nothing to one that has.
func lockDescriptor(file *os.File) error {
	err := flockFile(file, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrHeld
	}
	return err
}

func unlockDescriptor(file *os.File) error { return flockFile(file, unix.LOCK_UN) }

func flockFile(file *os.File, how int) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = os.NewSyscallError("flock", unix.Flock(int(fd), how)) })
	return errors.Join(err, failed)
}
