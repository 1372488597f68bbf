package reuseport

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Supported tells whether this system has such groups.
const Supported = true

func allow(raw syscall.RawConn) error {
	return control(raw, func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
}

func steer(raw syscall.RawConn, to []int) error {
	filter := program(to)
	return control(raw, func(fd int) error {
		err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		return os.NewSyscallError("setsockopt", err)
	})
}

// program deals packets to sockets by their source, which is what the kernel does by itself, only not to all (Linux 4.5). It has
// the IP header at a fixed offset.
func program(to []int) []unix.SockFilter {
	const (
		header = 1<<32 - 0x100000 // SKF_NET_OFF of linux/filter.h
		word   = unix.BPF_LD | unix.BPF_W
		octet  = unix.BPF_LD | unix.BPF_B
		alu    = unix.BPF_ALU
	)
	var p []unix.SockFilter
	do := func(code uint16, k uint32) { p = append(p, unix.SockFilter{Code: code, K: k}) }
	keep := func() { do(unix.BPF_MISC|unix.BPF_TAX, 0) } // A also to X
	xor := func() { do(alu|unix.BPF_XOR|unix.BPF_X, 0) }
	fold := func(bits uint32) { // A ^= A >> bits
		keep()
		do(alu|unix.BPF_RSH|unix.BPF_K, bits)
		xor()
	}

	do(octet|unix.BPF_ABS, header)
	do(alu|unix.BPF_RSH|unix.BPF_K, 4)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 5, K: 4})
	do(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, header) // IPv4: X is the length of its header
	do(word|unix.BPF_IND, header)                    // both ports
	keep()
	do(word|unix.BPF_ABS, header+12) // source
	skip := len(p)
	do(unix.BPF_JMP|unix.BPF_JA, 0)
	do(word|unix.BPF_ABS, header+8) // IPv6: source
	for _, k := range []uint32{12, 16, 20, 40} {
		keep()
		do(word|unix.BPF_ABS, header+k) // the last is both ports, or a part of what comes before them
		if k != 40 {
			xor()
		}
	}
	p[skip].K = uint32(len(p) - skip - 1)
	xor()

	// The low bits of a client's port are much alike, so all bits have to count: the end of MurmurHash3.
	fold(16)
	do(alu|unix.BPF_MUL|unix.BPF_K, 0x85ebca6b)
	fold(13)
	do(alu|unix.BPF_MUL|unix.BPF_K, 0xc2b2ae35)
	fold(16)
	do(alu|unix.BPF_MOD|unix.BPF_K, uint32(len(to)))
	for i, place := range to {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(i)})
		do(unix.BPF_RET|unix.BPF_K, uint32(place))
	}
	do(unix.BPF_RET|unix.BPF_K, 1<<32-1) // not reached
	return p
}

func control(raw syscall.RawConn, f func(fd int) error) error {
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// A Queue is the connections that wait at a listening socket. It can be watched without taking one.
type Queue struct {
	file *os.File
	raw  syscall.RawConn
	addr net.Addr
}

// Watch opens the queue of a listener. Both are closed independently.
func Watch(ln interface {
	net.Listener
	syscall.Conn
}) (*Queue, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &Queue{addr: ln.Addr()}
	err = control(raw, func(fd int) error {
		duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		q.file = os.NewFile(uintptr(duplicate), "listener")
		return nil
	})
	if err != nil {
		return nil, err
	}
	q.raw, err = q.file.SyscallConn()
	return q, err
}

// Wait returns when a connection waits. The error is os.ErrDeadlineExceeded when the time has come before that, and another
// one when the queue is closed.
func (q *Queue) Wait(until time.Time) error {
	if err := q.file.SetReadDeadline(until); err != nil {
		return err
	}
	return q.raw.Read(func(fd uintptr) bool { return waits(int(fd)) })
}

// Empty tells whether no connection waits.
func (q *Queue) Empty() bool {
	empty := true
	err := control(q.raw, func(fd int) error { empty = !waits(fd); return nil })
	return err == nil && empty
}

func waits(fd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// Accept takes a connection, without waiting for one: both results are nil where there is none. Errors are those of
// [net.TCPListener.Accept].
func (q *Queue) Accept() (net.Conn, error) {
	var file *os.File
	err := control(q.raw, func(fd int) error {
		for {
			conn, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch {
			case err == nil:
				file = os.NewFile(uintptr(conn), "connection")
				return nil
			case errors.Is(err, unix.EAGAIN):
				return nil
			case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNABORTED):
				return os.NewSyscallError("accept4", err)
			}
		}
	})
	if err == nil && file == nil {
		return nil, nil
	}
	var conn net.Conn
	if err == nil {
		conn, err = net.FileConn(file) // a duplicate
		_ = file.Close()
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: q.addr.Network(), Addr: q.addr, Err: err}
	}
	return conn, nil
}

// Close ends Wait.
func (q *Queue) Close() error { return q.file.Close() }
