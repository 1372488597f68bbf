package activation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

const supervisable = true

// The parts of go-systemd that serve as they are. They do not build on every system.
var (
	monotonicUsec   = daemon.SdNotifyMonotonicUsec
	watchdogEnabled = daemon.SdWatchdogEnabled
)

// turn is held by whoever sends. Waiters get it in the order in which they came, and can give up.
var turn = make(chan struct{}, 1)

// send sends one message, with descriptors. The socket is opened for it and closed again: nothing is left open that a child
// might inherit or that keeps systemd's socket alive, and the order does not depend on it, since a datagram is in the
// receiver's queue when the write returns. daemon.SdNotify would do, but for descriptors and a limit to the waiting.
func send(ctx context.Context, message string, fds ...int) error {
	address, err := notifyAddress()
	if err != nil {
		return err
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return sendError(address, ended(ctx))
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return sendError(address, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	err = sendmsg(conn, []byte(message), rights)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ended(ctx)
	}
	if err != nil {
		return sendError(address, err)
	}
	return nil
}

// sendmsg waits for room in the receiver's queue. WriteMsgUnix refuses connected datagram sockets, and with others there is
// nothing to wait for: they always count as writable.
func sendmsg(conn *net.UnixConn, message, rights []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	waitErr := raw.Write(func(fd uintptr) bool {
		for {
			err = syscall.Sendmsg(int(fd), message, rights, nil, syscall.MSG_NOSIGNAL)
			if !errors.Is(err, syscall.EINTR) {
				return !errors.Is(err, syscall.EAGAIN)
			}
		}
	})
	if waitErr != nil {
		return waitErr
	}
	return os.NewSyscallError("sendmsg", err)
}

func sendError(address string, err error) error {
	return fmt.Errorf("activation: %s=%q: systemd cannot be notified: %w", socketVariable, address, err)
}

// ended is what to say when ctx is over. context.DeadlineExceeded does not match os.ErrDeadlineExceeded by itself.
func ended(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("it does not read: %w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}

// barrier sends the only reference to the writing end of a pipe. systemd closes it when it comes to that message.
func barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("activation: barrier: %w", err)
	}
	defer r.Close()
	// Nothing else may be in the message.
	err = sendFile(ctx, "BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	switch n, err := r.Read(make([]byte, 1)); {
	case errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return sendError(os.Getenv(socketVariable), ended(ctx))
	case err != nil:
		return fmt.Errorf("activation: barrier: %w", err)
	default:
		return fmt.Errorf("activation: barrier: %d bytes came where systemd writes none", n)
	}
}

// sendFile sends a message with the descriptor of a file or socket.
func sendFile(ctx context.Context, message string, file syscall.Conn) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("activation: descriptor: %w", err)
	}
	// Within Control the descriptor cannot be closed and used for something else.
	controlErr := raw.Control(func(fd uintptr) { err = send(ctx, message, int(fd)) })
	if controlErr != nil {
		return fmt.Errorf("activation: descriptor: %w", controlErr)
	}
	return err
}
