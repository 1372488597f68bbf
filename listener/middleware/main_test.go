package middleware_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// roles are what a re-executed test binary does instead of running tests. A test file adds its own.
var roles = map[string]func() error{}

const roleVariable = "BERTH_TEST_ROLE"

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVariable); name != "" {
		os.Unsetenv(roleVariable)
		do := roles[name]
		if do == nil {
			fmt.Fprintf(os.Stderr, "role %q is unknown\n", name)
			os.Exit(2)
		}
		if err := do(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// deadline bounds every wait in these tests. It is only reached when something is broken.
const deadline = 30 * time.Second

// command is this test binary in a role. Its stdin and stdout are the caller's; it must have ended with the test.
func command(t testing.TB, role string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	// Under the race detector a process sleeps a second before it exits, unless told otherwise.
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// A middleware is what all of them are.
type wrapper = func(net.Listener) net.Listener

// listen listens on a free port, or a Unix socket, inside of the middlewares: the first is outermost.
func listen(t testing.TB, network string, outermost ...wrapper) net.Listener {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	for i := len(outermost) - 1; i >= 0; i-- {
		ln = outermost[i](ln)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// dial connects to a listener. The connection leaves nothing in TIME_WAIT.
func dial(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { reset(conn) })
	return conn
}

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// accept takes the next connection.
func accept(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	conn, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// connect gives both ends of a connection.
func connect(t testing.TB, ln net.Listener) (client, server net.Conn) {
	t.Helper()
	client = dial(t, ln)
	return client, accept(t, ln)
}

// refused waits until the other side has closed the connection without a word.
func refused(t testing.TB, client net.Conn) {
	t.Helper()
	require.NoError(t, client.SetReadDeadline(time.Now().Add(deadline)))
	n, err := client.Read(make([]byte, 1))
	require.Zero(t, n)
	if !errors.Is(err, io.EOF) {
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.False(t, timeout.Timeout(), "the connection is not closed")
	}
}

// An accepted is what an Accept gave.
type accepted struct {
	conn net.Conn
	err  error
}

// accepting calls Accept again and again, and passes on what comes, until the first error.
func accepting(t testing.TB, ln net.Listener) <-chan accepted {
	t.Helper()
	results := make(chan accepted)
	done := make(chan struct{})
	go func() {
		defer close(results)
		for {
			conn, err := ln.Accept()
			select {
			case results <- accepted{conn, err}:
			case <-done:
				if conn != nil {
					conn.Close()
				}
				return
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		ln.Close()
		for range results {
		}
	})
	return results
}

// next waits for the next connection of accepting.
func next(t testing.TB, from <-chan accepted) net.Conn {
	t.Helper()
	select {
	case a := <-from:
		require.NoError(t, a.err)
		t.Cleanup(func() { a.conn.Close() })
		return a.conn
	case <-time.After(deadline):
		require.FailNow(t, "nothing is accepted")
		return nil
	}
}

// eventually waits for a condition that some other goroutine or process brings about.
func eventually(t testing.TB, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, deadline, time.Millisecond, what)
}
