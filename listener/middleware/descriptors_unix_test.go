//go:build unix

package middleware_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

func init() { roles["few descriptors"] = serveFew }

// serveFew is a server with few descriptors. It says hello to each connection, and keeps it until its client closes it. At
// the end of its stdin it says how many descriptors are open, without the listener.
func serveFew() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = 40
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	before, err := descriptors()
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	track := new(middleware.Track)
	ln := middleware.Backoff{Logger: slog.Default()}.Wrap(middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) {
		fmt.Println("refused", why.Reason)
	}}.Wrap(track.Wrap(tcp)))
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(conn, "hello")
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	fmt.Println("listening", ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	ln.Close()
	track.CloseAll()
	after, err := descriptors()
	if err != nil {
		return err
	}
	fmt.Println("left", after-before)
	return nil
}

// descriptors is how many are open, or the poller has opened by then.
func descriptors() (n int, err error) {
	// The first listener makes the poller open its own.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	ln.Close()
	for fd := range 40 {
		var stat syscall.Stat_t
		if syscall.Fstat(fd, &stat) == nil {
			n++
		}
	}
	return n, nil
}

// A process that has no descriptors left refuses, and accepts again when it has some. It says so once.
func TestOutOfDescriptors(t *testing.T) {
	cmd := command(t, "few descriptors")
	var log lines
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	timer := time.AfterFunc(deadline, func() { cmd.Process.Kill() })
	defer timer.Stop()
	defer cmd.Process.Kill()
	output := bufio.NewScanner(stdout)
	require.True(t, output.Scan())
	address, ok := strings.CutPrefix(output.Text(), "listening ")
	require.True(t, ok, "%s", output.Text())

	var open []net.Conn
	defer func() {
		for _, conn := range open {
			reset(conn)
		}
	}()
	// served connects, and tells whether there was a hello.
	served := func() bool {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
		_, err = io.ReadFull(conn, make([]byte, 5))
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		if err != nil {
			reset(conn)
			return false
		}
		open = append(open, conn)
		return true
	}
	refused := 0
	for round := range 3 {
		for served() {
			require.Less(t, len(open), 40)
		}
		refused++
		for range 20 {
			require.False(t, served(), "refused at once, each")
			refused++
		}
		require.Greater(t, len(open), 20, "round %d", round)
		for _, conn := range open {
			require.NoError(t, conn.(*net.TCPConn).CloseWrite())
			_, err := io.Copy(io.Discard, conn) // until the server has closed it
			require.NoError(t, err)
			reset(conn)
		}
		open = nil
	}
	require.True(t, served())
	for range refused {
		require.True(t, output.Scan())
		require.Equal(t, "refused descriptors", output.Text())
	}
	require.NoError(t, stdin.Close())
	require.True(t, output.Scan())
	left, err := strconv.Atoi(strings.TrimPrefix(output.Text(), "left "))
	require.NoError(t, err, output.Text())
	require.LessOrEqual(t, left, 0)
	require.NoError(t, cmd.Wait())
	require.Len(t, log.all(), 1, "%s", log.all())
	require.Contains(t, log.all()[0], "too many open files")
}
