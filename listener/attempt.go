package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// An attempt is one call of Config.Listen (S is net.Listener) or Config.ListenPacket (S is net.PacketConn): sources,
// then binds, until one succeeds or the strategy gives up.
type attempt[S io.Closer] struct {
	config             *Config
	op                 string // of errors; "" means "listen"
	network, requested string
	portFile           string
	take               func(source Source, name, network, address string) (S, error)
	bind               func(ctx context.Context, network, address string) (S, error)
	addrOf             func(S) net.Addr

	lineage lineage // nil: none
	log     *slog.Logger
	asked   time.Time // when the call began; zero where there is no OnEvent
	begin   time.Time // when the first bind had failed
	history []strategy.Action
	cause   error // why the last action failed
	origin  Origin
	// unstoppable are those whom a reclaim asked to end, and who did not.
	unstoppable []strategy.Holder

	from      int               // the index of the Source that had the socket, or fromBind
	byAddress bool              // the name is of several sockets, so it tells none of them
	state     registry.Location // zero: it follows from the Config
	records   *registry.Dir     // nil: no locks, or none yet
	lock      *registry.Lock    // taken early, to replace a stale Unix socket
}

func (a *attempt[S]) run(ctx context.Context) (S, hold, error) {
	socket, h, err := a.open(ctx)
	if err == nil {
		err = a.handOn(ctx, socket, &h)
	}
	return socket, h, err
}

// open obtains the socket and writes what can be taken back: lock, record and port file. After an error nothing is left.
func (a *attempt[S]) open(ctx context.Context) (S, hold, error) {
	if a.config.OnEvent != nil {
		a.asked = time.Now()
	}
	socket, h, err := a.establish(ctx)
	if err != nil {
		a.emit(Event{Kind: Failed, Err: err})
	}
	return socket, h, err
}

func (a *attempt[S]) establish(ctx context.Context) (S, hold, error) {
	a.start()
	socket, from, err := a.obtain(ctx)
	if err != nil {
		if a.lock != nil {
			_ = a.lock.Release() // the failure is what counts
		}
		return socket, hold{}, err
	}
	a.from = from
	return a.possess(ctx, socket)
}

// start fills in what the Config implies.
func (a *attempt[S]) start() {
	a.log = a.config.logger()
	a.origin.Requested = a.requested
	a.lineage = lineageOf(a.config.Sources)
}

// possess writes what can be taken back of a socket that is there.
func (a *attempt[S]) possess(ctx context.Context, socket S) (_ S, h hold, err error) {
	var none S
	a.origin.Address = a.addrOf(socket).String()
	a.origin.History = a.history
	h = hold{origin: a.origin}
	if a.from == fromBind {
		h.file = ownSocketFile(socket, a.addrOf(socket))
	}
	if a.lineage == nil {
		h.lock = a.record(ctx, socket)
	} else {
		h.tenure = a.enter(ctx, socket)
	}
	if a.portFile != "" {
		if h.removePortFile, err = keepPortFile(ctx, a.lineage, a.log, a.portFile, []string{a.origin.Address}); err != nil {
			return none, hold{}, a.discard(socket, &h, err)
		}
	}
	return socket, h, nil
}

// handOn gives the socket to those who keep it beyond this process, which cannot be taken back, and reports it.
func (a *attempt[S]) handOn(ctx context.Context, socket S, h *hold) error {
	if err := a.bequeath(ctx, socket, h); err != nil {
		a.emit(Event{Kind: Failed, Address: a.origin.Address, Err: err})
		return err
	}
	a.report(ctx)
	a.emit(Event{Kind: Obtained, Address: a.origin.Address, Origin: a.origin})
	if a.config.OnEvent != nil {
		since := time.Now()
		h.released = func(err error) {
			a.emit(Event{Kind: Released, Address: a.origin.Address, Origin: a.origin, Elapsed: time.Since(since), Err: err})
		}
	}
	return nil
}

