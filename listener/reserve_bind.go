package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/bound"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
)

// A part is one socket of a reservation.
type part struct {
	network string // as package net knows it
	address string // by which a new version of the program asks for it
	addr    net.Addr
	socket  *bound.Socket  // nil: a Source had it, and it is one of these
	ln      net.Listener   // TCP, and listening already
	conn    net.PacketConn // UDP
	passed  *os.File       // duplicate for every Command; nil: none yet
	lock    *registry.Lock // nil: none
	records *registry.Dir  // of the lock
	gone    bool           // it is a listener by now, or closed
}

func (p *part) tcp() bool { return strings.HasPrefix(p.network, "tcp") }

// raw is the socket, whatever it is.
func (p *part) raw() io.Closer {
	switch {
	case p.socket != nil:
		return p.socket
	case p.ln != nil:
		return p.ln
	}
	return p.conn
}

// Close closes the socket and frees its lock.
func (p *part) Close() error {
	err := p.raw().Close()
	if p.lock != nil {
		err = errors.Join(err, p.lock.Release())
		p.lock = nil
	}
	return err
}

// listener is what package net makes of the socket.
func (p *part) listener() (net.Listener, error) {
	if p.socket == nil {
		return p.ln, nil
	}
	return converted(p, net.FileListener)
}

// packetConn is what package net makes of the socket.
func (p *part) packetConn() (net.PacketConn, error) {
	if p.socket == nil {
		return p.conn, nil
	}
	return converted(p, net.FilePacketConn)
}

func converted[S any](p *part, from func(*os.File) (S, error)) (socket S, err error) {
	file, err := p.open()
	if err != nil {
		return socket, err
	}
	defer func() { _ = file.Close() }() // a duplicate
	if socket, err = from(file); err != nil {
		return socket, err
	}
	return socket, p.socket.Close()
}

// open has the socket serve, and gives a duplicate of it.
func (p *part) open() (*os.File, error) {
	if p.socket == nil {
		return fileOf(p.raw(), p.addr)
	}
	if err := p.socket.Serve(); err != nil {
		return nil, err
	}
	return p.socket.File(p.network + ":" + p.addr.String())
}

// parts are the sockets of a reservation, which have one port.
type parts []*part

