package inspect

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// A Summary counts the ports of some ranges. Free, InUse and Locked add up to Total.
type Summary struct {
	Total   int // ports in the ranges, each once
	Free    int // nobody has them
	InUse   int // somebody has bound them
	Tracked int // of those in use, the ones that berth has a true record of: the healthy ones
	Locked  int // nobody has bound them, but a running berth process holds their lock
	Errors  int // records of these ports that are stale, damaged or of a future version

	// Ports reports on every port that is not plainly free, in order of the ports.
	Ports []Report
}

var defaultRanges = []strategy.Range{{First: 3000, Last: 3010}, {First: 8000, Last: 8010}, {First: 9000, Last: 9010}}

// System tells about all ports of some ranges by one look at the kernel's table, at the processes and at the records. It
// binds nothing, so where the table does not show every socket (see [Report].Complete), a port may be counted as free
// that is not.
func System(ctx context.Context, o Options) (Summary, error) {
	network := o.Network
	if network == "" {
		network = "tcp"
	}
	if network != "tcp" && network != "udp" {
		return Summary{}, net.UnknownNetworkError(network)
	}
	ranges := o.Ranges
	if ranges == nil {
		ranges = defaultRanges
	}
	var asked ports
	for _, r := range ranges {
		for port := max(int(r.First), 1); port <= int(r.Last); port++ {
			asked.add(port)
		}
	}
	reports, err := o.lookAt(ctx, network, &asked)
	if err != nil {
		return Summary{}, err
	}
	var unsettled ports
	for _, r := range reports {
		if r.unsettled() {
			unsettled.add(r.Port)
		}
	}
	if unsettled.count > 0 {
		o.pause(ctx)
		again, err := o.lookAt(ctx, network, &unsettled)
		if err != nil {
			return Summary{}, err
		}
		reports = slices.DeleteFunc(reports, Report.unsettled)
		reports = append(reports, again...)
		slices.SortFunc(reports, func(a, b Report) int { return cmp.Compare(a.Port, b.Port) })
	}
	summary := Summary{Total: asked.count, Free: asked.count - len(reports)}
	for _, r := range reports {
		summary.add(r)
	}
	return summary, nil
}

// lookAt reports on those of the ports that somebody has or has a record of, in order.
func (o Options) lookAt(ctx context.Context, network string, asked *ports) ([]Report, error) {
	if asked.count == 0 {
		return nil, nil
	}
	first, last := uint16(asked.first), uint16(asked.last)
	listed, err := sockets.List(network, first, last)
	if err != nil {
		return nil, fmt.Errorf("inspect %s ports %d-%d: %w", network, first, last, err)
	}
	var found []sockets.Socket
	for _, s := range listed {
		if asked.has[s.Local.Port()] {
			found = append(found, s)
		}
	}
	records, _ := registry.Existing(o.StateDir) // without records nobody is tracked; that is no failure
	diagnosis := holder.Search{Target: sockets.Target{Network: network}, Records: records}.DiagnoseSockets(ctx, found, false)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	holders := map[uint16][]strategy.Holder{}
	for _, h := range diagnosis.Holders {
		if at, err := netip.ParseAddrPort(h.Address); err == nil {
			holders[at.Port()] = append(holders[at.Port()], h)
		}
	}
	entries := map[uint16][]registry.Entry{}
	if records != nil {
		all, _ := records.Entries(network, first, last) // as above
		for _, entry := range all {
			if asked.has[entry.Port] {
				entries[entry.Port] = append(entries[entry.Port], entry)
			}
		}
	}

	known := slices.Collect(maps.Keys(holders))
	known = slices.AppendSeq(known, maps.Keys(entries))
	slices.Sort(known)
	known = slices.Compact(known)
	reports := make([]Report, 0, len(known))
	for _, p := range known {
		report := Report{Network: network, Address: fmt.Sprintf(":%d", p), Port: int(p), Holders: holders[p], Complete: true}
		report.judge(sockets.Target{Network: network, Addr: netip.AddrPortFrom(netip.Addr{}, p), V4: true, V6: true}, entries[p])
		report.Complete = diagnosis.Complete
		reports = append(reports, report)
	}
	return reports, nil
}

func (s *Summary) add(r Report) {
	switch r.State {
	case Available:
		s.Free++
	case Locked:
		s.Locked++
	case Healthy:
		s.InUse++
		s.Tracked++
	default:
		s.InUse++
	}
	s.Errors += len(r.Records)
	s.Ports = append(s.Ports, r)
}

// ports is a set of ports.
type ports struct {
	has                [65536]bool
	first, last, count int
}

func (p *ports) add(port int) {
	if p.has[port] {
		return
	}
	p.has[port] = true
	if p.count == 0 || port < p.first {
		p.first = port
	}
	p.last = max(p.last, port)
	p.count++
}
