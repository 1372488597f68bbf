package middleware_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
)

// The convention: every middleware fits a Config.
var _ = []listener.Middleware{
	(&middleware.Limit{}).Wrap, (&middleware.LimitPerIP{}).Wrap, (&middleware.Rate{}).Wrap, middleware.Allow{}.Wrap, middleware.Deny{}.Wrap, middleware.KeepAlive{}.Wrap,
	middleware.Deadline{}.Wrap, middleware.Backoff{}.Wrap, (&middleware.Track{}).Wrap, (&middleware.Log{}).Wrap, middleware.Recover{}.Wrap, middleware.Hook{}.Wrap,
}

var everywhere = middleware.NewPrefixes(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))

// discard is a logger to nowhere.
var discard = slog.New(slog.DiscardHandler)

// singles are the middlewares one by one, made anew for each use, in a form that lets connections through.
func singles() map[string]wrapper {
	return map[string]wrapper{
		"Limit":      (&middleware.Limit{Max: 1000}).Wrap,
		"Queue":      (&middleware.Limit{Max: 1000, Refuse: true, Queue: 10}).Wrap,
		"LimitPerIP": (&middleware.LimitPerIP{Max: 1000}).Wrap,
		"Rate":       (&middleware.Rate{PerSecond: 1e9, SourcePerSecond: 1e9}).Wrap,
		"Allow":      middleware.Allow{Prefixes: everywhere}.Wrap,
		"Deny":       middleware.Deny{Prefixes: middleware.NewPrefixes()}.Wrap,
		"KeepAlive":  middleware.KeepAlive{Idle: time.Minute}.Wrap,
		"Deadline":   middleware.Deadline{Idle: time.Minute, Total: time.Hour}.Wrap,
		"Backoff":    middleware.Backoff{}.Wrap,
		"Track":      new(middleware.Track).Wrap,
		"Log":        (&middleware.Log{Logger: discard, Sample: 1}).Wrap,
		"Recover":    middleware.Recover{Logger: discard}.Wrap,
		"Hook": middleware.Hook{
			Accept: func(net.Conn) error { return nil }, Accepted: func(net.Conn) {}, Refused: func(net.Conn, *middleware.Refusal) {},
			Closed: func(net.Conn, time.Duration) {}, Failed: func(error) {},
		}.Wrap,
	}
}

// wrapping are those of singles that need a wrapper around the connection.
var wrapping = []string{"Limit", "Queue", "LimitPerIP", "Deadline", "Track", "Log", "Hook"}

// all is every middleware at once, without the one that accepts in a goroutine of its own, and without the lines of Log.
func all() []wrapper {
	stack := []wrapper{(&middleware.Log{Logger: discard, Sample: 1 << 30}).Wrap}
	of := singles()
	for _, name := range []string{
		"Recover", "Backoff", "Track", "Limit", "LimitPerIP", "Rate", "Deadline", "KeepAlive", "Hook", "Deny", "Allow",
	} {
		stack = append(stack, of[name])
	}
	return stack
}

// stacks are what a connection may have to pass.
func stacks() map[string][]wrapper {
	stacks := map[string][]wrapper{"all": all(), "all twice": append(all(), all()...), "none": nil}
	for name, m := range singles() {
		stacks[name] = []wrapper{m}
	}
	opaque := func(ln net.Listener) net.Listener { return struct{ net.Listener }{ln} }
	stacks["apart"] = append(append(all(), opaque), append(all(), opaque, singles()["Track"])...)
	stacks["seen through"] = append(all(), func(ln net.Listener) net.Listener { return seeThrough{ln} })
	stacks["other"] = append(all(), func(ln net.Listener) net.Listener { return otherListener{ln} })
	return stacks
}

// otherListener is a user's own, whose connections are of a type of his own.
type otherListener struct{ net.Listener }

func (l otherListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{conn}, nil
}

// Connections behave as package net's own.
func TestConn(t *testing.T) {
	for name, stack := range stacks() {
		for _, network := range []string{"tcp", "unix"} {
			if network == "unix" && singles()[name] != nil && !slices.Contains(wrapping, name) {
				continue // it is package net's own
			}
			t.Run(name+"/"+network, func(t *testing.T) {
				t.Parallel()
				ln := listen(t, network, stack...)
				nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
					client, err := net.Dial(network, ln.Addr().String())
					if err != nil {
						return nil, nil, nil, err
					}
					server, err := ln.Accept()
					if err != nil {
						client.Close()
						return nil, nil, nil, err
					}
					// It is the first on which deadlines and everything at once are tried.
					return server, client, func() { reset(client); server.Close() }, nil
				})
			})
		}
	}
}

