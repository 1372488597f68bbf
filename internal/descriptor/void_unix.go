//go:build unix

package descriptor

import (
	"errors"
	"os"
)

// Void closes what the descriptor of a file means, and keeps its number taken until the file is garbage: whoever is just passing
// it on, as the Start of an [os/exec.Cmd] does, passes on nothing, and not what has got the number meanwhile. Unlike Close
// it may be called while the file is used.
func Void(file *os.File) error {
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = nothing.Close() }() // it was only read
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = replace(int(fd), int(nothing.Fd())) })
	return errors.Join(err, failed)
}
