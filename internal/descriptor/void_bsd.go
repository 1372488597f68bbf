//go:build unix && !linux

package descriptor

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func replace(fd, by int) error {
	syscall.ForkLock.RLock() // no child gets it meanwhile
	defer syscall.ForkLock.RUnlock()
	if err := unix.Dup2(by, fd); err != nil {
		return os.NewSyscallError("dup2", err)
	}
	unix.CloseOnExec(fd)
	return nil
}
