package listener

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/berth-go/berth/strategy"
)

// An EventKind is what happened to an address.
type EventKind uint8

// The zero EventKind is none of these.
const (
	Conflict EventKind = iota + 1 // the address that was asked for is taken; once a call, before the strategy is asked
	Reclaim                       // holders were asked to end: all did, or Err says which did not
	LockWait                      // lock or record had to be waited for, or somebody has them: Err
	Obtained                      // the socket is there; Origin tells how
	Failed                        // the call fails: Err is what it returns
	Released                      // the listener was closed, or a reservation ended
	Reserved                      // the address is reserved, and nothing accepts on it yet; Origin tells how
)

// String is the name in lower case.
func (k EventKind) String() string {
	names := [...]string{"unknown", "conflict", "reclaim", "lock wait", "obtained", "failed", "released", "reserved"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("EventKind(%d)", k)
}

// An Event is something that happened to an address of a [Config]. See Config.OnEvent.
type Event struct {
	Kind      EventKind
	Time      time.Time
	Name      string        // Config.Name
	Network   string        // as asked for
	Requested string        // as asked for
	Address   string        // the address that is taken, or that was obtained; "" where there is none
	Elapsed   time.Duration // since the call began; of LockWait how long the wait was; of Released how long it was open
	Origin    Origin        // of Obtained, Reserved and Released
	Stopped   []strategy.Holder
	Err       error
	// Diagnose finds out who holds the address, as Failure.Diagnose does: of Conflict alone, nil else.
	Diagnose func() strategy.Diagnosis
}

// LogValue groups what a log should show.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", e.Kind.String()), slog.String("network", e.Network), slog.String("requested", e.Requested)}
	for _, text := range []slog.Attr{slog.String("name", e.Name), slog.String("address", e.Address)} {
		if text.Value.String() != "" {
			attrs = append(attrs, text)
		}
	}
	if e.Origin.Kind != 0 {
		attrs = append(attrs, slog.String("origin", e.Origin.Kind.String()))
	}
	for _, h := range e.Stopped {
		attrs = append(attrs, slog.Any("stopped", h))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	return slog.GroupValue(attrs...)
}