// Nothing that servers look for is hidden, and nothing that is not there is pretended.
func TestMethods(t *testing.T) {
	type closeWriter interface{ CloseWrite() error }
	for name, stack := range stacks() {
		t.Run(name, func(t *testing.T) {
			_, server := connect(t, listen(t, "tcp", stack...))
			if name == "other" {
				require.NotImplements(t, (*closeWriter)(nil), server)
				require.NotImplements(t, (*io.ReaderFrom)(nil), server)
				require.NotImplements(t, (*syscall.Conn)(nil), server)
				require.Equal(t, "struct { net.Conn }", fmt.Sprintf("%T", inside(server)))
				return
			}
			bare, ok := inside(server).(*net.TCPConn)
			require.True(t, ok, "%T", inside(server))
			if singles()[name] != nil {
				require.Equal(t, !slices.Contains(wrapping, name), bare == server, "a wrapper exactly where it is needed")
			}
			tcp, ok := server.(interface {
				net.Conn
				io.ReaderFrom
				io.WriterTo
				syscall.Conn
				closeWriter
				CloseRead() error
				File() (*os.File, error)
				SetLinger(int) error
				SetNoDelay(bool) error
				SetKeepAliveConfig(net.KeepAliveConfig) error
				SetReadBuffer(int) error
				SetWriteBuffer(int) error
				MultipathTCP() (bool, error)
			})
			require.True(t, ok)
			require.NoError(t, tcp.SetLinger(0))
			require.NoError(t, tcp.SetLinger(-1))
			require.NoError(t, tcp.SetNoDelay(true))
			raw, err := tcp.SyscallConn()
			require.NoError(t, err)
			require.NoError(t, raw.Control(func(uintptr) {}))

			_, server = connect(t, listen(t, "unix", stack...))
			unix, ok := server.(interface {
				net.Conn
				net.PacketConn
				syscall.Conn
				closeWriter
				CloseRead() error
				File() (*os.File, error)
				WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
			})
			require.True(t, ok)
			require.NoError(t, unix.CloseWrite())
		})
	}
}

// inside is what is in the wrapper.
func inside(conn net.Conn) net.Conn {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return c.NetConn()
	}
	return conn
}

// Listeners show what they wrap and pass on what they can.
func TestListener(t *testing.T) {
	for name, stack := range stacks() {
		if name == "other" || name == "apart" { // there the user's own hide it
			continue
		}
		t.Run(name, func(t *testing.T) {
			ln := listen(t, "tcp", stack...)
			tcp, ok := listener.As[*net.TCPListener](ln)
			require.True(t, ok)
			require.Equal(t, tcp.Addr(), ln.Addr())
			file, err := ln.(interface{ File() (*os.File, error) }).File()
			require.NoError(t, err)
			require.NoError(t, file.Close())
			raw, err := ln.(syscall.Conn).SyscallConn()
			require.NoError(t, err)
			require.NoError(t, raw.Control(func(uintptr) {}))

			// A deadline bounds Accept, and can be lifted.
			bounded := ln.(interface{ SetDeadline(time.Time) error })
			require.NoError(t, bounded.SetDeadline(time.Now().Add(-time.Second)))
			for range 2 {
				_, err = ln.Accept()
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				var timeout net.Error
				require.ErrorAs(t, err, &timeout)
				require.True(t, timeout.Timeout())
			}
			require.NoError(t, bounded.SetDeadline(time.Time{}))
			connect(t, ln)

			// It also ends an Accept in progress.
			results := accepting(t, ln)
			require.NoError(t, bounded.SetDeadline(time.Now().Add(time.Millisecond)))
			require.ErrorIs(t, (<-results).err, os.ErrDeadlineExceeded)
		})
	}
	ln := middleware.Recover{}.Wrap(otherListener{listen(t, "tcp")})
	require.ErrorIs(t, ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Time{}), errors.ErrUnsupported)
	_, err := ln.(interface{ File() (*os.File, error) }).File()
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = ln.(syscall.Conn).SyscallConn()
	require.ErrorIs(t, err, errors.ErrUnsupported)
}

// Close ends Accept, repeats its result, and leaves connections alone.
func TestClose(t *testing.T) {
	for name, stack := range stacks() {
		t.Run(name, func(t *testing.T) {
			ln := listen(t, "tcp", stack...)
			client, server := connect(t, ln)
			results := accepting(t, ln)
			require.NoError(t, ln.Close())
			var op *net.OpError
			err := (<-results).err
			require.ErrorIs(t, err, net.ErrClosed)
			require.ErrorAs(t, err, &op)
			require.Equal(t, "accept", op.Op)
			_, err = ln.Accept()
			require.ErrorIs(t, err, net.ErrClosed)
			if name != "none" {
				require.NoError(t, ln.Close())
			}
			_, err = client.Write([]byte("x"))
			require.NoError(t, err)
			_, err = io.ReadFull(server, make([]byte, 1))
			require.NoError(t, err)
		})
	}
}

