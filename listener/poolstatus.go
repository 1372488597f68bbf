package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/queue"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// A PoolStatus tells how the ports of a [Pool] are used. It is history when it arrives.
type PoolStatus struct {
	Ports   int        // which the pool hands out
	Free    int        // which nobody has
	Waiting int        // those who wait in the queue for one
	Taken   []PoolPort // in the order of the ports
}

// A PoolPort is a port of a [Pool] that somebody has. What could not be found out is the zero value.
type PoolPort struct {
	Port   int
	Name   string          // of the service, from its record; "" also for who has the port without berth
	Since  time.Time       // from the record
	Holder strategy.Holder // the process; its State is "listening", or "bound" for a port that is reserved
}

// by is who has it, in few words.
func (p PoolPort) by() string {
	who := cmp.Or(p.Name, p.Holder.Command)
	switch {
	case p.Holder.PID == 0 && who == "":
		return "a process that cannot be seen"
	case p.Holder.PID == 0:
		return who
	}
	return fmt.Sprintf("%s (pid %d)", cmp.Or(who, "a process"), p.Holder.PID)
}

// Status looks who has which port: at the kernel's table, at the records, and at the processes behind. It takes
// milliseconds. Before Linux 6.8 a port that is bound and not listened on is known only by its record.
func (p *Pool) Status(ctx context.Context) (PoolStatus, error) {
	ports, err := p.ports()
	if err != nil {
		return PoolStatus{}, err
	}
	records, _ := registry.Existing(p.Config.StateDir) // without, there are still the sockets
	status := PoolStatus{Ports: count(ports), Free: count(ports)}
	if records != nil {
		status.Waiting = queue.Length(p.line(records))
	}
	addr, err := p.place(ctx)
	if err != nil {
		return PoolStatus{}, err
	}
	target, ok := sockets.TargetOf(p.network(), addr)
	if !ok {
		return PoolStatus{}, fmt.Errorf("pool: %w", net.UnknownNetworkError(p.network()))
	}
	var found []sockets.Socket
	for _, r := range ports {
		listed, err := sockets.List(target.Network, r.First, r.Last)
		if err != nil {
			return PoolStatus{}, err
		}
		found = append(found, slices.DeleteFunc(listed, func(s sockets.Socket) bool { return !onPort(target, s.Local.Port()).Conflicts(s) })...)
	}
	taken := map[int]PoolPort{}
	for _, h := range (holder.Search{Target: target, Records: records}).DiagnoseSockets(ctx, found, true).Holders {
		addr, err := netip.ParseAddrPort(h.Address)
		if err != nil {
			continue // unix, which is not asked for
		}
		port := int(addr.Port())
		if _, ok := taken[port]; !ok {
			taken[port] = PoolPort{Port: port, Holder: h}
		}
	}
	for _, r := range ports {
		p.addRecords(taken, records, target, r)
	}
	for _, port := range taken {
		status.Taken = append(status.Taken, port)
	}
	slices.SortFunc(status.Taken, func(a, b PoolPort) int { return cmp.Compare(a.Port, b.Port) })
	status.Free -= len(status.Taken)
	return status, nil
}

// addRecords adds what the records know: names, and ports that the kernel's table does not show.
func (p *Pool) addRecords(taken map[int]PoolPort, records *registry.Dir, target sockets.Target, r strategy.Range) {
	if records == nil {
		return
	}
	entries, err := records.Entries(target.Network, r.First, r.Last)
	if err != nil {
		return // they went with their directory
	}
	for _, e := range entries {
		if e.Err != nil || e.Record.Boot != proc.BootID() || !e.Held() {
			continue
		}
		addr, err := net.ResolveTCPAddr("tcp", e.Record.Address) // it has digits only
		if err != nil || !onPort(target, e.Port).Conflicts(sockets.Socket{Network: target.Network, Local: addr.AddrPort(), State: sockets.Bound}) {
			continue
		}
		port := int(e.Port)
		t, seen := taken[port]
		switch {
		case !seen:
			t = PoolPort{Port: port, Holder: strategy.Holder{PID: e.Record.PID, UID: -1, Executable: e.Record.Executable, Dir: e.Record.Dir, Started: e.Record.Started, Address: e.Record.Address, State: sockets.Bound.String()}}
		case t.Holder.PID != e.Record.PID && t.Holder.PID != 0:
			continue // the record of a lock is not the socket's
		}
		t.Name, t.Since = e.Record.Name, e.Record.Since
		taken[port] = t
	}
}

