package health

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// watchMore and watchLess count who wants to know of changes; m.mu is held.
func (m *Monitor) watchMore() {
	m.watches++
	if m.unwatch != nil || m.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.unwatch = cancel
	m.joined.Add(1)
	go m.watch(ctx)
}

func (m *Monitor) watchLess() {
	if m.watches--; m.watches == 0 && m.unwatch != nil {
		m.unwatch()
		m.unwatch = nil
	}
}

// watch compares looks at the machine until ctx ends.
func (m *Monitor) watch(ctx context.Context) {
	defer m.joined.Done()
	ticks := time.NewTicker(m.options.Interval)
	defer ticks.Stop()
	before := map[string]map[int]watched{}
	for {
		for _, network := range networks {
			at, err := m.lookers[network].look(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				continue // who asks is told; the next look may succeed
			}
			known, ok := before[network]
			ranges, own := m.shown(network), m.ports(network)
			now := map[int]watched{}
			for _, r := range at.ports {
				if own[r.Port] && len(r.Holders) == 0 {
					continue // the look came between its lock and its socket
				}
				if contains(ranges, r.Port) {
					now[r.Port] = follow(known[r.Port], r)
				}
			}
			before[network] = now
			if !ok {
				continue // there is nothing to compare with
			}
			for _, e := range changes(network, known, now) {
				e.Time = at.taken
				m.log.LogAttrs(ctx, e.Level, e.Text, slog.String("kind", string(e.Kind)), slog.String("network", network),
					slog.Int("port", portOf(e.Address)), slog.Any("holders", e.Holders))
				m.emit(e)
			}
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// A watched port is the last look at it, and what has to be remembered of those before. A process does not end at one moment: its
// socket, its lock and itself go one after the other, and a look may come between.
type watched struct {
	inspect.Report
	holders []strategy.Holder // who had it last, as far as could be seen
	service string            // and for which service
	stale   int               // records that have been out of date all the time
}

// follow adds a look to what is known of a port, which is the zero value where it was free.
func follow(known watched, r inspect.Report) watched {
	next := watched{r, known.holders, known.service, min(known.stale, len(r.Records))} // one that is being written counts, too
	if slices.ContainsFunc(r.Holders, func(h strategy.Holder) bool { return h.PID != 0 }) {
		next.holders, next.service = r.Holders, r.Service
	}
	if !taken(known) || !taken(next) {
		next.stale = len(r.Records)
	}
	return next
}

// changes are what happened between two looks, in order of the ports.
func changes(network string, before, now map[int]watched) []Event {
	ports := slices.AppendSeq(slices.Collect(maps.Keys(before)), maps.Keys(now))
	slices.Sort(ports)
	var events []Event
	for _, port := range slices.Compact(ports) {
		if e, ok := change(network, port, before[port], now[port]); ok {
			events = append(events, e)
		}
	}
	return events
}

// change compares two looks at a port.
func change(network string, port int, before, now watched) (Event, bool) {
	e := Event{
		Level: slog.LevelInfo, Name: now.Service, Network: network, Address: net.JoinHostPort("", strconv.Itoa(port)), Holders: now.Holders,
	}
	what := network + " port " + strconv.Itoa(port)
	was, is := taken(before), taken(now)
	switch {
	case !was && is:
		e.Kind, e.Text = Taken, what+" is "+condition(now)
	case was && !is:
		e.Kind, e.Text, e.Holders, e.Name = Freed, what+" is free; "+who(before.holders)+" had it", before.holders, before.service
		if len(now.Records) > before.stale {
			e.Kind, e.Level, e.Text = HolderGone, slog.LevelWarn, who(before.holders)+" is gone from "+what+" and left its record"
		}
	case was && is && (before.State != now.State || !slices.Equal(pids(before), pids(now))):
		e.Kind, e.Text = Changed, what+" is "+condition(now)+"; it was "+condition(before)
	default:
		return Event{}, false
	}
	return e, true
}

// condition is a state in words.
func condition(r watched) string {
	if len(r.Holders) == 0 {
		return string(r.State)
	}
	return string(r.State) + ", by " + who(r.Holders)
}

// taken tells whether somebody else has a port. The zero value is one that nobody has.
func taken(r watched) bool {
	return r.State != "" && r.State != inspect.Available && !holdsItself(r.Report)
}

// pids are the processes that have a port.
func pids(r watched) []int {
	all := make([]int, len(r.Holders))
	for i, h := range r.Holders {
		all[i] = h.PID
	}
	slices.Sort(all)
	return all
}

// shown are the ranges where nobody asks for others: those of the options, and the ports of the service.
func (m *Monitor) shown(network string) []strategy.Range {
	ranges := slices.Clone(m.ranges)
	for port := range m.ports(network) {
		ranges = append(ranges, strategy.Range{First: uint16(port), Last: uint16(port)})
	}
	return normal(ranges)
}
