package middleware

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/berth-go/berth/internal/peek"
)

// defaultMaxPending is what MaxPending is where it is zero.
const defaultMaxPending = 4096

// An intake finds out about connections before Accept hands them out: what their first bytes say, how the TLS handshake
// goes. One that is slow or silent holds up nobody.
//
// A goroutine accepts, as long as somebody waits in Accept. So the queue remains the kernel's, and where nobody accepts
// (package reload: a version that is not in charge) nothing is taken. What a client sends first is often there already, and
// that goroutine needs no other. Else one waits for it, of 3 KiB and without a timer: one timer for the oldest serves all.
// When there are too many, the oldest is closed in favour of the newest. Who has something to say has mostly said it, so
// those who are silent lock nobody out.
type intake struct {
	*listener // without parts: what goes through to the listener inside
	examiner  examiner
	reason    Reason // of refusals that have none of their own, such as a reset
	maxBytes  int    // that are looked at
	slow      bool   // finish takes its time
	timeout   time.Duration
	maximum   int // of count

	mu       sync.Mutex
	wanted   sync.Cond // of run: somebody waits, or the end
	running  bool
	taking   bool // run is at the inner Accept, or has what it gave in hand
	isClosed bool
	draining bool
	waiting  int   // calls of Accept that wait for what run gets
	failures int   // how often a failure went to all of them
	failure  error // the last
	held     error // one that goes to them when nothing is under examination any more
	outlets  []*outlet

	first *outlet // set once

	oldest, newest *pending // those that are listed
	count          int      // of them
	examining      int      // goroutines, also of those that were given up
	timer          *time.Timer
}

// An examiner is what is particular to Proxy, TLS and Mux.
type examiner interface {
	// look is shown what the client has sent so far, nothing at first, and tells whether finish can be called. When final is
	// set, it can.
	look(p *pending, received []byte, final bool) (enough bool)
	// finish says what becomes of the connection.
	finish(p *pending) error
	// late says what becomes of one whose time is over; nil: it is handed out.
	late(p *pending) error
}

// A pending connection is one that was accepted and not handed out yet.
type pending struct {
	in     *intake
	conn   net.Conn // as it was accepted
	since  time.Time
	socket syscall.RawConn // nil: one cannot look at what it has received without taking it
	taken  []byte          // then: what was received

	// What look and finish have found.
	spoke  bool     // the client has sent something
	to     *outlet  // nil: the first
	out    net.Conn // what is handed out; nil: conn
	header *proxyproto.Header
	size   int   // of the header, in bytes
	fault  error // what look has found wrong

	// Guarded by the mutex of the intake.
	older, newer *pending
	listed       bool
	examined     bool // by a goroutine
	isLate       bool
	why          *Refusal // not nil: it was given up
}

// untouched is the connection as if nobody had looked at it.
func (p *pending) untouched() net.Conn {
	if len(p.taken) == 0 {
		return p.conn
	}
	return newFront(p.conn, p.since, nil, p.taken)
}

// An outlet is what Accept of one listener takes from.
type outlet struct {
	in       *intake
	arrived  sync.Cond
	ready    []net.Conn
	capacity int // of ready; 0: the intake bounds it
	isClosed bool
}

func newIntake(e examiner, reason Reason) *intake {
	in := &intake{examiner: e, reason: reason}
	in.wanted.L = &in.mu
	in.first = in.addOutlet(0)
	return in
}

func (in *intake) addOutlet(capacity int) *outlet {
	in.mu.Lock()
	defer in.mu.Unlock()
	o := &outlet{in: in, capacity: capacity, isClosed: in.isClosed}
	o.arrived.L = &in.mu
	in.outlets = append(in.outlets, o)
	return o
}

// open gives the intake the listener that it takes from.
func (in *intake) open(inner net.Listener, timeout time.Duration, maximum int) {
	l := &listener{inner: inner, shared: newShared(inner)}
	if maximum <= 0 {
		maximum = defaultMaxPending
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.listener, in.timeout, in.maximum = l, timeout, maximum
	in.startLocked()
}

// orDefault is a duration, or where that is zero another one.
func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

func (in *intake) isOpen() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.listener != nil
}

// startLocked starts the goroutine that accepts, where there is something to accept and somebody who wants it.
func (in *intake) startLocked() {
	if in.waiting > 0 && in.listener != nil && !in.running && !in.isClosed {
		in.running = true
		go in.run()
	}
	in.wanted.Signal()
}

// Accept waits for the next connection of the first outlet.
func (in *intake) Accept() (net.Conn, error) { return in.first.accept() }

