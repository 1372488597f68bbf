//go:build !linux

package queue

import (
	"context"
	"errors"
	"time"
)

type watch struct{}

func newWatch() (*watch, error) { return nil, errors.ErrUnsupported }

func (*watch) add(string) error { return errors.ErrUnsupported }

func (*watch) wait(context.Context, time.Duration) (bool, error) { return false, errors.ErrUnsupported }

func (*watch) close() {}
