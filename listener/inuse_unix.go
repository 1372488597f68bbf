//go:build !windows

package listener

import (
	"errors"
	"syscall"
)

func isInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// portable makes errors.Is(err, syscall.EADDRINUSE) hold for a taken address; here it does already.
func portable(err error) error { return err }
