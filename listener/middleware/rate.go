package middleware

import (
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate bounds how fast connections are accepted: all together, and from one source. Each bound is a bucket that holds Burst
// connections and is filled at the rate (golang.org/x/time/rate).
//
// One Rate may be put around several listeners, which then share it. It must not be copied or changed once it is in use.
type Rate struct {
	// PerSecond bounds all connections together. Zero or less means no bound.
	PerSecond float64
	// Burst is how many may come at once. Zero means what comes in a second, at least one.
	Burst int
	// Wait leaves connections beyond the bound in the kernel's queue until they fit, instead of closing them. It is
	// about all together; what is too much from one source is always closed.
	Wait bool

	// SourcePerSecond bounds the connections from one source, that is one IPv4 address or one IPv6 network. Zero or less
	// means no bound. Connections without an IP address, as on Unix sockets, are not bounded by it.
	SourcePerSecond float64
	// SourceBurst is how many may come at once from one source. Zero means what comes in a second, at least one.
	SourceBurst int
	// IPv6Bits is the length of the IPv6 prefix that counts as one source. Zero means 64.
	IPv6Bits int
	// Sources is how many sources are remembered, about 200 bytes each. Zero means 65536. The one that has not come for
	// longest is forgotten first, and begins with a full bucket when it comes again.
	Sources int

	once   sync.Once
	whole  *rate.Limiter
	mu     sync.Mutex
	visits map[netip.Addr]*visitor
	latest visitor // of the ring: next is who came last, prev who has not come for longest
}

// A visitor is a source and its bucket.
type visitor struct {
	source     netip.Addr
	bucket     rate.Limiter
	prev, next *visitor
}

var (
	rateRefusal      = &Refusal{Reason: ReasonRate}
	ratePerIPRefusal = &Refusal{Reason: ReasonRatePerIP}
)

// Wrap puts the bound around a listener.
func (r *Rate) Wrap(ln net.Listener) net.Listener {
	r.once.Do(func() {
		if r.PerSecond > 0 {
			r.whole = rate.NewLimiter(rate.Limit(r.PerSecond), burst(r.Burst, r.PerSecond))
		}
		r.visits = make(map[netip.Addr]*visitor)
		r.latest.prev, r.latest.next = &r.latest, &r.latest
	})
	if r.whole == nil && r.SourcePerSecond <= 0 {
		return ln
	}
	p := part{admit: r.admit}
	if r.Wait && r.whole != nil {
		p.before = func(s *shared) error { return r.filled(s.wait) }
	}
	return wrap(ln, p)
}

func burst(n int, perSecond float64) int {
	if n > 0 {
		return n
	}
	return int(max(1, min(math.Ceil(perSecond), math.MaxInt32)))
}

// admit asks the bucket of the source first, so that a flood from one does not empty that of all.
func (r *Rate) admit(conn net.Conn, s *shared) error {
	if r.SourcePerSecond > 0 {
		if source := sourceOf(conn, r.IPv6Bits); source.IsValid() && !r.allow(source, time.Now()) {
			return ratePerIPRefusal
		}
	}
	for r.whole != nil && !r.whole.Allow() {
		if !r.Wait {
			return rateRefusal
		}
		// Another listener was quicker.
		if err := r.filled(s.hold); err != nil {
			return err
		}
	}
	return nil
}

// filled waits until the bucket of all has something, and does not take it: a listener to which nobody comes must not keep it
// from another one.
func (r *Rate) filled(wait func(<-chan struct{}) error) error {
	for {
		missing := 1 - r.whole.Tokens()
		if missing <= 0 {
			return nil
		}
		if err := pause(max(time.Duration(missing/r.PerSecond*float64(time.Second)), time.Microsecond), wait); err != nil {
			return err
		}
	}
}

// allow takes from the bucket of a source.
func (r *Rate) allow(source netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.visits[source]
	switch {
	case v != nil:
		v.unlink()
	case len(r.visits) < r.sources():
		v = new(visitor)
	default:
		v = r.latest.prev
		v.unlink()
		delete(r.visits, v.source)
	}
	if v.source != source {
		*v = visitor{source: source, bucket: *rate.NewLimiter(rate.Limit(r.SourcePerSecond), burst(r.SourceBurst, r.SourcePerSecond))}
		r.visits[source] = v
	}
	v.prev, v.next = &r.latest, r.latest.next
	v.prev.next, v.next.prev = v, v
	return v.bucket.AllowN(now, 1)
}

func (v *visitor) unlink() { v.prev.next, v.next.prev = v.next, v.prev }

func (r *Rate) sources() int {
	if r.Sources > 0 {
		return r.Sources
	}
	return 1 << 16
}
