package middleware_test

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// lines are those of a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// all are the lines so far, without their times.
func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(strings.Lines(l.text.String()))
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// scripted is a listener that has no socket, so that it can be used where time is not real.
type scripted struct {
	accept func() (net.Conn, error)
	done   chan struct{}
	once   sync.Once
}

func (l *scripted) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
		return l.accept()
	}
}

func (l *scripted) Addr() net.Addr { return &net.TCPAddr{Port: 80} }
func (l *scripted) Close() error   { l.once.Do(func() { close(l.done) }); return nil }

// acceptError is what package net gives.
func acceptError(errno syscall.Errno) error {
	return &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
}

// The pauses double, up to the longest, and begin anew when something has worked. One warning stands for all.
func TestBackoffPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		var at []time.Duration
		began := time.Now()
		inner := &scripted{done: make(chan struct{})}
		inner.accept = func() (net.Conn, error) {
			at = append(at, time.Since(began))
			switch len(at) {
			case 12:
				time.Sleep(time.Minute)
				began = time.Now()
				fallthrough
			case 14:
				server, client := net.Pipe()
				client.Close()
				return server, nil
			}
			return nil, acceptError(syscall.ECONNABORTED)
		}
		ln := middleware.Backoff{Logger: log.logger()}.Wrap(inner)
		_, err := ln.Accept()
		require.NoError(t, err)
		ms := func(numbers ...int) (d []time.Duration) {
			for _, n := range numbers {
				d = append(d, time.Duration(n)*time.Millisecond)
			}
			return d
		}
		require.Equal(t, ms(0, 5, 15, 35, 75, 155, 315, 635, 1275, 2275, 3275, 4275), at)
		require.Equal(t, []string{"level=WARN msg=\"connections cannot be accepted now, trying on\" address=:80 " +
			"error=\"accept tcp: accept4: software caused connection abort\"\n"}, log.all())
		_, err = ln.Accept()
		require.NoError(t, err)
		require.Equal(t, ms(0, 5), at[12:])
		require.Len(t, log.all(), 2)
		require.NoError(t, ln.Close())
	})
}

// Close and a deadline end a pause.
func TestBackoffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &scripted{done: make(chan struct{})}
		inner.accept = func() (net.Conn, error) { return nil, acceptError(syscall.ENOBUFS) }
		ln := middleware.Backoff{Max: time.Hour}.Wrap(inner)
		began := time.Now()
		time.AfterFunc(24*time.Hour, func() { ln.Close() })
		_, err := ln.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		require.Equal(t, 24*time.Hour, time.Since(began))
	})
}

// What does not pass is the server's business, as it is.
func TestBackoffPassesOn(t *testing.T) {
	for _, failure := range []error{
		&net.OpError{Op: "accept", Err: temporary{}}, acceptError(syscall.EINVAL), acceptError(syscall.EBADF), errors.New("else"), io.EOF,
	} {
		inner := &scripted{done: make(chan struct{}), accept: func() (net.Conn, error) { return nil, failure }}
		_, err := middleware.Backoff{}.Wrap(inner).Accept()
		require.Equal(t, failure, err)
	}
}

// Where there are descriptors again, nobody is refused.
func TestBackoffSpare(t *testing.T) {
	for _, errs := range [][]error{
		{acceptError(syscall.EMFILE)}, // there were descriptors after all
		{acceptError(syscall.EMFILE), acceptError(syscall.EMFILE), acceptError(syscall.ENFILE)},
	} {
		ln := middleware.Backoff{}.Wrap(&failing{Listener: listen(t, "tcp"), errs: errs})
		connect(t, ln)
		require.NoError(t, ln.Close())
	}
}
