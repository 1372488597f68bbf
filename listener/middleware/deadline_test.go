package middleware_test

import (
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// A silent connection ends for the server, whatever deadlines of its own it sets.
func TestDeadline(t *testing.T) {
	const idle = 20 * time.Millisecond
	for name, of := range map[string]middleware.Deadline{"idle": {Idle: idle}, "total": {Total: idle}, "both": {Idle: idle, Total: time.Hour}} {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(name+"/"+network, func(t *testing.T) {
				ln := listen(t, network, of.Wrap)
				began := time.Now()
				_, server := connect(t, ln)
				// As net/http does between requests, and when it takes a connection over.
				require.NoError(t, server.SetReadDeadline(time.Now().Add(time.Hour)))
				require.NoError(t, server.SetDeadline(time.Time{}))
				_, err := server.Read(make([]byte, 1))
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				require.GreaterOrEqual(t, time.Since(began), idle)
				for _, lift := range []func(time.Time) error{server.SetDeadline, server.SetReadDeadline, server.SetWriteDeadline} {
					for _, to := range []time.Time{{}, time.Now().Add(time.Hour)} {
						require.NoError(t, lift(to))
						_, err = server.Read(make([]byte, 1))
						require.ErrorIs(t, err, os.ErrDeadlineExceeded)
						_, err = server.Write(make([]byte, 1))
						require.ErrorIs(t, err, os.ErrDeadlineExceeded)
					}
				}
				require.NoError(t, server.Close())
				require.ErrorIs(t, server.SetDeadline(time.Time{}), net.ErrClosed)
			})
		}
	}
}

// The server's own deadline is the earlier one, and can be lifted as ever.
func TestDeadlineOfTheServer(t *testing.T) {
	client, server := connect(t, listen(t, "tcp", middleware.Deadline{Idle: time.Hour, Total: time.Hour}.Wrap))
	require.NoError(t, server.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := server.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, server.SetReadDeadline(time.Time{}))
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	_, err = server.Read(make([]byte, 1))
	require.NoError(t, err)
}

// A long answer that nobody takes ends, too.
func TestDeadlineOfWrites(t *testing.T) {
	_, server := connect(t, listen(t, "tcp", middleware.Deadline{Idle: 20 * time.Millisecond}.Wrap))
	_, err := io.Copy(server, endless{})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Two thousand clients that say nothing take every place again and again, and those who have something to say get theirs.
func TestSilentClients(t *testing.T) {
	limit, track := &middleware.Limit{Max: 200}, new(middleware.Track)
	ln := listen(t, "tcp", track.Wrap, limit.Wrap, middleware.Deadline{Idle: 20 * time.Millisecond}.Wrap)
	results := accepting(t, ln)
	var served sync.WaitGroup
	stop := make(chan struct{})
	served.Go(func() { // answers what it is told
		for {
			select {
			case a, ok := <-results:
				if !ok || a.err != nil {
					return
				}
				served.Go(func() {
					defer a.conn.Close()
					_, _ = io.Copy(a.conn, a.conn)
				})
			case <-stop:
				return
			}
		}
	})
	silent := make([]net.Conn, 2000)
	for i := range silent {
		silent[i] = dial(t, ln)
	}
	good := 1
	for ; ; good++ { // on a busy machine the server itself may be too slow
		conn := dial(t, ln)
		_, err := conn.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(deadline)))
		n, err := conn.Read(make([]byte, 1))
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		conn.Close()
		if n == 1 {
			break
		}
		require.Less(t, good, 100)
	}
	for _, conn := range silent {
		refused(t, conn)
	}
	eventually(t, func() bool { return track.Open() == 0 && limit.Open() == 0 }, "all are closed")
	require.EqualValues(t, len(silent)+good, track.Accepted())
	close(stop)
	served.Wait()
}
