// Package listener gives a server its port.
//
// [Listen] replaces [net.Listen]. A [Config] does more: it takes over a socket that somebody already holds for this
// program, binds one otherwise, and when the address is taken it does what its strategy says: stop the stale process
// that holds it (development), move to another port (staging), or fail at once and say who holds it (production).
//
//	cfg := listener.Config{Strategy: strategy.Development(), Logger: slog.Default()}
//	ln, err := cfg.Listen(ctx, "tcp", ":3000")
//	if err != nil {
//		log.Fatal(err) // listen tcp :3000: bind: address already in use; held by python3 (pid 4242, ...): kill 4242, ...
//	}
//	http.Serve(ln, handler)
//
// Which processes may be stopped, and which never, is written down in SECURITY.md.
package listener

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Listen is net.Listen, and assignable wherever net.Listen is. It adds two things only: a socket that systemd passed for
// this address is taken over (see package activation; "fd:http" as the address takes exactly the one of that name), and
// a failure says who holds the port (see [Error]). Nothing is wrapped, locked or logged: what it returns is the standard
// library's own type (ln.(*net.TCPListener) holds). Errors are those of net.Listen, an [*net.OpError] with errors.Is as
// usual.
func Listen(network, address string) (net.Listener, error) {
	if ln, ok, err := takePassed(network, address, Source.Take); ok || err != nil {
		return ln, err
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), network, address)
	if err != nil {
		return nil, explain(address, err)
	}
	return ln, nil
}

// ListenPacket is to [net.ListenPacket] what [Listen] is to net.Listen.
func ListenPacket(network, address string) (net.PacketConn, error) {
	if conn, ok, err := takePassed(network, address, Source.TakePacket); ok || err != nil {
		return conn, err
	}
	conn, err := new(net.ListenConfig).ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, explain(address, err)
	}
	return conn, nil
}

// A Listener is what [Config.Listen] returns: a [net.Listener] and a [syscall.Conn]. Accept hands out the bare
// [*net.TCPConn] or [*net.UnixConn] unless a middleware wraps it. Its methods may be called from several goroutines.
type Listener struct {
	accepting net.Listener // base inside its middleware
	base      net.Listener // *net.TCPListener, *net.UnixListener, or what a Source gave
	hold      hold
	close     func() error
}

var (
	_ net.Listener = (*Listener)(nil)
	_ syscall.Conn = (*Listener)(nil)
)

func newListener(base net.Listener, middleware []Middleware, h hold) *Listener {
	ln := &Listener{accepting: base, base: base, hold: h}
	wrapped := false
	for i := len(middleware) - 1; i >= 0; i-- {
		if wrap := middleware[i]; wrap != nil {
			if outer := wrap(ln.accepting); outer != nil {
				ln.accepting, wrapped = outer, true
			}
		}
	}
	ln.close = sync.OnceValue(func() error {
		return ln.hold.close(func() error {
			err := ln.accepting.Close()
			if wrapped { // a middleware that keeps Close to itself must not keep the address
				if baseErr := ln.base.Close(); err == nil && !errors.Is(baseErr, net.ErrClosed) {
					err = baseErr
				}
			}
			return err
		})
	})
	return ln
}

// Accept waits for the next connection. After Close it gives [net.ErrClosed].
func (l *Listener) Accept() (net.Conn, error) { return l.accepting.Accept() }

// Close stops listening and releases lock, record, port file and Unix socket file; once a new version of the program has
// taken over (package reload), they are left to that. It does not touch connections that were accepted. Called again, it
// repeats its first result.
func (l *Listener) Close() error { return l.close() }

// Addr is the address that was obtained, as the kernel reports it.
func (l *Listener) Addr() net.Addr { return l.base.Addr() }

// Origin tells how the listener came by its address.
func (l *Listener) Origin() Origin { return l.hold.origin }

// Unwrap is the listener inside: the outermost middleware, or the standard library's own. See [As].
func (l *Listener) Unwrap() net.Listener { return l.accepting }

// SetDeadline bounds Accept, as [net.TCPListener.SetDeadline] does. The zero time takes the bound away. The outermost
// middleware that has the method is asked, since it may wait for something else than the socket.
func (l *Listener) SetDeadline(t time.Time) error {
	if d, ok := As[interface {
		net.Listener
		SetDeadline(time.Time) error
	}](l.accepting); ok {
		if err := d.SetDeadline(t); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if d, ok := l.base.(interface{ SetDeadline(time.Time) error }); ok { // a middleware hides it, or knows nothing of what it wraps
		return d.SetDeadline(t)
	}
	return unsupported("set deadline", l.base.Addr())
}

// SetUnlinkOnClose says whether Close removes the file of a Unix socket, as [net.UnixListener.SetUnlinkOnClose] does. It
// does by default where Listen bound the socket, and never otherwise.
func (l *Listener) SetUnlinkOnClose(unlink bool) { l.hold.setUnlink(unlink) }

// File is a duplicate of the socket for another process; closing it does not close the listener. The caller closes it.
// Package os/exec makes what it passes on blocking, for this listener too, whose Close then waits for a connection; a
// program that goes on to use the listener calls [syscall.SetNonblock] after the start of the child.
func (l *Listener) File() (*os.File, error) { return fileOf(l.base, l.base.Addr()) }

// SyscallConn gives access to the socket.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return rawOf(l.base, l.base.Addr()) }

func fileOf(socket any, addr net.Addr) (*os.File, error) {
	if f, ok := socket.(interface{ File() (*os.File, error) }); ok {
		return f.File()
	}
	return nil, unsupported("file", addr)
}

func rawOf(socket any, addr net.Addr) (syscall.RawConn, error) {
	if c, ok := socket.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, unsupported("raw-control", addr)
}

// unsupported is for what only a socket of a custom Source can lack.
func unsupported(op string, addr net.Addr) error {
	return &net.OpError{Op: op, Net: addr.Network(), Addr: addr, Err: errors.ErrUnsupported}
}

// As finds the first listener of type T in ln and what it wraps: As[*net.TCPListener](ln). Wrappers show what is inside
// by a method Unwrap() net.Listener.
func As[T any](ln net.Listener) (T, bool) {
	for ln != nil {
		if found, ok := ln.(T); ok {
			return found, true
		}
		wrapper, ok := ln.(interface{ Unwrap() net.Listener })
		if !ok {
			break
		}
		ln = wrapper.Unwrap()
	}
	var none T
	return none, false
}

// OriginOf tells how a listener came by its address, through wrappers with Unwrap. It is false for listeners that did
// not come from a [Config].
func OriginOf(ln net.Listener) (Origin, bool) {
	l, ok := As[interface {
		net.Listener
		Origin() Origin
	}](ln)
	if !ok {
		return Origin{}, false
	}
	return l.Origin(), true
}