// place is the host of the pool, resolved, without a port.
func (p *Pool) place(ctx context.Context) (net.Addr, error) {
	kind := registry.Kind(p.network())
	host := p.Host
	if host == "localhost" {
		host = "127.0.0.1"
	}
	var ip net.IP
	if host != "" {
		ips, err := net.DefaultResolver.LookupIP(ctx, "ip"+strings.TrimPrefix(p.network(), kind), host)
		if err != nil {
			return nil, fmt.Errorf("pool: %w", err)
		}
		ip = ips[0]
	}
	if kind == "udp" {
		return &net.UDPAddr{IP: ip}, nil
	}
	return &net.TCPAddr{IP: ip}, nil
}

func onPort(t sockets.Target, port uint16) sockets.Target {
	t.Addr = netip.AddrPortFrom(t.Addr.Addr(), port)
	return t
}

// A PoolError is the Err inside the [*net.OpError] of a lease that failed because all ports are taken. Who has them is
// found out once, when first asked for; its text asks for it.
type PoolError struct {
	Address string // the host and the ports: "127.0.0.1:3000-3009"
	Ports   int    // how many there are
	Err     error  // the failure of the last bind; errors.Is(err, syscall.EADDRINUSE)
	Cause   error  // what ended the wait: the context; nil where it was not waited for

	status func() PoolStatus
}

// Status tells who has the ports. It is the same at every call.
func (e *PoolError) Status() PoolStatus {
	if e.status == nil {
		return PoolStatus{}
	}
	return e.status()
}

func (p *Pool) statusOnce() func() PoolStatus {
	return sync.OnceValue(func() PoolStatus {
		status, _ := p.Status(context.Background()) // then it says less
		return status
	})
}

// Error is one line: fact, cause, remedy. It names those who have the most ports.
func (e *PoolError) Error() string {
	const most = 5
	var b strings.Builder
	if e.Err != nil {
		fmt.Fprintf(&b, "all %d ports of %s are taken", e.Ports, e.Address)
		status := e.Status()
		counts := map[string]int{}
		for _, port := range status.Taken {
			counts[port.by()]++
		}
		who := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
			return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
		})
		rest := 0
		for _, name := range who[min(len(who), most):] {
			rest += counts[name]
		}
		who = who[:min(len(who), most)]
		for i, name := range who {
			who[i] = fmt.Sprintf("%d by %s", counts[name], name)
		}
		if rest > 0 {
			who = append(who, fmt.Sprintf("%d by others", rest))
		}
		if len(who) > 0 {
			b.WriteString(": " + strings.Join(who, ", "))
		}
		if status.Waiting > 0 {
			fmt.Fprintf(&b, "; %d wait for one", status.Waiting)
		}
	} else {
		fmt.Fprintf(&b, "no port of %s was tried", e.Address)
	}
	if e.Cause != nil {
		b.WriteString("; " + e.Cause.Error())
	}
	if e.Err != nil {
		b.WriteString(": end some of them, or give the pool more ports")
	}
	return b.String()
}

// Unwrap gives Err and Cause.
func (e *PoolError) Unwrap() []error { return present(e.Err, e.Cause) }

// Timeout tells whether a deadline ended the wait.
func (e *PoolError) Timeout() bool { return errors.Is(e.Cause, context.DeadlineExceeded) }

func present(errs ...error) []error {
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}
