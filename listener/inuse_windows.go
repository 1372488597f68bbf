package listener

import (
	"errors"
	"syscall"
)

// The numbers of WinSock. syscall.EADDRINUSE is none of them but an invention of package syscall, which errors.Is does
// not match with them.
const (
	wsaEACCES     = syscall.Errno(10013) // another socket has the address exclusively, or the port lies in an excluded range
	wsaEADDRINUSE = syscall.Errno(10048)
)

func isInUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaEADDRINUSE) || errors.Is(err, wsaEACCES)
}

// portable makes errors.Is(err, syscall.EADDRINUSE) hold for a taken address.
func portable(err error) error {
	if isInUse(err) {
		return inUse{err}
	}
	return err
}

// inUse is a failure with one of the numbers above.
type inUse struct{ error }

func (e inUse) Unwrap() error        { return e.error }
func (e inUse) Is(target error) bool { return target == syscall.EADDRINUSE }
