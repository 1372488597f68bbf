package middleware

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever moves bytes on a Unix socket is seen.
func TestActivityOfUnix(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer ln.Close()
	dialled, err := net.Dial("unix", ln.Addr().String())
	require.NoError(t, err)
	defer dialled.Close()
	accepted, err := ln.Accept()
	require.NoError(t, err)
	defer accepted.Close()
	conn, c := withCore(accepted, time.Now())
	client, server := dialled.(*net.UnixConn), conn.(*unixConn)
	c.timed = true
	p := make([]byte, 1)
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("berth"), 0o600))
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	for name, move := range map[string]func() error{
		"Read":         func() error { _, err := server.Read(p); return err },
		"ReadFrom":     func() error { _, _, err := server.ReadFrom(p); return err },
		"ReadFromUnix": func() error { _, _, err := server.ReadFromUnix(p); return err },
		"ReadMsgUnix":  func() error { _, _, _, _, err := server.ReadMsgUnix(p, nil); return err },
		"Write":        func() error { _, err := server.Write(p); return err },
		"a file":       func() error { _, err := io.Copy(server, file); return err },
		"WriteMsgUnix": func() error { _, _, err := server.WriteMsgUnix(p, nil, nil); return err },
	} {
		_, err := client.Write(p)
		require.NoError(t, err)
		before := c.activity.Load()
		require.NoError(t, move(), name)
		require.NotEqual(t, before, c.activity.Load(), name)
	}
}

// When another has taken the spare descriptor, there is one again as soon as that can be.
func TestSpareComesBack(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	e := &errorPauses{}
	e.Max = time.Millisecond
	defer e.stop()
	_, again := e.retry(wrap(ln, part{}).(*listener), syscall.EMFILE)
	require.True(t, again)
	require.True(t, e.release())
}

// A connection that is closed while a listener further out takes it is closed for that listener, too.
func TestClosedWhileAttached(t *testing.T) {
	var closed []string
	flat := func(name string) *listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { ln.Close() })
		return Hook{Closed: func(net.Conn, time.Duration) { closed = append(closed, name) }}.Wrap(ln).(*listener)
	}
	client, server := net.Pipe()
	defer client.Close()
	conn := attach(server, flat("a"), time.Now())
	conn = attach(conn, flat("b"), time.Now())
	conn = attach(conn, flat("c"), time.Now()) // more than are foreseen
	require.NoError(t, conn.Close())
	require.Equal(t, []string{"c", "b", "a"}, closed)
	conn = attach(conn, flat("d"), time.Now())
	require.Equal(t, []string{"c", "b", "a", "d"}, closed)
	require.Len(t, coreOf(conn).more, 1, "a Close that is not at its end yet would tell d again")
}