// A half-closed connection still answers.
func TestHalfClose(t *testing.T) {
	for name, stack := range stacks() {
		if name == "other" {
			continue
		}
		for _, network := range []string{"tcp", "unix"} {
			t.Run(name+"/"+network, func(t *testing.T) {
				client, server := connect(t, listen(t, network, stack...))
				type halfCloser interface{ CloseWrite() error }
				require.NoError(t, client.(halfCloser).CloseWrite())
				got, err := io.ReadAll(server)
				require.NoError(t, err)
				require.Empty(t, got)
				_, err = server.Write([]byte("answer"))
				require.NoError(t, err)
				require.NoError(t, server.(halfCloser).CloseWrite())
				got, err = io.ReadAll(client)
				require.NoError(t, err)
				require.Equal(t, "answer", string(got))
			})
		}
	}
}

// A connection costs one allocation more, whatever there is around it, and none where nothing needs a wrapper.
func TestAllocations(t *testing.T) {
	measure := func(t *testing.T, stack []wrapper) float64 {
		ln := listen(t, "tcp", stack...)
		address := ln.Addr().String()
		cycle := func() {
			client, err := net.Dial("tcp", address)
			if err != nil {
				panic(err)
			}
			server, err := ln.Accept()
			if err != nil {
				panic(err)
			}
			server.Close()
			reset(client)
		}
		return testing.AllocsPerRun(200, cycle)
	}
	bare := measure(t, nil)
	for name, stack := range stacks() {
		if name == "apart" || name == "other" || name == "Log" {
			continue // that logs each connection; the others have wrappers of their own
		}
		t.Run(name, func(t *testing.T) {
			want := bare
			if name != "none" && (singles()[name] == nil || slices.Contains(wrapping, name)) {
				want++
			}
			require.Equal(t, want, measure(t, stack))
		})
	}
	var free []wrapper
	for name, m := range singles() {
		if !slices.Contains(wrapping, name) {
			free = append(free, m)
		}
	}
	require.Equal(t, bare, measure(t, free))
}

// The innermost is asked first. A refusal undoes what those further in have counted, and is told to all.
func TestOrder(t *testing.T) {
	var mu sync.Mutex
	var events []string
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, fmt.Sprintf(format, args...))
	}
	hook := func(name string, verdict error) wrapper {
		return middleware.Hook{
			Accept:   func(net.Conn) error { note("%s asked", name); return verdict },
			Accepted: func(net.Conn) { note("%s accepted", name) },
			Refused:  func(_ net.Conn, why *middleware.Refusal) { note("%s refused %s", name, why.Reason) },
			Closed:   func(net.Conn, time.Duration) { note("%s closed", name) },
		}.Wrap
	}
	observer := func(name string) wrapper {
		return middleware.Hook{
			Accepted: func(net.Conn) { note("%s accepted", name) },
			Refused:  func(_ net.Conn, why *middleware.Refusal) { note("%s refused %s", name, why.Reason) },
			Closed:   func(net.Conn, time.Duration) { note("%s closed", name) },
		}.Wrap
	}
	opaque := func(ln net.Listener) net.Listener { return seeThrough{ln} }
	for _, test := range []struct {
		name  string
		stack []wrapper
		want  []string
	}{
		{"accepted", []wrapper{hook("a", nil), observer("o"), hook("b", nil)}, []string{
			"b asked", "a asked", "b accepted", "o accepted", "a accepted", "a closed", "o closed", "b closed",
		}},
		{"apart", []wrapper{hook("a", nil), opaque, hook("b", nil), opaque, hook("c", nil)}, []string{
			"c asked", "c accepted", "b asked", "b accepted", "a asked", "a accepted", "a closed", "b closed", "c closed",
		}},
		{"refused outside", []wrapper{hook("a", errors.New("no")), observer("o"), hook("b", nil), observer("p"), hook("c", nil)}, []string{
			"c asked", "b asked", "a asked", "b closed", "c closed", "c refused hook", "p refused hook", "b refused hook",
			"o refused hook", "a refused hook",
		}},
		{"refused by the second", []wrapper{hook("a", errors.New("no")), hook("b", nil)}, []string{
			"b asked", "a asked", "b closed", "b refused hook", "a refused hook",
		}},
		{"refused inside", []wrapper{hook("a", nil), observer("o"), hook("b", &middleware.Refusal{Reason: "mine"})}, []string{
			"b asked", "b refused mine", "o refused mine", "a refused mine",
		}},
		{"refused outside, apart", []wrapper{hook("a", errors.New("no")), opaque, observer("o"), hook("b", nil)}, []string{
			"b asked", "b accepted", "o accepted", "a asked", "o closed", "b closed", "b refused hook", "o refused hook", "a refused hook",
		}},
		{"refused inside, apart", []wrapper{hook("a", nil), opaque, observer("o"), hook("b", errors.New("no"))}, []string{
			"b asked", "b refused hook", "o refused hook", "a refused hook",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ln := listen(t, "tcp", test.stack...)
			events = nil
			results := accepting(t, ln)
			client := dial(t, ln)
			if strings.HasPrefix(test.name, "refused") {
				refused(t, client)
			} else {
				server := next(t, results)
				require.NoError(t, server.Close())
				require.ErrorIs(t, server.Close(), net.ErrClosed, "closed once for the hooks")
			}
			eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(events) >= len(test.want) }, "all events")
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, test.want, events)
		})
	}
}