func (a *attempt[S]) bequeath(ctx context.Context, socket S, h *hold) error {
	for i, source := range a.config.Sources {
		keeper, ok := source.(Keeper)
		if !ok || i == a.from {
			continue
		}
		conn, ok := any(socket).(syscall.Conn)
		if !ok {
			return a.discard(socket, h, unsupported("keep", a.addrOf(socket)))
		}
		if _, ok := source.(lineage); ok && (a.from != fromBind || a.config.Store && activation.Supervised()) {
			conn = struct{ syscall.Conn }{conn} // the file of a Unix socket stays
		}
		if err := keeper.Keep(a.config.Name, a.network, a.requested, conn); err != nil {
			return a.discard(socket, h, err)
		}
	}
	if a.from == fromBind && a.config.Store {
		later, file := context.WithoutCancel(ctx), h.file
		h.tenure.onCharge(func() {
			if a.store(later, socket) && file != nil {
				file.keep.Store(true)
			}
		})
	}
	return nil
}

// emit completes an event and hands it out.
func (a *attempt[S]) emit(e Event) {
	if a.config.OnEvent == nil {
		return
	}
	e.Time, e.Name, e.Network, e.Requested = time.Now(), a.config.Name, a.network, a.requested
	if e.Elapsed == 0 {
		e.Elapsed = e.Time.Sub(a.asked)
	}
	a.config.OnEvent(e)
}

// discard closes what was opened, and makes an error of why.
func (a *attempt[S]) discard(socket S, h *hold, cause error) error {
	addr := a.addrOf(socket)
	return a.failure(addr, errors.Join(cause, h.close(socket.Close)))
}

// failure is an error that no bind gave.
func (a *attempt[S]) failure(addr net.Addr, cause error) error {
	return &net.OpError{Op: cmp.Or(a.op, "listen"), Net: a.network, Addr: addr, Err: &Error{Requested: a.requested, History: a.history, Cause: cause}}
}

// fromBind is in place of the index of a Source.
const fromBind = -1

// obtain asks the sources and then binds. The index is that of the source that had the socket, or fromBind.
func (a *attempt[S]) obtain(ctx context.Context) (S, int, error) {
	var none S
	if err := ctx.Err(); err != nil {
		return none, fromBind, a.failure(nil, err)
	}
	sources := a.config.Sources
	if sources == nil {
		own, err := passed(a.requested, a.byAddress)
		if err != nil {
			return none, fromBind, a.failure(nil, err)
		}
		if own != nil {
			sources = []Source{own}
		}
	}
	var set *activation.Set
	for i, source := range sources {
		switch s := source.(type) {
		case nil:
			continue
		case systemd:
			set = s.set
		case *activation.Set:
			set, source = s, systemd{s, a.byAddress}
		}
		socket, err := a.take(source, a.config.Name, a.network, a.requested)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && any(socket) == nil {
			err = fmt.Errorf("source %T gave neither a socket nor an error", source)
		}
		if err != nil {
			return none, fromBind, a.failure(nil, err)
		}
		a.origin.Kind = Activated
		if _, ok := source.(Keeper); ok { // whoever hands on gets from its parent what it has
			a.origin.Kind = Inherited
		}
		return socket, i, nil
	}
	a.warnUnclaimed(ctx, set)
	socket, err := a.bind(ctx, a.network, a.requested)
	if err == nil {
		a.origin.Kind = Bound
		return socket, fromBind, nil
	}
	socket, err = a.struggle(ctx, err)
	return socket, fromBind, err
}

