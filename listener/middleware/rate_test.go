package middleware_test

import (
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

func TestRate(t *testing.T) {
	rate, seen := &middleware.Rate{PerSecond: 1e-6, Burst: 3}, new(refusals)
	ln, second := listen(t, "tcp", seen.wrap, rate.Wrap), listen(t, "tcp", rate.Wrap)
	results, others := accepting(t, ln), accepting(t, second)
	dial(t, ln)
	next(t, results)
	dial(t, second)
	next(t, others)
	dial(t, ln)
	next(t, results)
	refused(t, dial(t, ln))
	refused(t, dial(t, second))
	eventually(t, func() bool { return seen.count(middleware.ReasonRate) == 1 }, "the hook is told of its listener")
}

// A rate that waits refuses nobody, and its wait ends with the listener.
func TestRateWaits(t *testing.T) {
	seen := new(refusals)
	ln := listen(t, "tcp", seen.wrap, (&middleware.Rate{PerSecond: 100, Burst: 1, Wait: true}).Wrap)
	results := accepting(t, ln)
	for range 10 {
		dial(t, ln)
		dial(t, ln)
		next(t, results)
		next(t, results)
	}
	require.Zero(t, seen.count(middleware.ReasonRate))

	ln = listen(t, "tcp", (&middleware.Rate{PerSecond: 1e-6, Burst: 1, Wait: true}).Wrap)
	dial(t, ln)
	results = accepting(t, ln)
	next(t, results)
	require.NoError(t, ln.Close())
	require.ErrorIs(t, (<-results).err, net.ErrClosed)
}

func TestRatePerSource(t *testing.T) {
	seen := new(refusals)
	rate := &middleware.Rate{PerSecond: 1e-6, Burst: 5, SourcePerSecond: 1e-6, SourceBurst: 2}
	inside := &pretending{Listener: listen(t, "tcp")}
	ln := seen.wrap(rate.Wrap(inside))
	results := accepting(t, ln)
	from := func(addr string) net.Conn { inside.come(addr); return dial(t, ln) }
	from("10.0.0.1")
	next(t, results)
	from("::ffff:10.0.0.1")
	next(t, results)
	for range 10 {
		refused(t, from("10.0.0.1")) // and takes nothing from the others
	}
	from("2001:db8::1")
	next(t, results)
	from("2001:db8::2")
	next(t, results)
	refused(t, from("2001:db8::3"))
	from("10.0.0.2")
	next(t, results)
	eventually(t, func() bool { return seen.count(middleware.ReasonRatePerIP) == 11 }, "the hook is told")
	refused(t, from("10.0.0.3"))
	eventually(t, func() bool { return seen.count(middleware.ReasonRate) == 1 }, "the hook is told")
}

// A rate that waits accepts nothing before its time. Where another listener was quicker, what was accepted waits, until it is
// refused by Close.
func TestRateInHand(t *testing.T) {
	seen, rate := new(refusals), &middleware.Rate{PerSecond: 1e-6, Burst: 1, Wait: true}
	var accepts atomic.Int32
	began, ended := make(chan struct{}, 10), make(chan struct{}, 10)
	a := listen(t, "tcp", seen.wrap, rate.Wrap, func(ln net.Listener) net.Listener {
		return &watched{ln.(*net.TCPListener), func() { accepts.Add(1); began <- struct{}{} }, func() { ended <- struct{}{} }}
	})
	b := listen(t, "tcp", rate.Wrap)
	results := accepting(t, a)
	<-began
	connect(t, b)
	client := dial(t, a)
	<-ended
	bounded := a.(interface{ SetDeadline(time.Time) error })
	require.NoError(t, bounded.SetDeadline(time.Now()))
	require.ErrorIs(t, (<-results).err, os.ErrDeadlineExceeded)
	require.NoError(t, a.Close())
	refused(t, client)
	require.Equal(t, 1, seen.count(middleware.ReasonClosed))
	require.EqualValues(t, 1, accepts.Load())

	// Without anything in hand there is no Accept at all.
	c := listen(t, "tcp", rate.Wrap, func(ln net.Listener) net.Listener {
		return &watched{ln.(*net.TCPListener), func() { accepts.Add(1) }, func() {}}
	})
	dial(t, c)
	require.NoError(t, c.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(time.Millisecond)))
	_, err := c.Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.EqualValues(t, 1, accepts.Load())
}
