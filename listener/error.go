package listener

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// Error is the Err inside the [*net.OpError] that a failed Listen returns. The diagnosis is taken once, when first asked
// for, so a caller that only compares errors pays nothing; its text asks for it.
//
//	var e *listener.Error
//	if errors.As(err, &e) {
//		for _, h := range e.Diagnosis().Holders { ... }
//	}
type Error struct {
	Requested string            // the address that was asked for
	History   []strategy.Action // what was carried out before giving up, oldest first
	Err       error             // the failure of the last bind; errors.Is(err, syscall.EADDRINUSE) for a taken address, on every system
	Cause     error             // what ended the attempt other than the bind: the context, a failed Run, a failed signal; else nil

	advice  string // of strategy.Fail
	weighed bool   // the strategy asked who holds the address, so the error says why nobody was stopped
	target  sockets.Target
	inspect func() strategy.Diagnosis
}

func newError(requested string, err error, target sockets.Target, inspect func() strategy.Diagnosis) *Error {
	return &Error{Requested: requested, Err: err, target: target, inspect: inspect}
}

// Diagnosis tells who holds the address. It is the same at every call.
func (e *Error) Diagnosis() strategy.Diagnosis {
	if e.inspect == nil {
		return strategy.Diagnosis{}
	}
	return e.inspect()
}

// Advice is what a person can do about it, in one sentence without a full stop; "" where there is nothing to say.
func (e *Error) Advice() string {
	if e.advice != "" {
		return e.advice
	}
	return join(holder.Advice(e.target, e.Err, e.Diagnosis))
}

// join makes one sentence of alternatives.
func join(advice []string) string {
	switch n := len(advice); n {
	case 0:
		return ""
	case 1:
		return advice[0]
	default:
		return strings.Join(advice[:n-1], ", ") + " or " + advice[n-1]
	}
}

// Error is one line: fact, cause, remedy.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	}
	if kept := (*keptError)(nil); isInUse(e.Err) && !errors.As(e.Err, &kept) {
		switch d, obstacle := e.Diagnosis(), holder.Obstacle(e.target); {
		case len(d.Holders) > 0:
			b.WriteString("; held by " + d.String())
		case obstacle != "":
			b.WriteString("; " + e.target.Path + " is " + obstacle)
		case d.Complete:
			b.WriteString("; held by nobody any more")
		default:
			b.WriteString("; held by a process that cannot be seen")
		}
	}
	cause := e.Cause
	if cause == nil && e.weighed {
		cause = holder.Refused(e.Diagnosis())
	}
	if cause != nil {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		b.WriteString(strings.ReplaceAll(cause.Error(), "\n", "; ")) // of errors.Join, or of a command that Run ran
	}
	var refused *holder.RefusedError
	if e.advice == "" && errors.As(cause, &refused) && refused.Holder.Refusal != "" {
		return b.String() // which says what to do
	}
	if advice := e.Advice(); advice != "" {
		b.WriteString(": " + advice)
	}
	return b.String()
}

// Unwrap gives Err and Cause.
func (e *Error) Unwrap() []error {
	return slices.DeleteFunc([]error{e.Err, e.Cause}, func(err error) bool { return err == nil })
}

// Timeout tells whether a deadline ended the attempt.
func (e *Error) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Cause, &t) && t.Timeout()
}

// Temporary tells what the failure of the bind tells of itself, as package net does for EMFILE.
func (e *Error) Temporary() bool {
	var t interface{ Temporary() bool }
	return errors.As(e.Err, &t) && t.Temporary()
}

// explain puts an Error inside what a plain bind gave.
func explain(address string, err error) error {
	failed, target, ok := failedBind(err)
	if !ok {
		return err
	}
	failed.Err = newError(address, failed.Err, target, sync.OnceValue(func() strategy.Diagnosis {
		records, _ := registry.Existing("") // without records the search still finds everybody, later
		return holder.Search{Target: target, Records: records}.Diagnose(context.Background())
	}))
	return failed
}

// failedBind tells whether err is the failure of a system call on an address that was well-formed, and of which one. It
// gives a copy of the OpError to put the Error into. Anything else is net's own error and stays as it is.
func failedBind(err error) (*net.OpError, sockets.Target, bool) {
	var failed *net.OpError
	var call *os.SyscallError
	if !errors.As(err, &failed) || !errors.As(failed.Err, &call) {
		return nil, sockets.Target{}, false
	}
	target, ok := sockets.TargetOf(failed.Net, failed.Addr)
	if !ok {
		return nil, sockets.Target{}, false
	}
	failed = &net.OpError{Op: failed.Op, Net: failed.Net, Source: failed.Source, Addr: failed.Addr, Err: portable(failed.Err)}
	return failed, target, true
}
