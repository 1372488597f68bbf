package activation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const probeName = "berth-probe"

var errNoStore = fmt.Errorf("the unit of this process sets no FileDescriptorStoreMax=: %w", errors.ErrUnsupported)

func refused(pid int) error {
	return fmt.Errorf("systemd does not keep it: FileDescriptorStoreMax= in the unit is 0, the default, or fewer than are stored, "+
		"or NotifyAccess= does not allow pid %d: %w", pid, errors.ErrUnsupported)
}

// storing keeps one Store from taking the last place with its probe that another one needs for its socket.
var storing sync.Mutex

func store(name string, socket syscall.Conn) error {
	if !Supervised() {
		// systemd 248 says whom it started. Without NotifyAccess= and FileDescriptorStoreMax= there is nobody to notify.
		if os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) {
			return errNoStore
		}
		return nil
	}
	storing.Lock()
	defer storing.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	message := "FDSTORE=1\nFDNAME=" + name
	if err := raw.Control(func(fd uintptr) {
		if !connected(int(fd)) {
			message += "\nFDPOLL=0"
		}
	}); err != nil {
		return err
	}
	if err := probe(ctx); err != nil {
		return err
	}
	if err := sendFile(ctx, message, socket); err != nil {
		return err
	}
	if unix, ok := socket.(interface{ SetUnlinkOnClose(bool) }); ok {
		unix.SetUnlinkOnClose(false)
	}
	return nil
}

// connected tells whether it is a stream with a peer.
func connected(fd int) bool {
	if _, err := syscall.Getpeername(fd); err != nil {
		return false
	}
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	return err == nil && kind != syscall.SOCK_DGRAM
}

// probe finds out whether systemd keeps descriptors of this process. If the process is ended in the middle, systemd drops
// the descriptor, since it polls it. It is a socket all the same: a pipe would be no good thing for FromEnv to find.
func probe(ctx context.Context) error {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	r, w := os.NewFile(uintptr(pair[0]), probeName), os.NewFile(uintptr(pair[1]), probeName)
	defer r.Close()
	err = sendFile(ctx, "FDSTORE=1\nFDNAME="+probeName, w)
	w.Close()
	if err != nil {
		return err
	}
	if err := barrier(ctx); err != nil {
		return err
	}
	// systemd 252 has closed by now what it refused. As of 254 another process does that for it, in a moment.
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		return err
	}
	switch _, err := r.Read(make([]byte, 1)); {
	case errors.Is(err, io.EOF):
		return refused(os.Getpid())
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("probe: %w", err)
	}
	return send(ctx, "FDSTOREREMOVE=1\nFDNAME="+probeName)
}
