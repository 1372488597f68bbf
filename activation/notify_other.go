//go:build !linux

package activation

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// systemd runs on Linux only.
const supervisable = false

func monotonicUsec() string { return "" }

func watchdogEnabled(bool) (time.Duration, error) { return 0, nil }

func send(context.Context, string, ...int) error { return errors.ErrUnsupported }

func barrier(context.Context) error { return errors.ErrUnsupported }

func store(string, syscall.Conn) error { return nil }
