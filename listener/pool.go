package listener

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/ephemeral"
	"github.com/berth-go/berth/internal/queue"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sticky"
	"github.com/berth-go/berth/strategy"
)

// A Pool hands out ports, each to one holder at a time among all processes of the machine. Nobody runs it and nothing has
// to be set up: processes that name the same ports share them. A lease is a [Reservation], which has the port bound, so
// the kernel sees to it that no two are alike, and takes back what a process had that died. The zero value hands out TCP
// ports from 20000 to 29999 on all addresses. A Pool must not be changed while it is in use; it may serve any number of
// calls, also at once.
//
//	pool := listener.Pool{Host: "127.0.0.1", Sticky: true}
//	lease, err := pool.Lease(ctx, "orders")
//	if err != nil {
//		log.Fatal(err)
//	}
//	ln, err := lease.Listen()
type Pool struct {
	// Config makes the reservations, and what becomes of them, with its Net, Middleware, PortFile, StateDir, Logger and
	// OnEvent. Its Name is that of a lease without one. Its Sources are asked first: with an upgrader of package reload, a new
	// version gets the ports that the one before it had by the same names. Its Strategy is not asked: nobody is stopped for a
	// port of a pool. All who share the pool need the same StateDir to wait in turn, and to remember.
	Config Config

	Network string // of Config.Reserve; "" means "tcp"
	Host    string // as in an address; "" means all, as for net.Listen

	// Ranges are the ports. Nil means 20000-29999, which is below what systems give to clients. Where the order counts,
	// since a lease is neither random nor sticky, is an Instance.
	Ranges []strategy.Range
	// Except are ports within the Ranges that are never handed out.
	Except []strategy.Range
	// Ephemeral hands out the ports too from which the system takes those of clients, and of binds to port 0
	// (net.ipv4.ip_local_port_range on Linux, without what net.ipv4.ip_local_reserved_ports excepts). Without it the Ranges
	// shrink by them: such a port is taken by whatever client gets it first.
	Ephemeral bool

	// Sticky gives a name the port that it had last, where that is free, and a port that another name had only when there
	// are no others. What names had is remembered in the state directory for 90 days, and for 1000 of them; where nothing is
	// remembered, the port follows from the name. Without Sticky a port is random, which is also the fastest where many ask
	// at once.
	Sticky bool

	// Wait is how long a lease waits when all ports are taken: 0 as long as its context, negative not at all, and then it
	// fails also while others wait.
	Wait time.Duration
}

// poolRanges is what the zero Pool hands out: not what systems give to clients, nor Kubernetes to its node ports.
var poolRanges = []strategy.Range{{First: 20000, Last: 29999}}

const (
	// retryFirst is the pause after a change: a process that dies may close its lock before its port.
	retryFirst = time.Millisecond
	// retrySeeing is the longest pause between two looks where changes are seen: ports of strangers come back unseen.
	retrySeeing = 250 * time.Millisecond
	// retryBlind is the same where they are not.
	retryBlind = 50 * time.Millisecond
	// recordAfter is when a lease is recorded, unless it is a listener by then, which is. In a process that has just started
	// this takes ten times as long as all the rest, and where many start at one instant the last of them would wait for the
	// records of all others: two hundred take some hundred milliseconds to start. The port needs no record to be safe.
	recordAfter = 500 * time.Millisecond
)

// Lease reserves a port of the pool for the service of that name. When the context ends before Listen or Close, so does the
// lease, as for [Config.Reserve].
//
// Where all ports are taken it waits, as long as Wait allows. Those who wait for ports of the same pool (the same network,
// host and ports, and a state directory that can be used) are served in the order in which they came, across all
// processes; one that dies waiting holds up nobody. Whoever comes while others wait is last. On Linux a port that comes
// back is noticed at once, that of a lease of the last half second a moment later; elsewhere, and where it was a stranger's,
// within a quarter of a second.
//
// A lease is recorded after half a second, if it is not a listener by then, which is recorded at once.
//
// A failure is an [*net.OpError] as that of Listen; where all ports are taken, with a [*PoolError] in it, which says by
// whom.
func (p *Pool) Lease(ctx context.Context, name string) (*Reservation, error) {
	leases, err := p.LeaseAll(ctx, name)
	if err != nil {
		return nil, err
	}
	return leases[0], nil
}

