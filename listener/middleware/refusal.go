package middleware

import (
	"errors"
	"net"
)

// A Reason says in a word why a connection was refused: a label for metrics and logs. There are few, and none depends on
// what a client sends.
type Reason string

// The reasons of the middlewares in this package.
const (
	ReasonLimit       Reason = "limit"         // as many connections are open as Limit allows
	ReasonLimitPerIP  Reason = "limit_per_ip"  // as many are open from this source as LimitPerIP allows
	ReasonRate        Reason = "rate"          // they come faster than Rate allows
	ReasonRatePerIP   Reason = "rate_per_ip"   // they come faster from this source than Rate allows
	ReasonDenied      Reason = "denied"        // Allow does not have the address, or Deny has it
	ReasonProxyHeader Reason = "proxy_header"  // Proxy: no header, a bad one, or one from a source that is not trusted
	ReasonTLS         Reason = "tls_handshake" // TLS: the handshake failed or took too long
	ReasonMux         Reason = "mux"           // Mux: nobody is there for what the client speaks
	ReasonMuxTimeout  Reason = "mux_timeout"   // Mux: the client said nothing for too long
	ReasonPending     Reason = "pending"       // too many connections have yet to say something
	ReasonDescriptors Reason = "descriptors"   // the process has no descriptors left
	ReasonPanic       Reason = "panic"         // a hook panicked, and Recover was there
	ReasonHook        Reason = "hook"          // Hook.Accept gave an error that is no Refusal
	ReasonClosed      Reason = "closed"        // the listener was closed before the connection could be handed out
)

// A Refusal is why a connection was closed instead of being handed out. It is what Hook.Refused is told, and an error, so
// that Hook.Accept may return one to give a Reason of its own.
type Refusal struct {
	Reason Reason
	Err    error // what happened, if there is more to say; may be nil
}

// Error is the reason and, if there is more to say, what happened.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return "connection refused: " + string(r.Reason)
	}
	return "connection refused: " + string(r.Reason) + ": " + r.Err.Error()
}

// Unwrap is what happened.
func (r *Refusal) Unwrap() error { return r.Err }

// refusalOf makes a Refusal of what a hook gave.
func refusalOf(err error) *Refusal {
	if r := (*Refusal)(nil); errors.As(err, &r) {
		return r
	}
	return &Refusal{Reason: ReasonHook, Err: err}
}

var (
	panicRefusal  = &Refusal{Reason: ReasonPanic}
	closedRefusal = &Refusal{Reason: ReasonClosed, Err: net.ErrClosed}
)
