package middleware_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

func TestTrack(t *testing.T) {
	track := new(middleware.Track)
	require.NoError(t, track.Drain(context.Background()), "nothing is open")
	ln := listen(t, "tcp", track.Wrap, middleware.Hook{Accept: func(net.Conn) error { return nil }}.Wrap)
	before := time.Now()
	clientA, a := connect(t, ln)
	clientB, b := connect(t, ln)
	_, c := connect(t, ln)
	require.Equal(t, 3, track.Open())
	open := track.Conns()
	require.Equal(t, []net.Conn{a, b, c}, []net.Conn{open[0].Conn, open[1].Conn, open[2].Conn})
	require.False(t, open[0].Since.Before(before) || open[2].Since.After(time.Now()))

	ended, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	cancel(why)
	err := track.Drain(ended)
	require.ErrorIs(t, err, why)
	require.ErrorContains(t, err, "3 connections are still open")
	_, err = track.CloseQuiet(ended, time.Hour)
	require.ErrorIs(t, err, why)

	drained := make(chan error, 1)
	go func() { drained <- track.Drain(context.Background()) }()
	require.NoError(t, a.Close())
	refused(t, clientA)
	require.Equal(t, 2, track.CloseAll())
	refused(t, clientB)
	require.NoError(t, <-drained)
	require.Zero(t, track.CloseAll())
	require.EqualValues(t, 3, track.Accepted())
	require.Empty(t, track.Conns())
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
}

// A connection over which something moves is not quiet, in whatever direction.
func TestCloseQuiet(t *testing.T) {
	for while := 50 * time.Millisecond; ; while *= 2 {
		track := new(middleware.Track)
		ln := listen(t, "tcp", track.Wrap)
		quiet, _ := connect(t, ln)
		talking, listening := connect(t, ln)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = talking.Write([]byte("x"))
					_, _ = io.ReadFull(listening, make([]byte, 1))
				}
			}
		}()
		n, err := track.CloseQuiet(context.Background(), while)
		close(stop)
		<-stopped
		require.NoError(t, err)
		if n == 2 && while < deadline/4 {
			continue // on a busy machine the other goroutine may not run for a while
		}
		require.Equal(t, 1, n)
		refused(t, quiet)
		require.Equal(t, 1, track.Open())
		return
	}
}

// Outside of TLS a connection stays the *tls.Conn that net/http looks for, and its end is known nevertheless.
func TestOutsideOfTLS(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil)
	certified.EnableHTTP2 = true
	certified.StartTLS()
	certified.Close()
	inTLS := func(ln net.Listener) net.Listener { return tls.NewListener(ln, certified.TLS) }
	track, limit := new(middleware.Track), &middleware.Limit{Max: 10}
	inside := new(middleware.Track)
	ln := listen(t, "tcp", track.Wrap, limit.Wrap, inTLS, inside.Wrap)
	server := &http.Server{TLSConfig: certified.TLS, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	transport := certified.Client().Transport.(*http.Transport)
	response, err := (&http.Client{Transport: transport}).Get("https://" + ln.Addr().String())
	require.NoError(t, err)
	got, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, "HTTP/2.0", string(got))
	require.Equal(t, 1, track.Open())
	require.Equal(t, 1, inside.Open())
	require.Equal(t, 1, limit.Open())
	require.IsType(t, (*tls.Conn)(nil), track.Conns()[0].Conn)
	require.Equal(t, 1, inside.CloseAll())
	require.Zero(t, track.Open())
	require.Zero(t, limit.Open())
	transport.CloseIdleConnections()
	require.NoError(t, server.Close())
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}
