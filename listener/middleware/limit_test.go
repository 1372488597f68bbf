package middleware_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// watched tells what happens inside: it calls before and after each Accept.
type watched struct {
	*net.TCPListener
	before, after func()
}

func (l *watched) Accept() (net.Conn, error) {
	l.before()
	conn, err := l.TCPListener.Accept()
	l.after()
	return conn, err
}

// refusals counts reasons.
type refusals struct {
	mu sync.Mutex
	of map[middleware.Reason]int
}

func (r *refusals) wrap(ln net.Listener) net.Listener {
	return middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.of == nil {
			r.of = make(map[middleware.Reason]int)
		}
		r.of[why.Reason]++
	}}.Wrap(ln)
}

func (r *refusals) count(reason middleware.Reason) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[reason]
}

// A Limit that waits accepts nothing for which there is no place.
func TestLimitWaits(t *testing.T) {
	limit := &middleware.Limit{Max: 2}
	var full, accepts atomic.Int32
	ln := listen(t, "tcp", limit.Wrap, func(ln net.Listener) net.Listener {
		return &watched{ln.(*net.TCPListener), func() {
			if limit.Open() >= 2 {
				full.Add(1)
			}
		}, func() { accepts.Add(1) }}
	})
	results := accepting(t, ln)
	const clients = 20
	for range clients {
		dial(t, ln) // the kernel takes them all
	}
	var open []net.Conn
	for range clients {
		open = append(open, next(t, results))
		require.LessOrEqual(t, limit.Open(), 2)
		if len(open) == 2 {
			require.NoError(t, open[0].Close())
			open = open[1:]
		}
	}
	require.Zero(t, full.Load(), "accepted without a place")
	require.EqualValues(t, clients, accepts.Load())
}

// A Limit that is shared does not let a listener to which nobody comes keep places.
func TestLimitShared(t *testing.T) {
	limit := &middleware.Limit{Max: 1}
	idle, busy := listen(t, "tcp", limit.Wrap), listen(t, "tcp", limit.Wrap)
	fromIdle, fromBusy := accepting(t, idle), accepting(t, busy)
	for range 10 {
		dial(t, busy)
		require.NoError(t, next(t, fromBusy).Close())
	}
	dial(t, busy)
	first := next(t, fromBusy)
	dial(t, idle)
	select {
	case <-fromIdle:
		require.Fail(t, "accepted beyond the limit")
	default:
	}
	require.NoError(t, first.Close())
	require.NoError(t, next(t, fromIdle).Close())
}

// What was accepted and waits for a place is not lost by a deadline, and refused by Close.
func TestLimitInHand(t *testing.T) {
	for name, again := range map[string]bool{"Accept again": true, "Close": false} {
		t.Run(name, func(t *testing.T) {
			limit, seen := &middleware.Limit{Max: 1}, new(refusals)
			began, asked := make(chan struct{}, 10), make(chan struct{}, 10)
			a := listen(t, "tcp", seen.wrap, limit.Wrap, middleware.Hook{Accept: func(net.Conn) error { asked <- struct{}{}; return nil }}.Wrap,
				func(ln net.Listener) net.Listener {
					return &watched{ln.(*net.TCPListener), func() { began <- struct{}{} }, func() {}}
				})
			b := listen(t, "tcp", limit.Wrap)
			results := accepting(t, a)
			<-began                   // there is a place
			_, other := connect(t, b) // which is taken now
			client := dial(t, a)
			<-asked // accepted, and waits
			require.NoError(t, a.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now()))
			require.ErrorIs(t, (<-results).err, os.ErrDeadlineExceeded)
			if !again {
				require.NoError(t, a.Close())
				refused(t, client)
				require.Equal(t, 1, seen.count(middleware.ReasonClosed))
				require.Equal(t, 1, limit.Open())
				return
			}
			require.NoError(t, a.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Time{}))
			require.NoError(t, other.Close())
			server := accept(t, a)
			require.Equal(t, client.LocalAddr().String(), server.RemoteAddr().String())
			require.Empty(t, asked, "nobody is asked twice")
		})
	}
}

