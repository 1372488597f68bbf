//go:build unix && !linux

package descriptor

import (
	"os"

	"golang.org/x/sys/unix"
)

// Redirect makes fd mean what file means.
func Redirect(fd int, file *os.File) error {
	return os.NewSyscallError("dup2", unix.Dup2(int(file.Fd()), fd))
}
