package reload

import (
	"context"
	"errors"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// hijacks are connections that have been taken over from net/http, which knows nothing of them from then on. They are not
// wrapped, so that their types stay; whether one has been closed is asked of its socket, when it matters.
type hijacks struct {
	opaque atomic.Int64 // how many of conns have no socket that could be asked

	mu    sync.Mutex
	conns []net.Conn
	prune int // the length of conns at which those that are closed are taken out
}

func (h *hijacks) add(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.conns) >= max(h.prune, 64) {
		h.pruneLocked()
		h.prune = 2 * len(h.conns) // so that on average one is asked for each that is added
	}
	if socketOf(conn) == nil {
		if !reflect.ValueOf(conn).Comparable() {
			return // could not be found again
		}
		h.opaque.Add(1)
	}
	h.conns = append(h.conns, conn)
}

// returned says that a request's handler has returned. That ends a connection which cannot be asked.
func (h *hijacks) returned(r *http.Request) {
	if h.opaque.Load() == 0 {
		return
	}
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	if conn == nil || socketOf(conn) != nil || !reflect.ValueOf(conn).Comparable() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.conns, conn); i >= 0 {
		h.conns = slices.Delete(h.conns, i, i+1)
		h.opaque.Add(-1)
	}
}

func (h *hijacks) pruneLocked() {
	h.conns = slices.DeleteFunc(h.conns, func(conn net.Conn) bool {
		socket := socketOf(conn)
		return socket != nil && isClosed(socket)
	})
}

// wait waits until all are closed, or ctx ends. Nothing tells when one is closed, so it asks now and then.
func (h *hijacks) wait(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		h.mu.Lock()
		h.pruneLocked()
		open := len(h.conns)
		h.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// close closes those that are open, and says how many they were.
func (h *hijacks) close() int {
	h.mu.Lock()
	h.pruneLocked()
	conns := h.conns
	h.conns = nil
	h.opaque.Store(0)
	h.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
	return len(conns)
}

// socketOf is the socket below a connection, nil where it is hidden.
func socketOf(conn net.Conn) syscall.Conn {
	for conn != nil {
		switch c := conn.(type) {
		case syscall.Conn:
			if raw, err := c.SyscallConn(); raw != nil && err == nil || errors.Is(err, net.ErrClosed) {
				return c
			}
			return nil
		case interface{ NetConn() net.Conn }: // such as *tls.Conn
			conn = c.NetConn()
		case interface{ Unwrap() net.Conn }:
			conn = c.Unwrap()
		default:
			conn = fieldOf[net.Conn](conn, "Conn")
		}
	}
	return nil
}

func isClosed(socket syscall.Conn) bool {
	raw, err := socket.SyscallConn()
	if err == nil {
		err = raw.Control(func(uintptr) {})
	}
	return errors.Is(err, net.ErrClosed)
}
