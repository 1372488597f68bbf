//go:build !linux && !windows && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package proc

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

type handle struct{}

var errHandle = fmt.Errorf("process handles on %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)

func openHandle(int) (*handle, error) { return nil, errHandle }

func (*handle) ask(syscall.Signal) error   { return errHandle }
func (*handle) kill() error                { return errHandle }
func (*handle) alive() bool                { return false }
func (*handle) wait(context.Context) error { return errHandle }
func (*handle) close() error               { return nil }

func (*handle) killGroup() error { return errors.ErrUnsupported }
