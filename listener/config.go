package listener

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"syscall"

	"github.com/berth-go/berth/strategy"
)

// Config says how to obtain a listener. The zero value is ready to use and is the strictest: it binds the address or
// fails at once with a diagnosis. A Config must not be changed while it is in use; it may serve any number of calls, also
// at once.
type Config struct {
	// Net is used for every bind: its Control, keep-alive and MPTCP settings hold. Control is called for every attempt,
	// and package net makes two of one that fails, the second without MPTCP.
	Net net.ListenConfig

	// Strategy is asked after every failed bind. Nil means strategy.Production().
	Strategy strategy.Strategy

	// Sources are asked in order for a socket that exists already; the first that has one wins over a bind. Nil means
	// what systemd, or anybody who speaks its protocol, passed to this process (package activation); an address such as
	// "fd:http" or "fd:3" takes exactly the one of that name or number. Empty and not nil means none.
	//
	// An [*activation.Set] here, nil or not, is what nil means: it also finds what was stored (Store), and a warning is
	// logged where what systemd passed does not fit. So a program that is upgraded without a pause, under systemd or not,
	// has both, its parent first: []Source{upgrader, set}. The upgrader of package reload also hands on lock, record and
	// port file, which always belong to the version that is in charge; one that never comes to be leaves all of it alone.
	Sources []Source

	// Store keeps what was bound in systemd's descriptor store, so that it survives a restart of the service without a
	// socket unit, also on a fallback port: the next run finds it by the same network, address and Name. The unit needs
	// FileDescriptorStoreMax=. Where the store does not take it that is logged; without systemd nothing happens. Close
	// closes the listener and leaves the stored socket, and the file of a Unix socket, to the next run. Its name in the
	// store is "berth", Name, network and address, the first and the last as in a URL's query, separated by spaces; with
	// that, activation.Unstore takes it out.
	Store bool

	// Middleware wraps the listener; the first is outermost. Packet connections are not wrapped.
	Middleware []Middleware

	// Name is the name of the service: in records, in logs, and for Sources that know sockets by name. Two runs with
	// different names are different services and do not stop each other by default, as long as both use one state
	// directory that works; without a record a run is recognised by its program alone.
	Name string

	// StateDir holds locks and records, which tell cooperating processes who has which address. "" means the per-user
	// default: berth below $XDG_RUNTIME_DIR, for root /run/berth, else berth-<uid> in the directory for temporary
	// files. A directory that cannot be used, or not be trusted, is logged and done without.
	StateDir string

	// PortFile, if not "", is written atomically with the address obtained, one a line, and removed on Close. Where it
	// cannot be written, Listen fails. A new version that is not in charge yet (see Sources) writes it when it is, and
	// logs a failure.
	PortFile string

	// Logger gets every decision: what was asked, found, decided and obtained. Debug for each attempt, Info for the
	// listener obtained, Warn for what a person should know: another port, a process stopped. Nil discards.
	Logger *slog.Logger

	// OnEvent, if not nil, is called for what happens to an address: for metrics, health pages and alerts. It is called by
	// the goroutine that calls Listen or Close, which goes on when it returns, so it must be quick, and it may be called by
	// several at once.
	OnEvent func(Event)
}

var discard = slog.New(slog.DiscardHandler)

// logger is Logger, or one that discards.
func (c *Config) logger() *slog.Logger {
	if c.Logger == nil {
		return discard
	}
	return c.Logger
}

// A Middleware wraps a listener. The wrapper's Accept must give [net.ErrClosed] after Close; where it hides the listener
// inside, it should show it by a method Unwrap() net.Listener, so that [As] and [OriginOf] see through it.
type Middleware func(net.Listener) net.Listener

// A Source hands over sockets that exist already: systemd's, or those of the process before this one. The name is that
// of the service, the address what the caller asked for. An error that is [io/fs.ErrNotExist] means: nothing here for
// that, ask the next. Any other error ends the attempt. It uses built-in types only, so that a Source need not import
// this package.
type Source interface {
	Take(name, network, address string) (net.Listener, error)
	TakePacket(name, network, address string) (net.PacketConn, error)
}

// A Keeper is a [Source] that also hands on: it is given every socket that was obtained elsewhere, before Listen returns; of
// [Config.ListenGroup] the first, unless it has the methods for more that the upgrader of package reload has.
// An error from it ends the attempt. The socket is that of package net, such as [*net.TCPListener]; its Close closes it for
// the listener too. The upgrader of package reload gets a mere [syscall.Conn] where the file of a Unix socket is not this
// program's to remove: another Source had the socket, or systemd stores it.
type Keeper interface {
	Keep(name, network, address string, socket syscall.Conn) error
}

