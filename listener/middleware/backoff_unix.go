//go:build !windows

package middleware

import "syscall"

var outOfDescriptors = []syscall.Errno{syscall.EMFILE, syscall.ENFILE}

// passing are the errors of accept that a later one may not have. accept(2) of Linux names those of the network: they belong
// to the connection that was about to be accepted. EPERM is a firewall's.
var passing = []syscall.Errno{
	syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EPROTO, syscall.EPERM,
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENOPROTOOPT, syscall.ETIMEDOUT,
}
