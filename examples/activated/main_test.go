package main

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// activated is the program by itself.
func activated(t *testing.T, env []string, args ...string) *exampletest.Process {
	t.Helper()
	return exampletest.StartCommand(t, append(env, exampletest.Env...), append([]string{exampletest.Executable(t)}, args...)...)
}

// underSystemd is the program as systemd-socket-activate starts it at the first connection. It replaces that command, so
// its process is the one returned.
func underSystemd(t *testing.T, options []string, env []string, args ...string) *exampletest.Process {
	t.Helper()
	command := append([]string{exampletest.Need(t, "systemd-socket-activate")}, options...)
	for _, v := range append(env, exampletest.Env...) {
		command = append(command, "-E", v)
	}
	return exampletest.StartCommand(t, nil, append(append(command, exampletest.Executable(t)), args...)...)
}

// manager is a socket that is notified, as systemd has it.
func manager(t *testing.T) (conn *net.UnixConn, env string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // short enough for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(exampletest.Timeout)))
	return conn, "NOTIFY_SOCKET=" + path
}

func told(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buffer := make([]byte, 4096)
	n, err := conn.Read(buffer)
	require.NoError(t, err)
	return strings.TrimSpace(string(buffer[:n]))
}

func TestByHand(t *testing.T) {
	p := activated(t, nil, "-addr", "127.0.0.1:0")
	found := regexp.MustCompile(`listening on ([0-9.:]+)`).FindStringSubmatch(p.Until(t, "listening on"))
	require.NotNil(t, found)
	require.Contains(t, exampletest.Get(t, found[1]), "which is bound\n")
	require.NoError(t, p.Process.Signal(os.Interrupt))
	require.Zero(t, p.Exit(t))
}

func TestUnderSystemd(t *testing.T) {
	for _, addr := range []string{"fd:web", "fd:3", ":1", ""} {
		t.Run("addr="+addr, func(t *testing.T) {
			conn, notify := manager(t)
			address := exampletest.FreeAddress(t)
			name := "--fdname=web"
			if addr == "" { // matched by address alone
				addr, name = address, "--fdname=other"
			}
			p := underSystemd(t, []string{"-l", address, name}, []string{notify}, "-addr", addr)
			p.Until(t, "Listening on "+address)
			require.Contains(t, exampletest.Get(t, address), " on "+address+", which is activated\n")
			require.Equal(t, "READY=1", told(t, conn))
			require.NoError(t, p.Process.Signal(syscall.SIGTERM))
			require.Equal(t, "STOPPING=1", told(t, conn))
			require.Zero(t, p.Exit(t))
		})
	}
}

func TestSaysWhatItDoesNotUse(t *testing.T) {
	address, metrics := exampletest.FreeAddress(t), filepath.Join(t.TempDir(), "s")
	p := underSystemd(t, []string{"-l", address, "-l", metrics, "--fdname=web:metrics"}, nil, "-addr", address)
	p.Until(t, "Listening on "+metrics)
	require.Contains(t, exampletest.Get(t, address), "which is activated\n")
	line := p.Until(t, "does not use")
	require.Contains(t, line, "descriptor 4 (metrics), unix "+metrics)
	require.Contains(t, line, "asked="+address)
}

func TestRefusesToRunWithoutItsSocket(t *testing.T) {
	p := activated(t, nil, "-addr", "fd:web")
	p.Until(t, "fd:web: no sockets were passed")
	require.Equal(t, 1, p.Exit(t))

	p = activated(t, []string{"LISTEN_FDS=1"}, "-addr", ":0")
	p.Until(t, "LISTEN_FDS=1 announces descriptor 3")
	require.Equal(t, 1, p.Exit(t))
}

func TestUnitFiles(t *testing.T) {
	exampletest.Verify(t, "activated", "activated.socket", "activated.service")
}

func TestBadFlags(t *testing.T) {
	p := activated(t, nil, "-nonsense")
	p.Until(t, "not defined")
	require.Equal(t, 1, p.Exit(t))
}
