package peek_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/internal/peek"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// each runs a test with connections of both kinds: client and server, and what is to be looked into.
func each(t *testing.T, test func(t *testing.T, client, server conn, raw syscall.RawConn)) {
	if !peek.Supported {
		t.Skip("this system cannot look")
	}
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			ln, err := net.Listen(network, address)
			require.NoError(t, err)
			defer ln.Close()
			client, err := net.Dial(network, ln.Addr().String())
			require.NoError(t, err)
			defer client.Close()
			server, err := ln.Accept()
			require.NoError(t, err)
			defer server.Close()
			raw, err := server.(syscall.Conn).SyscallConn()
			require.NoError(t, err)
			test(t, client.(conn), server.(conn), raw)
		})
	}
}

type conn interface {
	net.Conn
	CloseWrite() error
}

func TestEachByteIsSeenAndStays(t *testing.T) {
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		enough, err := peek.Now(raw, 100, func([]byte, bool) bool { t.Error("there is nothing"); return true })
		require.NoError(t, err)
		require.False(t, enough)

		calls := 0
		more := make(chan struct{})
		go func() { // the next byte when the one before was seen
			for _, b := range []byte("hello") {
				_, _ = client.Write([]byte{b})
				<-more
			}
		}()
		err = peek.Wait(raw, 100, func(received []byte, final bool) bool {
			if len(received) == calls {
				return false // woken for what was there already, which is harmless
			}
			calls++
			require.Equal(t, "hello"[:calls], string(received))
			require.False(t, final)
			more <- struct{}{}
			return len(received) == 5
		})
		require.NoError(t, err)
		require.Equal(t, 5, calls)

		var seen string
		enough, err = peek.Now(raw, 100, func(received []byte, final bool) bool { seen = string(received); return true })
		require.NoError(t, err)
		require.True(t, enough)
		require.Equal(t, "hello", seen)
		b := make([]byte, 100)
		n, err := server.Read(b)
		require.NoError(t, err)
		require.Equal(t, "hello", string(b[:n]))
	})
}

// A wait for more than is there sleeps: looks are counted, and come with bytes.
func TestWaitDoesNotSpin(t *testing.T) {
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		_, err := client.Write([]byte("abc"))
		require.NoError(t, err)
		looks := 0
		require.NoError(t, server.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		err = peek.Wait(raw, 100, func([]byte, bool) bool { looks++; return false })
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.LessOrEqual(t, looks, 2)
	})
}

func TestEndIsSeen(t *testing.T) {
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		_, err := client.Write([]byte("ab"))
		require.NoError(t, err)
		saw := make(chan string, 10)
		go func() {
			if text := <-saw; text == "ab" {
				_ = client.CloseWrite()
			}
		}()
		final := false
		require.NoError(t, server.SetReadDeadline(time.Now().Add(10*time.Second)))
		err = peek.Wait(raw, 100, func(received []byte, last bool) bool {
			final = last
			select {
			case saw <- string(received):
			default:
			}
			return false
		})
		require.NoError(t, err)
		require.True(t, final)

		all, err := io.ReadAll(server)
		require.NoError(t, err)
		require.Equal(t, "ab", string(all))
		err = peek.Wait(raw, 100, func(received []byte, last bool) bool {
			require.Empty(t, received)
			require.True(t, last)
			return false
		})
		require.NoError(t, err)
	})
}

// The end came before anybody looked, and what came is not enough.
func TestEndWasThere(t *testing.T) {
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		_, err := client.Write([]byte("ab"))
		require.NoError(t, err)
		require.NoError(t, client.CloseWrite())
		var finals []bool
		look := func(received []byte, final bool) bool {
			require.Equal(t, "ab", string(received))
			finals = append(finals, final)
			return false
		}
		require.NoError(t, server.SetReadDeadline(time.Now().Add(10*time.Second)))
		require.NoError(t, peek.Wait(raw, 100, look))
		require.Equal(t, []bool{false, true}, finals)
		enough, err := peek.Now(raw, 100, look)
		require.NoError(t, err)
		require.True(t, enough)
	})
}

func TestNoMoreThanAskedFor(t *testing.T) {
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		_, err := client.Write([]byte("abcdef"))
		require.NoError(t, err)
		err = peek.Wait(raw, 4, func(received []byte, final bool) bool {
			require.Equal(t, "abcd", string(received))
			require.True(t, final)
			return false
		})
		require.NoError(t, err)
	})
}

func TestCloseAndResetEndIt(t *testing.T) {
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		ended := make(chan error, 1)
		go func() { ended <- peek.Wait(raw, 4, func([]byte, bool) bool { return false }) }()
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-ended, net.ErrClosed)
		_, err := peek.Now(raw, 4, nil)
		require.ErrorIs(t, err, net.ErrClosed)
	})
	each(t, func(t *testing.T, client, server conn, raw syscall.RawConn) {
		tcp, ok := client.(*net.TCPConn)
		if !ok {
			t.Skip("Unix sockets have no reset")
		}
		require.NoError(t, tcp.SetLinger(0))
		require.NoError(t, tcp.Close())
		err := peek.Wait(raw, 4, func([]byte, bool) bool { return false })
		require.True(t, errors.Is(err, syscall.ECONNRESET), "%v", err)
	})
}
