package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/berth-go/berth/internal/descriptor"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
)

// A Reservation has an address, on which nothing is accepted yet. Its methods may be called from several goroutines.
//
// What holds the address is the socket itself. So no process can take it meanwhile, whatever options it sets, and nothing is
// left over when the owner is killed. A reservation ends with [Reservation.Listen] and its kin, with [Reservation.Close] or
// [Reservation.Release], with its context or its time.
type Reservation struct {
	config *Config
	from   attempt[parts] // how it was obtained
	since  time.Time

	mu     sync.Mutex // not held while events are told or a Keeper is called
	parts  parts
	locks  []*registry.Lock // of what was released
	mark   *registry.Mark   // that something was; nil: nothing was
	err    error            // why it ended; nil: it has not
	done   chan struct{}    // closed when it has
	detach func() bool      // from the context
	until  time.Time        // zero: no end
	timer  *time.Timer      // of Extend; nil: the context's deadline holds
	late   *time.Timer      // until lock and record are written; nil: they are
	grace  sync.WaitGroup
}

// Reserve takes an address without accepting on it. No other process can have it, and connections to it are refused, until
// [Reservation.Listen] or [Reservation.Close]. Where ctx ends first, the reservation ends; see [Reservation.Extend] for more
// time than its deadline gives.
//
// The networks are "tcp", "tcp4", "tcp6", "udp", "udp4" and "udp6", and several of them joined by "+", which get one port:
// "tcp+udp", "tcp4+tcp6". The addresses are tried in their order; none means ":0". An address is a host and ports:
// "127.0.0.1:3000", ":3000-3010,8000-8010" (see [strategy.ParseRanges]), ":http", or port 0 for any free one. The host
// "localhost" is both loopbacks, 127.0.0.1 and [::1], so that nobody else answers on the other; where the machine lacks one
// of them, that is logged, and the other is reserved alone.
//
// The Sources come first, as for [Config.Listen]: a socket that exists already wins. It listens, which a reservation does not
// take back; a range is asked of a [Keeper] only. Where every address is taken, the Strategy is asked about the first:
// Development stops the stale process that holds it, Fallback looks on other ports.
//
// Net holds as for Listen; its Control is called once for each socket, before it is bound, and what it shares by SO_REUSEADDR
// or SO_REUSEPORT is shared. Where connections of an earlier listener remain on the address (TIME_WAIT), the new one is
// without MPTCP. Datagrams to a reserved address are thrown away on Linux, and elsewhere wait for ListenPacket.
//
// Lock and record show the address as reserved, by whom, for which Name and until when. Package reload hands on what
// became of a reservation, and no reservation.
//
// A failure is an [*net.OpError] with an [*Error] of the first address, and errors.ErrUnsupported where package net cannot take
// over a socket (Windows).
func (c *Config) Reserve(ctx context.Context, network string, addresses ...string) (*Reservation, error) {
	b, err := newBinder(ctx, c, network, addresses)
	if err != nil {
		return nil, &net.OpError{Op: "reserve", Net: network, Err: err}
	}
	b.state, _ = registry.Locate(c.StateDir) // the error comes up again where the record is to be written, and is logged there
	return c.reserve(ctx, network, b, 0)
}

// reserve is Reserve, with what the binder finds. Lock and record are written so much later, if there is still a reservation to
// record by then.
func (c *Config) reserve(ctx context.Context, network string, b *binder, recordAfter time.Duration) (*Reservation, error) {
	r := &Reservation{
		config: c, since: time.Now(), done: make(chan struct{}),
		from: attempt[parts]{config: c, op: "reserve", network: network, requested: b.requested, take: b.take(ctx), bind: b.bind, addrOf: parts.addr},
	}
	a := &r.from
	if c.OnEvent != nil {
		a.asked = r.since
	}
	a.start()
	b.log = a.log
	var err error
	r.parts, a.from, err = a.obtain(ctx)
	if err != nil {
		a.emit(Event{Kind: Failed, Err: err})
		return nil, err
	}
	a.state = b.state
	a.origin.History = a.history
	r.until, _ = ctx.Deadline()
	if recordAfter == 0 {
		r.recordAll(ctx, c)
	}
	r.emit(Event{Kind: Reserved})
	r.report(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Done() != nil {
		r.detach = context.AfterFunc(ctx, func() { r.contextEnded(ctx.Err(), context.Cause(ctx)) })
	}
	if recordAfter > 0 {
		r.late = time.AfterFunc(recordAfter, r.recordLate)
	}
	return r, nil
}

func (r *Reservation) recordLate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recordLateLocked()
}

