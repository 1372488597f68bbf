package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/descriptor"
	"github.com/berth-go/berth/internal/reuseport"
)

// ListenGroup is [Config.Listen] for n listeners on one address, each with a queue of its own, between which the kernel deals
// connections (SO_REUSEPORT), so that several processors accept at once. Each is to be served; n below 1 means one for
// every processor (GOMAXPROCS). It is all or none. Lock, record and port file are those of one listener, and are released with the
// last Close. Middleware wraps each of them, so a limit is one for each.
//
// The first is bound as by Listen, so an address that is taken is, and the Strategy decides about it: a second start of the
// program does not slip into the group. Then n-1 join it. The kernel lets in whoever has the same effective user and
// SO_REUSEPORT set, but a later one gets no connections: only members are dealt any. Net.Control is called for each, and there
// is no MPTCP.
//
// Close of one loses nothing, as closing such a socket would: connections that wait with it, or are being made, go to the others, and
// so does the socket itself until it has been quiet for longer than a connection can take to be made (75 seconds). The last
// Close loses what waits, as that of any listener does. The kernel's own remedy, the sysctl net.ipv4.tcp_migrate_req (Linux
// 5.14), is not needed, and does no harm.
//
// With package reload the next version gets all of them. Where it asks for more, they join; where for fewer, also by
// Listen, those that it has accept what waits with the rest. Several sockets with one address from a socket unit (ReusePort=yes)
// are a group, too.
//
// Where no more can join, the rest of the n share the queue of the first, which is portable and loses nothing, but wins
// little: on other systems than Linux, for Unix sockets, for sockets of systemd, and where the user of the process is
// another than when the address was bound. On Windows that is errors.ErrUnsupported for n above 1.
func (c *Config) ListenGroup(ctx context.Context, network, address string, n int) ([]*Listener, error) {
	a := c.attempt(network, address)
	all, h, err := assemble(ctx, &a, streams, n)
	if err != nil {
		return nil, err
	}
	g, err := newGroup(all, h.tenure, a.log)
	if err != nil {
		return nil, a.failure(a.addrOf(all.own[0]), errors.Join(err, h.close(all.Close)))
	}
	shared := &joint{hold: h, open: all.n}
	listeners := make([]*Listener, all.n)
	for i, m := range g.open {
		listeners[i] = newListener(m, c.Middleware, hold{origin: h.origin, joint: shared})
	}
	return listeners, nil
}

// ListenPacketGroup is [Config.ListenGroup] for packets. The kernel deals them by where they come from, so each peer stays with
// one socket as long as their number does not change. Close of one loses what it has not read, and so does a next version that asks
// for fewer, but for what the old one still reads.
func (c *Config) ListenPacketGroup(ctx context.Context, network, address string, n int) ([]*PacketConn, error) {
	a := c.packetAttempt(network, address)
	all, h, err := assemble(ctx, &a, packets, n)
	if err != nil {
		return nil, err
	}
	conns := append(all.members(), all.shared...)
	surplus := all.surplus()
	if len(all.own) > 1 {
		member := all.own[1].(syscall.Conn)
		h.tenure.onCharge(func() {
			if err := reuseport.Steer(member, upTo(len(all.members()))); err != nil {
				a.log.LogAttrs(context.WithoutCancel(ctx), slog.LevelDebug, "packets are dealt to whoever has joined", slog.Any("error", err))
			}
			for _, conn := range surplus {
				_ = conn.Close()
			}
			surplus = nil
		})
	}
	shared := &joint{hold: h, open: all.n}
	listeners := make([]*PacketConn, all.n)
	for i, conn := range conns {
		listeners[i] = newPacketConn(conn, hold{origin: h.origin, joint: shared})
	}
	return listeners, nil
}

// A grouper is a Keeper that hands on more than one socket with one address: package reload.
type grouper interface {
	Keeper

	// TakeMember gives the next one beside the first, which was taken for name, network and address and has the address
	// obtained, or fs.ErrNotExist.
	TakeMember(name, network, address, obtained string) (net.Listener, error)
	TakePacketMember(name, network, address, obtained string) (net.PacketConn, error)
	// KeepMember is Keep for one more.
	KeepMember(name, network, address string, socket syscall.Conn) error
}

// A transport is what differs between listeners and packet sockets.
type transport[S io.Closer] struct {
	take   func(from grouper, name, network, address, obtained string) (S, error)
	bind   func(c *net.ListenConfig, ctx context.Context, network, address string) (S, error)
	revive func(*os.File) (S, error)
}