func (o *outlet) accept() (net.Conn, error) {
	in := o.in
	in.mu.Lock()
	defer in.mu.Unlock()
	failures, waits := in.failures, false
	defer func() {
		if waits && in.failures == failures {
			in.waiting--
		}
	}()
	for {
		switch {
		case o.isClosed:
			return nil, in.closedError()
		case len(o.ready) > 0:
			conn := o.ready[0]
			o.ready = slices.Delete(o.ready, 0, 1)
			return conn, nil
		case in.failures != failures:
			return nil, in.failure
		case !waits:
			waits = true
			in.waiting++
			in.startLocked()
		}
		o.arrived.Wait()
	}
}

func (in *intake) closedError() error {
	if in.listener == nil {
		return net.ErrClosed
	}
	return in.closed()
}

// run accepts while somebody waits for it.
func (in *intake) run() {
	for in.isWanted() {
		conn, err := in.inner.Accept()
		if err != nil {
			in.fail(err)
			continue
		}
		in.take(conn)
	}
}

func (in *intake) isWanted() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	defer func() { in.taking = !in.isClosed }()
	in.taking = false
	for !in.isClosed && (in.waiting == 0 || in.held != nil) {
		in.wanted.Wait()
	}
	return !in.isClosed
}

// fail gives an error of the listener inside to all who wait. It does not go to one who comes later, for whom a deadline may
// have been lifted meanwhile; the next call of the inner Accept shows him what still holds.
func (in *intake) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.draining && in.examining > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		in.held = err
		return
	}
	in.failLocked(err)
}

func (in *intake) failLocked(err error) {
	in.failure, in.held, in.waiting = err, nil, 0
	in.failures++
	in.wakeLocked()
}

func (in *intake) wakeLocked() {
	for _, o := range in.outlets {
		o.arrived.Broadcast()
	}
	in.wanted.Signal()
}

// take decides at once about a connection, or has a goroutine do so.
func (in *intake) take(conn net.Conn) {
	p := &pending{in: in, conn: conn, since: time.Now(), socket: socketOf(conn)}
	enough := in.examiner.look(p, nil, false)
	if !enough && p.socket != nil && !in.slow {
		var err error
		if enough, err = peek.Now(p.socket, in.maxBytes, in.lookAt(p)); err != nil {
			in.conclude(p, err)
			return
		}
	}
	if enough && !in.slow {
		in.conclude(p, in.examiner.finish(p))
		return
	}

	in.mu.Lock()
	if in.isClosed {
		in.mu.Unlock()
		in.stack.refuse(conn, closedRefusal)
		return
	}
	var crowdedOut *pending
	if in.count >= in.maximum {
		crowdedOut = in.oldest
		in.giveUpLocked(crowdedOut, pendingRefusal)
	}
	in.listLocked(p)
	p.examined = true
	in.examining++
	in.mu.Unlock()

	if crowdedOut != nil {
		crowdedOut.conn.Close() // wakes its goroutine
	}
	go in.examine(p)
}

func (in *intake) lookAt(p *pending) peek.Look {
	return func(received []byte, final bool) bool {
		p.spoke = p.spoke || len(received) > 0
		return in.examiner.look(p, received, final)
	}
}

// examine waits until enough is known about a connection.
func (in *intake) examine(p *pending) {
	err := in.await(p)
	if err == nil {
		err = in.examiner.finish(p)
	}
	in.conclude(p, err)
}

func (in *intake) await(p *pending) error {
	if p.socket != nil {
		return peek.Wait(p.socket, in.maxBytes, in.lookAt(p))
	}
	if in.maxBytes == 0 {
		return nil
	}
	look := in.lookAt(p)
	b := make([]byte, min(in.maxBytes, 512))
	n := 0
	for {
		got, err := p.conn.Read(b[n:])
		n += got
		p.taken = b[:n]
		ended := errors.Is(err, io.EOF)
		if (got > 0 || ended) && look(p.taken, ended || n == in.maxBytes) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == len(b) {
			b = append(b, make([]byte, min(n, in.maxBytes-n))...)
		}
	}
}

// conclude hands a connection out or closes it.
func (in *intake) conclude(p *pending, err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = in.examiner.late(p)
	}
	in.mu.Lock()
	in.unlistLocked(p)
	why := p.why
	switch {
	case why != nil:
	case err != nil:
		if !errors.As(err, &why) {
			why = &Refusal{Reason: in.reason, Err: err}
		}
	default:
		why = in.handOutLocked(p)
	}
	if p.examined {
		in.examining--
		if in.examining == 0 && in.held != nil {
			in.failLocked(in.held)
		}
	}
	in.mu.Unlock()
	if why != nil {
		in.stack.refuse(p.conn, why)
	}
}

