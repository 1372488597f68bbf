// Package inspect tells who holds which port, and what to do about it.
//
//	report, err := inspect.Port(ctx, "tcp", 3000)
//	if err != nil {
//		log.Fatal(err)
//	}
//	fmt.Println(report) // tcp port 3000 is in use by python3 (pid 4242, user alice, in /home/alice/web)
//	for _, advice := range report.Recommendations {
//		fmt.Println(advice) // kill 4242
//	}
//
// It looks at the kernel's table of sockets, at the processes, and at the records that berth listeners keep. On Linux
// that is sock_diag(7) or /proc/net, and /proc; elsewhere the platform's own tools, which know less. What it tells is
// history when it arrives: only a bind decides who gets a port. Other network namespaces and containers are not seen.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// A State is what can be said of an address in a word.
type State string

// The states of an address.
const (
	Healthy   State = "healthy"   // in use by a service that berth has a true record of
	InUse     State = "in use"    // in use by somebody else, or by a client's connection
	Available State = "available" // nobody has it
	Reserved  State = "reserved"  // somebody has bound it and does not listen
	Locked    State = "locked"    // nobody has bound it, but a running berth process holds its lock, or keeps it for another
)

// A Report tells about one address.
type Report struct {
	Network string // "tcp", "udp", "unix" ..., as asked for
	Address string // as asked for: ":3000", "127.0.0.1:3000", "/run/app.sock"
	Port    int    // 0 for Unix sockets
	State   State

	// Holders are the processes that have it, the recorded one first, then the newest. A process without a PID is one
	// that the kernel shows no more of.
	Holders []strategy.Holder
	// Complete means that whoever has the address is in Holders.
	Complete bool

	Service string    // name of the service, from its record
	Until   time.Time // when a reservation, or the keeping of a released port, ends by itself; zero: nothing says so
	Records []string  // what is wrong with records: stale, damaged, of a future version

	// Recommendations are what a person can do to get the address, the most useful first; none where it is available.
	Recommendations []string

	changing bool // what is wrong with a record is so new that it may be in the making
}

// String is one line.
func (r Report) String() string {
	what := r.Network + " port " + strconv.Itoa(r.Port)
	if r.Port == 0 {
		what = r.Network + " socket " + r.Address
	}
	text := what + " is " + string(r.State)
	switch {
	case len(r.Holders) > 0 && r.State == Healthy:
		text += ", held"
	case len(r.Holders) == 0:
		return text
	}
	return text + " by " + strategy.Diagnosis{Holders: r.Holders}.String()
}

// Options say where to look. The zero Options look where berth does by default.
type Options struct {
	Network  string           // for System: "tcp" or "udp"; "" means "tcp"
	Ranges   []strategy.Range // for System; nil means 3000-3010, 8000-8010 and 9000-9010
	StateDir string           // of the records; "" means the per-user default

	settle func(context.Context) // between two looks; nil: a pause. For tests
}

// Port tells who holds a port on any address of this machine. The network is "tcp", "tcp4", "tcp6", "udp", "udp4" or
// "udp6", the port 1 to 65535. Where the kernel's table does not show every socket (see [Report].Complete) and none is found,
// the port is bound for a moment.
func Port(ctx context.Context, network string, port int) (Report, error) {
	return Options{}.Port(ctx, network, port)
}

// Address tells who keeps an address from being bound. Beside those of [Port], the network may be "unix", "unixpacket"
// or "unixgram", and the address the path of a socket.
func Address(ctx context.Context, network, address string) (Report, error) {
	return Options{}.Address(ctx, network, address)
}

// Port is the function [Port] with these options; Network and Ranges do not count.
func (o Options) Port(ctx context.Context, network string, port int) (Report, error) {
	if port < 1 || port > 65535 {
		return Report{}, &net.AddrError{Err: "invalid port: use 1 to 65535", Addr: strconv.Itoa(port)}
	}
	kind := registry.Kind(network)
	var addr net.Addr
	switch kind {
	case "tcp":
		addr = &net.TCPAddr{Port: port}
	case "udp":
		addr = &net.UDPAddr{Port: port}
	}
	target, ok := sockets.TargetOf(network, addr)
	if !ok {
		return Report{}, net.UnknownNetworkError(network)
	}
	report := Report{Network: network, Address: ":" + strconv.Itoa(port), Port: port}
	// Where a wildcard and a specific address coexist, the wildcard asked for conflicts with few of the sockets that
	// have the port; here all of them count.
	return o.report(ctx, report, target, func() ([]sockets.Socket, error) {
		all, err := sockets.List(kind, uint16(port), uint16(port))
		return slices.DeleteFunc(all, func(s sockets.Socket) bool { return !ofFamily(target, s) }), err
	})
}

