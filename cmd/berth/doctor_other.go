//go:build !unix

package main

import (
	"errors"
	"io"
	"net"
)

func bindOnly(string) (net.Addr, string, io.Closer, error) {
	return nil, "", nil, errors.ErrUnsupported
}

func upgradeSignal(*helper) error { return errors.ErrUnsupported }
