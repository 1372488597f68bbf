//go:build unix

package reload_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// One upgrade by signal: the new version serves on the address that the old one obtained, and the old one ends.
func TestUpgrade(t *testing.T) {
	r := role{Listen: []request{{"", "tcp", "127.0.0.1:0"}}, Config: listenConfig{StateDir: t.TempDir()}, Version: "1"}
	l := begin(t, r)
	_, address := l.said("listens")
	first, _ := l.said("ready")
	pid, version := get(t, "tcp", address)
	require.Equal(t, first, pid)
	require.Equal(t, "1", version)

	r.Version = "2"
	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	second, again := l.said("listens")
	require.Equal(t, address, again)
	require.NotEqual(t, first, second)
	ended, _ := l.said("ended <nil>")
	require.Equal(t, first, ended)
	require.NoError(t, l.cmd.Wait())
	pid, version = get(t, "tcp", address)
	require.Equal(t, second, pid)
	require.Equal(t, "2", version)

	signalTo(t, second, syscall.SIGTERM)
	ended, _ = l.said("ended <nil>")
	require.Equal(t, second, ended)
}
