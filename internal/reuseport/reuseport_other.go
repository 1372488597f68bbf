//go:build !linux

package reuseport

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"time"
)

// Supported tells whether this system has such groups. Elsewhere SO_REUSEPORT means other things: on macOS one socket gets
// everything, on FreeBSD the option is SO_REUSEPORT_LB, and nobody steers.
const Supported = false

var errUnsupported = fmt.Errorf("groups of sockets with one address: %w on %s", errors.ErrUnsupported, runtime.GOOS)

func allow(syscall.RawConn) error { return errUnsupported }

func steer(syscall.RawConn, []int) error { return errUnsupported }

// A Queue is unsupported.
type Queue struct{}

// Watch is unsupported.
func Watch(interface {
	net.Listener
	syscall.Conn
}) (*Queue, error) {
	return nil, errUnsupported
}

// Wait is unsupported.
func (q *Queue) Wait(time.Time) error { return errUnsupported }

// Empty is unsupported.
func (q *Queue) Empty() bool { return false }

// Accept is unsupported.
func (q *Queue) Accept() (net.Conn, error) { return nil, errUnsupported }

// Close does nothing.
func (q *Queue) Close() error { return nil }
