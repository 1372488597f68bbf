package middleware

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Log logs connections, refusals, and errors of Accept, and keeps a flood of them out of the log. It must not be copied or
// changed once it is in use; it may be put around several listeners.
type Log struct {
	// Logger gets the lines. Nil means slog.Default().
	Logger *slog.Logger

	// Sample logs one of so many connections, when it is accepted and when it is closed. 1 logs all; zero logs none, and
	// then no connection is wrapped.
	Sample int
	// Level is that of connections; the zero value is Info. Refusals and errors are warnings.
	Level slog.Level

	// Every is how often refusals of one reason, and errors, are logged while they go on: the first at once, the others in
	// one line with their number. Zero means ten seconds.
	Every time.Duration

	mu      sync.Mutex
	seen    int
	sampled table[net.Conn, struct{}]
	floods  map[Reason]*flood // of errors ""
	ticking bool
}

// A flood is what comes again and again.
type flood struct {
	count int // since it was logged
	last  trouble
}

// trouble is a refusal or an error of Accept.
type trouble struct {
	reason        Reason // "" of Accept
	local, remote net.Addr
	err           error
}

func (t trouble) attrs() []slog.Attr {
	var attrs []slog.Attr
	if t.reason != "" {
		attrs = append(attrs, slog.String("reason", string(t.reason)), slog.Any("local", t.local), slog.Any("remote", t.remote))
	}
	if t.err != nil {
		attrs = append(attrs, slog.Any("error", t.err))
	}
	return attrs
}

// maxFloods bounds how many reasons of hooks are told apart.
const maxFloods = 32

// Wrap puts it around a listener.
func (l *Log) Wrap(ln net.Listener) net.Listener {
	p := part{
		refused: func(conn net.Conn, why *Refusal) {
			l.flood(trouble{why.Reason, conn.LocalAddr(), conn.RemoteAddr(), why.Err})
		},
		failed: func(err error) { l.flood(trouble{err: err}) },
		stop:   l.flush,
	}
	if l.Sample > 0 {
		p.accepted, p.closed = l.accepted, l.closed
	}
	return wrap(ln, p)
}

func remote(conn net.Conn) slog.Attr { return slog.Any("remote", conn.RemoteAddr()) }
func local(conn net.Conn) slog.Attr  { return slog.Any("local", conn.LocalAddr()) }

func (l *Log) accepted(conn net.Conn) {
	l.mu.Lock()
	l.seen++
	chosen := l.seen%l.Sample == 1%l.Sample // the first is
	if chosen {
		l.sampled.set(conn, struct{}{})
	}
	l.mu.Unlock()
	if chosen {
		l.log(l.Level, "connection accepted", local(conn), remote(conn))
	}
}

func (l *Log) closed(conn net.Conn, open time.Duration) {
	l.mu.Lock()
	_, chosen := l.sampled.m[conn]
	if chosen {
		l.sampled.remove(conn)
	}
	l.mu.Unlock()
	if chosen {
		l.log(l.Level, "connection closed", local(conn), remote(conn), slog.Duration("open", open))
	}
}

// flood logs the first of its kind and counts the others.
func (l *Log) flood(t trouble) {
	l.mu.Lock()
	if l.floods == nil {
		l.floods = make(map[Reason]*flood)
	}
	kind := t.reason
	if l.floods[kind] == nil && len(l.floods) >= maxFloods {
		kind = "other"
	}
	if f := l.floods[kind]; f != nil {
		f.count, f.last = f.count+1, t
		l.mu.Unlock()
		return
	}
	l.floods[kind] = new(flood)
	if !l.ticking {
		l.ticking = true
		time.AfterFunc(l.every(), l.tick)
	}
	l.mu.Unlock()
	message := "connection refused"
	if t.reason == "" {
		message = "accept failed"
	}
	l.log(slog.LevelWarn, message, t.attrs()...)
}

func (l *Log) every() time.Duration {
	if l.Every > 0 {
		return l.Every
	}
	return 10 * time.Second
}

// tick logs what came since the last one, and goes on as long as anything comes.
func (l *Log) tick() {
	l.flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ticking = len(l.floods) > 0; l.ticking {
		time.AfterFunc(l.every(), l.tick)
	}
}

// flush logs what has come, and forgets what has not.
func (l *Log) flush() {
	var floods []flood
	l.mu.Lock()
	for kind, f := range l.floods {
		if f.count == 0 {
			delete(l.floods, kind)
			continue
		}
		floods = append(floods, *f)
		*f = flood{}
	}
	l.mu.Unlock()
	for _, f := range floods {
		message := "connections refused"
		if f.last.reason == "" {
			message = "accepts failed"
		}
		l.log(slog.LevelWarn, message, append([]slog.Attr{slog.Int("count", f.count)}, f.last.attrs()...)...)
	}
}

func (l *Log) log(level slog.Level, message string, attrs ...slog.Attr) {
	loggerOr(l.Logger).LogAttrs(context.Background(), level, message, attrs...)
}