// recordLateLocked records what is not recorded yet.
func (r *Reservation) recordLateLocked() {
	if r.late == nil || r.err != nil {
		return
	}
	r.late.Stop()
	r.late = nil
	quiet := *r.config
	quiet.OnEvent = nil // it may ask the reservation something
	r.recordAll(context.Background(), &quiet)
}

func (r *Reservation) recordAll(ctx context.Context, config *Config) {
	for _, p := range r.parts {
		if p.socket != nil && !p.gone { // the record of any other is its owner's until Listen
			r.record(ctx, config, p)
		}
	}
}

// record takes the lock of a part and writes that it is reserved.
func (r *Reservation) record(ctx context.Context, config *Config, p *part) {
	a := attempt[parts]{config: config, network: p.network, requested: p.address, log: r.from.log, records: r.from.records, asked: r.from.asked, state: r.from.state}
	_, err := a.takeLock(ctx, p.addr.String())
	if err == nil {
		p.records, p.lock = a.records, a.lock
		if err = p.lock.Write(r.newRecord(p)); err != nil {
			err = errors.Join(err, p.lock.Release())
			p.lock = nil
		}
	}
	if err != nil {
		a.warn(ctx, "no lock and no record for this reservation, so nobody can see whose it is", err)
	}
}

func (r *Reservation) newRecord(p *part) registry.Record {
	a := attempt[parts]{config: r.config, network: p.network, requested: p.address, origin: r.from.origin}
	rec := a.newRecord(p.addr.String(), sockets.InodeOf(p.raw()), r.since)
	rec.State, rec.Until = registry.Reserved, r.until
	return rec
}

func (r *Reservation) report(ctx context.Context) {
	a := r.from
	if a.origin.Kind == Fallback {
		a.origin = r.Origin()
		a.report(ctx)
		return
	}
	if !a.log.Enabled(ctx, slog.LevelInfo) {
		return // no text is made for nobody
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "reserved "+r.parts.addr().String(), slog.String("network", a.network), slog.String("requested", a.requested),
		slog.String("name", r.config.Name))
}

// Addr is the address that is reserved, as the kernel reports it; where there are several, the first.
func (r *Reservation) Addr() net.Addr { return r.parts.addr() }

// Addrs is every address that is reserved, in the order of the networks. They all have one port.
func (r *Reservation) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(r.parts))
	for i, p := range r.parts {
		addrs[i] = p.addr
	}
	return addrs
}

// Origin tells how the address was obtained.
func (r *Reservation) Origin() Origin {
	o := r.from.origin
	o.Address = r.parts.addr().String() // only here, since few ask for it
	return o
}

// emit completes an event and hands it out.
func (r *Reservation) emit(e Event) {
	if r.config.OnEvent == nil {
		return
	}
	e.Origin = r.Origin()
	e.Address = e.Origin.Address
	r.from.emit(e)
}