// LeaseAll is [Pool.Lease] for several services, all or none, in their order. It takes the ports when there are enough, and
// none before, so those who wait behind it wait too. Without names it returns none.
func (p *Pool) LeaseAll(ctx context.Context, names ...string) ([]*Reservation, error) {
	l, err := p.newLeasing(names)
	if err != nil {
		return nil, err
	}
	return l.run(ctx)
}

// A leasing is one call of Pool.LeaseAll.
type leasing struct {
	pool     *Pool
	config   Config
	parts    []string // of the network
	offer    offer    // of all ports; each lease has them in an order of its own. Empty until run
	ports    []strategy.Range
	address  string // of the ports
	names    []string
	log      *slog.Logger
	location registry.Location // of state
	lost     error             // why there is none; nil: there is one
	opened   bool
	state    *registry.Dir // nil: cannot be used, or not opened

	recordAfter time.Duration
}

func (p *Pool) newLeasing(names []string) (_ *leasing, err error) {
	l := &leasing{pool: p, config: p.Config, names: names, log: p.Config.logger(), recordAfter: recordAfter}
	l.config.Strategy = strategy.FailFast{}
	l.location, l.lost = registry.Locate(p.Config.StateDir)
	if l.ports, err = p.ports(); err != nil {
		return nil, &net.OpError{Op: "reserve", Net: p.network(), Err: err}
	}
	l.address = p.address(l.ports)
	return l, nil
}

func (p *Pool) network() string {
	if p.Network == "" {
		return "tcp"
	}
	return p.Network
}

// ports are those that may be handed out.
func (p *Pool) ports() ([]strategy.Range, error) {
	asked := p.asked()
	ports := asked
	if len(asked) != 1 || asked[0].First == 0 || asked[0].First > asked[0].Last { // the usual one is as it should be
		var err error
		if ports, err = strategy.ParseRanges(rangesText(asked)); err != nil { // each once
			return nil, fmt.Errorf("pool: %w", err)
		}
		ports = ephemeral.Without(ports, []strategy.Range{{}}) // 0 is no port
	}
	ports = ephemeral.Without(ports, p.Except)
	if len(ports) == 0 {
		return nil, fmt.Errorf("pool %s: no port is left: name some", rangesText(asked))
	}
	if p.Ephemeral {
		return ports, nil
	}
	left := ephemeral.Outside(ports)
	if len(left) == 0 {
		return nil, fmt.Errorf("pool %s: the system gives all of these ports to clients: choose others than %s, or set Ephemeral", rangesText(asked), rangesText(ephemeral.Ranges()))
	}
	return left, nil
}

func (p *Pool) asked() []strategy.Range {
	if p.Ranges == nil {
		return poolRanges
	}
	return p.Ranges
}

// key names the pool in the state directory. Ports that the system has for its clients do not count, since that may change.
func (p *Pool) key() string {
	kind := registry.Kind(p.network())
	text := strings.Join([]string{p.network(), p.Host, rangesText(p.asked()), rangesText(p.Except), strconv.FormatBool(p.Ephemeral)}, " ")
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(text)) // it never fails
	return "pool-" + strings.ReplaceAll(kind, "+", "-") + "-" + strconv.FormatUint(sum.Sum64(), 16)
}

func (p *Pool) address(ports []strategy.Range) string {
	return net.JoinHostPort(p.Host, rangesText(ports))
}

func rangesText(ranges []strategy.Range) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(r.String())
	}
	return b.String()
}

func (l *leasing) run(ctx context.Context) ([]*Reservation, error) {
	if len(l.names) == 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, l.failure(nil, err)
	}
	if err := l.resolve(ctx); err != nil {
		return nil, &net.OpError{Op: "reserve", Net: l.pool.network(), Err: err}
	}
	full := error(os.NewSyscallError("bind", syscall.EADDRINUSE)) // others are first until there is a failure
	if !l.othersWait(ctx) {
		leases, err := l.try(ctx)
		if err == nil || !isInUse(err) {
			return leases, err
		}
		full = err
	}
	if l.pool.Wait < 0 {
		return nil, l.failure(full, nil)
	}
	return l.wait(ctx, full)
}

