package reload

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A lateServer begins with a connection some time after it has accepted it, and closes it if it was stopped by then. So does
// grpc.Server, where the processor is busy.
type lateServer struct {
	ln       net.Listener
	accepted chan struct{}
	stopped  chan struct{}
}

func (s *lateServer) Serve(ln net.Listener) error {
	s.ln = ln
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			s.accepted <- struct{}{}
			time.Sleep(settling / 10)
			select {
			case <-s.stopped:
			default:
				_, _ = conn.Write([]byte{1}) // the client looks for it
			}
		}()
	}
}

func (s *lateServer) Shutdown(context.Context) error {
	close(s.stopped)
	return s.ln.Close()
}

// What a server has accepted, it can begin before it is stopped.
func TestPlainServerTakesUpWhatItAccepted(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &lateServer{accepted: make(chan struct{}), stopped: make(chan struct{})}
	v := startVersion(s, ln)
	conn, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	<-s.accepted
	v.end(t)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	n, err := conn.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, 1, n)
}
