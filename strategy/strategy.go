// Package strategy decides what to do when an address is taken.
//
// A [Strategy] is asked after every failed bind and answers with an [Action]: try again, move to other ports, stop
// whoever is in the way, run something, or give up. It is a pure function over values. It opens no socket, sends no
// signal and reads no clock, so it can be tested with a table; package listener carries out what it decides.
//
//	cfg := listener.Config{Strategy: strategy.Chain(
//		strategy.Wait{For: 2 * time.Second},
//		strategy.Fallback{Ranges: []strategy.Range{{First: 3000, Last: 3010}}},
//	)}
//
// [Development], [Staging] and [Production] are the usual chains.
package strategy

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Strategy is asked after every failed bind. It returns what to do next, or nil where it has no opinion; where
// nobody has one, the listener fails. Decide must not block, and may be called from several goroutines at once.
type Strategy interface {
	Decide(Failure) Action
}

// Func lets a function be a [Strategy].
type Func func(Failure) Action

// Decide calls f.
func (f Func) Decide(failure Failure) Action { return f(failure) }

// Chain asks one strategy after the other; the first opinion wins. Nil strategies are passed over. An empty chain has
// no opinion.
func Chain(strategies ...Strategy) Strategy { return chain(slices.Clone(strategies)) }

type chain []Strategy

func (c chain) Decide(f Failure) Action {
	for _, s := range c {
		if s == nil {
			continue
		}
		if action := s.Decide(f); action != nil {
			return action
		}
	}
	return nil
}

// A Failure is what a strategy knows about a bind that failed.
type Failure struct {
	Network   string // as asked for: "tcp", "tcp4", "unix", "udp" ...
	Requested string // as asked for: "localhost:3000"
	Address   string // as resolved and tried: "127.0.0.1:3000"

	// Err is the failure of the bind. On every system errors.Is(Err, syscall.EADDRINUSE) holds for an address that
	// is taken, also on Windows, where the system has several numbers for it.
	Err error

	Elapsed time.Duration // since the first attempt
	History []Action      // what was carried out so far, oldest first

	// Diagnose tells who holds Address. It takes milliseconds and is carried out once for a failure, however often
	// it is called. Nil means that nothing can be known.
	Diagnose func() Diagnosis
}

// inUse tells whether the address is taken, in contrast to forbidden, malformed or absent.
func (f Failure) inUse() bool { return errors.Is(f.Err, syscall.EADDRINUSE) }

// isPath tells whether the address is a path, in which a colon and digits are no port.
func (f Failure) isPath() bool { return strings.HasPrefix(f.Network, "unix") }

// port is the port number that was tried, 0 where there is none.
func (f Failure) port() uint16 {
	for _, address := range []string{f.Address, f.Requested} {
		if _, text, err := net.SplitHostPort(address); err == nil {
			if port, err := strconv.ParseUint(text, 10, 16); err == nil {
				return uint16(port)
			}
		}
	}
	return 0
}

// count tells how many actions of type A were carried out.
func count[A Action](history []Action) int {
	n := 0
	for _, action := range history {
		if _, ok := action.(A); ok {
			n++
		}
	}
	return n
}

// FailFast gives up at once. The error says who holds the address and what to do about it.
type FailFast struct{}

// Decide answers [Fail].
func (FailFast) Decide(Failure) Action { return Fail{} }

// Wait tries again until the address is free: for a predecessor that is about to end, or for an interface that is
// about to get its address (EADDRNOTAVAIL). It has no opinion on other failures, nor when the time is over.
type Wait struct {
	For   time.Duration // how long since the first attempt; 0 or less: until the context ends
	Every time.Duration // pause between attempts; 0 or less: 100 ms
}

const defaultEvery = 100 * time.Millisecond

// Decide answers [Retry] as long as there is time left, the last one exactly when it is over.
func (w Wait) Decide(f Failure) Action {
	if !f.inUse() && !errors.Is(f.Err, syscall.EADDRNOTAVAIL) {
		return nil
	}
	after := w.Every
	if after <= 0 {
		after = defaultEvery
	}
	if w.For > 0 {
		left := w.For - f.Elapsed
		if left <= 0 {
			return nil
		}
		after = min(after, left)
	}
	return Retry{After: after}
}

// Fallback moves to other ports of the same host. It has no opinion when its ports were tried, on Unix sockets, and on
// failures other than a taken address: a port that may not be bound (EACCES) is not left silently.
type Fallback struct {
	Ranges []Range // tried in order; none: the ten ports after the one that was asked for
	Spread bool    // start anywhere in each range, so that a mass start does not queue at its first port
}