// struggle asks the strategy what to do about a failed bind and does it, until a bind succeeds.
func (a *attempt[S]) struggle(ctx context.Context, err error) (S, error) {
	var none S
	a.begin = time.Now()
	a.records, _ = registry.Open(a.config.StateDir) // the error comes up again in record, where it is logged
	decide := a.config.Strategy
	if decide == nil {
		decide = strategy.Production()
	}
	var last func(cause error) error // the failure of the bind before
	for {
		failed, target, ok := failedBind(err)
		if !ok && last != nil {
			return none, last(err) // a name no longer resolves, or the context ended meanwhile: the address is still taken
		}
		if !ok {
			return none, err // malformed, or a name that does not resolve: net's own error
		}
		a.log.LogAttrs(ctx, slog.LevelDebug, "bind failed", slog.String("network", a.network), slog.String("address", addressText(failed.Addr)),
			slog.Any("error", failed.Err))

		if target.Path != "" && isInUse(failed.Err) && a.removeStale(ctx, target) {
			socket, bindErr := a.bind(ctx, a.network, a.requested)
			if bindErr == nil {
				a.settle(Bound)
				return socket, nil
			}
			if failed, target, ok = failedBind(bindErr); !ok {
				return none, bindErr
			}
		}

		search := holder.Search{Target: target, Name: a.config.Name, Records: a.records}
		diagnosis := sync.OnceValue(func() strategy.Diagnosis { return a.withoutHope(search.Diagnose(context.WithoutCancel(ctx))) })
		if last == nil && isInUse(failed.Err) {
			a.emit(Event{Kind: Conflict, Address: addressText(failed.Addr), Err: failed.Err, Diagnose: diagnosis})
		}
		weighed := false // the strategy wanted to know who is in the way
		failure := strategy.Failure{
			Network: a.network, Requested: a.requested, Address: addressText(failed.Addr), Err: failed.Err,
			Elapsed: time.Since(a.begin), History: slices.Clone(a.history),
			Diagnose: func() strategy.Diagnosis {
				weighed = true
				d := diagnosis()
				// A file that is in the way has no holder who could leave.
				d.Complete = d.Complete && (len(d.Holders) > 0 || holder.Obstacle(target) == "")
				return d
			},
		}
		action := decide.Decide(failure)
		a.logDecision(ctx, action, weighed, diagnosis)

		give := func(advice string, cause error) error {
			e := newError(a.requested, failed.Err, target, diagnosis)
			e.History, e.advice, e.Cause, e.weighed = a.history, advice, cause, weighed
			failed.Err = e
			return failed
		}
		last = func(cause error) error { return give("", errors.Join(a.cause, cause)) }
		switch action := action.(type) {
		case nil:
			return none, give("", a.cause)
		case strategy.Fail:
			return none, give(action.Advice, a.cause)
		case strategy.Retry:
			a.done(action, pause(ctx, action.After))
		case strategy.Run:
			a.done(action, runNamed(ctx, action))
			if a.cause != nil {
				return none, give("", a.cause)
			}
		case strategy.Reclaim:
			stopped, err := search.Stop(ctx, action.Allow, action.Grace, a.log)
			a.origin.InTheWay = append(a.origin.InTheWay, stopped...)
			a.done(action, err)
			a.emit(Event{Kind: Reclaim, Address: addressText(failed.Addr), Stopped: stopped, Err: err})
			if err != nil {
				a.unstoppable = append(a.unstoppable, stopped...)
			}
			if err != nil && ctx.Err() == nil {
				a.log.LogAttrs(ctx, slog.LevelWarn, "could not reclaim "+addressText(failed.Addr), slog.Any("error", err))
			}
		case strategy.Rebind:
			socket, ok, err := a.rebind(ctx, target, action.Ports)
			if ok {
				if a.log.Enabled(ctx, slog.LevelWarn) || weighed { // otherwise nobody would see the answer
					a.origin.InTheWay = diagnosis().Holders
				}
				a.done(action, nil)
				if a.isRequested(target, socket) { // it was freed meanwhile
					a.settle(Bound)
				} else {
					a.settle(Fallback)
				}
				return socket, nil
			}
			if err == nil {
				err = a.cause // every port was taken too: why nobody was stopped is still what matters
			}
			a.done(action, err)
		default:
			return none, give("", fmt.Errorf("strategy: unknown action %T", action))
		}
		if err := ctx.Err(); err != nil {
			if a.cause == nil || !errors.Is(a.cause, err) {
				a.cause = errors.Join(a.cause, err)
			}
			return none, give("", a.cause)
		}

		// A strategy that has no pause in it must not keep a processor busy.
		const immediate = 3
		if len(a.history) > immediate && pause(ctx, time.Millisecond) != nil {
			return none, give("", ctx.Err())
		}
		var socket S
		if socket, err = a.bind(ctx, a.network, a.requested); err == nil {
			a.settle(Bound)
			return socket, nil
		}
	}
}

// withoutHope forbids to stop whom a reclaim could not end: once more would take as long and end the same.
func (a *attempt[S]) withoutHope(d strategy.Diagnosis) strategy.Diagnosis {
	for i, h := range d.Holders {
		for _, u := range a.unstoppable {
			// The start is known to some milliseconds, which is enough to tell it from who gets the pid later.
			if h.PID == u.PID && h.Started.Sub(u.Started).Abs() < time.Second && h.Refusal == "" {
				d.Holders[i].Refusal = "it could not be ended; choose another port"
			}
		}
	}
	return d
}

