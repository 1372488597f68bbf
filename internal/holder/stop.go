package holder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

const (
	defaultGrace = 5 * time.Second
	// killGrace is how long the kernel may take to end a killed process, which can be stuck in a system call.
	killGrace = 5 * time.Second
	// progressEvery is how often a wait says that it goes on.
	progressEvery = time.Second
)

// RefusedError says which holder may not be stopped, and so why none was.
type RefusedError struct{ Holder strategy.Holder }

// Error is one line.
func (e *RefusedError) Error() string {
	reason := e.Holder.Refusal
	if reason == "" {
		reason = "it is no earlier run of this program; stop it yourself or allow it (strategy.AnyOfMine)"
	}
	if e.Holder.PID == 0 {
		return "not stopped: " + reason
	}
	return fmt.Sprintf("pid %d is not stopped: %s", e.Holder.PID, reason)
}

// Refused says why a diagnosis led to no reclaim: the first holder that may not be stopped, by a rule or because it is
// a stranger. It is nil where all may be, or none is known.
func Refused(d strategy.Diagnosis) error {
	for _, h := range d.Holders {
		if h.Refusal != "" {
			return &RefusedError{h}
		}
	}
	for _, h := range d.Holders {
		if !h.Ours {
			return &RefusedError{h}
		}
	}
	return nil
}

// NotEndedError says who was asked to end and goes on, where nobody is to be killed.
type NotEndedError struct {
	Holders []strategy.Holder
	Grace   time.Duration
}

// Error is one line.
func (e *NotEndedError) Error() string {
	return fmt.Sprintf("%v was asked to end and has not within %v", strategy.Diagnosis{Holders: e.Holders}, e.Grace)
}

// Means are how Stop ends a process: it is asked to, and killed where it has not ended after the grace.
type Means struct {
	Signal  syscall.Signal // asks; 0 means SIGTERM
	Grace   time.Duration  // 0 means 5 s, less than 0 kills at once
	AskOnly bool           // nobody is killed: the error is [NotEndedError]
}

// Stop ends every process that holds a socket in the way, or none of them when one may not be stopped ([RefusedError]).
// Allow is asked for each and nil means [strategy.Holder].Ours; the rules of judge hold whatever it says. Each process
// is asked to end and after grace killed: 0 means 5 s, less than 0 kills at once. Stop returns whom it stopped when they
// have ended. That does not promise that the address is free: only a bind can tell.
func (s Search) Stop(ctx context.Context, allow func(strategy.Holder) bool, grace time.Duration, log *slog.Logger) ([]strategy.Holder, error) {
	return s.StopBy(ctx, allow, Means{Grace: grace}, log)
}

// StopBy is [Search.Stop] by other means.
func (s Search) StopBy(ctx context.Context, allow func(strategy.Holder) bool, by Means, log *slog.Logger) ([]strategy.Holder, error) {
	handles := pins{}
	defer handles.close()
	condemned, err := s.condemn(ctx, allow, handles)
	if err != nil {
		return nil, err
	}
	return end(ctx, condemned, by, log)
}

// WouldStop tells whom [Search.Stop] would stop now, with the same error where it would refuse. It signals nobody.
func (s Search) WouldStop(ctx context.Context, allow func(strategy.Holder) bool) ([]strategy.Holder, error) {
	handles := pins{}
	defer handles.close()
	condemned, err := s.condemn(ctx, allow, handles)
	if err != nil {
		return nil, err
	}
	var holders []strategy.Holder
	for _, c := range condemned {
		holders = append(holders, c.holder)
	}
	return holders, nil
}

// condemn pins all holders and says who is to be stopped, each process once, the oldest first; or none where one may not be.
func (s Search) condemn(ctx context.Context, allow func(strategy.Holder) bool, handles pins) ([]suspect, error) {
	if allow == nil {
		allow = func(h strategy.Holder) bool { return h.Ours }
	}
	suspects, err := s.pin(ctx, handles)
	if err != nil {
		return nil, err
	}
	var condemned []suspect
	for _, p := range suspects {
		if p.handle != nil && !p.handle.Alive() {
			continue // its facts may be another's; it is gone, and frees what it held
		}
		if p.handle == nil && p.holder.Refusal == "" {
			continue // it had ended when it was to be pinned; whoever has its pid now is not the one that was found
		}
		if p.holder.Refusal != "" || !allow(p.holder) {
			return nil, &RefusedError{p.holder}
		}
		if !slices.ContainsFunc(condemned, func(c suspect) bool { return c.process.PID == p.process.PID }) {
			condemned = append(condemned, p)
		}
	}
	// The oldest first: a parent is asked before it could start its child anew.
	slices.SortFunc(condemned, func(a, b suspect) int { return byAge(a.process, b.process) })
	return condemned, nil
}

// kernel is asked by pin, twice for the table. It is a struct of functions so that tests can let something happen between
// the looks.
var kernel = struct {
	inTheWay func(sockets.Target) ([]sockets.Socket, error)
	open     func(pid int) (*proc.Handle, error)
}{sockets.InTheWay, proc.Open}

// A suspect is a holding whose process is pinned by a handle: what was read of it since then is true of the process that
// a signal through the handle reaches, as long as that is alive.
type suspect struct {
	holding
	handle *proc.Handle // nil: this process itself, or one that cannot be seen; judge refuses both
}

// pins are the handles by pid.
type pins map[int]*proc.Handle

