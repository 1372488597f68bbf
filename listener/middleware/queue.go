package middleware

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
)

// A queue accepts for a Limit: a goroutine takes connections from the kernel, so that those beyond the queue can be refused
// while others wait for a place.
type queue struct {
	*listener // without parts
	limit     *Limit

	mu       sync.Mutex
	waiting  []net.Conn
	failure  error         // for the next Accept
	running  chan struct{} // not nil: the goroutine is there; closed when it ends
	isClosed bool
	changed  chan struct{} // has one in it when one of the above may have changed, for one Accept
}

func newQueue(inner net.Listener, limit *Limit) *queue {
	return &queue{listener: &listener{inner: inner, shared: newShared(inner)}, limit: limit, changed: make(chan struct{}, 1)}
}

// Accept gives the first that waits, once there is a place for it.
func (q *queue) Accept() (net.Conn, error) {
	for {
		passed := q.deadline.passed()
		q.mu.Lock()
		err := q.ended()
		if errors.Is(err, os.ErrDeadlineExceeded) && q.draining.Load() && (q.running != nil || len(q.waiting) > 0) {
			err, passed = nil, nil // there are connections to give, or may be
		}
		if err != nil {
			q.notify() // others that accept
			q.mu.Unlock()
			return nil, err
		}
		var freed <-chan struct{}
		if len(q.waiting) > 0 {
			var ok bool
			if freed, ok = q.limit.acquire(true); ok {
				conn := q.waiting[0]
				q.waiting = slices.Delete(q.waiting, 0, 1)
				if len(q.waiting) > 0 || q.failure != nil {
					q.notify()
				}
				q.mu.Unlock()
				return conn, nil
			}
		}
		if err := q.failure; err != nil {
			q.failure = nil
			q.mu.Unlock()
			return nil, err
		}
		if q.running == nil && !q.isClosed && passed != nil {
			q.running = make(chan struct{})
			go q.take(q.running)
		}
		q.mu.Unlock()
		select {
		case <-freed:
		case <-q.changed:
		case <-q.done:
		case <-passed:
		}
	}
}

// SetDraining is that of every listener of this package.
func (q *queue) SetDraining(draining bool) {
	q.listener.SetDraining(draining)
	q.notify()
}

func (q *queue) keeps() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running != nil || len(q.waiting) > 0
}

// take accepts until it cannot.
func (q *queue) take(ended chan struct{}) {
	defer close(ended)
	for {
		conn, err := q.inner.Accept()
		q.mu.Lock()
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) { // Accept knows of that by itself
				q.failure = err
			}
			q.running = nil
			q.notify()
			q.mu.Unlock()
			return
		}
		why := limitRefusal
		switch {
		case q.isClosed:
			why = closedRefusal
		case len(q.waiting) < q.limit.Queue+q.limit.vacant():
			q.waiting = append(q.waiting, conn)
			q.notify()
			why = nil
		}
		q.mu.Unlock()
		if why != nil {
			q.stack.refuse(conn, why)
		}
	}
}

// notify wakes one Accept.
func (q *queue) notify() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// Close closes the listener inside, and the connections that wait.
func (q *queue) Close() error {
	q.mu.Lock()
	q.isClosed = true
	running, waiting := q.running, q.waiting
	q.waiting = nil
	q.mu.Unlock()
	err := q.listener.Close()
	if running != nil {
		<-running
	}
	for _, conn := range waiting {
		q.stack.refuse(conn, closedRefusal)
	}
	return err
}
