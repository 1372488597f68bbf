package middleware

import "syscall"

// Package syscall has other numbers under the names of these.
const (
	wsaEMFILE  syscall.Errno = 10024
	wsaENOBUFS syscall.Errno = 10055
)

var outOfDescriptors = []syscall.Errno{wsaEMFILE}

// passing are the errors of AcceptEx that a later one may not have.
var passing = []syscall.Errno{wsaENOBUFS, syscall.WSAECONNABORTED, syscall.WSAECONNRESET}