// A version that hands its socket on drains: a deadline ends Accept when nothing waits in it any more.
func TestLimitDrains(t *testing.T) {
	type drainer interface {
		SetDraining(bool)
		SetDeadline(time.Time) error
	}
	for name, queued := range map[string]bool{"in hand": false, "queued": true} {
		t.Run(name, func(t *testing.T) {
			limit := &middleware.Limit{Max: 1, Refuse: queued, Queue: 3}
			began, ended := make(chan struct{}, 10), make(chan struct{}, 10)
			a := listen(t, "tcp", limit.Wrap,
				func(ln net.Listener) net.Listener {
					return &watched{ln.(*net.TCPListener), func() { began <- struct{}{} }, func() { ended <- struct{}{} }}
				})
			b := listen(t, "tcp", limit.Wrap)
			results := accepting(t, a)
			<-began
			_, other := connect(t, b) // takes the place
			dial(t, a)
			<-ended // accepted, and waits for the place
			drain := func() {
				for ln := a; ln != nil; { // as package reload does
					ln.(drainer).SetDraining(true)
					inner, ok := ln.(interface{ Unwrap() net.Listener }).Unwrap().(drainer)
					if ln = nil; ok {
						ln = inner.(net.Listener)
					}
				}
				require.NoError(t, a.(drainer).SetDeadline(time.Now()))
			}
			drain()
			select {
			case a := <-results:
				require.Fail(t, "not what it waits for", "%v", a)
			case <-time.After(10 * time.Millisecond): // not long enough to be sure, and never too long
			}
			require.NoError(t, other.Close())
			require.NoError(t, next(t, results).Close())
			require.ErrorIs(t, (<-results).err, os.ErrDeadlineExceeded)
			_, err := a.Accept()
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)

			// It goes on where the hand-over failed.
			a.(drainer).SetDraining(false)
			require.NoError(t, a.(drainer).SetDeadline(time.Time{}))
			connect(t, a)
		})
	}
}

// A limit that is full does not end the drain while a middleware further in keeps connections: those are not lost.
func TestLimitDrainsWhatIsFurtherIn(t *testing.T) {
	eachExamining(t, bounds{}, func(t *testing.T, e examining, _ net.Listener, _ <-chan *middleware.Refusal) {
		limit := &middleware.Limit{Max: 1}
		var examines net.Listener
		ln := listen(t, "tcp", limit.Wrap, func(ln net.Listener) net.Listener {
			examines = e.wrap(t, bounds{})(ln)
			if m, ok := examines.(muxed); ok {
				return m.Listener
			}
			return examines
		})
		t.Cleanup(func() { examines.Close() })
		results := accepting(t, ln)
		slow := dial(t, ln)
		eventually(t, func() bool { return pendingOf(examines) == 1 }, "it waits")
		_, first := e.good(t, ln, results) // has the place
		ln.(drainer).SetDraining(true)
		examines.(drainer).SetDraining(true)
		require.NoError(t, ln.(deadliner).SetDeadline(time.Unix(1, 0)))
		client := e.begin(slow)
		go io.WriteString(client, "ping")
		select {
		case a := <-results:
			require.Fail(t, "not what it waits for", "%v", a)
		case <-time.After(10 * time.Millisecond): // not long enough to be sure, and never too long
		}
		require.NoError(t, first.Close())
		server := next(t, results)
		require.Equal(t, slow.LocalAddr().String(), realRemote(server).String())
		require.ErrorIs(t, (<-results).err, os.ErrDeadlineExceeded, "there is nothing left, and no place either")
		server.Close()
	})
}

// Close ends an Accept that waits for a place, or has a connection for which there is none.
func TestLimitClose(t *testing.T) {
	limit := &middleware.Limit{Max: 1}
	ln := listen(t, "tcp", limit.Wrap)
	connect(t, ln)
	client := dial(t, ln)
	results := accepting(t, ln)
	require.NoError(t, ln.Close())
	require.ErrorIs(t, (<-results).err, net.ErrClosed)
	refused(t, client) // by the kernel
	require.Equal(t, 1, limit.Open())
}

func TestLimitRefuses(t *testing.T) {
	limit, seen := &middleware.Limit{Max: 2, Refuse: true}, new(refusals)
	ln := listen(t, "tcp", seen.wrap, limit.Wrap)
	results := accepting(t, ln)
	for round := range 3 {
		dial(t, ln)
		first := next(t, results)
		dial(t, ln)
		second := next(t, results)
		refused(t, dial(t, ln))
		refused(t, dial(t, ln))
		eventually(t, func() bool { return seen.count(middleware.ReasonLimit) == 2*(round+1) }, "the hook is told")
		require.NoError(t, first.Close())
		require.NoError(t, second.Close())
		require.Zero(t, limit.Open())
	}
}