// done records an action that was carried out.
func (a *attempt[S]) done(action strategy.Action, err error) {
	a.history = append(a.history, action)
	a.cause = err
}

// settle says how the address was obtained in the end. A holder that was stopped on the way makes a bind a reclaim.
func (a *attempt[S]) settle(kind OriginKind) {
	if kind == Bound && len(a.origin.InTheWay) > 0 {
		kind = Reclaimed
	}
	a.origin.Kind = kind
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func runNamed(ctx context.Context, action strategy.Run) error {
	if action.Do == nil {
		return fmt.Errorf("run %s: no function to run", action.Name)
	}
	if err := action.Do(ctx); err != nil {
		return fmt.Errorf("run %s: %w", action.Name, err)
	}
	return nil
}

// isRequested tells whether the socket has the port that was asked for.
func (a *attempt[S]) isRequested(target sockets.Target, socket S) bool {
	_, port, err := net.SplitHostPort(a.addrOf(socket).String())
	return err == nil && port == strconv.Itoa(int(target.Addr.Port()))
}

// rebind binds the first port of the ranges that it can. Ports that the kernel's table shows as taken are passed over:
// that look costs less than two binds. It is a hint and no answer, so whoever lost a port between look and bind goes on,
// and a pass that lost one is repeated: two sockets that bind a port at the same instant can make each other's listen
// fail and leave it free.
func (a *attempt[S]) rebind(ctx context.Context, target sockets.Target, ranges []strategy.Range) (socket S, ok bool, err error) {
	host, _, err := net.SplitHostPort(a.requested)
	if err != nil || target.Path != "" { // a colon in a path is no port
		return socket, false, fmt.Errorf("fall back: %s has no port to change", a.requested)
	}
	var state registry.Location
	if a.records != nil {
		state = a.records.Location
	}
	// Whether anything is released is asked often enough to notice it, and not of each port.
	const fresh = time.Millisecond
	var released *registry.Dir
	var looked time.Time
	const passes = 3
	for range passes {
		lost := false
		for _, r := range ranges {
			taken, _ := sockets.Taken(target, r.First, r.Last) // without the hint every port is tried
			for port := int(r.First); port <= int(r.Last); port++ {
				// Also after the bind, in case that it is released just now; before, since to whoever keeps it the bind would look as if
				// it were taken for good.
				if taken.Has(uint16(port)) {
					continue
				}
				if time.Since(looked) > fresh {
					released, looked = state.OpenIfReleased(), time.Now()
				}
				if released != nil && keptIn(released, onPort(target, uint16(port))) != nil {
					continue
				}
				if err := ctx.Err(); err != nil {
					return socket, false, err
				}
				socket, err = a.bind(ctx, a.network, net.JoinHostPort(host, strconv.Itoa(port)))
				if err == nil && keptBy(state, a.network, a.addrOf(socket)) != nil {
					_ = socket.Close() // nobody was to use it
					continue
				}
				if err == nil {
					return socket, true, nil
				}
				a.log.LogAttrs(ctx, slog.LevelDebug, "bind failed", slog.String("network", a.network), slog.Int("port", port), slog.Any("error", err))
				if !isInUse(err) && !errors.Is(err, fs.ErrPermission) { // out of descriptors, say: no port would do
					return socket, false, err
				}
				lost = lost || isInUse(err)
			}
		}
		if !lost {
			break
		}
	}
	return socket, false, nil
}

// record takes the lock and writes the record. A state directory that cannot be used never keeps a server from starting:
// then there is no lock.
func (a *attempt[S]) record(ctx context.Context, socket S) *registry.Lock {
	lock, err := a.tryRecord(ctx, socket)
	if err != nil {
		a.warn(ctx, unrecorded, err)
	}
	return lock
}

func (a *attempt[S]) tryRecord(ctx context.Context, socket S) (*registry.Lock, error) {
	address := a.lockAddress(socket)
	if _, err := a.takeLock(ctx, address); err != nil {
		return nil, err
	}
	if err := a.lock.Write(a.newRecord(address, sockets.InodeOf(socket), time.Now())); err != nil {
		return nil, errors.Join(err, a.lock.Release())
	}
	return a.lock, nil
}

const unrecorded = "no lock and no record for this listener, so an earlier run is recognised by its program alone"

func (a *attempt[S]) warn(ctx context.Context, message string, err error) {
	a.log.LogAttrs(ctx, slog.LevelWarn, message, slog.Any("error", err))
}

// lockAddress is the address that lock and record are for.
func (a *attempt[S]) lockAddress(socket S) string {
	if _, ok := a.addrOf(socket).(*net.UnixAddr); ok {
		return holder.AbsolutePath(a.origin.Address)
	}
	return a.origin.Address
}

// takeLock takes the lock: that of the parent where it came with the socket.
func (a *attempt[S]) takeLock(ctx context.Context, address string) (adopted bool, err error) {
	if a.records == nil {
		if a.state == (registry.Location{}) {
			if a.state, err = registry.Locate(a.config.StateDir); err != nil {
				return false, err
			}
		}
		if a.records, err = a.state.Open(); err != nil {
			return false, err
		}
	}
	if a.lock != nil {
		return false, nil
	}
	if a.lineage != nil {
		file, err := a.lineage.TakeFile(registry.KeptAs(a.records.PathFor(a.network, address)))
		if err == nil {
			if a.lock, err = a.records.Adopt(a.network, address, file); err == nil {
				return true, nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			a.warn(ctx, "the lock of the version before is of no use", err)
		}
	}
	begin := time.Now()
	a.lock, err = a.records.Lock(a.network, address)
	// Nobody waits for a lock that is free, and that is what nearly all of them are.
	if waited := time.Since(begin); waited >= time.Millisecond || errors.Is(err, registry.ErrHeld) {
		a.emit(Event{Kind: LockWait, Address: address, Elapsed: waited, Err: err})
	}
	return false, err
}

func (a *attempt[S]) newRecord(address string, inode uint64, since time.Time) registry.Record {
	self := proc.Self()
	return registry.Record{
		PID: self.PID, Start: self.Start, Started: self.Started, Boot: proc.BootID(),
		Executable: self.Executable, Main: proc.MainPackage(self.PID), Dir: self.Dir,
		Name: a.config.Name, Network: a.network, Requested: a.requested, Address: address,
		Inode: inode, Since: since, Origin: a.origin.Kind.String(),
	}
}

// logDecision says what was found and what is done about it.
func (a *attempt[S]) logDecision(ctx context.Context, action strategy.Action, weighed bool, diagnosis func() strategy.Diagnosis) {
	if !a.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("network", a.network), slog.String("requested", a.requested)}
	if action == nil {
		attrs = append(attrs, slog.String("action", "fail"))
	} else {
		attrs = append(attrs, slog.String("action", action.String()))
	}
	if weighed {
		d := diagnosis()
		attrs = append(attrs, slog.Bool("complete", d.Complete))
		for _, h := range d.Holders {
			attrs = append(attrs, slog.Any("holder", h))
		}
	}
	a.log.LogAttrs(ctx, slog.LevelDebug, "decided", attrs...)
}

// report says what was obtained.
func (a *attempt[S]) report(ctx context.Context) {
	if !a.log.Enabled(ctx, slog.LevelInfo) && (a.origin.Kind != Fallback || !a.log.Enabled(ctx, slog.LevelWarn)) {
		return // the usual case: no text is made for nobody
	}
	attrs := []slog.Attr{
		slog.String("network", a.network), slog.String("requested", a.requested),
		slog.String("address", a.origin.Address), slog.String("origin", a.origin.Kind.String()),
	}
	if a.config.Name != "" {
		attrs = append(attrs, slog.String("name", a.config.Name))
	}
	if a.origin.Kind == Fallback {
		a.log.LogAttrs(ctx, slog.LevelWarn, fallbackMessage(a.origin), attrs...)
		return
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "listening on "+a.origin.Address, attrs...)
}

// fallbackMessage is the sentence that users know from other tools: "port 3000 is in use by ..., using 3001".
func fallbackMessage(o Origin) string {
	_, requested, _ := net.SplitHostPort(o.Requested)
	_, obtained, _ := net.SplitHostPort(o.Address)
	by := strategy.Diagnosis{Holders: o.InTheWay}.String()
	if len(o.InTheWay) == 0 {
		by = "a process that cannot be seen"
	}
	return "port " + requested + " is in use by " + by + ", using " + obtained
}

func addressText(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	return addr.String()
}