// Listen accepts on the address from now on. It keeps the socket, so there is no instant at which somebody else could take
// it, and a client is refused before and accepted after. Where several TCP addresses are reserved, it is the first that is
// left, as package net listens on one of localhost, and the others stay reserved; [Reservation.ListenAll] listens on all.
//
// What is listened on is no part of the reservation any more: neither its end nor its context closes it. After the end the
// error is [net.ErrClosed], and what ended it where that was not Close.
func (r *Reservation) Listen() (*Listener, error) {
	all, err := r.listen(1)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ListenAll is Listen for every TCP address that is reserved, all or none; after a failure there is nothing left but Close.
// The PortFile has all of them, as for [Config.ListenAll].
func (r *Reservation) ListenAll() ([]*Listener, error) { return r.listen(math.MaxInt) }

func (r *Reservation) listen(most int) ([]*Listener, error) {
	chosen, err := r.choose(most, (*part).tcp)
	if err != nil {
		return nil, err
	}
	var attempts []attempt[net.Listener]
	var opened []net.Listener
	var holds []hold
	for i, p := range chosen {
		a := r.config.attempt(p.network, p.address)
		a.portFile = ""
		ln, h, err := possess(r, &a, p, (*part).listener)
		if err != nil {
			closeAll(opened, holds)
			_ = chosen[i+1:].Close()
			return nil, err
		}
		attempts, opened, holds = append(attempts, a), append(opened, ln), append(holds, h)
	}
	return r.config.complete(context.Background(), attempts, opened, holds, append(slices.Clone(r.config.Middleware), keepAlive(r.config.Net)))
}

// ListenPacket is to [Reservation.Listen] what [Config.ListenPacket] is to Config.Listen. What came before is not received
// (Linux).
func (r *Reservation) ListenPacket() (*PacketConn, error) {
	all, err := r.listenPacket(1)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ListenPacketAll is ListenPacket for every UDP address that is reserved, all or none; after a failure there is nothing left
// but Close.
func (r *Reservation) ListenPacketAll() ([]*PacketConn, error) { return r.listenPacket(math.MaxInt) }

func (r *Reservation) listenPacket(most int) ([]*PacketConn, error) {
	chosen, err := r.choose(most, func(p *part) bool { return !p.tcp() })
	if err != nil {
		return nil, err
	}
	var all []*PacketConn
	for i, p := range chosen {
		a := r.config.packetAttempt(p.network, p.address)
		conn, h, err := possess(r, &a, p, (*part).packetConn)
		if err == nil {
			err = a.handOn(context.Background(), conn, &h)
		}
		if err != nil {
			for _, conn := range all {
				_ = conn.Close() // the failure is what counts
			}
			_ = chosen[i+1:].Close()
			return nil, err
		}
		all = append(all, newPacketConn(conn, h))
	}
	return all, nil
}

// choose takes parts out of the reservation, which ends with the last.
func (r *Reservation) choose(most int, fits func(*part) bool) (parts, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var chosen parts
	left := false
	for _, p := range r.parts {
		switch {
		case p.gone:
		case fits(p) && len(chosen) < most && r.err == nil:
			p.gone = true
			chosen = append(chosen, p)
		default:
			left = true
		}
	}
	if len(chosen) == 0 {
		return nil, r.endedLocked("listen")
	}
	if !left {
		_ = r.finishLocked(net.ErrClosed) // files that were passed on, which it has closed
	}
	return chosen, nil
}

// possess makes what a Config gives of a part: serve has the socket, and what was reserved outside of it goes along.
func possess[S io.Closer](r *Reservation, a *attempt[S], p *part, serve func(*part) (S, error)) (S, hold, error) {
	a.start()
	a.from, a.history, a.origin, a.state, a.records, a.lock = r.from.from, r.from.history, r.from.origin, r.from.state, p.records, p.lock
	if r.config.OnEvent != nil {
		a.asked = time.Now()
	}
	socket, err := serve(p)
	if err == nil {
		p.lock = nil
		return a.possess(context.Background(), socket)
	}
	_ = p.Close() // the failure is what counts
	err = explain(p.address, &net.OpError{Op: "listen", Net: p.network, Addr: p.addr, Err: err})
	a.emit(Event{Kind: Failed, Address: p.addr.String(), Err: err})
	return socket, hold{}, err
}

// File is a duplicate of the socket, for the ExtraFiles of an [os/exec.Cmd]. From now on the socket listens, as whoever is
// passed one expects, and connections wait until the child accepts them. Where several addresses are reserved, it is the
// first that is left.
//
// The caller closes the file, and the reservation once the child is to have the address alone.
func (r *Reservation) File() (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		for _, p := range r.parts {
			if !p.gone {
				return p.open()
			}
		}
	}
	return nil, r.endedLocked("file")
}

// Close gives back what is still reserved. Called again, or after the reservation has ended, it does nothing.
func (r *Reservation) Close() error {
	err := r.end(net.ErrClosed, nil)
	r.grace.Wait()
	return err
}

// end gives back what is left, if it is still to end: nil means that it is.
func (r *Reservation) end(cause error, still func() bool) error {
	r.mu.Lock()
	if r.err != nil || still != nil && !still() {
		r.mu.Unlock()
		return nil
	}
	var errs []error
	for _, p := range r.parts {
		if !p.gone {
			errs = append(errs, p.Close())
		}
	}
	for _, lock := range r.locks {
		errs = append(errs, lock.Release())
	}
	if r.mark != nil {
		errs = append(errs, r.mark.Remove())
	}
	errs = append(errs, r.finishLocked(cause))
	r.mu.Unlock()
	err := errors.Join(errs...)
	r.emit(Event{Kind: Released, Elapsed: time.Since(r.since), Err: err})
	return err
}

// finishLocked notes that nothing is reserved any more.
func (r *Reservation) finishLocked(cause error) error {
	r.err = cause
	if r.detach != nil { // the context may never end, or may have before Reserve returned
		r.detach()
	}
	for _, timer := range []*time.Timer{r.timer, r.late} {
		if timer != nil {
			timer.Stop()
		}
	}
	var errs []error
	for _, p := range r.parts {
		if p.passed != nil && descriptor.Void(p.passed) != nil { // the Start of a command may be using it
			errs = append(errs, p.passed.Close())
		}
	}
	close(r.done)
	return errors.Join(errs...)
}

// endedLocked is the error of a call that came too late.
func (r *Reservation) endedLocked(op string) error {
	cause := r.err
	if cause == nil { // nothing of this kind is reserved, or not any more
		cause = net.ErrClosed
	}
	if !errors.Is(cause, net.ErrClosed) {
		cause = fmt.Errorf("%w: the reservation has ended: %w", net.ErrClosed, cause)
	}
	return &net.OpError{Op: op, Net: r.from.network, Addr: r.parts.addr(), Err: &Error{Requested: r.from.requested, Cause: cause}}
}

// Done is closed when the reservation has ended.
func (r *Reservation) Done() <-chan struct{} { return r.done }

// Err tells why the reservation has ended, nil as long as it has not: [net.ErrClosed] for Close, Listen, and a Release whose
// port was taken; else the cause of the context, or [context.DeadlineExceeded] for an end of its time.
func (r *Reservation) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Until is when the reservation ends by itself; the zero time where nothing says so.
func (r *Reservation) Until() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.until
}

