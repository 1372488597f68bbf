package listener_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
)

// It can stand wherever net.Listen does.
var (
	_ func(network, address string) (net.Listener, error)   = listener.Listen
	_ func(network, address string) (net.PacketConn, error) = listener.ListenPacket
)

// networks are all that can be asked for, with an address of which every test gets its own.
var (
	streams = []string{"tcp", "tcp4", "tcp6", "unix", "unixpacket"}
	packets = []string{"udp", "udp4", "udp6", "unixgram"}
)

// supported leaves out what this system has not.
func supported(networks []string) []string {
	return slices.DeleteFunc(slices.Clone(networks), func(network string) bool {
		switch runtime.GOOS {
		case "windows":
			return network == "unixpacket" || network == "unixgram"
		case "darwin":
			return network == "unixpacket"
		}
		return false
	})
}

// anyAddress is a free address of the network: any port, or a path that is not there.
func anyAddress(t testing.TB, network string) string {
	t.Helper()
	switch {
	case strings.HasPrefix(network, "unix"):
		return filepath.Join(shortDir(t), "s")
	case strings.HasSuffix(network, "6"):
		return "[::1]:0"
	}
	return "127.0.0.1:0"
}

// shortDir is a directory whose path leaves room for a name in the 108 bytes of a Unix address.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// listenPlain holds an address by means of package net alone, until the test ends.
func listenPlain(t testing.TB, network, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

// listen obtains a listener that is closed when the test ends.
func listen(t testing.TB, cfg *listener.Config, network, address string) *listener.Listener {
	t.Helper()
	ensureStateDir(t, cfg)
	ln, err := cfg.Listen(context.Background(), network, address)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

// fails obtains the error of a Listen that must not succeed.
func fails(t testing.TB, cfg *listener.Config, ctx context.Context, network, address string) error {
	t.Helper()
	ensureStateDir(t, cfg)
	ln, err := cfg.Listen(ctx, network, address)
	if err == nil {
		ln.Close()
	}
	require.Error(t, err)
	require.Nil(t, ln)
	return err
}

// ensureStateDir keeps tests out of the real state directory.
func ensureStateDir(t testing.TB, cfg *listener.Config) {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
}

// portOf is the port of an address.
func portOf(t testing.TB, addr net.Addr) int {
	t.Helper()
	switch addr := addr.(type) {
	case *net.TCPAddr:
		return addr.Port
	case *net.UDPAddr:
		return addr.Port
	}
	require.FailNow(t, "no port", "%v", addr)
	return 0
}

// exchange sends a word through a new connection and reads it at the other end.
func exchange(t testing.TB, ln net.Listener) {
	t.Helper()
	client, server := connect(t, ln)
	_, err := io.WriteString(client, "word")
	require.NoError(t, err)
	require.NoError(t, client.Close())
	text, err := io.ReadAll(server)
	require.NoError(t, err)
	require.Equal(t, "word", string(text))
	require.NoError(t, server.Close())
}

// connect gives both ends of a new connection.
func connect(t testing.TB, ln net.Listener) (client, server net.Conn) {
	t.Helper()
	// The kernel completes the connection before it is accepted.
	client, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	server, err = ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { server.Close() })
	for _, conn := range []net.Conn{client, server} {
		require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
	}
	return client, server
}

func TestListenType(t *testing.T) {
	for _, network := range supported(streams) {
		ln, err := listener.Listen(network, anyAddress(t, network))
		require.NoError(t, err, network)
		if strings.HasPrefix(network, "tcp") {
			require.IsType(t, (*net.TCPListener)(nil), ln)
		} else {
			require.IsType(t, (*net.UnixListener)(nil), ln)
		}
		if network != "unixpacket" {
			exchange(t, ln)
		}
		require.NoError(t, ln.Close())
		require.ErrorIs(t, ln.Close(), net.ErrClosed, "as package net does")
	}
	for _, network := range supported(packets) {
		conn, err := listener.ListenPacket(network, anyAddress(t, network))
		require.NoError(t, err, network)
		if strings.HasPrefix(network, "udp") {
			require.IsType(t, (*net.UDPConn)(nil), conn)
		} else {
			require.IsType(t, (*net.UnixConn)(nil), conn)
		}
		require.NoError(t, conn.Close())
	}
}

// Listen leaves no trace, and of a Unix socket file it does with it what package net does.
func TestListenLeavesNoTrace(t *testing.T) {
	state := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", state)
	ln, err := listener.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, err = listener.Listen("tcp", ln.Addr().String())
	require.Error(t, err)
	require.NotEmpty(t, err.Error())
	require.NoError(t, ln.Close())
	files, err := os.ReadDir(state)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestListenerMethods(t *testing.T) {
	for _, network := range supported(streams) {
		t.Run(network, func(t *testing.T) {
			address := anyAddress(t, network)
			ln := listen(t, &listener.Config{Name: "web"}, network, address)

			require.Equal(t, listener.Origin{Kind: listener.Bound, Requested: address, Address: ln.Addr().String()}, ln.Origin())
			origin, ok := listener.OriginOf(ln)
			require.True(t, ok)
			require.Equal(t, ln.Origin(), origin)

			inside := ln.Unwrap()
			require.Equal(t, ln.Addr(), inside.Addr())
			if strings.HasPrefix(network, "tcp") {
				require.IsType(t, (*net.TCPListener)(nil), inside)
				tcp, ok := listener.As[*net.TCPListener](ln)
				require.True(t, ok)
				require.Same(t, inside, tcp)
				_, ok = listener.As[*net.UnixListener](ln)
				require.False(t, ok)
			} else {
				require.IsType(t, (*net.UnixListener)(nil), inside)
			}

			// A duplicate of the socket outlives nothing and closes nothing.
			file, err := ln.File()
			require.NoError(t, err)
			again, err := net.FileListener(file)
			require.NoError(t, err)
			require.NoError(t, file.Close())
			require.Equal(t, ln.Addr().String(), again.Addr().String())
			require.NoError(t, again.Close())

			raw, err := ln.SyscallConn()
			require.NoError(t, err)
			called := false
			require.NoError(t, raw.Control(func(uintptr) { called = true }))
			require.True(t, called)

			require.NoError(t, ln.SetDeadline(time.Unix(1, 0)))
			_, err = ln.Accept()
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			var netErr net.Error
			require.ErrorAs(t, err, &netErr)
			require.True(t, netErr.Timeout())
			require.NoError(t, ln.SetDeadline(time.Time{}))

			if network != "unixpacket" {
				client, server := connect(t, ln)
				if strings.HasPrefix(network, "tcp") {
					require.IsType(t, (*net.TCPConn)(nil), server)
				} else {
					require.IsType(t, (*net.UnixConn)(nil), server)
				}
				require.NoError(t, client.Close())
				require.NoError(t, server.Close())
			}

			require.NoError(t, ln.Close())
			_, err = ln.File()
			require.ErrorIs(t, err, net.ErrClosed)
			require.ErrorIs(t, ln.SetDeadline(time.Time{}), net.ErrClosed)
		})
	}
}

func TestClose(t *testing.T) {
	for _, network := range supported(streams) {
		t.Run(network, func(t *testing.T) {
			state, portFile := t.TempDir(), filepath.Join(t.TempDir(), "port")
			ln := listen(t, &listener.Config{StateDir: state, PortFile: portFile}, network, anyAddress(t, network))
			require.Len(t, filesIn(t, state), 1)
			require.FileExists(t, portFile)
			address := ln.Addr().String()

			accepted := make(chan error, 3)
			for range cap(accepted) {
				go func() {
					_, err := ln.Accept()
					accepted <- err
				}()
			}
			closed := make(chan error, 10)
			for range cap(closed) {
				go func() { closed <- ln.Close() }()
			}
			for range cap(closed) {
				require.NoError(t, <-closed)
			}
			for range cap(accepted) {
				require.ErrorIs(t, <-accepted, net.ErrClosed)
			}
			require.NoError(t, ln.Close(), "it repeats its first result")
			_, err := ln.Accept()
			require.ErrorIs(t, err, net.ErrClosed)

			require.Empty(t, filesIn(t, state), "lock and record are gone")
			require.NoFileExists(t, portFile)
			if strings.HasPrefix(network, "unix") {
				_, err = os.Lstat(address)
				require.ErrorIs(t, err, os.ErrNotExist)
			}
			again, err := net.Listen(network, address)
			require.NoError(t, err)
			require.NoError(t, again.Close())
		})
	}
}

// Connections that were accepted live on.
func TestCloseLeavesConnections(t *testing.T) {
	ln := listen(t, &listener.Config{}, "tcp", "127.0.0.1:0")
	client, server := connect(t, ln)
	require.NoError(t, ln.Close())
	_, err := io.WriteString(server, "word")
	require.NoError(t, err)
	require.NoError(t, server.Close())
	text, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "word", string(text))
}

func filesIn(t testing.TB, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

// opaque hides what is inside; seeThrough shows it.
type opaque struct{ net.Listener }

type seeThrough struct{ net.Listener }

func (s seeThrough) Unwrap() net.Listener { return s.Listener }

func TestAsAndOriginOf(t *testing.T) {
	ln := listen(t, &listener.Config{}, "tcp", "127.0.0.1:0")
	wrapped := seeThrough{seeThrough{ln}}
	tcp, ok := listener.As[*net.TCPListener](wrapped)
	require.True(t, ok)
	require.Equal(t, ln.Addr(), tcp.Addr())
	found, ok := listener.As[*listener.Listener](wrapped)
	require.True(t, ok)
	require.Same(t, ln, found)
	outer, ok := listener.As[seeThrough](wrapped)
	require.True(t, ok)
	require.Equal(t, wrapped, outer, "the first one counts")
	_, ok = listener.As[syscall.Conn](wrapped)
	require.True(t, ok, "interfaces, too")

	origin, ok := listener.OriginOf(wrapped)
	require.True(t, ok)
	require.Equal(t, ln.Origin(), origin)

	for _, hidden := range []net.Listener{opaque{ln}, seeThrough{opaque{ln}}, seeThrough{nil}, nil} {
		_, ok = listener.As[*net.TCPListener](hidden)
		require.False(t, ok)
		_, ok = listener.OriginOf(hidden)
		require.False(t, ok)
	}
	_, ok = listener.OriginOf(listenPlain(t, "tcp", "127.0.0.1:0"))
	require.False(t, ok)
}

func TestOriginKindString(t *testing.T) {
	for want, kind := range map[string]listener.OriginKind{
		"unknown": 0, "bound": listener.Bound, "fallback": listener.Fallback, "reclaimed": listener.Reclaimed,
		"activated": listener.Activated, "inherited": listener.Inherited, "OriginKind(77)": 77,
	} {
		require.Equal(t, want, kind.String())
		require.Equal(t, want, fmt.Sprint(kind))
	}
}

func TestMiddleware(t *testing.T) {
	var built, asked []string
	middleware := func(name string) listener.Middleware {
		return func(inside net.Listener) net.Listener {
			built = append(built, name)
			return tracing{inside, func() { asked = append(asked, name) }}
		}
	}
	ln := listen(t, &listener.Config{Middleware: []listener.Middleware{middleware("outer"), nil, middleware("inner")}}, "tcp", "127.0.0.1:0")
	require.Equal(t, []string{"inner", "outer"}, built)
	_, server := connect(t, ln)
	require.Equal(t, []string{"outer", "inner"}, asked, "the first is outermost")
	require.IsType(t, (*net.TCPConn)(nil), server)

	require.IsType(t, tracing{}, ln.Unwrap())
	tcp, ok := listener.As[*net.TCPListener](ln)
	require.True(t, ok)
	require.Equal(t, ln.Addr(), tcp.Addr())
	origin, ok := listener.OriginOf(seeThrough{ln})
	require.True(t, ok)
	require.Equal(t, listener.Bound, origin.Kind)

	// These are of the socket, whatever is around it.
	_, err := ln.SyscallConn()
	require.NoError(t, err)
	file, err := ln.File()
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.NoError(t, ln.SetDeadline(time.Unix(1, 0)))
	_, err = ln.Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	require.NoError(t, ln.Close())
	require.NoError(t, ln.Close())
	_, err = ln.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

// A middleware that waits for more than the socket bounds its Accept itself.
func TestMiddlewareDeadline(t *testing.T) {
	var set time.Time
	ln := listen(t, &listener.Config{Middleware: []listener.Middleware{
		func(inside net.Listener) net.Listener { return tracing{inside, func() {}} },
		func(inside net.Listener) net.Listener { return deadlined{inside, &set} },
	}}, "tcp", "127.0.0.1:0")
	require.NoError(t, ln.SetDeadline(time.Unix(1, 0)))
	require.Equal(t, time.Unix(1, 0), set)
}

type deadlined struct {
	net.Listener
	set *time.Time
}

func (l deadlined) SetDeadline(t time.Time) error { *l.set = t; return nil }

type tracing struct {
	net.Listener
	accept func()
}

func (l tracing) Accept() (net.Conn, error) { l.accept(); return l.Listener.Accept() }
func (l tracing) Unwrap() net.Listener      { return l.Listener }

// closing has a Close of its own.
type closing struct {
	net.Listener
	close func() error
}

func (l closing) Close() error { return l.close() }

func TestMiddlewareClose(t *testing.T) {
	failed := errors.New("flush failed")
	calls := 0
	wrap := func(pass bool) []listener.Middleware {
		return []listener.Middleware{func(inside net.Listener) net.Listener {
			return closing{inside, func() error {
				calls++
				if pass {
					require.NoError(t, inside.Close())
				}
				return failed
			}}
		}}
	}
	for _, pass := range []bool{true, false} {
		calls = 0
		state := t.TempDir()
		ln := listen(t, &listener.Config{StateDir: state, Middleware: wrap(pass)}, "tcp", "127.0.0.1:0")
		require.ErrorIs(t, ln.Close(), failed)
		require.ErrorIs(t, ln.Close(), failed, "it repeats its first result")
		require.Equal(t, 1, calls)
		require.Empty(t, filesIn(t, state))
		// A middleware that keeps Close to itself does not keep the address.
		again, err := net.Listen("tcp", ln.Addr().String())
		require.NoError(t, err)
		require.NoError(t, again.Close())
	}
}

// What a Source gave is closed once, as one may expect of whoever has it.
func TestCloseOnce(t *testing.T) {
	for _, middleware := range [][]listener.Middleware{nil, {nil}} {
		calls := 0
		inside := listenPlain(t, "tcp", "127.0.0.1:0")
		source := &source{take: func(string, string, string) (net.Listener, error) {
			return closing{inside, func() error {
				if calls++; calls > 1 {
					return errors.New("closed twice")
				}
				return inside.Close()
			}}, nil
		}}
		ln := listen(t, &listener.Config{Sources: []listener.Source{source}, Middleware: middleware}, "tcp", ":3000")
		require.NoError(t, ln.Close())
		require.Equal(t, 1, calls)
	}
}

// A listener of a Source may be anything. What it cannot do is reported as such.
func TestForeignListener(t *testing.T) {
	inside := listenPlain(t, "tcp", "127.0.0.1:0")
	source := &source{take: func(string, string, string) (net.Listener, error) { return opaque{inside}, nil }}
	ln := listen(t, &listener.Config{Sources: []listener.Source{source}}, "tcp", ":3000")
	_, err := ln.File()
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = ln.SyscallConn()
	require.ErrorIs(t, err, errors.ErrUnsupported)
	err = ln.SetDeadline(time.Time{})
	require.ErrorIs(t, err, errors.ErrUnsupported)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	exchange(t, ln)
}
