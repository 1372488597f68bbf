package middleware_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// piped is a connection without a socket.
func piped() net.Conn {
	server, client := net.Pipe()
	client.Close()
	return server
}

// A flood of refusals and errors is two lines, and then one for each period.
func TestLogFloods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		n := 0
		inner := &scripted{done: make(chan struct{})}
		inner.accept = func() (net.Conn, error) {
			n++
			time.Sleep(10 * time.Millisecond)
			if n%2 == 0 {
				return nil, acceptError(syscall.ECONNABORTED)
			}
			return piped(), nil
		}
		verdict := errors.New("no")
		ln := (&middleware.Log{Logger: log.logger(), Every: time.Second}).Wrap(middleware.Hook{Accept: func(net.Conn) error {
			if n > 4000 {
				return nil
			}
			return verdict
		}}.Wrap(inner))
		for {
			conn, err := ln.Accept()
			if conn != nil {
				conn.Close()
				break
			}
			require.Error(t, err)
		}
		got := log.all()
		require.Equal(t, "level=WARN msg=\"connection refused\" reason=hook local=pipe remote=pipe error=no\n", got[0])
		require.Equal(t, "level=WARN msg=\"accept failed\" error=\"accept tcp: accept4: software caused connection abort\"\n", got[1])
		// 2000 of each in forty seconds.
		require.InDelta(t, 2+2*40, len(got), 4)
		refused, failed := 1, 1
		synctest.Wait()
		require.NoError(t, ln.Close()) // says what is left
		for _, line := range log.all()[2:] {
			var count int
			if rest, ok := strings.CutPrefix(line, "level=WARN msg=\"connections refused\" "); ok {
				_, err := fmt.Sscanf(rest, "count=%d reason=hook", &count)
				require.NoError(t, err, line)
				refused += count
			} else {
				_, err := fmt.Sscanf(line, "level=WARN msg=\"accepts failed\" count=%d", &count)
				require.NoError(t, err, line)
				failed += count
			}
		}
		require.Equal(t, 2000, refused)
		require.Equal(t, 2000, failed)
		// After silence the next one is logged at once again.
		time.Sleep(time.Minute)
		before := len(log.all())
		ln = (&middleware.Log{Logger: log.logger()}).Wrap(&scripted{done: make(chan struct{}), accept: func() (net.Conn, error) { return nil, io.EOF }})
		_, err := ln.Accept()
		require.ErrorIs(t, err, io.EOF)
		require.Len(t, log.all(), before+1)
		time.Sleep(time.Minute)
		require.Len(t, log.all(), before+1, "nothing to add")
		_, _ = ln.Accept()
		require.Len(t, log.all(), before+2)
		time.Sleep(time.Minute) // for the timer to end
	})
}

// As many reasons as hooks like to make up are not as many lines.
func TestLogReasons(t *testing.T) {
	var log lines
	n := 0
	inner := &scripted{done: make(chan struct{})}
	inner.accept = func() (net.Conn, error) {
		if n++; n > 1000 {
			return nil, io.EOF
		}
		return piped(), nil
	}
	ln := (&middleware.Log{Logger: log.logger(), Every: time.Hour}).Wrap(middleware.Hook{Accept: func(net.Conn) error {
		return &middleware.Refusal{Reason: middleware.Reason(fmt.Sprint("reason ", n))}
	}}.Wrap(inner))
	_, err := ln.Accept()
	require.ErrorIs(t, err, io.EOF)
	require.Less(t, len(log.all()), 40)
}

// One of so many connections is logged, with its end.
func TestLogSamples(t *testing.T) {
	var log lines
	ln := listen(t, "tcp", (&middleware.Log{Logger: log.logger(), Sample: 3}).Wrap)
	var servers []net.Conn
	for range 7 {
		_, server := connect(t, ln)
		servers = append(servers, server)
	}
	for _, server := range servers {
		require.NoError(t, server.Close())
	}
	got := log.all()
	require.Len(t, got, 6)
	for i, of := range []int{0, 3, 6} {
		addresses := fmt.Sprintf("local=%s remote=%s", servers[of].LocalAddr(), servers[of].RemoteAddr())
		require.Equal(t, "level=INFO msg=\"connection accepted\" "+addresses+"\n", got[i])
		require.Contains(t, got[3+i], "level=INFO msg=\"connection closed\" "+addresses+" open=")
	}
}

// A panic in a hook costs the connection at most, and only with Recover.
func TestRecover(t *testing.T) {
	opaque := func(ln net.Listener) net.Listener { return seeThrough{ln} }
	boom := func() { panic("boom") }
	for name, hook := range map[string]middleware.Hook{
		"Accept":   {Accept: func(net.Conn) error { boom(); return nil }},
		"Accepted": {Accepted: func(net.Conn) { boom() }},
		"Closed":   {Closed: func(net.Conn, time.Duration) { boom() }},
		"Refused":  {Refused: func(net.Conn, *middleware.Refusal) { boom() }, Accept: func(net.Conn) error { return errors.New("no") }},
		"Failed":   {Failed: func(error) { boom() }},
	} {
		for where, stack := range map[string]func(r, h wrapper) []wrapper{
			"outside":       func(r, h wrapper) []wrapper { return []wrapper{r, h} },
			"inside":        func(r, h wrapper) []wrapper { return []wrapper{h, r} },
			"apart":         func(r, h wrapper) []wrapper { return []wrapper{r, opaque, h} },
			"apart, inside": func(r, h wrapper) []wrapper { return []wrapper{h, opaque, r} },
		} {
			t.Run(name+"/"+where, func(t *testing.T) {
				var log lines
				seen, track, limit := new(refusals), new(middleware.Track), &middleware.Limit{Max: 10}
				stack := append([]wrapper{seen.wrap}, stack(middleware.Recover{Logger: log.logger()}.Wrap, hook.Wrap)...)
				stack = append(stack, track.Wrap, limit.Wrap)
				if name == "Failed" {
					stack = append(stack, func(ln net.Listener) net.Listener {
						return &failing{Listener: ln, errs: []error{acceptError(syscall.ECONNABORTED)}}
					})
				}
				ln := listen(t, "tcp", stack...)
				if name == "Failed" {
					_, err := ln.Accept()
					require.ErrorIs(t, err, syscall.ECONNABORTED)
				}
				results := accepting(t, ln)
				client := dial(t, ln)
				switch name {
				case "Accept", "Accepted", "Refused":
					refused(t, client)
					reason := map[string]middleware.Reason{"Accept": middleware.ReasonPanic, "Accepted": middleware.ReasonPanic, "Refused": middleware.ReasonHook}[name]
					eventually(t, func() bool { return seen.count(reason) == 1 }, "the others are told")
				default:
					require.NoError(t, next(t, results).Close())
				}
				eventually(t, func() bool { return len(log.all()) == 1 }, "the log")
				require.Zero(t, track.Open())
				require.Zero(t, limit.Open())
				require.Contains(t, log.all()[0], "level=ERROR msg=\"a connection hook panicked\" address="+ln.Addr().String()+" panic=boom stack=")
				require.Contains(t, log.all()[0], "log_test.go")
				// It goes on.
				dial(t, ln)
				if name == "Failed" || name == "Closed" {
					next(t, results)
				} else {
					eventually(t, func() bool { return len(log.all()) == 2 }, "the next one")
				}
			})
		}
	}
	ln := middleware.Hook{Accept: func(net.Conn) error { boom(); return nil }}.Wrap(listen(t, "tcp"))
	dial(t, ln)
	require.PanicsWithValue(t, "boom", func() { _, _ = ln.Accept() })
}
