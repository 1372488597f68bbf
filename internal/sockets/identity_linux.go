package sockets

import (
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exhaustive tells whether the table shows every socket of the network that can be in the way, in this network
// namespace. TCP sockets that are bound without listening are in it since Linux 6.8 (TCP_BOUND_INACTIVE), and only by
// sock_diag; where they are not, an empty table does not mean that an address is free.
func Exhaustive(network string) bool { return network != "tcp" || showsBound() }

var showsBound = sync.OnceValue(func() bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil || !atLeast(unix.ByteSliceToString(name.Release[:]), 6, 8) {
		return false
	}
	return netlinkTable(query{network: "tcp", v4: true, first: 1, last: 1}, func(*Socket) {}) == nil
})

// atLeast compares a kernel release such as "6.8.0-45-generic".
func atLeast(release string, major, minor int) bool {
	majorText, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	a, errA := strconv.Atoi(majorText)
	b, errB := strconv.Atoi(rest[:end])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// InodeOf is the inode by which /proc/PID/fd and the kernel's table know a socket of this process; 0 where it has none.
func InodeOf(socket any) uint64 {
	conn, ok := socket.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var stat syscall.Stat_t
	if controlErr := raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &stat) }); controlErr != nil || err != nil {
		return 0
	}
	return stat.Ino
}