// ofFamily tells whether a socket serves one of the families that the target covers.
func ofFamily(t sockets.Target, s sockets.Socket) bool {
	ip := s.Local.Addr()
	if ip.Is4() {
		return t.V4
	}
	return t.V6 || ip.IsUnspecified() && !s.V6Only
}

// Address is the function [Address] with these options; Network and Ranges do not count.
func (o Options) Address(ctx context.Context, network, address string) (Report, error) {
	addr, err := resolve(ctx, network, address)
	if err != nil {
		return Report{}, err
	}
	target, ok := sockets.TargetOf(network, addr)
	if !ok {
		return Report{}, &net.AddrError{Err: "nothing to inspect", Addr: address}
	}
	report := Report{Network: network, Address: address, Port: int(target.Addr.Port())}
	return o.report(ctx, report, target, func() ([]sockets.Socket, error) { return nil, nil })
}

// resolve is the address that a listener would bind.
func resolve(ctx context.Context, network, address string) (net.Addr, error) {
	if strings.HasPrefix(network, "unix") {
		return net.ResolveUnixAddr(network, address)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, err
	}
	var ip netip.Addr
	if host != "" {
		ips, err := net.DefaultResolver.LookupNetIP(ctx, strings.NewReplacer("tcp", "ip", "udp", "ip").Replace(network), host)
		if err != nil {
			return nil, err
		}
		ip = ips[0].Unmap()
		for _, candidate := range ips { // as package net chooses: IPv4 where there is a choice
			if candidate.Unmap().Is4() {
				ip = candidate.Unmap()
				break
			}
		}
	}
	at := netip.AddrPortFrom(ip, uint16(port))
	if strings.HasPrefix(network, "udp") {
		return net.UDPAddrFromAddrPort(at), nil
	}
	return net.TCPAddrFromAddrPort(at), nil
}

// unsettled tells whether sockets and records do not match. They are looked at one after the other, so that is also how a
// service appears that starts or ends at this moment.
func (r Report) unsettled() bool { return r.State == Locked || r.changing }

// pause gives a service that starts or ends the time to do so. It takes microseconds, if it has a processor.
func (o Options) pause(ctx context.Context) {
	if o.settle != nil {
		o.settle(ctx)
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(2 * time.Millisecond):
	}
}

// report tells what is known of the target. List gives the sockets that count; where there are none, those in the way do.
func (o Options) report(ctx context.Context, report Report, target sockets.Target, list func() ([]sockets.Socket, error)) (Report, error) {
	looked, err := o.look(ctx, report, target, list)
	if err == nil && looked.unsettled() {
		o.pause(ctx)
		looked, err = o.look(ctx, report, target, list)
	}
	switch {
	case ctx.Err() != nil:
		return Report{}, ctx.Err()
	case err != nil:
		return Report{}, fmt.Errorf("inspect %s %s: %w", report.Network, report.Address, err)
	}
	return looked, nil
}

func (o Options) look(ctx context.Context, report Report, target sockets.Target, list func() ([]sockets.Socket, error)) (Report, error) {
	found, err := list()
	if err == nil && len(found) == 0 {
		found, err = sockets.InTheWay(target)
	}
	if err != nil {
		return Report{}, err
	}
	records, _ := registry.Existing(o.StateDir) // without records nobody is tracked; that is no failure
	search := holder.Search{Target: target, Records: records}
	diagnosis := search.DiagnoseSockets(ctx, found, false)
	if err := ctx.Err(); err != nil {
		return Report{}, err
	}
	report.Holders, report.Complete = diagnosis.Holders, diagnosis.Complete

	var entries []registry.Entry
	if records != nil {
		entries = entriesFor(records, target)
	}
	report.judge(target, entries)
	return report, nil
}

