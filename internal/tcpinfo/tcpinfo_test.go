package tcpinfo_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/tcpinfo"
)

func TestMoved(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	conn, err := ln.Accept()
	require.NoError(t, err)
	defer conn.Close()
	server := conn.(*net.TCPConn)

	before, ok := tcpinfo.Moved(server)
	require.Equal(t, tcpinfo.Known, ok)
	if !ok {
		require.Zero(t, before)
		return
	}
	again, _ := tcpinfo.Moved(server)
	require.Equal(t, before, again)

	_, err = client.Write(make([]byte, 1000))
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, 1000))
	require.NoError(t, err)
	in, _ := tcpinfo.Moved(server)
	require.Equal(t, before+1000, in)

	_, err = server.Write(make([]byte, 500))
	require.NoError(t, err)
	require.Eventually(t, func() bool { out, _ := tcpinfo.Moved(server); return out == in+500 }, 30*time.Second, time.Millisecond, "acknowledged")

	require.NoError(t, server.Close())
	_, ok = tcpinfo.Moved(server)
	require.False(t, ok)
}
