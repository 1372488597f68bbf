//go:build !unix

package descriptor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// Supported tells whether this system passes descriptors by number.
const Supported = false

var errUnsupported = fmt.Errorf("passed descriptors: %w on %s", errors.ErrUnsupported, runtime.GOOS)

// Passed is unsupported.
func Passed(int) (bool, error) { return false, errUnsupported }

// Keep does nothing.
func Keep(int) {}

// Close is unsupported.
func Close(int) error { return errUnsupported }

// Look is unsupported.
func Look(int) (Socket, error) { return Socket{}, errUnsupported }

// Duplicate is unsupported.
func Duplicate(syscall.Conn, string) (*os.File, error) { return nil, errUnsupported }
