package descriptor

import (
	"os"

	"golang.org/x/sys/unix"
)

// Redirect makes fd mean what file means.
func Redirect(fd int, file *os.File) error {
	return os.NewSyscallError("dup3", unix.Dup3(int(file.Fd()), fd, 0))
}
