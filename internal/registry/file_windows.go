package registry

import (
	"errors"
	"io/fs"
	"os"
)

const (
	noFollow = 0
	nonBlock = 0

	// A locked byte can be neither read nor written through another handle, and gofrs/flock locks the first one
	// (LockFileEx), so the record starts behind it.
	recordOffset = 1
	// A file that is open cannot be removed.
	removeLocked = false
)

// The directory for temporary files is the user's own, protected by its access control list.
func ownedBy(fs.FileInfo, int) bool { return true }

// mayExist is false where there is no such file.
func mayExist(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// write replaces what is in the locked file.
func write(path string, locked fs.FileInfo, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && !os.SameFile(locked, info) {
		err = errReplaced
	}
	if err == nil {
		_, err = file.WriteAt(text, recordOffset)
	}
	if err == nil {
		err = file.Truncate(recordOffset + int64(len(text)))
	}
	return errors.Join(err, file.Close())
}
