package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func echo(conn net.Conn) { _, _ = io.Copy(conn, conn) }

// exchange sends a byte and reads it back.
func exchange(t testing.TB, conn net.Conn) {
	t.Helper()
	_, err := conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err)
}

// closed requires that the other side has closed the connection, gently or not.
func closed(t testing.TB, conn net.Conn) {
	t.Helper()
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestHandlerFinishesWhatIsInFlight(t *testing.T) {
	noLeak(t)
	types := make(chan string, 1)
	s := drainerOf(Handler(func(conn net.Conn) {
		types <- fmt.Sprintf("%T", conn)
		echo(conn)
	}))
	g := newGate(bind(t))
	served := start(s, g)
	client := dial(t, g.Addr())
	exchange(t, client)
	require.Equal(t, "*net.TCPConn", within(t, types))

	holdAll(g)
	s.retire()
	require.NoError(t, s.spoken(t.Context()))
	exchange(t, client)
	done := make(chan error, 1)
	go func() { done <- s.shutdown(t.Context()) }()
	require.NoError(t, within(t, served))
	exchange(t, client)
	require.Empty(t, done)
	require.NoError(t, client.(*net.TCPConn).CloseWrite())
	_, err := client.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	require.NoError(t, within(t, done))
	require.Zero(t, s.close())
	select {
	case <-s.ended():
		require.Fail(t, "ended by the user, who did not")
	default:
	}
	require.NoError(t, s.serve(bind(t)), "after the shutdown")
}

func TestHandlerClosesAtTheCeiling(t *testing.T) {
	noLeak(t)
	s := drainerOf(Handler(echo))
	g := newGate(bind(t))
	served := start(s, g)
	clients := make([]net.Conn, 3)
	for i := range clients {
		clients[i] = dial(t, g.Addr())
		exchange(t, clients[i])
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.shutdown(ctx), context.Canceled)
	require.NoError(t, within(t, served))
	require.Equal(t, 3, s.close())
	for _, client := range clients {
		closed(t, client)
	}
	require.NoError(t, s.shutdown(t.Context()))
	require.Zero(t, s.close())
}

func TestHandlerShutdownByTheUser(t *testing.T) {
	noLeak(t)
	server := Handler(echo)
	one, two := bind(t), bind(t)
	ended := make(chan error, 2)
	for _, ln := range []net.Listener{one, two} {
		go func() { ended <- server.Serve(ln) }()
	}
	client := dial(t, one.Addr())
	exchange(t, client)
	other := dial(t, two.Addr())
	exchange(t, other)
	client.Close()
	other.Close()
	require.NoError(t, server.Shutdown(t.Context()))
	require.ErrorIs(t, within(t, ended), http.ErrServerClosed)
	require.ErrorIs(t, within(t, ended), http.ErrServerClosed)
	within(t, drainerOf(server).ended())
	late := bind(t)
	require.ErrorIs(t, server.Serve(late), http.ErrServerClosed)
	_, err := late.Accept()
	require.ErrorIs(t, err, net.ErrClosed, "Serve closes its listener")
}

// logged is what the standard logger writes during the test.
func logged(t *testing.T) *logText {
	text := new(logText)
	before := log.Writer()
	log.SetOutput(text)
	t.Cleanup(func() { log.SetOutput(before) })
	return text
}

type logText struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestHandlerLogsPanics(t *testing.T) {
	noLeak(t)
	text := logged(t)
	s := drainerOf(Handler(func(net.Conn) { panic("of the handler") }))
	ln := bind(t)
	served := start(s, ln)
	for range 2 { // it goes on
		_, err := dial(t, ln.Addr()).Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
	}
	require.NoError(t, s.shutdown(t.Context()))
	require.NoError(t, within(t, served))
	require.Contains(t, text.String(), "panic serving 127.0.0.1:")
	require.Contains(t, text.String(), "of the handler")
	require.Contains(t, text.String(), "handler_test.go")
}

func TestHandlerRetriesAccept(t *testing.T) {
	noLeak(t)
	text := logged(t)
	f := failing{bind(t), make(chan error, 2)}
	s := drainerOf(Handler(echo))
	f.errs <- &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	final := errors.New("final")
	f.errs <- final
	require.Equal(t, final, s.serve(f))
	require.Contains(t, text.String(), "too many open files; retrying in 5ms")
}

// A shutdown does not wait until Accept is tried again.
func TestHandlerStopsWhileItRetries(t *testing.T) {
	logged(t)
	ln := bind(t)
	synctest.Test(t, func(t *testing.T) {
		f := failing{ln, make(chan error, 100)}
		for range cap(f.errs) {
			f.errs <- syscall.EMFILE
		}
		s := drainerOf(Handler(echo))
		served := start(s, f)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Len(t, f.errs, 100-17) // after 5, 10, 20 ... 640 ms, and then each second
		before := time.Now()
		require.NoError(t, s.shutdown(t.Context()))
		require.NoError(t, within(t, served))
		require.Equal(t, before, time.Now())
	})
}

// start serves in a goroutine. The channel gives the result once, and is closed.
func start(d drainer, ln net.Listener) <-chan error {
	served := make(chan error, 1)
	go func() {
		served <- d.serve(ln)
		close(served)
	}()
	return served
}