func (l *leasing) resolve(ctx context.Context) (err error) {
	if l.parts, err = parseNetworks(l.pool.network()); err != nil {
		return err
	}
	l.offer = offer{host: l.pool.Host, ports: l.ports, fixed: isFixed(l.ports)}
	return l.offer.resolve(ctx, l.parts, l.config.Net.MultipathTCP())
}

// queues is where all queues of a state directory are. It is there as long as one is, so there is nearly always nothing to do but
// to see that it is not. What a killed process leaves there costs a few microseconds.
const queues = "queues"

// line is the path of the pool's queue.
func (p *Pool) line(state *registry.Dir) string {
	return filepath.Join(state.PathOf(queues), p.key())
}

// dir is the state directory; nil where it cannot be used.
func (l *leasing) dir(ctx context.Context) *registry.Dir {
	if !l.opened {
		l.opened = true
		err := l.lost
		if err == nil {
			l.state, err = l.location.Open()
		}
		if err != nil {
			l.log.LogAttrs(ctx, slog.LevelWarn, "no queue and no memory for this pool, so those who wait are served in no order", slog.Any("error", err))
		}
	}
	return l.state
}

func (l *leasing) othersWait(ctx context.Context) bool {
	return l.location.MayHave(queues) && l.dir(ctx) != nil && queue.Length(l.pool.line(l.state)) > 0
}

// leave gives up a place in the queue.
func (l *leasing) leave(place *queue.Place) {
	place.Leave()
	_ = os.Remove(l.state.PathOf(queues)) // it fails as long as there are others
}

// wait waits in turn. full is the last failure.
func (l *leasing) wait(ctx context.Context, full error) ([]*Reservation, error) {
	l.recordAfter = 0 // whoever waits next sees the end of a lease by that of its lock
	var place *queue.Place
	var err error
	if l.dir(ctx) != nil {
		if place, err = queue.Join(l.pool.line(l.state)); err != nil {
			l.log.LogAttrs(ctx, slog.LevelWarn, "no queue for this pool, so those who wait are served in no order", slog.Any("error", err))
		} else {
			defer l.leave(place)
		}
	}
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if l.pool.Wait > 0 {
		waiting, cancel = context.WithTimeout(ctx, l.pool.Wait)
	}
	defer cancel()
	l.log.LogAttrs(ctx, slog.LevelDebug, "waiting for a port", slog.String("pool", l.address))

	pause, first, begin := retryFirst, false, time.Now()
	var tried time.Time
	for {
		if !first && (place == nil || place.First()) {
			first = true
			if place != nil {
				_ = place.Watch(l.location.Path()) // where leases end; without, there are the pauses
			}
		}
		if first {
			leases, err := l.try(ctx)
			if err == nil || !isInUse(err) {
				return leases, err
			}
			full, tried = err, time.Now()
		}
		changed, err := l.pause(waiting, place, pause)
		if changed && first { // a busy state directory does not make it busy too
			err = l.rest(waiting, tried)
		}
		if err != nil {
			return nil, l.failure(full, err)
		}
		longest := retryBlind
		// Leases of before are not seen to end until they are recorded, and there are no new ones.
		if place != nil && place.Watches() && time.Since(begin) > recordAfter {
			longest = retrySeeing
		}
		if pause = min(2*pause, longest); changed {
			pause = retryFirst
		}
	}
}

// pause returns when a port may have come back, or the time is up.
func (l *leasing) pause(ctx context.Context, place *queue.Place, atMost time.Duration) (changed bool, err error) {
	if place != nil {
		return place.Wait(ctx, atMost)
	}
	// Those who wait without a queue do not all look at the same moment.
	return false, pause(ctx, atMost/2+rand.N(atMost))
}

// rest waits until the last try is a moment past.
func (l *leasing) rest(ctx context.Context, tried time.Time) error {
	return pause(ctx, retryFirst-time.Since(tried))
}

// try reserves a port for each name, or none.
func (l *leasing) try(ctx context.Context) ([]*Reservation, error) {
	var leases []*Reservation
	for _, name := range l.names {
		lease, err := l.tryOne(ctx, name)
		if err != nil {
			for _, lease := range leases {
				_ = lease.Close() // the failure is what counts
			}
			return nil, err
		}
		leases = append(leases, lease)
	}
	if l.recordAfter == 0 {
		for _, lease := range leases {
			lease.recordLate()
		}
	}
	return leases, nil
}