var (
	streams = transport[net.Listener]{grouper.TakeMember, (*net.ListenConfig).Listen, net.FileListener}
	packets = transport[net.PacketConn]{grouper.TakePacketMember, (*net.ListenConfig).ListenPacket, net.FilePacketConn}
)

// seats are the sockets of one address.
type seats[S io.Closer] struct {
	n      int // how many are asked for
	own    []S // have queues of their own, in the order in which they came to listen; the first n are in use
	shared []S // duplicates of the first
}

// members are those that are in use, of those with a queue.
func (s *seats[S]) members() []S { return s.own[:min(s.n, len(s.own)):min(s.n, len(s.own))] }

// surplus are those that an earlier version had beyond them.
func (s *seats[S]) surplus() []S { return s.own[len(s.members()):] }

// Close closes all of them.
func (s *seats[S]) Close() error {
	var errs []error
	for _, socket := range append(s.own, s.shared...) {
		errs = append(errs, socket.Close())
	}
	return errors.Join(errs...)
}

// assemble obtains the first socket and as many others as are asked for.
func assemble[S io.Closer](ctx context.Context, a *attempt[S], t transport[S], n int) (*seats[S], hold, error) {
	if n < 1 {
		if n = 1; descriptor.Supported {
			n = runtime.GOMAXPROCS(0)
		}
	}
	config := a.config.Net
	if n > 1 {
		config.SetMultipathTCP(false) // such a socket cannot steer the others
		a.bind = func(ctx context.Context, network, address string) (S, error) {
			return t.bind(&config, ctx, network, address)
		}
	}
	first, h, err := a.open(ctx)
	if err != nil {
		return nil, hold{}, err
	}
	all := &seats[S]{n: n, own: []S{first}}
	fail := func(err error) (*seats[S], hold, error) {
		err = a.failure(a.addrOf(first), errors.Join(err, h.close(all.Close)))
		a.emit(Event{Kind: Failed, Address: a.origin.Address, Err: err})
		return nil, hold{}, err
	}
	inherited, err := a.others(t)
	all.own = append(all.own, inherited...)
	if err != nil {
		return fail(err)
	}
	given := len(all.own)
	if err := a.join(ctx, t, config, all); err != nil {
		return fail(err)
	}
	if err := a.share(t, all); err != nil {
		return fail(err)
	}
	if err := a.handOn(ctx, first, &h); err != nil { // which closes the first
		all.own = all.own[1:]
		return nil, hold{}, errors.Join(err, all.Close())
	}
	for _, socket := range all.own[given:] {
		if err := a.bequeathMember(ctx, socket, &h); err != nil {
			return fail(err)
		}
	}
	if n > 1 || len(all.own) > 1 {
		a.log.LogAttrs(ctx, slog.LevelInfo, "listeners share "+a.origin.Address, slog.Int("queues", len(all.members())), slog.Int("sharing", len(all.shared)),
			slog.Int("surplus", len(all.surplus())))
	}
	return all, h, nil
}

// others takes what else the source of the first socket has for its address.
func (a *attempt[S]) others(t transport[S]) (others []S, err error) {
	var next func() (S, error)
	switch source := a.source().(type) {
	case grouper:
		next = func() (S, error) { return t.take(source, a.config.Name, a.network, a.requested, a.origin.Address) }
	case systemd:
		next = func() (none S, err error) {
			if !source.passedAlso(a.origin.Address) {
				return none, fs.ErrNotExist
			}
			return a.take(source, "", a.network, a.origin.Address)
		}
	default:
		return nil, nil
	}
	for {
		socket, err := next()
		if errors.Is(err, fs.ErrNotExist) {
			return others, nil
		}
		if err != nil {
			return others, err
		}
		others = append(others, socket)
	}
}

// passedAlso tells whether there is one more socket with just this address.
func (s systemd) passedAlso(address string) bool {
	return slices.ContainsFunc(s.set.Unused(), func(socket activation.Socket) bool { return socket.Address == address })
}

// source is where the first socket came from; nil: a bind.
func (a *attempt[S]) source() Source {
	switch {
	case a.from == fromBind:
		return nil
	case a.config.Sources == nil:
		own, _ := passed(a.requested, false) // it worked before
		return own
	}
	if set, ok := a.config.Sources[a.from].(*activation.Set); ok {
		return systemd{set: set}
	}
	return a.config.Sources[a.from]
}

