package listener

import (
	"errors"
	"syscall"
)

// The numbers of WinSock. Those that package syscall has under the names of Unix are inventions of its own, which
// errors.Is does not match with them.
const (
	wsaEACCES        = syscall.Errno(10013) // another socket has the address exclusively, or the port lies in an excluded range
	wsaEMFILE        = syscall.Errno(10024)
	wsaEADDRINUSE    = syscall.Errno(10048)
	wsaEADDRNOTAVAIL = syscall.Errno(10049)
	wsaECONNREFUSED  = syscall.Errno(10061)
)

func isInUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaEADDRINUSE)
}

func isRefused(err error) bool { return errors.Is(err, wsaECONNREFUSED) }

// portable makes errors.Is hold for the numbers that callers know.
func portable(err error) error {
	for winsock, known := range map[syscall.Errno]syscall.Errno{
		wsaEACCES: syscall.EACCES, wsaEMFILE: syscall.EMFILE, wsaEADDRINUSE: syscall.EADDRINUSE, wsaEADDRNOTAVAIL: syscall.EADDRNOTAVAIL,
	} {
		if errors.Is(err, winsock) {
			return translated{err, known}
		}
	}
	return err
}

// translated is a failure with one of the numbers above.
type translated struct {
	error
	known syscall.Errno
}

func (e translated) Unwrap() error        { return e.error }
func (e translated) Is(target error) bool { return target == e.known || e.known.Is(target) }
