//go:build unix

package reload_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Who listens to events hears of an upgrade that fails, one that succeeds, and the end of both versions.
func TestEvents(t *testing.T) {
	r := newHouse(t).alone()
	r.Reload.Events = true
	l := begin(t, r)
	first, _ := l.said("event ready, false, <nil>")

	failing := r
	failing.Fail = "exit 7"
	l.next(failing)
	signalTo(t, first, syscall.SIGHUP)
	l.said("event upgrading, false, <nil>")
	pid, text := l.said("event upgrade failed")
	require.Equal(t, first, pid)
	require.Contains(t, text, "true")
	require.Contains(t, text, "exit status 7")

	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	l.said("event upgrading, false, <nil>")
	l.said("event upgraded, true, <nil>")
	second, _ := l.said("event ready, false, <nil>")
	require.NotEqual(t, first, second)
	l.said("event draining, false, <nil>")
	pid, _ = l.said("event stopped, true, <nil>")
	require.Equal(t, first, pid)

	signalTo(t, second, syscall.SIGTERM)
	l.said("event stopping, false, <nil>")
	l.said("event stopped, true, <nil>")
	require.NoError(t, l.cmd.Wait())
}

// A stop that is announced goes on to serve those who have not heard of it, until the notice is over or somebody insists.
func TestNotice(t *testing.T) {
	r := newHouse(t).alone()
	r.Reload.Events, r.Reload.Notice = true, time.Hour
	l := begin(t, r)
	_, address := l.said("listens")
	first, _ := l.said("event ready")
	signalTo(t, first, syscall.SIGTERM)
	l.said("event stopping")
	pid, _ := get(t, "tcp", address)
	require.Equal(t, first, pid)
	l.logged("msg=stopping")
	signalTo(t, first, syscall.SIGTERM)
	l.said("ended <nil>")
	require.NoError(t, l.cmd.Wait())

	r.Reload.Notice = 50 * time.Millisecond
	l = begin(t, r)
	first, _ = l.said("event ready")
	signalTo(t, first, syscall.SIGTERM)
	l.said("ended <nil>")
	require.NoError(t, l.cmd.Wait())
}
