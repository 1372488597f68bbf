package reload

import (
	"slices"
	"sync"
	"sync/atomic"
)

// A charge is the ownership of what outlives a version: files, locks, records. Exactly one process of a line has it, but for
// the moment when it is handed on.
type charge struct {
	has atomic.Bool

	mu    sync.Mutex // held while calls run
	calls []*func()
}

func (c *charge) take() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.has.Store(true)
	for _, f := range c.calls {
		(*f)()
	}
}

// leave returns when no call runs any more.
func (c *charge) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.has.Store(false)
}

func (c *charge) on(f func()) (cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, &f)
	if c.has.Load() {
		f()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls = slices.DeleteFunc(c.calls, func(g *func()) bool { return g == &f })
	}
}

// InCharge reports whether this process owns what is handed on: records, locks, the files of sockets. The first version
// does from the start, a new one from the moment that its parent has stepped back, and the parent does no longer. Where
// a new version crashes while Serve of its parent still tells clients to come again, the parent is in charge again. A process
// without an Upgrader is.
func (u *Upgrader) InCharge() bool { return u == nil || u.charge.has.Load() }

// OnCharge calls f now, if this process is in charge, and each time that it comes to be, until cancel. It is for what only
// one process may do, such as writing a file with its address. Calls come one after the other, and none after cancel has
// returned; f must not call OnCharge or cancel, nor close a listener of package listener, which does.
func (u *Upgrader) OnCharge(f func()) (cancel func()) {
	if u == nil {
		f()
		return func() {}
	}
	return u.charge.on(f)
}
