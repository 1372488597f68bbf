package middleware

import (
	"net"
	"time"
)

// A Hook is a middleware of one's own: functions that are called for what happens to connections. Nil functions cost
// nothing; a Hook without Closed needs no wrapper around the connections. The functions may be called by several goroutines
// at once, and must be quick: all but Closed are called inside Accept.
//
//	hook := middleware.Hook{Accept: func(conn net.Conn) error {
//		if maintenance.Load() {
//			return errors.New("down for maintenance")
//		}
//		return nil
//	}}
//	cfg := listener.Config{Middleware: []listener.Middleware{hook.Wrap}}
type Hook struct {
	// Accept is asked about each connection. An error refuses it: it is closed, and Accept of the listener goes on with
	// the next one. An error that is a [*Refusal] says why in a word; any other counts as [ReasonHook].
	Accept func(conn net.Conn) error

	// Accepted is told of each connection that is handed out.
	Accepted func(conn net.Conn)

	// Refused is told of each connection that is closed instead, whichever middleware refused it, and after it was closed:
	// its addresses are all that is left of it.
	Refused func(conn net.Conn, refusal *Refusal)

	// Closed is called once for each connection that Accept let pass, and how long ago it was accepted: when it is closed by
	// its user, or when a middleware that was asked later refuses it. Where Accept is nil, it is called once for each
	// connection that was handed out. A connection that is never closed is never told.
	Closed func(conn net.Conn, open time.Duration)

	// Failed is told of each error of the socket's Accept, also where Backoff tries again. The end of the listener, and of a
	// deadline that was set for it, are no failures.
	Failed func(err error)
}

// Wrap puts the hook around a listener.
func (h Hook) Wrap(ln net.Listener) net.Listener {
	p := part{refused: h.Refused, failed: h.Failed, accepted: h.Accepted, closed: h.Closed, foreign: true}
	if h.Accept != nil {
		p.admit = func(conn net.Conn, _ *shared) error { return h.Accept(conn) }
	}
	return wrap(ln, p)
}
