package middleware

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Track knows which connections are open. The zero value is ready for use. One Track may be put around several listeners; it
// must not be copied.
type Track struct {
	mu       sync.Mutex
	open     table[*core, struct{}]
	accepted uint64
	emptied  chan struct{} // not nil: somebody waits; closed when no connection is open
}

// Wrap puts it around a listener.
func (t *Track) Wrap(ln net.Listener) net.Listener {
	return wrap(ln, part{admitted: t.add, left: t.remove})
}

func (t *Track) add(c *core) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open.set(c, struct{}{})
	t.accepted++
}

func (t *Track) remove(c *core) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open.remove(c)
	if len(t.open.m) == 0 && t.emptied != nil {
		close(t.emptied)
		t.emptied = nil
	}
}

// Open is how many connections are open.
func (t *Track) Open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open.m)
}

// Accepted is how many connections there have been.
func (t *Track) Accepted() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.accepted
}

// An OpenConn is a connection and when it was accepted.
type OpenConn struct {
	Conn  net.Conn // as the listener handed it out
	Since time.Time
}

// Conns are the connections that are open, the oldest first.
func (t *Track) Conns() []OpenConn {
	cores := t.cores()
	conns := make([]OpenConn, len(cores))
	for i, c := range cores {
		conns[i] = OpenConn{c.outer(), c.since}
	}
	slices.SortFunc(conns, func(a, b OpenConn) int { return a.Since.Compare(b.Since) })
	return conns
}

func (t *Track) cores() []*core {
	t.mu.Lock()
	defer t.mu.Unlock()
	cores := make([]*core, 0, len(t.open.m))
	for c := range t.open.m {
		cores = append(cores, c)
	}
	return cores
}

// Drain waits until no connection is open. The listeners have to be closed before, else new ones come. It closes nothing:
// where the context ends before, its error says how many are left, for CloseQuiet or CloseAll.
func (t *Track) Drain(ctx context.Context) error {
	t.mu.Lock()
	if len(t.open.m) == 0 {
		t.mu.Unlock()
		return nil
	}
	if t.emptied == nil {
		t.emptied = make(chan struct{})
	}
	emptied := t.emptied
	t.mu.Unlock()
	select {
	case <-emptied:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d connections are still open: %w", t.Open(), context.Cause(ctx))
	}
}

// CloseQuiet waits for so long and closes the connections over which nothing moved meanwhile, neither in nor out: those of
// clients that keep a connection for later, but also of one whose answer takes long to compute. It gives their number, or
// the error of a context that ended before.
func (t *Track) CloseQuiet(ctx context.Context, quiet time.Duration) (int, error) {
	type seen struct {
		c        *core
		activity uint32
		bytes    uint64
	}
	var all []seen
	for _, c := range t.cores() {
		all = append(all, seen{c, c.activity.Load(), c.bytes()})
	}
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	var silent []*core
	for _, s := range all {
		if s.c.activity.Load() == s.activity && s.c.bytes() == s.bytes {
			silent = append(silent, s.c)
		}
	}
	return closeAll(silent), nil
}

// CloseAll closes all connections that are open, and gives their number.
func (t *Track) CloseAll() int { return closeAll(t.cores()) }

// closeAll closes connections, and gives the number of those that nobody had closed before.
func closeAll(cores []*core) int {
	var closed atomic.Int64
	var all sync.WaitGroup
	for _, c := range cores {
		conn := c.outer()
		end := func() {
			if conn.Close() == nil {
				closed.Add(1)
			}
		}
		if _, plain := conn.(interface{ coreOf() *core }); plain {
			end()
		} else {
			all.Go(end) // that of TLS says goodbye, and waits for a client that does not listen
		}
	}
	all.Wait()
	return int(closed.Load())
}
