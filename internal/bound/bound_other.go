//go:build !unix

package bound

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
)

var errUnsupported = fmt.Errorf("sockets that are bound and do not listen: %w on %s", errors.ErrUnsupported, runtime.GOOS)

// A Socket cannot be made here: package net takes over no socket.
type Socket struct{}

// Open is unsupported.
func Open(Kind) (*Socket, error) { return nil, errUnsupported }

// Kind is that of nothing.
func (*Socket) Kind() Kind { return Kind{} }

// Bind is unsupported.
func (*Socket) Bind(netip.AddrPort) error { return errUnsupported }

// BindOverRemains is unsupported.
func (*Socket) BindOverRemains(netip.AddrPort, func() bool) error { return errUnsupported }

// Serve is unsupported.
func (*Socket) Serve() error { return errUnsupported }

// Addr is unsupported.
func (*Socket) Addr() (netip.AddrPort, error) { return netip.AddrPort{}, errUnsupported }

// File is unsupported.
func (*Socket) File(string) (*os.File, error) { return nil, errUnsupported }

// Close does nothing.
func (*Socket) Close() error { return nil }

// SyscallConn is unsupported.
func (*Socket) SyscallConn() (syscall.RawConn, error) { return nil, errUnsupported }

// DualStack is false.
func DualStack() bool { return false }