// Decide answers [Rebind] once.
func (s Fallback) Decide(f Failure) Action {
	if !f.inUse() || f.isPath() {
		return nil
	}
	ranges := s.Ranges
	if len(ranges) == 0 {
		port := f.port()
		if port == 0 || port == maxPort {
			return nil
		}
		ranges = []Range{{First: port + 1, Last: uint16(min(int(port)+10, maxPort))}}
	}
	if s.Spread {
		ranges = spread(ranges)
	}
	if tried(f.History, ranges) {
		return nil
	}
	return Rebind{Ports: ranges}
}

// tried tells whether every port of the ranges was part of an earlier Rebind. It compares ports, not ranges, since a
// spread fallback cuts its ranges anew each time.
func tried(history []Action, ranges []Range) bool {
	var past []Range
	for _, action := range history {
		if rebind, ok := action.(Rebind); ok {
			past = append(past, rebind.Ports...)
		}
	}
	if len(past) == 0 {
		return false
	}
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			if !slices.ContainsFunc(past, func(p Range) bool { return int(p.First) <= port && port <= int(p.Last) }) {
				return false
			}
		}
	}
	return true
}

// Aggressive stops the stale process that holds the address, under the rules that the listener checks just before the
// signal (see SECURITY.md): never a process of another user, an ancestor, or one that systemd or a container runtime
// manages. It has no opinion where a holder may not be stopped, or is not known.
//
// A copy of the same program that was started later keeps the address: then Aggressive answers [Fail], so that of two
// simultaneous starts exactly one lives, the newer.
type Aggressive struct {
	Allow func(Holder) bool // whom to stop; nil: [Holder].Ours. [AnyOfMine] widens it. A Refusal holds whatever it says.
	Grace time.Duration     // between asking and killing; 0: 5 s; less than 0: kill at once
}

// Bounds for Aggressive: after that many it has no opinion any more. A holder that something else starts again and
// again must not become a war, and an address without a holder must not become a busy loop.
const (
	maxReclaims      = 10
	maxVanishedPause = 512 * time.Millisecond // the last of ten pauses, each twice the one before: a second together
)

// Decide answers [Reclaim] when every holder may be stopped, [Retry] when the holder left in the meantime, and [Fail]
// when a newer copy of this program has the address.
func (s Aggressive) Decide(f Failure) Action {
	if !f.inUse() || f.Diagnose == nil || count[Reclaim](f.History) >= maxReclaims {
		return nil
	}
	diagnosis := f.Diagnose()
	if len(diagnosis.Holders) == 0 {
		if !diagnosis.Complete {
			return nil
		}
		// The pauses tell these retries from those of others in the chain.
		for pause := time.Millisecond; pause <= maxVanishedPause; pause *= 2 {
			if retry := (Retry{After: pause}); !slices.Contains(f.History, Action(retry)) {
				return retry
			}
		}
		return nil
	}
	allow := s.Allow
	if allow == nil {
		allow = ours
	}
	stoppable := true
	for _, h := range diagnosis.Holders {
		if h.Ours && h.Newer {
			return Fail{Advice: "a newer start of this program (pid " + strconv.Itoa(h.PID) + ") has the address and this one gives way to it"}
		}
		stoppable = stoppable && h.Refusal == "" && allow(h)
	}
	if !stoppable {
		return nil
	}
	return Reclaim(s)
}

func ours(h Holder) bool { return h.Ours }

// AnyOfMine is for [Aggressive].Allow: whatever this user may stop and no rule forbids, also a stranger.
func AnyOfMine(h Holder) bool { return h.PID > 1 && h.Refusal == "" }

// Development stops the stale process that holds the address, else moves to other ports, else fails. Without ranges,
// the other ports are the ten after the requested one.
func Development(ranges ...Range) Strategy {
	return Chain(Aggressive{}, Fallback{Ranges: slices.Clone(ranges)}, FailFast{})
}

// Staging moves to other ports when the requested one is taken, else fails; it stops nobody. Without ranges, the other
// ports are the ten after the requested one.
func Staging(ranges ...Range) Strategy {
	return Chain(Fallback{Ranges: slices.Clone(ranges)}, FailFast{})
}

// Production fails at once and says who holds the address and what to do.
func Production() Strategy { return FailFast{} }