// seeThrough is a user's listener that shows what it wraps.
type seeThrough struct{ net.Listener }

func (l seeThrough) Unwrap() net.Listener { return l.Listener }

// Limits stay right when an outer middleware refuses what they let pass, under fire from many sides.
func TestNothingLeaks(t *testing.T) {
	limit, perIP, track := &middleware.Limit{Max: 50, Refuse: true}, &middleware.LimitPerIP{Max: 40}, new(middleware.Track)
	var n atomic.Uint64
	ln := listen(t, "tcp",
		middleware.Hook{Accept: func(net.Conn) error {
			if n.Add(1)%3 == 0 {
				return errors.New("every third")
			}
			return nil
		}}.Wrap,
		middleware.Deadline{Idle: time.Millisecond}.Wrap,
		track.Wrap, limit.Wrap, perIP.Wrap,
	)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					_, _ = io.Copy(io.Discard, conn)
					conn.Close()
				}()
			}
		}()
	}
	var clients sync.WaitGroup
	for range 8 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for range 200 {
				if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
					_, _ = conn.Write([]byte("x"))
					reset(conn)
				}
			}
		}()
	}
	clients.Wait()
	eventually(t, func() bool {
		return track.Open() == 0 && limit.Open() == 0 && perIP.Open(netip.MustParseAddr("127.0.0.1")) == 0
	}, "nothing is left")
	require.NoError(t, ln.Close())
	wg.Wait()
	require.NoError(t, track.Drain(context.Background()))
}

// net/http serves files and answers through the whole stack.
func TestHTTP(t *testing.T) {
	for name, stack := range map[string][]wrapper{"bare": nil, "all": all()} {
		t.Run(name, func(t *testing.T) {
			content := make([]byte, 3<<20)
			for i := range content {
				content[i] = byte(i * i >> 3)
			}
			path := filepath.Join(t.TempDir(), "file")
			require.NoError(t, os.WriteFile(path, content, 0o600))
			server := &http.Server{
				Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }),
				ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
			}
			ln := listen(t, "tcp", stack...)
			served := make(chan error, 1)
			go func() { served <- server.Serve(ln) }()
			client := &http.Client{Transport: &http.Transport{}}
			for range 3 {
				response, err := client.Get("http://" + ln.Addr().String())
				require.NoError(t, err)
				got, err := io.ReadAll(response.Body)
				require.NoError(t, err)
				response.Body.Close()
				require.Equal(t, sha256.Sum256(content), sha256.Sum256(got))
			}
			require.NoError(t, server.Shutdown(context.Background()))
			require.ErrorIs(t, <-served, http.ErrServerClosed)
			client.CloseIdleConnections()
		})
	}
}

// Errors of the listener inside reach the server as they are.
func TestErrorsSurvive(t *testing.T) {
	failure := &net.OpError{Op: "accept", Net: "tcp", Err: temporary{}}
	var told atomic.Int32
	ln := listen(t, "tcp", append(all(), middleware.Hook{Failed: func(err error) { told.Add(1) }}.Wrap,
		func(ln net.Listener) net.Listener { return &failing{Listener: ln, errs: []error{failure}} })...)
	_, err := ln.Accept()
	require.Same(t, failure, err)
	var asTemporary interface{ Temporary() bool }
	require.ErrorAs(t, err, &asTemporary)
	require.True(t, asTemporary.Temporary())
	require.EqualValues(t, 1, told.Load())
	connect(t, ln)
}

type temporary struct{}

func (temporary) Error() string   { return "for the moment" }
func (temporary) Temporary() bool { return true }
func (temporary) Timeout() bool   { return false }

// failing is a listener whose first Accepts fail.
type failing struct {
	net.Listener
	mu   sync.Mutex
	errs []error
}

func (l *failing) Accept() (net.Conn, error) {
	l.mu.Lock()
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		l.mu.Unlock()
		return nil, err
	}
	l.mu.Unlock()
	return l.Listener.Accept()
}
