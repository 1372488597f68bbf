package queue

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A watch is an inotify(7) instance, of which a user has 128 by default. The end of a process closes its files too, so its
// death is a change like any other.
type watch struct{ file *os.File }

func newWatch() (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &watch{os.NewFile(uintptr(fd), "inotify")}, nil
}

func (w *watch) add(path string) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, failed = unix.InotifyAddWatch(int(fd), path, unix.IN_CLOSE_WRITE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR)
	})
	return errors.Join(err, os.NewSyscallError("inotify_add_watch", failed))
}

// wait takes what has come as one change. What it says does not matter: whoever waits looks for himself.
func (w *watch) wait(ctx context.Context, atMost time.Duration) (changed bool, err error) {
	if err := w.file.SetReadDeadline(time.Now().Add(atMost)); err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = w.file.Read(make([]byte, 16<<10))
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	}
	return err == nil, err
}

func (w *watch) close() { _ = w.file.Close() }
