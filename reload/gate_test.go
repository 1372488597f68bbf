package reload

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/listener/middleware"
)

// patience bounds every wait in these tests. It is only reached when something is broken.
const patience = 30 * time.Second

// noLeak checks at the end of the test that it leaves no goroutine.
func noLeak(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if !t.Failed() {
			goleak.VerifyNone(t, before)
		}
	})
}

// within waits for a value, or for the channel to be closed.
func within[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "it does not come")
		panic("unreachable")
	}
}

// An accepted is what Accept returned.
type accepted struct {
	conn net.Conn
	err  error
}

// accept calls Accept in a goroutine.
func accept(ln net.Listener) <-chan accepted {
	c := make(chan accepted, 1)
	go func() {
		conn, err := ln.Accept()
		c <- accepted{conn, err}
	}()
	return c
}

// bind listens on loopback until the end of the test.
func bind(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// dial connects until the end of the test.
func dial(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout(addr.Network(), addr.String(), patience)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// opaque hides everything about a listener.
type opaque struct{ hidden net.Listener }

func (o opaque) Accept() (net.Conn, error) { return o.hidden.Accept() }
func (o opaque) Close() error              { return o.hidden.Close() }
func (o opaque) Addr() net.Addr            { return o.hidden.Addr() }

type unwrapping struct{ opaque }

func (u unwrapping) Unwrap() net.Listener { return u.hidden }

type embedding struct{ net.Listener }

// inAccept waits until a goroutine is in the listener's own Accept.
func (g *gate) inAccept(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.accepting > 0
	}, patience, 100*time.Microsecond)
}

func TestGateHoldsAndReleases(t *testing.T) {
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"tcp":       func(ln net.Listener) net.Listener { return ln },
		"tls":       func(ln net.Listener) net.Listener { return tls.NewListener(ln, testTLS(t)) },
		"unwrap":    func(ln net.Listener) net.Listener { return unwrapping{opaque{ln}} },
		"embedded":  func(ln net.Listener) net.Listener { return &embedding{embedding{ln}} },
		"unix":      func(net.Listener) net.Listener { return bindUnix(t) },
		"two gates": func(ln net.Listener) net.Listener { return newGate(ln) },
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			g := newGate(wrap(bind(t)))
			defer g.Close()
			for range 3 {
				next := accept(g)
				g.inAccept(t)
				holdAll(g)
				within(t, g.settled()) // the Accept was interrupted, and waits
				client := dial(t, g.Addr())
				require.Empty(t, next, "accepted behind a gate that is held")

				g.release()
				got := within(t, next)
				require.NoError(t, got.err)
				got.conn.Close()
				client.Close()
			}
		})
	}
}

// A connection that is there when the gate is held goes to somebody: to this process or, as the kernel still has it, to the
// successor.
func TestGateLosesNoConnection(t *testing.T) {
	noLeak(t)
	ln := bind(t)
	file, err := ln.File()
	require.NoError(t, err)
	heir, err := net.FileListener(file)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	defer heir.Close()
	g := newGate(ln)

	var serving sync.WaitGroup
	ends := make(chan error, 2)
	for _, ln := range []net.Listener{g, heir} {
		serving.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					ends <- err
					return
				}
				_, _ = conn.Write([]byte("x"))
				conn.Close()
			}
		})
	}
	stop, toggled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(toggled)
		for {
			holdAll(g)
			g.release()
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 500 {
		conn := dial(t, g.Addr())
		_, err := conn.Read(make([]byte, 1))
		require.NoError(t, err)
		conn.Close()
	}
	close(stop)
	<-toggled
	require.Empty(t, ends, "an Accept that was interrupted goes on")
	g.Close()
	heir.Close()
	serving.Wait()
}

