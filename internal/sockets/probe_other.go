//go:build !linux

package sockets

import "errors"

// Netlink is Linux's.
func Netlink() error { return errors.ErrUnsupported }
