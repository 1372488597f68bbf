//go:build unix

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
)

// bindOnly takes a port of 127.0.0.1 and does not listen on it.
func bindOnly(address string) (_ net.Addr, origin string, _ io.Closer, err error) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, "", nil, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, "", nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "bound")
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		_ = file.Close()
		return nil, "", nil, os.NewSyscallError("bind", err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		_ = file.Close()
		return nil, "", nil, os.NewSyscallError("getsockname", err)
	}
	inet, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		_ = file.Close()
		return nil, "", nil, fmt.Errorf("a socket of another family: %T", name)
	}
	return &net.TCPAddr{IP: inet.Addr[:], Port: inet.Port}, "bound", file, nil
}

func upgradeSignal(h *helper) error { return h.cmd.Process.Signal(syscall.SIGHUP) }
