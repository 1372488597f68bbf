package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/soheilhy/cmux"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
)

// wrappers are ways to put something around a listener; bare is the first.
type wrapper struct {
	name string
	wrap func(net.Listener) net.Listener
}

var (
	stackWrapper = wrapper{"berth", func(ln net.Listener) net.Listener { return around(ln, everyMiddleware()...) }}
	bareWrapper  = wrapper{"net", func(ln net.Listener) net.Listener { return ln }}
	limitWrapper = wrapper{"netutil", func(ln net.Listener) net.Listener { return netutil.LimitListener(ln, manyConnections) }}
)

// everyMiddleware is all of package middleware that leaves the bytes alone, the first outermost. None of it refuses
// anything here.
func everyMiddleware() []listener.Middleware {
	const rate = 1e9
	anywhere := middleware.NewPrefixes(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	nowhere := middleware.NewPrefixes(netip.MustParsePrefix("192.0.2.0/24"))
	return []listener.Middleware{
		middleware.Recover{}.Wrap,
		(&middleware.Log{Logger: slog.New(slog.DiscardHandler), Sample: 1000}).Wrap,
		new(middleware.Track).Wrap,
		middleware.Deadline{Idle: time.Minute, Total: time.Hour}.Wrap,
		middleware.KeepAlive{}.Wrap,
		(&middleware.LimitPerIP{Max: manyConnections}).Wrap,
		(&middleware.Limit{Max: manyConnections}).Wrap,
		(&middleware.Rate{PerSecond: rate, SourcePerSecond: rate}).Wrap,
		middleware.Deny{Prefixes: nowhere}.Wrap,
		middleware.Allow{Prefixes: anywhere}.Wrap,
		middleware.Backoff{}.Wrap,
	}
}

// unwrappedMiddleware is what of it needs no wrapper around the connection.
func unwrappedMiddleware() []listener.Middleware {
	return []listener.Middleware{
		middleware.Recover{}.Wrap,
		middleware.Deny{Prefixes: middleware.NewPrefixes(netip.MustParsePrefix("192.0.2.0/24"))}.Wrap,
		middleware.Backoff{}.Wrap,
	}
}

// around puts middleware around a listener as listener.Config does.
func around(ln net.Listener, all ...listener.Middleware) net.Listener {
	for _, wrap := range slices.Backward(all) {
		ln = wrap(ln)
	}
	return ln
}

// manyConnections is more than any experiment opens: nothing is to be refused.
const manyConnections = 1 << 20

// An acceptor serves connections of a wrapped listener, one after the other.
type acceptor struct {
	net.Listener
	remote unix.Sockaddr
	served chan error // the result of each connection
}

// accept starts an acceptor that ends with the lab.
func (l *lab) accept(w wrapper, serve func(net.Conn) error) (*acceptor, error) {
	ln, err := net.Listen("tcp", at(0))
	if err != nil {
		return nil, err
	}
	a := &acceptor{
		Listener: w.wrap(ln), served: make(chan error, 1),
		remote: &unix.SockaddrInet4{Port: portOfListener(ln), Addr: [4]byte{127, 0, 0, 1}},
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := a.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) && !errors.Is(err, cmux.ErrListenerClosed) && !errors.Is(err, cmux.ErrServerClosed) {
					a.served <- err
				}
				return
			}
			err = serve(conn)
			a.served <- errors.Join(err, conn.Close())
		}
	}()
	l.later(func() {
		_ = a.Close() // nothing is lost with it
		<-ended
	})
	return a, nil
}

// connect is the client's part with system calls alone, so that what it costs is little, and the same for all.
func (a *acceptor) connect() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// No TIME_WAIT is left, of which there would soon be too many.
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Connect(fd, a.remote)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// exchange is one connection that sends something and gets a byte.
func (a *acceptor) exchange(send []byte) error {
	fd, err := a.connect()
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, send)
	if err == nil {
		_, err = unix.Read(fd, make([]byte, 1))
	}
	return errors.Join(err, <-a.served, unix.Close(fd))
}

func echoByte(conn net.Conn) error {
	var buf [1]byte
	if _, err := io.ReadFull(conn, buf[:]); err != nil {
		return err
	}
	_, err := conn.Write(buf[:])
	return err
}

// acceptExperiment is the price of a connection: connect, a byte there and back, close. Middleware is between accept and close.
var acceptExperiment = experiment{name: "Accept", title: "A connection, from connect to close", prepare: func(l *lab) ([]row, error) {
	return l.through("do=connection", "with every middleware that leaves the bytes alone", timesBare(1.0), echoByte,
		func(a *acceptor) error { return a.exchange([]byte{1}) })
}}

// fileSize is what is sent at once.
const fileSize = 100 << 20

// sendfileExperiment sends a file as http.ServeContent does: by io.Copy, for which the kernel moves the bytes where the
// connection lets it. The receiver throws them away without a copy.
var sendfileExperiment = experiment{name: "Sendfile", title: "Send 100 MB from a file", prepare: func(l *lab) ([]row, error) {
	dir, err := l.dir(true)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, make([]byte, fileSize), 0o600); err != nil {
		return nil, err
	}
	send := func(conn net.Conn) error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(conn, file)
		return errors.Join(err, file.Close())
	}
	atLeast := goal{"at least 0.97 x the throughput of bare", func(r result) bool { return ratio(r.bare(), r.ours()) >= 0.97 }}
	return l.through("do=sendfile", "through every middleware that leaves the bytes alone", atLeast, send, func(a *acceptor) error {
		fd, err := a.connect()
		if err != nil {
			return err
		}
		n, err := discard(fd)
		if err == nil && n != fileSize {
			err = fmt.Errorf("%d of %d bytes", n, fileSize)
		}
		return errors.Join(err, <-a.served, unix.Close(fd))
	})
}}

// discard reads until the end and keeps nothing: the kernel drops what MSG_TRUNC asks for (tcp(7), since Linux 2.4).
func discard(fd int) (int, error) {
	sum := 0
	buf := make([]byte, 1<<20)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil || n == 0:
			return sum, err
		default:
			sum += n
		}
	}
}

// through is the row of a job that is done through each of the wrappers.
func (l *lab) through(name, text string, goal goal, serve func(net.Conn) error, job func(*acceptor) error) ([]row, error) {
	var failed error
	by := func(name string, w wrapper) contestant {
		a, err := l.accept(w, serve)
		failed = errors.Join(failed, err)
		return contestant{name, timed(func() error { return job(a) })}
	}
	r := row{
		name: name, text: text, goal: goal,
		ours: by("berth", stackWrapper), bare: by("net", bareWrapper), peers: []contestant{by("netutil.LimitListener", limitWrapper)},
	}
	return []row{r}, failed
}
