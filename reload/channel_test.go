//go:build unix

package reload

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newChannels(t *testing.T) (ours, theirs *channel) {
	t.Helper()
	ours, file, err := newChannel()
	require.NoError(t, err)
	theirs, err = openChannel(file)
	require.NoError(t, err)
	t.Cleanup(func() { ours.close(); theirs.close() })
	return ours, theirs
}

// Messages come whole and in order, each with its descriptor, however many are sent before one is read.
func TestChannel(t *testing.T) {
	ours, theirs := newChannels(t)
	const n = 20
	var files []*os.File
	for i := range n {
		file, err := os.CreateTemp(t.TempDir(), "")
		require.NoError(t, err)
		files = append(files, file)
		l := label{File: strings.Repeat("x", i*50)}
		require.NoError(t, ours.send(message{Do: doForget, Label: &l}, nil))
		require.NoError(t, ours.send(message{Do: doKeep, Label: &l}, file))
	}
	for i := range n {
		m, file, err := theirs.receive()
		require.NoError(t, err)
		require.Equal(t, doForget, m.Do)
		require.Nil(t, file)
		m, file, err = theirs.receive()
		require.NoError(t, err)
		require.Equal(t, doKeep, m.Do)
		require.Len(t, m.Label.File, i*50)
		require.NotNil(t, file)
		sent, err := files[i].Stat()
		require.NoError(t, err)
		got, err := file.Stat()
		require.NoError(t, err)
		require.True(t, os.SameFile(sent, got), i)
		require.NoError(t, file.Close())
		require.NoError(t, files[i].Close())
	}
	require.NoError(t, ours.close())
	_, _, err := theirs.receive()
	require.ErrorIs(t, err, io.EOF)
	require.Error(t, theirs.send(message{Do: doLead}, nil))
}

func TestChannelRefuses(t *testing.T) {
	ours, theirs := newChannels(t)
	require.ErrorContains(t, ours.send(message{Do: doKeep, Label: &label{File: strings.Repeat("x", maxMessage)}}, nil), "longer than")

	// A line without an end does not grow for ever.
	endless := ours.conn
	require.NoError(t, endless.SetWriteDeadline(time.Now().Add(30*time.Second)))
	go func() { _, _ = endless.Write([]byte(strings.Repeat("x", 2*maxMessage))) }()
	_, _, err := theirs.receive()
	require.ErrorIs(t, err, errMessage)

	ours, theirs = newChannels(t)
	_, err = ours.conn.Write([]byte("what?\n"))
	require.NoError(t, err)
	_, _, err = theirs.receive()
	require.ErrorIs(t, err, errMessage)

	var none *channel
	require.ErrorIs(t, none.send(message{}, nil), net.ErrClosed)
	require.NoError(t, none.close())

	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	_, err = openChannel(file)
	require.ErrorContains(t, err, "control socket")
}

func TestTail(t *testing.T) {
	var tail tail
	require.Empty(t, tail.lines())
	for range 1000 {
		_, _ = tail.Write([]byte("some line\r\n\n"))
	}
	_, _ = tail.Write([]byte("cut"))
	lines := tail.lines()
	require.Len(t, lines, 20)
	require.Equal(t, "cut", lines[19])
	require.Equal(t, "some line", lines[0])
	require.LessOrEqual(t, len(tail.text), 4<<10)
}