// Close closes all of them.
func (ps parts) Close() error {
	var errs []error
	for _, p := range ps {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

func (ps parts) addr() net.Addr { return ps[0].addr }

// A binder finds sockets for one reservation.
type binder struct {
	config    *Config
	parts     []string // of the network
	requested string   // the first address
	offers    []offer  // of all

	log   *slog.Logger
	state registry.Location
}

func newBinder(ctx context.Context, c *Config, network string, addresses []string) (*binder, error) {
	if len(addresses) == 0 {
		addresses = []string{":0"}
	}
	parts, err := parseNetworks(network)
	if err != nil {
		return nil, err
	}
	b := &binder{config: c, parts: parts, requested: addresses[0]}
	for _, address := range addresses {
		o, err := parseOffer(ctx, parts[0], address)
		if err == nil {
			err = o.resolve(ctx, parts, c.Net.MultipathTCP())
		}
		if err != nil {
			return nil, err
		}
		b.offers = append(b.offers, o)
	}
	return b, nil
}

// take asks a source for what the program before had, offer by offer.
func (b *binder) take(ctx context.Context) func(source Source, name, network, address string) (parts, error) {
	return func(source Source, name, _, _ string) (parts, error) {
		for i := range b.offers {
			ps, err := b.takeOffer(ctx, source, name, &b.offers[i])
			if !errors.Is(err, fs.ErrNotExist) {
				return ps, err
			}
		}
		return nil, fs.ErrNotExist
	}
}

// takeOffer takes what there is of an offer. What is not there cannot be had beside it, or nobody asked for it before.
func (b *binder) takeOffer(ctx context.Context, source Source, name string, o *offer) (ps parts, err error) {
	if _, hands := source.(Keeper); !hands && !o.fixed {
		return nil, fs.ErrNotExist // only a version of this program knows by what range a socket was asked for
	}
	for _, p := range o.places {
		t := &part{network: p.network, address: p.address}
		if t.tcp() {
			if t.ln, err = source.Take(name, p.network, p.address); err == nil {
				t.addr = t.ln.Addr()
			}
		} else if t.conn, err = source.TakePacket(name, p.network, p.address); err == nil {
			t.addr = t.conn.LocalAddr()
		}
		switch {
		case err == nil:
			ps = append(ps, t)
		case !errors.Is(err, fs.ErrNotExist):
			_ = ps.Close() // the failure is what counts
			return nil, err
		case len(ps) > 0:
			b.log.LogAttrs(ctx, slog.LevelWarn, "the socket for "+p.network+" "+p.address+" was not passed with the other, so the address is not reserved")
		}
	}
	if len(ps) == 0 {
		return nil, fs.ErrNotExist
	}
	return ps, nil
}

// bind binds what was asked for, or, where the strategy chooses other ports, the first host on one of those.
func (b *binder) bind(ctx context.Context, _, address string) (parts, error) {
	if address == b.requested {
		return b.bindFirst(ctx)
	}
	o, err := parseOffer(ctx, b.parts[0], address)
	if err != nil {
		return nil, err
	}
	o.places = b.offers[0].places
	return b.bindOffer(ctx, &o)
}

// bindFirst takes the first offer that can be had. The error is that of the first one.
func (b *binder) bindFirst(ctx context.Context) (parts, error) {
	var first error
	for i := range b.offers {
		ps, err := b.bindOffer(ctx, &b.offers[i])
		if err == nil {
			return ps, nil
		}
		if first == nil {
			first = err
		}
		if !isInUse(err) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, err // out of descriptors, say: no address would do
		}
	}
	return nil, first
}

// bindOffer takes the first port of the offer that all of its sockets can have. One socket is used for many ports, since a bind
// that fails leaves it as it was.
func (b *binder) bindOffer(ctx context.Context, o *offer) (parts, error) {
	t := trial{binder: b, offer: o, sockets: make([]*bound.Socket, len(o.places))}
	defer t.close()
	var first error
	for _, remains := range []bool{false, true} {
		for _, r := range o.ports {
			// Several sockets cannot have the kernel choose one port for all. It chooses for the first, and the rest follow.
			tries := 1
			if r.First == 0 && len(o.places) > 1 {
				tries = 100
			}
			for port := int(r.First); port <= int(r.Last); port++ {
				for range tries {
					if err := ctx.Err(); err != nil {
						return nil, err
					}
					ps, no := t.port(ctx, uint16(port), remains)
					if no.cause == nil {
						return ps, nil
					}
					if first == nil {
						first = no.opError()
					}
					if !isInUse(no.cause) && !errors.Is(no.cause, fs.ErrPermission) {
						return nil, no.opError()
					}
				}
			}
		}
		// What remains of connections, for a minute, is in the way of a bind without SO_REUSEADDR.
		if !isInUse(first) {
			break
		}
	}
	return nil, first
}

// A trial is the search for a port. It owns sockets that have none yet.
type trial struct {
	*binder
	offer   *offer
	sockets []*bound.Socket // by place; nil: none yet, or it is bound and given away
}

func (t *trial) close() {
	for _, s := range t.sockets {
		if s != nil {
			_ = s.Close() // it has no address
		}
	}
}

// A refusal is why a port cannot be had. Of those who try many, nobody wants to know more than that the port is taken.
type refusal struct {
	place *place
	port  uint16
	cause error // nil: it can be had
}

func (r refusal) opError() error {
	return &net.OpError{Op: "reserve", Net: r.place.network, Addr: r.place.addr(r.port), Err: r.cause}
}

// port takes the port in every place, or none.
func (t *trial) port(ctx context.Context, port uint16, remains bool) (_ parts, no refusal) {
	var taken parts
	defer func() {
		if no.cause != nil {
			_ = taken.Close() // the failure is what counts
		}
	}()
	for i := range t.offer.places {
		p := &t.offer.places[i]
		if remains || p.kind.Network == "udp" { // the bind would look to whoever keeps the port as if it were taken for good
			if kept := keptBy(t.state, p.network, p.addr(port)); kept != nil {
				return nil, refusal{p, port, os.NewSyscallError("bind", kept)}
			}
		}
		s, addr, err := t.bindPlace(ctx, i, port, remains)
		if err != nil {
			if p.optional && isAbsent(err) && (len(taken) > 0 || i+1 < len(t.offer.places)) {
				t.log.LogAttrs(ctx, slog.LevelInfo, "this machine does not have "+p.ip.String()+", so nobody can take it", slog.String("network", p.network))
				continue
			}
			return nil, refusal{p, port, err}
		}
		t.sockets[i] = nil
		port = addr.Port() // where it was 0
		bound := &part{network: p.network, address: p.address, addr: addrOf(p.kind.Network, addr.Addr(), port), socket: s}
		taken = append(taken, bound)
		if kept := keptBy(t.state, p.network, bound.addr); kept != nil {
			return nil, refusal{p, port, os.NewSyscallError("bind", kept)}
		}
	}
	return taken, refusal{}
}

// isAbsent tells whether an error says that the machine does not have the address or its family.
func isAbsent(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

func (t *trial) bindPlace(ctx context.Context, i int, port uint16, remains bool) (*bound.Socket, netip.AddrPort, error) {
	p := &t.offer.places[i]
	s := t.sockets[i]
	var err error
	if s == nil {
		if s, err = t.open(p, p.kind, port); err != nil {
			return nil, netip.AddrPort{}, err
		}
		t.sockets[i] = s
	}
	err = s.Bind(p.bindable(port))
	if err != nil && remains && isInUse(err) && p.kind.Network == "tcp" {
		plain := p.kind
		plain.Multipath = false
		over, openErr := t.open(p, plain, port)
		if openErr != nil {
			return nil, netip.AddrPort{}, openErr
		}
		sole := func() bool { return isSole(over, p.network, p.addr(port)) }
		if overErr := over.BindOverRemains(p.bindable(port), sole); overErr != nil {
			_ = over.Close() // the first failure is what counts
			return nil, netip.AddrPort{}, err
		}
		_ = s.Close() // it has no address
		s, err = over, nil
		t.sockets[i] = s
	}
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	addr, err := s.Addr()
	return s, addr, err
}

// isSole tells whether no other socket is bound to the address of this one, or in its way, but for connections; where the
// system does not tell (before Linux 6.8), too.
func isSole(s *bound.Socket, network string, addr net.Addr) bool {
	target, ok := sockets.TargetOf(network, addr)
	if !ok {
		return true
	}
	port := target.Addr.Port()
	found, err := sockets.List(target.Network, port, port)
	own := sockets.InodeOf(s)
	return err != nil || !slices.ContainsFunc(found, func(other sockets.Socket) bool {
		return other.Inode != own && target.Conflicts(other)
	})
}

// open makes a socket as package net does for the Config.
func (t *trial) open(p *place, k bound.Kind, port uint16) (*bound.Socket, error) {
	s, err := bound.Open(k)
	if err != nil {
		return nil, err
	}
	if control := t.config.Net.Control; control != nil {
		conn, err := s.SyscallConn()
		if err == nil {
			err = control(p.controlNetwork(), p.addr(port).String(), conn)
		}
		if err != nil {
			_ = s.Close() // the failure is what counts
			return nil, err
		}
	}
	return s, nil
}

// A keptError says that nobody has the port, and who keeps it for a program that is about to bind it.
type keptError struct{ record registry.Record }

func (e *keptError) Error() string {
	text := "the port is kept by pid " + strconv.Itoa(e.record.PID)
	if e.record.Name != "" {
		text += fmt.Sprintf(" for %q", e.record.Name)
	}
	return text + " until " + e.record.Until.Format(time.TimeOnly)
}

// Is says that to all intents the address is in use.
func (*keptError) Is(target error) bool { return target == syscall.EADDRINUSE }

// keptBy tells whether a cooperating process has released the address for another that is about to bind it. An address that
// covers this one, or that it covers, counts too, as far as they are the usual ones. Nil means that it is free.
func keptBy(state registry.Location, network string, addr net.Addr) error {
	if records := state.OpenIfReleased(); records != nil {
		if target, ok := sockets.TargetOf(network, addr); ok && target.Path == "" {
			return keptIn(records, target)
		}
	}
	return nil
}

// keptIn reads the records. It is apart so that the usual case needs no room on the stack for it.
func keptIn(records *registry.Dir, target sockets.Target) error {
	own := target.Addr.Addr()
	if !own.IsValid() {
		own = netip.IPv6Unspecified()
	}
	ips := []netip.Addr{own}
	for _, ip := range append([]netip.Addr{netip.IPv6Unspecified(), netip.IPv4Unspecified()}, loopbacks...) {
		if ip != own {
			ips = append(ips, ip)
		}
	}
	for _, ip := range ips {
		other := netip.AddrPortFrom(ip, target.Addr.Port())
		entry, err := records.Lookup(target.Network, other.String())
		if err == nil && isReleased(entry) && target.Conflicts(sockets.Socket{Network: target.Network, Local: other}) {
			return &keptError{entry.Record}
		}
	}
	return nil
}

// isReleased tells whether a record is of a port that is released and kept. The lock says so, and no clock: it is its owner
// who knows when the time is over.
func isReleased(e registry.Entry) bool {
	return e.Err == nil && e.Record.State == registry.Released && e.Held()
}
