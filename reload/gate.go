package reload

import (
	"context"
	"errors"
	"net"
	"os"
	"reflect"
	"sync"
	"syscall"
	"time"
)

// A gate is a listener whose Accept can be held without closing the socket: the successor accepts, and if it dies, this
// one goes on. No connection is lost: one that the kernel has handed out is given to the caller, held or not. That goes also
// for those that a listener of many layers keeps to itself for a while, as for a TLS handshake, where it can say when it has
// none left: see pendingKeeper.
type gate struct {
	net.Listener
	setDeadline func(time.Time) error // interrupts an Accept; nil: it cannot be
	keepers     []pendingKeeper       // among its layers

	asked     chan struct{} // closed by the first Accept
	askedOnce sync.Once

	mu        sync.Mutex
	closed    bool
	opened    chan struct{} // not nil: held, until it is closed by release or Close
	dry       bool          // held, and the listener has none left
	holds     int           // how often hold was called
	accepting int           // calls inside the listener's own Accept
	out       int           // connections handed out whose receiver has not come back for the next
	settling  chan struct{} // not nil: somebody waits for accepting and out to be 0
}

// A pendingKeeper is a listener that may have accepted connections which Accept has not given yet. While it drains, a
// deadline in the past interrupts Accept only when there are none left.
type pendingKeeper interface{ SetDraining(draining bool) }

func newGate(ln net.Listener) *gate {
	g := &gate{Listener: ln, asked: make(chan struct{})}
	for inner := ln; inner != nil; inner = innerListener(inner) {
		if k, ok := inner.(pendingKeeper); ok {
			g.keepers = append(g.keepers, k)
		}
		if g.setDeadline != nil {
			continue
		}
		// One can have the method and not the means, such as a wrapper around an unknown listener.
		if d, ok := inner.(interface{ SetDeadline(time.Time) error }); ok && d.SetDeadline(time.Time{}) == nil {
			g.setDeadline = d.SetDeadline
		}
	}
	return g
}

// innerListener is what a listener wraps: what Unwrap says, or else what its field Listener holds. That is the only way
// into the one of tls.NewListener.
func innerListener(ln net.Listener) net.Listener {
	if wrapper, ok := ln.(interface{ Unwrap() net.Listener }); ok {
		return wrapper.Unwrap()
	}
	return fieldOf[net.Listener](ln, "Listener")
}

// fieldOf gives what the exported field of a struct, or of what points to one, holds; the zero T where there is none.
func fieldOf[T any](of any, name string) (held T) {
	v := reflect.ValueOf(of)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return held
	}
	if field, ok := v.Type().FieldByName(name); ok && len(field.Index) == 1 && field.IsExported() {
		held, _ = v.FieldByIndex(field.Index).Interface().(T)
	}
	return held
}

// Accept waits for the next connection, while the gate is held for its release too. Errors are those of the listener.
func (g *gate) Accept() (net.Conn, error) {
	g.askedOnce.Do(func() { close(g.asked) })
	g.mu.Lock()
	if g.out > 0 {
		g.out--
	}
	for {
		for g.opened != nil && g.dry && !g.closed {
			opened := g.opened
			g.settleLocked()
			g.mu.Unlock()
			<-opened
			g.mu.Lock()
		}
		if g.closed {
			g.settleLocked()
			g.mu.Unlock()
			return nil, &net.OpError{Op: "accept", Net: g.Addr().Network(), Addr: g.Addr(), Err: net.ErrClosed}
		}
		holds, held := g.holds, g.opened != nil
		g.accepting++
		g.mu.Unlock()

		conn, err := g.Listener.Accept()

		g.mu.Lock()
		g.accepting--
		interrupted := (held || g.opened != nil || g.holds != holds) && errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case err == nil:
			g.out++
			g.mu.Unlock()
			return conn, nil
		case !interrupted && (!g.closed || errors.Is(err, net.ErrClosed)):
			g.settleLocked()
			g.mu.Unlock()
			return nil, err
		case interrupted && g.opened != nil && g.holds == holds:
			g.dry = true
		}
	}
}

// accepts is closed once somebody accepts.
func (g *gate) accepts() <-chan struct{} { return g.asked }

// holdAll holds gates. All are held before the first Accept is interrupted: listeners with a socket in common, as those of a
// Mux, are interrupted together.
func holdAll(gates ...*gate) {
	for _, g := range gates {
		g.hold()
	}
	for _, g := range gates {
		g.interrupt()
	}
}

// hold makes Accept wait for release, but not one that is in progress.
func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.opened != nil {
		return
	}
	g.opened = make(chan struct{})
	g.holds++
	// One that keeps none has none left, and where Accept cannot be interrupted none is to be called.
	g.dry = len(g.keepers) == 0 || g.setDeadline == nil
	for _, k := range g.keepers {
		k.SetDraining(true)
	}
}

// interrupt makes an Accept that is in progress wait as well, where it can be interrupted.
func (g *gate) interrupt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed && g.opened != nil && g.setDeadline != nil {
		_ = g.setDeadline(time.Unix(1, 0)) // fails only once it is closed
	}
}

// release lets Accept go on.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.opened == nil {
		return
	}
	for _, k := range g.keepers {
		k.SetDraining(false)
	}
	if g.setDeadline != nil {
		_ = g.setDeadline(time.Time{})
	}
	close(g.opened)
	g.opened = nil
}

// settled gives a channel that is closed once whoever accepts has no connection in hand that nobody else knows of: he
// waits for the release of the gate, or has been told that it is closed. A gate that is open has nothing to wait for, and
// neither has one whose Accept cannot be interrupted.
func (g *gate) settled() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.settling == nil {
		g.settling = make(chan struct{})
	}
	settling := g.settling
	if !g.closed && (g.opened == nil || g.setDeadline == nil) {
		close(g.settling)
		g.settling = nil
	} else {
		g.settleLocked()
	}
	return settling
}

func (g *gate) settleLocked() {
	if g.settling != nil && g.accepting == 0 && g.out == 0 {
		close(g.settling)
		g.settling = nil
	}
}

// emptyAll waits until gates have handed out what their listeners keep, as long as ctx lets it, and holds them where they are
// not held yet. It reports whether there are any that may keep something: the others are left alone.
func emptyAll(ctx context.Context, gates []*gate) bool {
	var keeping []*gate
	for _, g := range gates {
		if len(g.keepers) > 0 {
			keeping = append(keeping, g)
		}
	}
	holdAll(keeping...)
	for _, g := range keeping {
		select {
		case <-g.settled():
		case <-ctx.Done():
		}
	}
	return len(keeping) > 0
}

// Close closes the listener. Accept gives [net.ErrClosed] from then on, held or not.
func (g *gate) Close() error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		if g.opened != nil {
			close(g.opened)
		}
	}
	g.mu.Unlock()
	return g.Listener.Close()
}

// Unwrap is the listener behind the gate.
func (g *gate) Unwrap() net.Listener { return g.Listener }

// SyscallConn gives access to the socket, where the listener does.
func (g *gate) SyscallConn() (syscall.RawConn, error) {
	if c, ok := g.Listener.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, &net.OpError{Op: "raw-control", Net: g.Addr().Network(), Addr: g.Addr(), Err: errors.ErrUnsupported}
}