func (l *leasing) tryOne(ctx context.Context, name string) (*Reservation, error) {
	config := l.config
	if name != "" {
		config.Name = name
	}
	order := rotate(l.ports, rand.N(count(l.ports)))
	// Whatever the order, a Source is asked for all of the ports, and they are handed on so: the next version of the program need
	// not know why one of them came first.
	b := &binder{config: &config, parts: l.parts, requested: l.address, state: l.location, offers: make([]offer, 0, 2)}
	add := func(ports []strategy.Range) {
		o := l.offer
		o.ports = ports
		b.offers = append(b.offers, o)
	}
	var memory sticky.Memory
	var remembered string
	if l.pool.Sticky {
		if l.dir(ctx) != nil {
			remembered = l.pool.key() + ".ports"
			memory = sticky.Read(l.state, remembered)
		}
		order = preferred(l.ports, memory, config.Name)
		if e, ok := memory.Of(config.Name); ok && order[0] == single(e.Number) {
			// By itself, so that what remains of the service's last connections does not have another port preferred.
			add(order[:1])
		}
	}
	add(order)
	after := l.recordAfter
	if after == 0 && len(l.names) > 1 {
		after = recordAfter // or not at all: a record of one that is given back would wake who waits, this call first
	}
	lease, err := config.reserve(ctx, l.pool.network(), b, after)
	if err != nil {
		return nil, err
	}
	if l.pool.Sticky && l.state != nil {
		if err := sticky.Remember(l.state, remembered, memory, config.Name, portOf(lease.Addr())); err != nil {
			l.log.LogAttrs(ctx, slog.LevelWarn, "the port is not remembered", slog.String("name", config.Name), slog.Any("error", err))
		}
	}
	return lease, nil
}

func portOf(addr net.Addr) int {
	switch addr := addr.(type) {
	case *net.TCPAddr:
		return addr.Port
	case *net.UDPAddr:
		return addr.Port
	}
	return 0
}

// preferred is the order for a name: the port that it had, then those that no other had, from one that follows from the
// name, then the others', the one last that was used last.
func preferred(ports []strategy.Range, memory sticky.Memory, name string) []strategy.Range {
	var own, others []strategy.Range
	for _, e := range slices.Backward(memory) {
		r := single(e.Number)
		switch {
		case e.Number < 1 || e.Number > 65535 || !slices.ContainsFunc(ports, func(p strategy.Range) bool { return p.First <= r.First && r.First <= p.Last }):
		case e.Name == name:
			own = append(own, r)
		default:
			others = append(others, r)
		}
	}
	order := own
	if free := ephemeral.Without(ephemeral.Without(ports, own), others); len(free) > 0 {
		sum := fnv.New32a()
		_, _ = sum.Write([]byte(name)) // it never fails
		order = append(order, rotate(free, int(sum.Sum32()%uint32(count(free))))...)
	}
	return append(order, others...)
}

func single(port int) strategy.Range { return strategy.Range{First: uint16(port), Last: uint16(port)} }

// count is how many ports there are.
func count(ranges []strategy.Range) int {
	n := 0
	for _, r := range ranges {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}

// rotate starts at the n-th port.
func rotate(ranges []strategy.Range, n int) []strategy.Range {
	for i, r := range ranges {
		size := int(r.Last) - int(r.First) + 1
		if n >= size {
			n -= size
			continue
		}
		start := r.First + uint16(n)
		order := append([]strategy.Range{{First: start, Last: r.Last}}, ranges[i+1:]...)
		order = append(order, ranges[:i]...)
		if start > r.First {
			order = append(order, strategy.Range{First: r.First, Last: start - 1})
		}
		return order
	}
	return ranges
}

// failure is the error of a pool that has no port: full is that of the last bind, cause what ended the wait.
func (l *leasing) failure(full, cause error) error {
	e := &PoolError{Address: l.address, Ports: count(l.ports), Cause: cause, status: l.pool.statusOnce()}
	var call *os.SyscallError
	if errors.As(full, &call) {
		e.Err = portable(call)
	}
	return &net.OpError{Op: "reserve", Net: l.pool.network(), Err: e}
}
