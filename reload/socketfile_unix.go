//go:build unix

package reload

import (
	"io/fs"
	"syscall"

	"github.com/berth-go/berth/internal/descriptor"
)

// fileID names a file as long as it exists.
func fileID(info fs.FileInfo) (device, inode uint64) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0
	}
	return uint64(stat.Dev), uint64(stat.Ino) //nolint:unconvert // int32 and uint32 on other systems
}

// hasParent tells whether the descriptors are there that tableflip passes: the variable alone may be left over from
// another process.
func hasParent() bool {
	for fd, writes := range map[int]bool{readyPipe: true, namesPipe: false} {
		passed, err := descriptor.Passed(fd)
		is, end := descriptor.Pipe(fd)
		if err != nil || !passed || !is || end != writes {
			return false
		}
	}
	return true
}

// addressOf is the address of a socket, "" where it has none.
func addressOf(conn syscall.Conn) (address string) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) {
		if socket, err := descriptor.Look(int(fd)); err == nil {
			address = socket.Address()
		}
	})
	return address
}
