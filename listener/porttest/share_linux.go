package porttest

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/berth-go/berth/listener"
)

// share lets the address be bound by who sets SO_REUSEADDR, which this socket does not stand in the way of as long as it does
// not listen (inet_csk_bind_conflict).
func share(_ context.Context, r *listener.Reservation) error {
	conn, err := r.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	})
	return errors.Join(err, failed)
}