// Listen obtains a listener for the address: from a Source, else by a bind, else by what the Strategy decides.
//
// The context bounds the attempt, with its waits and the stopping of processes; where it has ended already, nothing is
// tried. It has no effect on the listener that is returned. The networks are those of [net.Listen]: "tcp", "tcp4", "tcp6", "unix" and "unixpacket". The file of a Unix
// socket that nobody serves any more is replaced, whatever the strategy; a live one never.
//
// A failure is an [*net.OpError]. Where the address was well-formed, the Err in it is an [*Error], which says who holds
// the address and what to do.
func (c *Config) Listen(ctx context.Context, network, address string) (*Listener, error) {
	a := c.attempt(network, address)
	ln, h, err := a.run(ctx)
	if err == nil {
		ln, err = whole(ctx, &a, ln, &h)
	}
	if err != nil {
		return nil, err
	}
	return newListener(ln, c.Middleware, h), nil
}

func (c *Config) attempt(network, address string) attempt[net.Listener] {
	return attempt[net.Listener]{
		config: c, network: network, requested: address, portFile: c.PortFile,
		take:   Source.Take,
		bind:   c.Net.Listen,
		addrOf: net.Listener.Addr,
	}
}

// ListenPacket is [Config.Listen] for "udp", "udp4", "udp6" and "unixgram". Middleware is not applied.
func (c *Config) ListenPacket(ctx context.Context, network, address string) (*PacketConn, error) {
	a := c.packetAttempt(network, address)
	conn, h, err := a.run(ctx)
	if err != nil {
		return nil, err
	}
	return newPacketConn(conn, h), nil
}

func (c *Config) packetAttempt(network, address string) attempt[net.PacketConn] {
	return attempt[net.PacketConn]{
		config: c, network: network, requested: address, portFile: c.PortFile,
		take:   Source.TakePacket,
		bind:   c.Net.ListenPacket,
		addrOf: net.PacketConn.LocalAddr,
	}
}

// ListenAll is [Config.Listen] for several addresses, all or none: when one fails, those before it are closed. The
// PortFile has all of them, in their order, and is removed with the last Close. Passed sockets are matched by their
// addresses, since the Name is that of all. Without addresses it returns none.
func (c *Config) ListenAll(ctx context.Context, network string, addresses ...string) ([]*Listener, error) {
	attempts := make([]attempt[net.Listener], len(addresses))
	opened := make([]net.Listener, 0, len(addresses))
	holds := make([]hold, 0, len(addresses))
	for i, address := range addresses {
		attempts[i] = c.attempt(network, address)
		attempts[i].portFile, attempts[i].byAddress = "", len(addresses) > 1
		ln, h, err := attempts[i].open(ctx)
		if err != nil {
			// An address that was given twice is held by this process, which must be found out before it is closed.
			if e := (*Error)(nil); len(opened) > 0 && errors.As(err, &e) {
				e.Diagnosis()
			}
			closeAll(opened, holds)
			return nil, err
		}
		opened, holds = append(opened, ln), append(holds, h)
	}
	return c.complete(ctx, attempts, opened, holds, c.Middleware)
}

// closeAll closes what was opened before a failure, which is what counts.
func closeAll(opened []net.Listener, holds []hold) {
	for i, ln := range opened {
		_ = holds[i].close(ln.Close)
	}
}

// complete makes listeners of what several attempts have opened, with one port file. After an error nothing is left.
func (c *Config) complete(ctx context.Context, attempts []attempt[net.Listener], opened []net.Listener, holds []hold, middleware []Middleware) ([]*Listener, error) {
	if c.PortFile != "" && len(opened) > 0 {
		obtained := make([]string, len(holds))
		for i, h := range holds {
			obtained[i] = h.origin.Address
		}
		remove, err := keepPortFile(ctx, attempts[0].lineage, attempts[0].log, c.PortFile, obtained)
		if err != nil {
			closeAll(opened, holds)
			return nil, &net.OpError{Op: "listen", Net: attempts[0].network, Err: &Error{Requested: attempts[0].requested, Cause: err}}
		}
		remove = afterCalls(len(opened), remove)
		for i := range holds {
			holds[i].removePortFile = remove
		}
	}
	// What cannot be taken back comes last.
	for i, ln := range opened {
		err := attempts[i].handOn(ctx, ln, &holds[i])
		if err == nil {
			opened[i], err = whole(ctx, &attempts[i], ln, &holds[i])
		}
		if err != nil {
			opened = slices.Delete(opened, i, i+1)
			holds = slices.Delete(holds, i, i+1) // that one is closed
			closeAll(opened, holds)
			return nil, err
		}
	}
	var all []*Listener
	for i, ln := range opened {
		all = append(all, newListener(ln, middleware, holds[i]))
	}
	return all, nil
}
