//go:build !windows

package listener

import (
	"errors"
	"syscall"
)

func isInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// portable makes errors.Is hold for the numbers that callers know; here it does already.
func portable(err error) error { return err }
