package listener

import (
	"fmt"
	"log/slog"

	"github.com/berth-go/berth/strategy"
)

// An OriginKind is how a listener came by its address.
type OriginKind uint8

// The zero OriginKind is none of these.
const (
	Bound     OriginKind = iota + 1 // it bound the address that was asked for
	Fallback                        // it bound another port, since the one asked for was taken
	Reclaimed                       // it bound the address after it stopped who held it
	Activated                       // a Source had the socket: systemd
	Inherited                       // a Source that is a Keeper had it: an earlier version of this program
)

// String is the name in lower case.
func (k OriginKind) String() string {
	names := [...]string{"unknown", "bound", "fallback", "reclaimed", "activated", "inherited"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("OriginKind(%d)", k)
}

// Origin tells how a listener came by its address.
type Origin struct {
	Kind      OriginKind
	Requested string            // the address that was asked for
	Address   string            // the address that was obtained
	History   []strategy.Action // what was carried out to obtain it, oldest first; nil when the first bind succeeded
	InTheWay  []strategy.Holder // who was stopped (Reclaimed), or avoided (Fallback: known where the strategy or the log asked)
}

// LogValue groups what a log should show.
func (o Origin) LogValue() slog.Value {
	return slog.GroupValue(slog.String("kind", o.Kind.String()), slog.String("requested", o.Requested), slog.String("address", o.Address))
}