// What a middleware has accepted and not handed out yet is handed out behind a gate that is held, and nothing else is.
func TestGateEmpties(t *testing.T) {
	noLeak(t)
	proxy := middleware.Proxy{Trusted: middleware.NewPrefixes(netip.MustParsePrefix("127.0.0.0/8"))}
	ln := proxy.Wrap(bind(t))
	g := newGate(embedding{ln})
	defer g.Close()
	next := accept(g)
	g.inAccept(t)
	slow := dial(t, g.Addr())
	require.Eventually(t, func() bool { return ln.(interface{ Pending() int }).Pending() == 1 }, patience, 100*time.Microsecond)
	holdAll(g)
	settled := g.settled()
	never(t, settled, "one is pending")
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n"
	_, err := io.WriteString(slow, header)
	require.NoError(t, err)
	got := within(t, next)
	require.NoError(t, got.err)
	got.conn.Close()
	require.ErrorIs(t, readEnd(slow), io.EOF)

	next = accept(g)
	within(t, settled)
	require.True(t, emptyAll(t.Context(), []*gate{g}))
	late := dial(t, g.Addr())
	_, err = io.WriteString(late, header)
	require.NoError(t, err)
	require.Empty(t, next, "accepted behind a gate that is held")
	g.release()
	got = within(t, next)
	require.NoError(t, got.err)
	got.conn.Close()
	require.ErrorIs(t, readEnd(late), io.EOF)
}

// A stop gives those that a middleware has accepted a moment to come to the point.
func TestStopEmpties(t *testing.T) {
	noLeak(t)
	proxy := middleware.Proxy{Trusted: middleware.NewPrefixes(netip.MustParsePrefix("127.0.0.0/8"))}
	ln := proxy.Wrap(bind(t))
	g := newGate(ln)
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	s := &service{server: drainerOf(server), log: slog.New(slog.DiscardHandler), ceiling: patience, linger: patience, gates: []*gate{g}, done: make(chan error, 1)}
	go func() { s.done <- s.server.serve(g) }()
	g.inAccept(t)
	slow := dial(t, g.Addr())
	require.Eventually(t, func() bool { return ln.(interface{ Pending() int }).Pending() == 1 }, patience, 100*time.Microsecond)
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = s.stop(t.Context(), "the test says so")
	}()
	require.Eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.opened != nil || g.closed
	}, patience, 100*time.Microsecond)
	_, err := io.WriteString(slow, "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\nGET / HTTP/1.1\r\nHost: server\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(slow)
	require.NoError(t, err)
	require.Contains(t, string(answer), "200 OK")
	within(t, over)
}

// keeping is late, and may keep connections.
type keeping struct{ late }

func (keeping) SetDraining(bool) {}

// An Accept that began behind a gate that was held goes on after the release, too.
func TestGateReleasedWhileItEmptied(t *testing.T) {
	noLeak(t)
	l := keeping{late{failing{bind(t), make(chan error, 2)}}}
	g := newGate(l)
	holdAll(g)
	next := accept(g)
	g.inAccept(t)
	g.release()
	own := errors.New("of its own")
	l.errs <- os.ErrDeadlineExceeded
	l.errs <- own
	require.Equal(t, own, within(t, next).err)
}

// The listeners of a Mux are interrupted together: none of them has an error to show for it.
func TestGatesOfAMux(t *testing.T) {
	noLeak(t)
	mux := &middleware.Mux{}
	secure, plain := mux.Match(middleware.MatchTLS), mux.Match(middleware.MatchHTTP1)
	gates := []*gate{newGate(mux.Wrap(bind(t))), newGate(secure), newGate(plain)}
	u := &Upgrader{gates: gates}
	var ends []<-chan accepted
	for _, g := range gates {
		ends = append(ends, accept(g))
	}
	for range 200 {
		for _, g := range gates {
			g.inAccept(t)
		}
		u.hold(true)
		for _, g := range gates {
			within(t, g.settled())
		}
		u.hold(false)
	}
	for i, g := range gates {
		g.Close()
		require.ErrorIs(t, within(t, ends[i]).err, net.ErrClosed)
	}
}

func readEnd(conn net.Conn) error {
	_, err := conn.Read(make([]byte, 1))
	return err
}

