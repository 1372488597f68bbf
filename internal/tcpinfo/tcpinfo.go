// Package tcpinfo asks the kernel what became of a TCP connection.
package tcpinfo

import "syscall"

// Moved is how many bytes the peer has acknowledged and has sent, whatever way they went in this process: a number that
// changes when the connection gets on. ok is false where that cannot be known: on systems other than Linux (see Known), and
// for what is no open TCP connection.
func Moved(conn syscall.Conn) (bytes uint64, ok bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) { bytes, ok = moved(fd) })
	return bytes, ok && err == nil
}