// Extend has the reservation end d from now, sooner or later than it would have; 0 or less means that it does not end by
// itself. The deadline of the context holds no more; its cancellation does, until that deadline has passed.
//
// The time is that of the monotonic clock, so neither a change of the wall clock nor a summer time ends a reservation, and as
// for contexts the time that the machine sleeps does not count, where nobody could take the address either. The record has
// the end on the wall clock, for people.
func (r *Reservation) Extend(d time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || !slices.ContainsFunc(r.parts, func(p *part) bool { return !p.gone }) {
		return r.endedLocked("extend")
	}
	r.recordLateLocked()
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	r.extendLocked(until)
	for _, p := range r.parts {
		if p.gone || p.lock == nil {
			continue
		}
		if err := p.lock.Write(r.newRecord(p)); err != nil {
			r.from.warn(context.Background(), "the record of the reservation has its former end", err)
		}
	}
	return nil
}

// extendLocked sets the end. An end of the zero time is none.
func (r *Reservation) extendLocked(until time.Time) {
	if r.timer != nil {
		r.timer.Stop()
	}
	r.until = until
	r.timer = time.AfterFunc(time.Until(until), func() {
		_ = r.end(context.DeadlineExceeded, func() bool { return r.until.Equal(until) && !until.IsZero() })
	})
	if until.IsZero() {
		r.timer.Stop()
	}
}

// contextEnded ends the reservation with its context.
func (r *Reservation) contextEnded(err, cause error) {
	_ = r.end(cause, func() bool { return r.timer == nil || !errors.Is(err, context.DeadlineExceeded) })
}
