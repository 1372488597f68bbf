package health

import (
	"context"
	"time"

	"github.com/berth-go/berth/listener/inspect"
)

// SetTimes changes how often a stream gives a sign of life, and how long it waits for a client to read. It comes before the
// first request.
func (m *Monitor) SetTimes(heartbeat, patience time.Duration) {
	m.heartbeat, m.patience = heartbeat, patience
}

// SetInspect replaces the look at the machine, which cannot fail, or take long, on demand. It comes before the first request.
func (m *Monitor) SetInspect(inspect func(context.Context, inspect.Options) (inspect.Summary, error)) {
	for _, l := range m.lookers {
		l.inspect = inspect
	}
}

const (
	MostEvents = mostEvents
	MostAsked  = mostAsked
)

// Watches is how many want to know of changes.
func (m *Monitor) Watches() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watches
}

// Joined waits for the goroutine that looks for changes, once nobody wants to know.
func (m *Monitor) Joined() { m.joined.Wait() }
