//go:build !linux && !darwin && !freebsd

package proc

func bootID() string { return "" }