func (p pins) close() {
	for _, handle := range p {
		_ = handle.Close() // it changes nothing for the process
	}
}

// pin finds every holder, pins each, and only then gathers what is known of it.
func (s Search) pin(ctx context.Context, handles pins) ([]suspect, error) {
	seen, err := kernel.inTheWay(s.Target)
	if err != nil {
		return nil, err
	}
	pids, _ := pidsOf(ctx, seen, nil, false)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, pid := range slices.Concat(pids...) {
		if handles[pid] != nil || pid == proc.Self().PID {
			continue
		}
		handle, err := kernel.open(pid)
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("pid %d: %w", pid, err)
		}
		handles[pid] = handle
	}

	// Rule 1, from here on for good: the socket is still in the way, and the pinned process has it. Whoever came since
	// is left for the next failed bind.
	still, err := kernel.inTheWay(s.Target)
	if err != nil {
		return nil, err
	}
	var inTheWay []sockets.Socket
	var holders [][]int
	for i, socket := range seen {
		if at := slices.IndexFunc(still, socket.Same); at >= 0 {
			socket = still[at] // off Linux, it is the table that names the processes
			inTheWay = append(inTheWay, socket)
			holders = append(holders, slices.DeleteFunc(pids[i], func(pid int) bool { return !holds(pid, socket) }))
		}
	}
	holdings := settle(ctx, describe(inTheWay, s.recordsOf(inTheWay), holders))
	s.judge(proc.Self(), holdings)
	suspects := make([]suspect, len(holdings))
	for i, h := range holdings {
		suspects[i] = suspect{h, handles[h.process.PID]}
	}
	return suspects, nil
}

// holds tells whether a process has the socket; where it may not be looked into, judge will find it in the facts.
func holds(pid int, socket sockets.Socket) bool {
	if socket.PIDs != nil {
		return slices.Contains(socket.PIDs, pid)
	}
	has, err := proc.Holds(pid, socket.Inode)
	return has || errors.Is(err, fs.ErrPermission)
}

// end asks each to end, waits, and kills who has not ended after grace.
func end(ctx context.Context, condemned []suspect, by Means, log *slog.Logger) ([]strategy.Holder, error) {
	grace, signal := by.Grace, by.Signal
	if grace == 0 {
		grace = defaultGrace
	}
	if signal == 0 {
		signal = syscall.SIGTERM
	}
	var stopped []strategy.Holder
	for _, p := range condemned {
		log.LogAttrs(ctx, slog.LevelWarn, fmt.Sprintf("stopping %v, which holds %s", p.holder, p.holder.Address),
			slog.Int("pid", p.holder.PID), slog.Duration("grace", max(grace, 0)))
		if grace > 0 {
			err := p.handle.Ask(signal)
			if errors.Is(err, errors.ErrUnsupported) && !by.AskOnly { // Windows has no way to ask; waiting would be in vain
				err = p.handle.Kill()
			}
			if err != nil && !errors.Is(err, os.ErrProcessDone) {
				return stopped, fmt.Errorf("%v: %w", p.holder, err)
			}
		}
		stopped = append(stopped, p.holder)
	}
	alive, err := await(ctx, condemned, grace, log)
	if err != nil || len(alive) == 0 {
		return stopped, err
	}
	if by.AskOnly {
		e := &NotEndedError{Grace: grace}
		for _, p := range alive {
			e.Holders = append(e.Holders, p.holder)
		}
		return stopped, e
	}
	for _, p := range alive {
		log.LogAttrs(ctx, slog.LevelWarn, fmt.Sprintf("killing %v, which did not end when it was asked to", p.holder),
			slog.Int("pid", p.holder.PID), slog.Duration("grace", max(grace, 0)))
		if err := p.handle.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return stopped, fmt.Errorf("%v: %w", p.holder, err)
		}
	}
	alive, err = await(ctx, alive, killGrace, log)
	if err == nil && len(alive) > 0 {
		err = fmt.Errorf("%v was killed and has not ended: it is stuck in the kernel; choose another port", alive[0].holder)
	}
	return stopped, err
}

// await waits until all have ended or the time is over, and returns who has not. The error is ctx's.
func await(ctx context.Context, processes []suspect, atMost time.Duration, log *slog.Logger) (alive []suspect, err error) {
	begin := time.Now()
	for i, p := range processes {
		for p.handle.Alive() {
			elapsed := time.Since(begin)
			if elapsed >= atMost {
				return slices.DeleteFunc(slices.Clone(processes[i:]), func(p suspect) bool { return !p.handle.Alive() }), nil
			}
			slice, cancel := context.WithTimeout(ctx, min(atMost-elapsed, progressEvery-elapsed%progressEvery))
			waitErr := p.handle.Wait(slice)
			if waitErr != nil && slice.Err() == nil { // it could not wait: out of descriptors, say
				const unwaited = 20 * time.Millisecond
				select {
				case <-slice.Done():
				case <-time.After(unwaited):
				}
			}
			sliceOver := slice.Err() != nil
			cancel()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if waitErr != nil && sliceOver && time.Since(begin) < atMost {
				log.LogAttrs(ctx, slog.LevelInfo, fmt.Sprintf("waiting for %v to end", p.holder), slog.Int("pid", p.holder.PID),
					slog.Duration("elapsed", time.Since(begin).Round(progressEvery)), slog.Duration("at_most", atMost))
			}
		}
	}
	return nil, nil
}
