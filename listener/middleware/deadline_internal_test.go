package middleware

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/tcpinfo"
	"github.com/berth-go/berth/internal/testneed"
)

// cored is a connection with its core, and its client.
func cored(t *testing.T) (client net.Conn, server net.Conn, c *core) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	client, err = net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	conn, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	server, c = withCore(conn, time.Now())
	return client, server, c
}

// What ends a connection, with a clock of our own.
func TestOver(t *testing.T) {
	client, server, c := cored(t)
	w := &watch{Deadline: Deadline{Idle: 80 * time.Second, Total: time.Hour}}
	p := pulse{last: c.since}
	after := func(seconds int) time.Time { return c.since.Add(time.Duration(seconds) * time.Second) }

	require.False(t, w.over(c, &p, after(10)))
	require.False(t, w.over(c, &p, after(79)))
	early := p
	require.True(t, w.over(c, &early, after(80)), "nothing has ever moved")

	_, err := server.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(client, make([]byte, 1))
	require.NoError(t, err)
	require.False(t, w.over(c, &p, after(80)), "a byte went out")
	require.False(t, w.over(c, &p, after(90)))
	require.False(t, w.over(c, &p, after(159)))
	early = p
	require.True(t, w.over(c, &early, after(160)))

	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, 1))
	require.NoError(t, err)
	require.False(t, w.over(c, &p, after(160)), "a byte came in")
	require.True(t, w.over(c, &p, after(3600)), "the whole time is over, whatever moves")

	late := pulse{last: c.since, activity: c.activity.Load()}
	require.False(t, w.over(c, &late, after(200)), "the kernel has to be asked first")
	require.True(t, w.over(c, &late, after(210)))

	w.Idle = 0
	require.False(t, w.over(c, &p, after(3599)), "there is no idle time")
}

// A single call may take as long as it likes while the client takes what it is sent.
func TestOverInOneCall(t *testing.T) {
	testneed.That(t, tcpinfo.Known, "a kernel that tells what has moved")
	client, server, c := cored(t)
	w := &watch{Deadline: Deadline{Idle: 80 * time.Second}}
	p := pulse{last: c.since}
	seconds := 0
	look := func(after int) bool {
		seconds += after
		return w.over(c, &p, c.since.Add(time.Duration(seconds)*time.Second))
	}
	written := make(chan error, 1)
	go func() {
		_, err := server.Write(make([]byte, 64<<20)) // more than any buffers hold
		written <- err
	}()
	for range 20 {
		require.False(t, look(10), "just looked at")
		before := c.bytes()
		_, err := io.CopyN(io.Discard, client, 1<<20)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return c.bytes() != before }, time.Minute, time.Millisecond)
		require.False(t, look(100), "bytes have moved")
	}
	require.Zero(t, c.activity.Load(), "the call has not ended")
	// From now on the client takes nothing. What is on its way arrives, and then nothing moves.
	require.Eventually(t, func() bool { return look(100) }, time.Minute, time.Millisecond)
	c.expire()
	require.Error(t, <-written)
}

// A table keeps what it has while it gives memory back.
func TestTable(t *testing.T) {
	var m table[int, int]
	for i := range 10_000 {
		m.set(i, i)
	}
	require.Equal(t, 10_000, m.peak)
	for i := range 9_990 {
		m.remove(i)
	}
	require.Len(t, m.m, 10)
	require.Less(t, m.peak, 1024, "it was made anew")
	for i := 9_990; i < 10_000; i++ {
		require.Equal(t, i, m.m[i])
	}
}