// With a queue so many wait, and the next is refused.
func TestLimitQueue(t *testing.T) {
	limit, seen := &middleware.Limit{Max: 1, Refuse: true, Queue: 2}, new(refusals)
	taken := make(chan struct{}, 100)
	ln := listen(t, "tcp", seen.wrap, limit.Wrap, func(ln net.Listener) net.Listener {
		return &watched{ln.(*net.TCPListener), func() {}, func() { taken <- struct{}{} }}
	})
	results := accepting(t, ln)
	clients := []net.Conn{dial(t, ln), dial(t, ln), dial(t, ln)}
	server := next(t, results) // so there is one place in use, and two wait or are about to
	refused(t, func() net.Conn {
		// The goroutine takes them in their order: when this one is looked at, the three were.
		return dial(t, ln)
	}())
	require.Equal(t, 1, limit.Open())
	eventually(t, func() bool { return seen.count(middleware.ReasonLimit) == 1 }, "the hook is told")

	// First come, first served.
	for _, client := range clients {
		require.Equal(t, client.LocalAddr().String(), server.RemoteAddr().String())
		require.NoError(t, server.Close())
		if client != clients[2] {
			server = next(t, results)
		}
	}

	// A deadline ends Accept and takes nothing from anybody.
	bounded := ln.(interface{ SetDeadline(time.Time) error })
	require.NoError(t, bounded.SetDeadline(time.Now()))
	require.ErrorIs(t, (<-results).err, os.ErrDeadlineExceeded)
	require.NoError(t, bounded.SetDeadline(time.Time{}))
	_, first := connect(t, ln)

	// Close ends what waits.
	for len(taken) > 0 {
		<-taken
	}
	waiting := dial(t, ln)
	results = accepting(t, ln)
	<-taken
	require.NoError(t, ln.Close())
	require.ErrorIs(t, (<-results).err, net.ErrClosed)
	refused(t, waiting)
	require.Equal(t, 1, seen.count(middleware.ReasonClosed))
	require.NoError(t, first.Close())
	require.Zero(t, limit.Open())
}

// Without a bound connections are counted.
func TestLimitCounts(t *testing.T) {
	limit := new(middleware.Limit)
	ln := listen(t, "tcp", limit.Wrap)
	connect(t, ln)
	_, server := connect(t, ln)
	require.Equal(t, 2, limit.Open())
	require.NoError(t, server.Close())
	require.Equal(t, 1, limit.Open())
}

// pretending is a listener whose connections seem to come from anywhere.
type pretending struct {
	net.Listener
	mu   sync.Mutex
	from []net.Addr
}

func (l *pretending) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	addr := l.from[0]
	l.from = l.from[1:]
	return addressed{conn, addr}, nil
}

type addressed struct {
	net.Conn
	remote net.Addr
}

func (c addressed) RemoteAddr() net.Addr { return c.remote }

func (l *pretending) come(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from = append(l.from, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 1234)))
}

// An address of IPv6 is one of many that a machine has.
func TestLimitPerIP(t *testing.T) {
	for _, test := range []struct {
		bits         int
		same, others []string
	}{
		{0, []string{"10.0.0.1", "::ffff:10.0.0.1"}, []string{"10.0.0.2"}},
		{0, []string{"2001:db8:1:2::1", "2001:db8:1:2:3::"}, []string{"2001:db8:1:3::1", "10.0.0.1"}},
		{128, []string{"2001:db8::1", "2001:db8::1"}, []string{"2001:db8::2"}},
		{48, []string{"2001:db8:1:2::1", "2001:db8:1:3::1"}, []string{"2001:db8:2::1"}},
		{0, []string{"fe80::1%eth0", "fe80::1%eth1"}, []string{"fe80:0:0:1::1%eth0"}},
	} {
		t.Run(test.same[0], func(t *testing.T) {
			limit, seen := &middleware.LimitPerIP{Max: 2, IPv6Bits: test.bits}, new(refusals)
			inside := &pretending{Listener: listen(t, "tcp")}
			ln := seen.wrap(limit.Wrap(inside))
			results := accepting(t, ln)
			from := func(addr string) net.Conn { inside.come(addr); return dial(t, ln) }
			var open []net.Conn
			for _, addr := range test.same {
				from(addr)
				open = append(open, next(t, results))
			}
			refused(t, from(test.same[0]))
			refused(t, from(test.same[1]))
			for _, addr := range test.others {
				from(addr)
				require.NoError(t, next(t, results).Close())
				require.Zero(t, limit.Open(netip.MustParseAddr(addr)))
			}
			require.Equal(t, 2, limit.Open(netip.MustParseAddr(test.same[1])))
			require.NoError(t, open[0].Close())
			require.Equal(t, 1, limit.Open(netip.MustParseAddr(test.same[0])))
			from(test.same[1])
			require.NoError(t, next(t, results).Close())
			require.NoError(t, open[1].Close())
			require.Zero(t, limit.Open(netip.MustParseAddr(test.same[0])))
			eventually(t, func() bool { return seen.count(middleware.ReasonLimitPerIP) == 2 }, "the hook is told")
		})
	}
	// On a Unix socket there is no address.
	ln := listen(t, "unix", (&middleware.LimitPerIP{Max: 1}).Wrap)
	connect(t, ln)
	connect(t, ln)
}
