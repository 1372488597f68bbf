//go:build !windows

package registry

import (
	"io/fs"
	"syscall"
)

const (
	noFollow = syscall.O_NOFOLLOW
	nonBlock = syscall.O_NONBLOCK // a FIFO in place of a record must not hold up its reader

	recordOffset = 0
	removeLocked = true
)

// mayExist is false where there is no such file. It asks for no memory, unlike os.Lstat, which in a process that has just
// started costs more than the look.
func mayExist(path string) bool {
	var stat syscall.Stat_t
	return syscall.Lstat(path, &stat) != syscall.ENOENT
}

func ownedBy(info fs.FileInfo, uid int) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == uid
}

// verify fails where the descriptor is not of that file. The size is that of the file now.
func verify(fd int, file fs.FileInfo) (size int64, err error) {
	var opened syscall.Stat_t
	if err := syscall.Fstat(fd, &opened); err != nil {
		return 0, err
	}
	if want, ok := file.Sys().(*syscall.Stat_t); !ok || opened.Dev != want.Dev || opened.Ino != want.Ino {
		return 0, errReplaced
	}
	return opened.Size, nil
}

// write replaces what is in the locked file. Package os would try to register the file in the network poller, which
// takes five system calls and never succeeds for a regular file.
func write(path string, locked fs.FileInfo, text []byte) (err error) {
	fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_CLOEXEC|noFollow|nonBlock, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	size, err := verify(fd, locked)
	n := 0
	if err == nil {
		n, err = syscall.Pwrite(fd, text, recordOffset)
	}
	if err == nil && n < len(text) {
		err = syscall.ENOSPC
	}
	if err == nil && size > int64(len(text)) {
		err = syscall.Ftruncate(fd, int64(len(text)))
	}
	if closeErr := syscall.Close(fd); err == nil {
		err = closeErr
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
