//go:build !linux

package proc

var helpers map[string]func() int
