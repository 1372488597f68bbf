//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peek

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Supported tells whether this system can look.
const Supported = true

// Now looks at what is there, and does not wait. It gives what look said, and false where there is nothing yet.
func Now(socket syscall.RawConn, maxBytes int, look Look) (enough bool, err error) {
	failed := socket.Control(func(fd uintptr) { enough, err = once(fd, maxBytes, look) })
	if failed != nil {
		return false, failed
	}
	return enough, err
}

// Wait looks each time something has come in, until it has been enough. The socket's read deadline and Close end it with an
// error, as they end a read. One that waits holds no memory but the goroutine's.
//
// The bytes stay in the socket, which is readable all the time. What keeps this from turning round and round is that package
// net hears of a socket when something happens to it (EPOLLET, EV_CLEAR), not while something is there.
func Wait(socket syscall.RawConn, maxBytes int, look Look) error {
	var err error
	failed := socket.Read(func(fd uintptr) (enough bool) {
		enough, err = once(fd, maxBytes, look)
		return enough || err != nil
	})
	if failed != nil {
		return failed
	}
	return err
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// once looks.
func once(fd uintptr, maxBytes int, look Look) (enough bool, err error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	if cap(*buffer) < maxBytes {
		*buffer = make([]byte, maxBytes)
	}
	b := (*buffer)[:maxBytes]
	for final := false; ; final = true {
		n, err := recv(fd, b)
		switch {
		case err != nil:
			return false, err
		case n < 0: // nothing
			return false, nil
		case n == 0, n == maxBytes:
			final = true
		}
		if look(b[:n], final) || final {
			return true, nil
		}
		// Nothing tells later of an end that has come already. Before it there may be bytes that came after those above.
		if !hungUp(fd) {
			return false, nil
		}
	}
}

// recv gives -1 where there is nothing.
func recv(fd uintptr, b []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return -1, nil
		default:
			return 0, os.NewSyscallError("recvfrom", err)
		}
	}
}

// hungUp tells whether the peer sends no more, although what it sent has not been read. Where a system does not say so, the
// caller's deadline has to end the wait.
func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: hangUp}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(hangUp&^unix.POLLIN|unix.POLLHUP) != 0
}
