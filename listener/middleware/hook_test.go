package middleware_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// A refusal says why, to hooks and in errors.
func TestRefusal(t *testing.T) {
	cause := errors.New("too late")
	for _, test := range []struct {
		verdict error
		reason  middleware.Reason
		text    string
	}{
		{cause, middleware.ReasonHook, "connection refused: hook: too late"},
		{&middleware.Refusal{Reason: "night"}, "night", "connection refused: night"},
		{&middleware.Refusal{Reason: "night", Err: cause}, "night", "connection refused: night: too late"},
	} {
		told := make(chan *middleware.Refusal, 1)
		var addr net.Addr
		ln := listen(t, "tcp", middleware.Hook{
			Accept:  func(net.Conn) error { return test.verdict },
			Refused: func(conn net.Conn, why *middleware.Refusal) { addr = conn.RemoteAddr(); told <- why },
		}.Wrap)
		accepting(t, ln)
		client := dial(t, ln)
		refused(t, client)
		why := <-told
		require.Equal(t, test.reason, why.Reason)
		require.EqualError(t, why, test.text)
		require.Equal(t, client.LocalAddr().String(), addr.String())
		if test.reason == middleware.ReasonHook || why.Err != nil {
			require.ErrorIs(t, why, cause)
		}
	}
}

// A hook that has waited for a client in vain refuses that one. For the server nothing has happened.
func TestHookTimesOut(t *testing.T) {
	ln := listen(t, "tcp", middleware.Hook{Accept: func(conn net.Conn) error {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second)) // enough for one that speaks
		_, err := conn.Read(make([]byte, 1))
		return err
	}}.Wrap)
	results := accepting(t, ln)
	refused(t, dial(t, ln))
	_, err := dial(t, ln).Write([]byte("x"))
	require.NoError(t, err)
	next(t, results)
}

// Closed knows how long, and is told of connections that Accept let pass.
func TestHookClosed(t *testing.T) {
	const while = 10 * time.Millisecond
	closed := make(chan time.Duration, 1)
	ln := listen(t, "tcp", middleware.Hook{Closed: func(_ net.Conn, open time.Duration) { closed <- open }}.Wrap)
	_, server := connect(t, ln)
	time.Sleep(while) // what is measured
	require.NoError(t, server.Close())
	require.GreaterOrEqual(t, <-closed, while)
	require.Error(t, server.Close())
	require.Empty(t, closed)
}

// Clients that are gone before they were accepted, or as soon as they were, leave nothing behind.
func TestResetStorm(t *testing.T) {
	track, limit := new(middleware.Track), &middleware.Limit{Max: 10}
	ln := listen(t, "tcp", append([]wrapper{track.Wrap, limit.Wrap}, all()...)...)
	for range 500 {
		conn, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		reset(conn)
	}
	for range 500 {
		server := accept(t, ln)
		_, err := server.Read(make([]byte, 1))
		require.Error(t, err)
		require.NoError(t, server.Close())
	}
	require.Zero(t, track.Open())
	require.Zero(t, limit.Open())
	connect(t, ln)
}