// join binds more sockets to the address. It leaves some out where the system, or the user, has no right to it.
func (a *attempt[S]) join(ctx context.Context, t transport[S], config net.ListenConfig, all *seats[S]) error {
	first, ok := any(all.own[0]).(syscall.Conn)
	_, unix := a.addrOf(all.own[0]).(*net.UnixAddr)
	// A socket of systemd outlives the service, with what waits there. What waited with others would be lost at each restart.
	if len(all.own) >= all.n || !reuseport.Supported || unix || !ok || a.origin.Kind == Activated {
		return nil
	}
	if err := reuseport.Allow(first); err != nil {
		return err
	}
	alone := len(all.own) == 1
	config.Control = chain(config.Control, reuseport.Control)
	for len(all.own) < all.n {
		socket, err := t.bind(&config, ctx, a.network, a.origin.Address)
		if err != nil && isInUse(err) && a.origin.Kind == Inherited {
			a.log.LogAttrs(ctx, slog.LevelWarn, "no more sockets can be bound to the address, so listeners share what there is: it was bound by another user, perhaps",
				slog.String("address", a.origin.Address), slog.Any("error", err))
			return nil
		}
		if err != nil {
			return err
		}
		all.own = append(all.own, socket)
		if conn, ok := any(socket).(syscall.Conn); ok && alone && a.lineage != nil && !a.lineage.InCharge() {
			// Until this version leads, nothing may come to what goes with it when it fails. Where there was a group, that is so.
			_ = reuseport.Steer(conn, []int{0})
		}
		alone = false
	}
	return nil
}

func chain(first, then func(network, address string, raw syscall.RawConn) error) func(network, address string, raw syscall.RawConn) error {
	if first == nil {
		return then
	}
	return func(network, address string, raw syscall.RawConn) error {
		if err := first(network, address, raw); err != nil {
			return err
		}
		return then(network, address, raw)
	}
}

// share fills up with duplicates of the first.
func (a *attempt[S]) share(t transport[S], all *seats[S]) error {
	first, ok := any(all.own[0]).(syscall.Conn)
	for len(all.own)+len(all.shared) < all.n {
		if !ok {
			return fmt.Errorf("a group with a %T: %w", all.own[0], errors.ErrUnsupported)
		}
		file, err := descriptor.Duplicate(first, a.origin.Address)
		if err != nil {
			return err
		}
		socket, err := t.revive(file)
		_ = file.Close() // that was a duplicate of it
		if err != nil {
			return err
		}
		all.shared = append(all.shared, socket)
	}
	return nil
}

// bequeathMember is bequeath for one that joined the first.
func (a *attempt[S]) bequeathMember(ctx context.Context, socket S, h *hold) error {
	conn, ok := any(socket).(syscall.Conn)
	for _, source := range a.config.Sources {
		keeper, keeps := source.(grouper)
		if !keeps {
			continue
		}
		if !ok {
			return unsupported("keep", a.addrOf(socket))
		}
		if err := keeper.KeepMember(a.config.Name, a.network, a.requested, conn); err != nil {
			return err
		}
	}
	if a.from == fromBind && a.config.Store {
		later := context.WithoutCancel(ctx)
		h.tenure.onCharge(func() { a.store(later, socket) })
	}
	return nil
}

// whole is the listener with all that an earlier version had at its address: a group may have been where one is now.
func whole(ctx context.Context, a *attempt[net.Listener], ln net.Listener, h *hold) (net.Listener, error) {
	if _, ok := a.source().(grouper); !ok {
		return ln, nil
	}
	others, err := a.others(streams)
	all := &seats[net.Listener]{n: 1, own: append([]net.Listener{ln}, others...)}
	if err == nil && len(others) == 0 {
		return ln, nil
	}
	var g *group
	if err == nil {
		g, err = newGroup(all, h.tenure, a.log)
	}
	if err != nil {
		return nil, a.failure(ln.Addr(), errors.Join(err, h.close(all.Close)))
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "one listener takes over from a group", slog.String("address", a.origin.Address), slog.Int("surplus", len(others)))
	return g.open[0], nil
}

// upTo is the places of the first n.
func upTo(n int) []int {
	places := make([]int, n)
	for i := range places {
		places[i] = i
	}
	return places
}

// A joint is the hold that several sockets with one address have together.
type joint struct {
	mu   sync.Mutex
	open int
	hold hold
}

// close closes one of the sockets, and with the last of them the rest.
func (j *joint) close(socket func() error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open--; j.open > 0 {
		return socket()
	}
	return j.hold.close(socket)
}
