package reload

import (
	"context"
	"errors"
	"log/slog"

	"github.com/berth-go/berth/internal/descriptor"
)

// A version that runs under [Supervise] gives its sockets and files to the supervisor as soon as it has them, so that they
// outlive it, and asks the supervisor for upgrades.

// supervisor is the channel to it; nil: this process has none.
func (u *Upgrader) supervisor() *channel {
	if u.parent == nil || !u.parent.hello.Supervised {
		return nil
	}
	select {
	case <-u.parent.gone: // it was killed: this process goes on alone
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

func (u *Upgrader) forgetLocked(l label) {
	if c := u.supervisor(); c != nil {
		u.unsupervised(l.encode(), c.send(message{Do: doForget, Label: &l}, nil))
	}
}

func (u *Upgrader) unsupervised(what string, err error) {
	if err != nil {
		u.log.LogAttrs(context.Background(), slog.LevelWarn, "the supervisor does not keep it", slog.String("what", what), slog.Any("error", err))
	}
}

// upgradeBySupervisor has the supervisor upgrade, and waits for how it went. Callers share the answer.
func (u *Upgrader) upgradeBySupervisor(ctx context.Context, c *channel) error {
	u.mu.Lock()
	if u.asked == nil {
		u.asked = &request{done: make(chan struct{})}
		if err := c.send(message{Do: doUpgrade}, nil); err != nil {
			u.asked = nil
			u.mu.Unlock()
			return err
		}
	}
	r := u.asked
	u.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-u.closing:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// upgraded is the supervisor's answer.
func (u *Upgrader) upgraded(m message) {
	u.mu.Lock()
	r := u.asked
	u.asked = nil
	u.mu.Unlock()
	if r == nil {
		return
	}
	if m.Error != "" {
		r.err = errors.New(m.Error)
	}
	close(r.done)
}