func (in *intake) handOutLocked(p *pending) *Refusal {
	conn, o := p.out, p.to
	if conn == nil {
		conn = p.conn
	}
	if o == nil {
		o = in.first
	}
	switch {
	case in.isClosed:
		return closedRefusal
	case o.isClosed:
		return &Refusal{Reason: ReasonMux, Err: net.ErrClosed}
	case o.capacity > 0 && len(o.ready) >= o.capacity:
		return &Refusal{Reason: ReasonMux, Err: errNotAccepted}
	}
	if p.isLate {
		_ = conn.SetDeadline(time.Time{}) // set by expire, perhaps after the last byte
	}
	o.ready = append(o.ready, conn)
	o.arrived.Signal()
	return nil
}

// foreignPart stands for the functions of users.
var foreignPart = &part{foreign: true}

var (
	errNotAccepted = errors.New("those who came before have not been accepted")
	pendingRefusal = &Refusal{Reason: ReasonPending}
)

func (in *intake) listLocked(p *pending) {
	p.listed, p.older = true, in.newest
	if in.newest != nil {
		in.newest.newer = p
	} else {
		in.oldest = p
	}
	in.newest = p
	in.count++
	if in.count > 1 {
		return // the timer runs for the oldest
	}
	if in.timer == nil {
		in.timer = time.AfterFunc(in.timeout, in.expire)
	} else {
		in.timer.Reset(in.timeout)
	}
}

func (in *intake) unlistLocked(p *pending) {
	if !p.listed {
		return
	}
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		in.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		in.newest = p.older
	}
	p.listed, p.older, p.newer = false, nil, nil
	in.count--
}

// giveUpLocked has a connection refused; its caller closes it, to wake the goroutine.
func (in *intake) giveUpLocked(p *pending, why *Refusal) {
	in.unlistLocked(p)
	p.why = why
}

// expire ends the wait of those whose time is over. One that was ready in the same instant is handed out.
func (in *intake) expire() {
	now := time.Now()
	in.mu.Lock()
	defer in.mu.Unlock()
	for p := in.oldest; p != nil; p = in.oldest {
		if left := in.timeout - now.Sub(p.since); left > 0 {
			in.timer.Reset(left)
			return
		}
		in.unlistLocked(p)
		p.isLate = true
		if p.conn.SetDeadline(past) != nil {
			p.conn.Close() // it has no deadlines
		}
	}
}

// Close closes the listener inside and every connection that was not handed out. Accept gives [net.ErrClosed] from then on,
// at once.
func (in *intake) Close() error {
	in.mu.Lock()
	var left []net.Conn // ready
	var given []*pending
	if !in.isClosed {
		in.isClosed = true
		for _, o := range in.outlets {
			left = append(left, o.shutLocked()...)
		}
		for p := in.oldest; p != nil; p = in.oldest {
			in.giveUpLocked(p, closedRefusal)
			given = append(given, p)
		}
		if in.timer != nil {
			in.timer.Stop()
		}
		in.wakeLocked()
	}
	in.mu.Unlock()

	err := in.listener.Close()
	for _, p := range given {
		p.conn.Close() // its goroutine tells
	}
	for _, conn := range left {
		in.stack.refuse(conn, closedRefusal)
	}
	return err
}

// shutLocked ends accept, and gives those that it has not got.
func (o *outlet) shutLocked() (left []net.Conn) {
	left, o.ready, o.isClosed = o.ready, nil, true
	return left
}

// Pending is how many connections are under examination.
func (in *intake) Pending() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.examining
}

// SetDraining says that a deadline which has passed (SetDeadline) is only to interrupt Accept when no connection is under
// examination any more. A server that hands its socket to another process stops accepting by a deadline in the past; with
// this, it goes on to accept until the deadline's error comes, and loses none that it has taken.
func (in *intake) SetDraining(draining bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.draining = draining
	if !draining && in.held != nil {
		in.held = nil
		in.wanted.Signal()
	}
}

func (in *intake) keeps() bool { return in.first.keeps() }

func (o *outlet) keeps() bool {
	o.in.mu.Lock()
	defer o.in.mu.Unlock()
	return len(o.ready) > 0 || o.in.examining > 0 || o.in.taking
}

// socketOf is where to look for what has been received. Only of connections that are known does one know that nobody changes
// the bytes on the way from the socket.
func socketOf(conn net.Conn) syscall.RawConn {
	if !peek.Supported {
		return nil
	}
	switch conn := conn.(type) {
	case *net.TCPConn, *net.UnixConn, *tcpConn, *unixConn:
	case *tcpFront:
		if conn.hasRest.Load() {
			return nil
		}
	case *unixFront:
		if conn.hasRest.Load() {
			return nil
		}
	default:
		return nil
	}
	socket, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	return socket
}
