package health

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// A looker looks at the ports of the machine, at all of them, so that one look answers whatever is asked. There is one look at a
// time, and none within the period after another; the table of the kernel is about sockets that listen or are bound, not
// about connections, so it is short.
type looker struct {
	options inspect.Options
	period  time.Duration
	log     *slog.Logger
	inspect func(context.Context, inspect.Options) (inspect.Summary, error) // inspect.System but in tests

	mu      sync.Mutex
	closed  bool
	latest  *look
	current *look // is being taken; nil: none
	cancel  context.CancelFunc
}

// A look is what the machine was like.
type look struct {
	done  chan struct{} // closed when the rest is there
	taken time.Time
	good  time.Time // until then
	ports []inspect.Report
	err   error
}

// longest is how long a look may take, and a request waits for one.
const longest = 10 * time.Second

var errLate = errors.New("the machine is slow to tell about its ports: ask again")

func newLooker(o inspect.Options, period time.Duration, log *slog.Logger) *looker {
	o.Ranges = []strategy.Range{{First: 1, Last: 65535}}
	return &looker{options: o, period: period, log: log, inspect: inspect.System}
}

// look is the latest look, or a new one where that is too old. An error counts as one, too.
func (l *looker) look(ctx context.Context) (*look, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, net.ErrClosed
	}
	if at := l.latest; at != nil && time.Now().Before(at.good) {
		l.mu.Unlock()
		return at, at.err
	}
	at := l.current
	if at == nil {
		at = &look{done: make(chan struct{}), taken: time.Now()}
		l.current = at
		// It goes on when who asked first has gone, for the others.
		var ctx context.Context
		ctx, l.cancel = context.WithTimeout(context.Background(), longest)
		go l.take(ctx, at)
	}
	l.mu.Unlock()

	// Where it hangs, as what reads of a process that hangs in the kernel does, those who come later do not pile up.
	timer := time.NewTimer(time.Until(at.taken.Add(longest)))
	defer timer.Stop()
	select {
	case <-at.done:
		return at, at.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, errLate
	}
}

// take completes a look.
func (l *looker) take(ctx context.Context, at *look) {
	summary, err := l.inspect(ctx, l.options)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errLate
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		err = net.ErrClosed
	case err != nil:
		l.log.LogAttrs(ctx, slog.LevelWarn, "the ports of the machine cannot be looked at", slog.Any("error", err))
	}
	at.ports, at.err, at.good = summary.Ports, err, time.Now().Add(l.period)
	l.latest, l.current = at, nil
	l.cancel()
	close(at.done)
}

// close has the look that is being taken end, and waits for it.
func (l *looker) close() {
	l.mu.Lock()
	l.closed = true
	current := l.current
	if current != nil {
		l.cancel()
	}
	l.mu.Unlock()
	if current != nil {
		<-current.done
	}
}
