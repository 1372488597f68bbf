//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package peek

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

// Supported tells whether this system can look.
const Supported = false

var errUnsupported = fmt.Errorf("peek: %w on %s", errors.ErrUnsupported, runtime.GOOS)

// Now is unsupported.
func Now(syscall.RawConn, int, Look) (bool, error) { return false, errUnsupported }

// Wait is unsupported.
func Wait(syscall.RawConn, int, Look) error { return errUnsupported }
