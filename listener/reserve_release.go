package listener

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
)

const (
	defaultGrace = 10 * time.Second

	// The looks at a port that was released: 20 microseconds each. A listener of ours waits longer for the lock than the
	// pause is.
	firstLook  = time.Millisecond
	latestLook = 10 * time.Millisecond
)

// Release gives the address to a program that insists on binding it itself, such as a child that is told PORT. The socket is
// closed when Release returns. Lock and record stay for the grace, 0 meaning ten seconds, and as long as they do Reserve,
// Pool and Fallback keep off the port. A process that knows nothing of them does not, so the program should be quick; where
// it can take a socket, [Reservation.Command] or File leave no gap.
//
// The reservation ends when somebody has the port, with the grace, with a context, or with Close; see [Reservation.Done] and
// [Reservation.Err]. Until then it looks at the port up to 100 times a second, since no system tells when one is bound.
func (r *Reservation) Release(ctx context.Context, grace time.Duration) error {
	if grace <= 0 {
		grace = defaultGrace
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recordLateLocked()
	var targets []sockets.Target
	var errs []error
	until := time.Now().Add(grace)
	for _, p := range r.parts {
		if p.gone || r.err != nil {
			continue
		}
		p.gone = true
		if target, ok := sockets.TargetOf(p.network, p.addr); ok {
			targets = append(targets, target)
		}
		if p.lock != nil { // before the port is free
			if err := r.keepOffLocked(p, until); err != nil {
				r.from.warn(ctx, "nobody is told to keep off a port that was released", err)
			}
			r.locks = append(r.locks, p.lock)
			p.lock = nil
		}
		errs = append(errs, p.Close())
	}
	if len(targets) == 0 {
		return r.endedLocked("release")
	}
	r.extendLocked(until)
	r.grace.Go(func() { r.awaitUse(ctx, targets) })
	return errors.Join(errs...)
}

// keepOffLocked writes for all to read that the address is kept.
func (r *Reservation) keepOffLocked(p *part, until time.Time) error {
	var markErr error
	if r.mark == nil {
		r.mark, markErr = p.records.MarkReleased()
	}
	rec := r.newRecord(p)
	rec.State, rec.Until, rec.Inode = registry.Released, until, 0
	return errors.Join(markErr, p.lock.Write(rec)) // who sees something in place of the mark reads records too
}

// awaitUse ends the reservation when somebody has one of the addresses, or with the context.
func (r *Reservation) awaitUse(ctx context.Context, targets []sockets.Target) {
	for pause := firstLook; ; pause = min(2*pause, latestLook) {
		select {
		case <-r.done:
			return
		case <-ctx.Done():
			_ = r.end(context.Cause(ctx), nil)
			return
		case <-time.After(pause):
		}
		for _, target := range targets {
			port := target.Addr.Port()
			if taken, err := sockets.Taken(target, port, port); err == nil && taken.Has(port) { // else the grace has to do
				_ = r.end(net.ErrClosed, nil)
				return
			}
		}
	}
}