func TestGateClose(t *testing.T) {
	for name, test := range map[string]struct {
		hold bool
		wrap func(net.Listener) net.Listener
	}{
		"open":                  {false, func(ln net.Listener) net.Listener { return ln }},
		"held":                  {true, func(ln net.Listener) net.Listener { return ln }},
		"not to be interrupted": {true, func(ln net.Listener) net.Listener { return opaque{ln} }},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			g := newGate(test.wrap(bind(t)))
			next := accept(g)
			g.inAccept(t)
			if test.hold {
				holdAll(g)
			}
			require.NoError(t, g.Close())
			require.ErrorIs(t, within(t, next).err, net.ErrClosed)
			within(t, g.settled())
			_, err := g.Accept()
			var op *net.OpError
			require.ErrorAs(t, err, &op)
			require.ErrorIs(t, err, net.ErrClosed)
			holdAll(g)
			g.release()
			require.ErrorIs(t, g.Close(), net.ErrClosed)
			_, err = g.Accept()
			require.ErrorIs(t, err, net.ErrClosed)
		})
	}
}

// Where Accept cannot be interrupted, the one in progress gives one more connection, and the next waits.
func TestGateUninterruptible(t *testing.T) {
	noLeak(t)
	g := newGate(opaque{bind(t)})
	defer g.Close()
	next := accept(g)
	g.inAccept(t)
	holdAll(g)
	within(t, g.settled()) // it could wait for ever
	first := dial(t, g.Addr())
	got := within(t, next)
	require.NoError(t, got.err)
	require.Equal(t, first.LocalAddr().String(), got.conn.RemoteAddr().String())
	got.conn.Close()

	next = accept(g)
	dial(t, g.Addr())
	g.release()
	got = within(t, next)
	require.NoError(t, got.err)
	got.conn.Close()
}

// What was handed out counts as unsettled until its receiver comes back.
func TestGateSettled(t *testing.T) {
	noLeak(t)
	g := newGate(bind(t))
	defer g.Close()
	within(t, g.settled())
	next := accept(g)
	dial(t, g.Addr())
	got := within(t, next)
	require.NoError(t, got.err)
	defer got.conn.Close()
	holdAll(g)
	settled := g.settled()
	select {
	case <-settled:
		require.Fail(t, "settled with a connection in hand")
	default:
	}
	next = accept(g)
	within(t, settled)
	g.Close()
	require.ErrorIs(t, within(t, next).err, net.ErrClosed)
}

// A failing listener gives its errors in turn.
type failing struct {
	net.Listener
	errs chan error
}

func (f failing) Accept() (net.Conn, error) { return nil, <-f.errs }

func TestGatePassesErrorsOn(t *testing.T) {
	f := failing{bind(t), make(chan error, 1)}
	g := newGate(f)
	for _, err := range []error{syscall.EMFILE, os.ErrDeadlineExceeded, errors.New("of its own")} {
		f.errs <- err
		_, got := g.Accept()
		require.Equal(t, err, got)
	}
}

// late says only after the release that it was interrupted.
type late struct{ failing }

func (late) SetDeadline(time.Time) error { return nil }

func TestGateReleasedBeforeItWasInterrupted(t *testing.T) {
	noLeak(t)
	l := late{failing{bind(t), make(chan error)}}
	g := newGate(l)
	next := accept(g)
	g.inAccept(t)
	holdAll(g)
	g.release()
	l.errs <- os.ErrDeadlineExceeded
	l.errs <- os.ErrDeadlineExceeded // this one is not from the gate
	require.Equal(t, os.ErrDeadlineExceeded, within(t, next).err)
}

// Whatever a listener says when it is closed, it is net.ErrClosed.
func TestGateCloseOfAnOddListener(t *testing.T) {
	noLeak(t)
	f := failing{bind(t), make(chan error)}
	g := newGate(f)
	next := accept(g)
	g.inAccept(t)
	require.NoError(t, g.Close())
	f.errs <- errors.New("of its own")
	require.ErrorIs(t, within(t, next).err, net.ErrClosed)
}

func TestGateIsTransparent(t *testing.T) {
	ln := bind(t)
	g := newGate(ln)
	require.Same(t, ln, g.Unwrap())
	require.Equal(t, ln.Addr(), g.Addr())
	raw, err := g.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(uintptr) {}))
	_, err = newGate(opaque{ln}).SyscallConn()
	require.ErrorIs(t, err, errors.ErrUnsupported)
}
