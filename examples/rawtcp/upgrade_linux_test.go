package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

// A client is a connection to the server.
type client struct {
	net.Conn
	in *bufio.Reader
}

func connect(t *testing.T, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(exampletest.Timeout)))
	return &client{conn, bufio.NewReader(conn)}
}

// say sends a line and gives the pid in the answer.
func (c *client) say(t *testing.T, text string) (pid string) {
	t.Helper()
	_, err := fmt.Fprintln(c, text)
	require.NoError(t, err)
	var same string
	_, err = fmt.Fscanf(c.in, "%s %s\n", &pid, &same)
	require.NoError(t, err)
	require.Equal(t, text, same)
	return pid[:len(pid)-1]
}

// sentAway says something again and again, to the same process, until that says that it ends.
func (c *client) sentAway(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(exampletest.Timeout); time.Now().Before(end); {
		require.Equal(t, strconv.Itoa(pid), c.say(t, "again"), "a connection stays where it is")
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		rest, err := io.ReadAll(c.in)
		require.NoError(t, c.SetReadDeadline(end))
		if len(rest) > 0 {
			require.NoError(t, err)
			require.Equal(t, "bye\n", string(rest))
			return
		}
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	require.FailNow(t, "it does not end")
}

func TestUpgrade(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0")
	first, address := p.Serving(t)
	old, silent := connect(t, address), connect(t, address)
	require.Equal(t, strconv.Itoa(first), old.say(t, "hello"))
	require.Equal(t, strconv.Itoa(first), silent.say(t, "hello"))

	require.NoError(t, syscall.Kill(first, syscall.SIGHUP))
	second, again := p.Serving(t)
	require.Equal(t, address, again)
	fresh := connect(t, address)
	require.Equal(t, strconv.Itoa(second), fresh.say(t, "hello"))
	old.sentAway(t, first)

	// Who leaves is not waited for any more.
	require.NoError(t, silent.Close())
	require.NoError(t, p.Wait())

	require.NoError(t, syscall.Kill(second, syscall.SIGTERM))
	fresh.sentAway(t, second)
	p.Exit(t)
}

// The unit file, in a real systemd.
func TestUnit(t *testing.T) {
	const unit = "rawtcp.service"
	m := exampletest.Systemd(t, "rawtcp", map[string]string{unit: exampletest.Unit(t, unit, "-addr :7000", "-addr 127.0.0.1:0")})
	m.Systemctl(t, "start", unit)
	address := exampletest.Address(t, m, unit)
	first := m.Property(t, unit, "MainPID")
	old := connect(t, address)
	require.Equal(t, first, old.say(t, "hello"))
	m.Systemctl(t, "reload", unit)
	second := exampletest.AwaitOther(t, m, unit, "MainPID", first)
	m.Await(t, unit, "SubState", "running")
	fresh := connect(t, address)
	require.Equal(t, second, fresh.say(t, "hello"))
	require.NoError(t, fresh.Close())
	require.NoError(t, old.Close())
	m.Systemctl(t, "stop", unit)
	require.Equal(t, "success", m.Property(t, unit, "Result"))
}