func entriesFor(records *registry.Dir, target sockets.Target) []registry.Entry {
	if target.Path != "" {
		if entry, err := records.Lookup(target.Network, holder.AbsolutePath(target.Path)); err == nil {
			return []registry.Entry{entry}
		}
		return nil
	}
	entries, _ := records.Entries(target.Network, target.Addr.Port(), target.Addr.Port()) // as above
	return entries
}

// judge makes a state and recommendations of holders and records.
func (r *Report) judge(target sockets.Target, entries []registry.Entry) {
	tracked, reserved := false, false
	var owner *registry.Record // of a lock without a socket
	for _, entry := range entries {
		held := entry.Held()
		wrong := len(r.Records)
		switch {
		case entry.Err != nil && held:
			r.Records = append(r.Records, fmt.Sprintf("%v, while a process holds its lock", entry.Err))
		case entry.Err != nil:
			r.Records = append(r.Records, fmt.Sprintf("%v; the next start overwrites it", entry.Err))
		case !held:
			r.Records = append(r.Records, fmt.Sprintf("%s is stale: pid %d does not hold it any more; the next start overwrites it", entry.Path, entry.Record.PID))
		case slices.ContainsFunc(r.Holders, func(h strategy.Holder) bool { return names(entry.Record, h) }):
			tracked, reserved = true, entry.Record.State == registry.Reserved
			r.Service, r.Until = entry.Record.Name, entry.Record.Until
		default:
			owner = &entry.Record
		}
		if len(r.Records) > wrong && time.Since(entry.Modified).Abs() < time.Second {
			r.changing = true
		}
	}
	has := func(s sockets.State) bool {
		return slices.ContainsFunc(r.Holders, func(h strategy.Holder) bool { return h.State == s.String() })
	}
	datagrams := target.Network == "udp" || target.Network == "unixgram"
	switch {
	case reserved && (has(sockets.Bound) || datagrams):
		r.State = Reserved
	case tracked && (has(sockets.Listening) || datagrams):
		r.State = Healthy
	case has(sockets.Listening), has(sockets.Bound) && datagrams, has(sockets.Connected):
		r.State = InUse
	case has(sockets.Bound):
		r.State = Reserved
	case owner != nil:
		r.State = Locked
		r.Service, r.Until = owner.Name, owner.Until
		if owner.State == registry.Released {
			r.Recommendations = []string{fmt.Sprintf("wait until %s: pid %d (%s) keeps it for a program that is about to bind it", owner.Until.Format(time.TimeOnly), owner.PID, owner.Executable)}
			return
		}
		r.Recommendations = []string{fmt.Sprintf("wait for pid %d (%s), which holds the lock, or stop it", owner.PID, owner.Executable)}
		return
	case !r.Complete && isTaken(target):
		r.State = InUse
	default:
		r.State = Available
		return
	}
	r.Recommendations = holder.ConflictAdvice(target, strategy.Diagnosis{Holders: r.Holders, Complete: r.Complete})
}

// names tells whether a record is of this holder, and of no process that had its pid before.
func names(record registry.Record, h strategy.Holder) bool {
	if record.PID != h.PID {
		return false
	}
	start, err := proc.Start(h.PID)
	return err == nil && start == record.Start
}

// isTaken binds the address for a moment: the only answer where the kernel's table does not show everything. An address that
// this user may not bind is not taken.
func isTaken(t sockets.Target) bool {
	network, address := t.Network, t.Path
	switch {
	case address == "":
		host := ""
		if ip := t.Addr.Addr(); ip.IsValid() && !ip.IsUnspecified() {
			host = ip.String()
		}
		address = net.JoinHostPort(host, strconv.Itoa(int(t.Addr.Port())))
		switch {
		case t.V4 && !t.V6:
			network += "4"
		case t.V6 && !t.V4:
			network += "6"
		}
	case address[0] != '@':
		return true // a bind would take the place of a file that is there
	}
	var lc net.ListenConfig
	var socket io.Closer
	var err error
	if t.Network == "udp" || t.Network == "unixgram" {
		socket, err = lc.ListenPacket(context.Background(), network, address)
	} else {
		socket, err = lc.Listen(context.Background(), network, address)
	}
	if err == nil {
		_ = socket.Close() // it was bound to see whether it can be
	}
	return errors.Is(err, syscall.EADDRINUSE)
}
