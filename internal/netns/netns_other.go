//go:build !linux

// Package netns starts programs in network namespaces of their own.
package netns

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
)

// Start is unsupported.
func Start(*exec.Cmd) error {
	return fmt.Errorf("%w: no network namespaces on %s", errors.ErrUnsupported, runtime.GOOS)
}

// LoopbackUp is unsupported.
func LoopbackUp() error { return errors.ErrUnsupported }
