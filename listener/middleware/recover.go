package middleware

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
)

// Recover keeps a panic in a function of a [Hook] from ending the program, wherever in the listener's middleware the Hook
// stands: it is logged with its stack, and the connection is refused if it was not handed out yet. Panics in middleware of
// other kinds, and in the server, are not its business. No connection is wrapped.
type Recover struct {
	Logger *slog.Logger // nil means slog.Default()
}

// Wrap puts it around a listener.
func (r Recover) Wrap(ln net.Listener) net.Listener {
	ln = wrap(ln, part{})
	guard := func(recovered any) {
		loggerOr(r.Logger).LogAttrs(context.Background(), slog.LevelError, "a connection hook panicked",
			slog.String("address", ln.Addr().String()), slog.String("panic", fmt.Sprint(recovered)), slog.String("stack", string(debug.Stack())))
	}
	stackOf(ln).guard.Store(&guard)
	return ln
}

func loggerOr(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}
