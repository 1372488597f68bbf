package activation

import (
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

type wrapped struct{ net.Listener }

func (w wrapped) Unwrap() net.Listener { return w.Listener }

func TestConnOf(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	for _, socket := range []any{ln, wrapped{ln}, wrapped{wrapped{ln}}} {
		conn, ok := connOf(socket)
		require.True(t, ok)
		require.Same(t, ln, conn)
	}
	for _, socket := range []any{nil, 42, wrapped{}, struct{ net.Listener }{ln}} {
		_, ok := connOf(socket)
		require.False(t, ok)
	}
	err = Store("web", 42)
	require.ErrorContains(t, err, `"web" is not stored: int is no socket`)
	require.True(t, errors.Is(err, errors.ErrUnsupported))
}
