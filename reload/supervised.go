package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/berth-go/berth/internal/descriptor"
)

// A version that runs under [Supervise] gives its sockets and files to the supervisor as soon as it has them, so that they
// outlive it, and asks the supervisor for upgrades.

// errAlone says that the supervisor has ended. Then a version goes on as if there had never been one.
var errAlone = errors.New("the supervisor has ended")

// errOrphan is what a version hears that was about to lead.
var errOrphan = errors.New("the supervisor has ended, and the old version goes on")

// together is the time within which processes end that were killed together.
const together = time.Second

// An heir is the process that leads after this one, under a supervisor.
type heir struct {
	*successor
	witness *os.File // says that it leads, and its end
}

// leads waits until the process leads, or never will.
func (h *heir) leads() bool {
	if h.witness == nil {
		return false
	}
	var b [1]byte
	if n, _ := h.witness.Read(b[:]); n == 0 {
		return false
	}
	_ = h.witness.SetReadDeadline(time.Now().Add(together))
	_, err := h.witness.Read(b[:])
	_ = h.witness.SetReadDeadline(time.Time{})
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// follow notices its end.
func (h *heir) follow() {
	_, _ = io.Copy(io.Discard, h.witness)
	h.close()
	h.exit = errNotOurs
	close(h.gone)
}

func (h *heir) close() {
	if h.witness != nil {
		_ = h.witness.Close()
	}
}

// supervisor is the channel to it; nil: this process has none.
func (u *Upgrader) supervisor() *channel {
	if u.parent == nil || !u.parent.hello.Supervised {
		return nil
	}
	select {
	case <-u.parent.gone:
		return nil
	default:
		return u.parent.channel
	}
}

func (u *Upgrader) superviseLocked(s *socket) {
	c := u.supervisor()
	if c == nil {
		return
	}
	file, err := descriptor.Duplicate(s.conn, s.Address)
	if err == nil {
		id := s.identity
		err = errors.Join(c.send(message{Do: doKeep, Label: &label{Socket: &id}}, file), file.Close())
	}
	u.unsupervised(s.String(), err)
}

func (u *Upgrader) superviseFileLocked(name string, k *keeper) {
	c := u.supervisor()
	if c == nil {
		return
	}
	file, err := k.open()
	if err == nil {
		err = errors.Join(c.send(message{Do: doKeep, Label: &label{File: name}}, file), file.Close())
	}
	u.unsupervised("file "+name, err)
}

// forgetLocked returns when the supervisor has closed what it had: whoever closes a socket may want to bind its address.
func (u *Upgrader) forgetLocked(l label) {
	c := u.supervisor()
	if c == nil {
		return
	}
	r, w, err := os.Pipe() // the supervisor closes its end when it is done, or killed
	if err != nil {
		u.unsupervised(l.encode(), err)
		return
	}
	defer r.Close()
	_ = c.send(message{Do: doForget, Label: &l}, w) // where it fails, there is no supervisor
	_ = w.Close()
	const patience = 5 * time.Second
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		u.unsupervised(l.encode(), err)
	}
}

func (u *Upgrader) unsupervised(what string, err error) {
	if err != nil {
		u.log.LogAttrs(context.Background(), slog.LevelWarn, "the supervisor does not hear what it is to keep", slog.String("what", what), slog.Any("error", err))
	}
}

// pruneSupervised has the supervisor give up what the program has closed, which nothing announces.
func (u *Upgrader) pruneSupervised() {
	const every = time.Second
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			u.mu.Lock()
			u.pruneLocked()
			u.mu.Unlock()
		case <-u.parent.gone:
			return
		case <-u.closing:
			return
		}
	}
}

// upgradeBySupervisor has the supervisor upgrade, and waits for how it went. The error is errAlone where it has ended.
func (u *Upgrader) upgradeBySupervisor(ctx context.Context, c *channel) error {
	u.mu.Lock()
	select {
	case <-u.closing:
		u.mu.Unlock()
		return fmt.Errorf("reload: no upgrade: %w", errStopped)
	default:
	}
	if u.successor != nil {
		u.mu.Unlock()
		return c.send(message{Do: doUpgrade}, nil)
	}
	u.asks++
	id, answer := u.asks, make(chan error, 1)
	u.asked[id] = answer
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		delete(u.asked, id)
		u.mu.Unlock()
	}()
	_ = c.send(message{Do: doUpgrade, ID: id}, nil) // it fails where the supervisor has ended, which is noticed in a moment
	select {
	case err := <-answer:
		return err
	case <-u.parent.gone:
		return errAlone
	case <-u.closing:
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.successor != nil { // the answer is on its way
			return nil
		}
		return fmt.Errorf("reload: no upgrade: %w", errStopped)
	case <-ctx.Done():
		_ = c.send(message{Do: doCancel, ID: id}, nil)
		return ctx.Err()
	}
}

// upgraded is the supervisor's answer.
func (u *Upgrader) upgraded(m message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if answer, ok := u.asked[m.ID]; ok {
		answer <- m.Failure.err()
		delete(u.asked, m.ID)
	}
}

// A failure is an UpgradeError on its way.
type failure struct {
	Command string   `json:"command"`
	PID     int      `json:"pid,omitempty"`
	Output  []string `json:"output,omitempty"`
	Error   string   `json:"error"`
	Late    bool     `json:"late,omitempty"` // it is context.DeadlineExceeded
}

func failureOf(err error) *failure {
	if err == nil {
		return nil
	}
	e := &UpgradeError{Command: "the program", Err: err}
	errors.As(err, &e)
	return &failure{e.Command, e.PID, e.Output, e.Err.Error(), errors.Is(err, context.DeadlineExceeded)}
}

func (f *failure) err() error {
	if f == nil {
		return nil
	}
	e := &UpgradeError{Command: f.Command, PID: f.PID, Output: f.Output, Err: errors.New(f.Error)}
	if f.Late {
		e.Err = lateError{e.Err}
	}
	return e
}

type lateError struct{ error }

func (lateError) Is(target error) bool { return target == context.DeadlineExceeded }
