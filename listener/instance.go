package listener

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sticky"
	"github.com/berth-go/berth/strategy"
)

// A Fleet is the copies of a service on one machine. Each that starts is the next: it has the lowest number that is free,
// and with it a name and a port. To have one more, the program is started once more.
//
//	fleet := listener.Fleet{Name: "worker", Pool: listener.Pool{Ranges: []strategy.Range{{First: 9000, Last: 9049}}}}
//	instance, err := fleet.Join(ctx) // worker-0 on 9000, worker-1 on 9001 ...
//	if err != nil {
//		log.Fatal(err)
//	}
//	ln, err := instance.Listen()
type Fleet struct {
	Name string // of the service: instances are called after it, "worker-3"; "" means Pool.Config.Name

	// Pool has the ports, one for each number in their order, and so tells how many instances there can be. Its Sticky and
	// Wait do not matter.
	Pool Pool
	// Shared means that others use the Pool too: an instance leases a port of it, the one that an instance of its number had
	// last where that is free. Without, number n has the n-th port. For this the state directory has to work, since without
	// the locks in it nothing tells the numbers apart.
	Shared bool

	// Identity, if not "", is what this copy is called by who starts it, and not by its number: it gets the number that it
	// had last, where that is free. It is remembered as the ports of a sticky Pool are.
	Identity string
}

// An Instance is one copy of a service. Its methods may be called from several goroutines.
type Instance struct {
	number int
	name   string
	lease  *Reservation
	close  func() error
}

// Join takes the lowest number that is free, and reserves its port until [Instance.Listen]. A number whose port somebody
// else has is left out, and logged. When the context ends before Listen or Close, so does the reservation. Where all numbers
// are taken it does not wait, and fails as a [Pool] does.
//
// The number is this process's until Close, or until it dies. With an upgrader of package reload among the Sources of
// Pool.Config, a new version has the number of the version before it, and Listen takes over its listener.
func (f *Fleet) Join(ctx context.Context) (*Instance, error) {
	j, err := f.newJoining(ctx)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, j.failure(nil, err)
	}
	if number, slot := j.inherit(ctx); slot != nil {
		return j.instance(ctx, number, slot)
	}
	return j.run(ctx)
}

// A joining is one call of Fleet.Join.
type joining struct {
	*leasing
	fleet   *Fleet
	name    string
	lineage lineage       // nil: none
	state   *registry.Dir // nil: cannot be used
	slots   *registry.Dir // in it; nil: cannot be used
	key     string        // of the fleet, in the state directory
}

func (f *Fleet) newJoining(ctx context.Context) (*joining, error) {
	l, err := f.Pool.newLeasing(nil)
	if err != nil {
		return nil, err
	}
	j := &joining{leasing: l, fleet: f, name: f.Name, lineage: lineageOf(f.Pool.Config.Sources)}
	if j.name == "" {
		j.name = f.Pool.Config.Name
	}
	if j.name == "" {
		return nil, &net.OpError{Op: "join", Net: j.pool.network(), Err: errors.New("the fleet has no name: set Name")}
	}
	sum := fnv.New64a()
	fmt.Fprintf(sum, "%q %v", j.name, f.Shared)
	if !f.Shared {
		fmt.Fprint(sum, " ", f.Pool.key()) // another address is another fleet
	}
	j.key = fmt.Sprintf("fleet-%016x", sum.Sum64())
	if j.state, err = registry.Open(j.config.StateDir); err == nil {
		j.slots, err = registry.Open(j.state.PathOf(j.key))
	}
	if err != nil {
		j.slots = nil
		if f.Shared {
			return nil, &net.OpError{Op: "join", Net: j.pool.network(), Err: fmt.Errorf("fleet %s: no numbers without locks: %w", j.name, err)}
		}
		j.log.LogAttrs(ctx, slog.LevelWarn, "no locks for the numbers of this fleet, so its ports tell them apart", slog.String("fleet", j.name), slog.Any("error", err))
	}
	return j, nil
}

const slotPrefix = "number-"

// inherit gives the number that the version before had. The lock is nil where there was none.
func (j *joining) inherit(ctx context.Context) (number int, slot *registry.Lock) {
	if j.lineage == nil || j.slots == nil {
		return 0, nil
	}
	numbers, _ := j.slots.Numbers(slotPrefix) // it goes on without
	slices.Sort(numbers)
	for _, n := range numbers {
		file, err := j.lineage.TakeFile(registry.KeptAs(j.slots.PathOf(slotName(n))))
		if err == nil {
			if slot, err = j.slots.AdoptClaim(slotName(n), file); err == nil {
				return n, slot
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			j.log.LogAttrs(ctx, slog.LevelWarn, "the number of the version before is of no use", slog.Any("error", err))
		}
	}
	return 0, nil
}

func slotName(number int) string { return slotPrefix + strconv.Itoa(number) }

func (j *joining) run(ctx context.Context) (*Instance, error) {
	memory := sticky.Memory(nil)
	wish := -1
	if j.fleet.Identity != "" && j.state != nil {
		memory = sticky.Read(j.state, j.key+".numbers")
		if e, ok := memory.Of(j.fleet.Identity); ok && e.Number < count(j.ports) {
			wish = e.Number
		}
	}
	var full error
	for n := -1; n < count(j.ports); n++ {
		number := n
		if n < 0 {
			number = wish // first of all
		}
		if number < 0 || n >= 0 && n == wish {
			continue
		}
		i, err := j.take(ctx, number)
		switch {
		case err == nil:
			if j.fleet.Identity != "" && j.state != nil {
				if err := sticky.Remember(j.state, j.key+".numbers", memory, j.fleet.Identity, number); err != nil {
					j.log.LogAttrs(ctx, slog.LevelWarn, "the number is not remembered", slog.String("identity", j.fleet.Identity), slog.Any("error", err))
				}
			}
			return i, nil
		case errors.Is(err, registry.ErrHeld):
		case isInUse(err):
			full = err
			j.log.LogAttrs(ctx, slog.LevelWarn, "the port of a number is taken, so the number is left out",
				slog.String("name", j.nameOf(number)), slog.Any("error", err))
		default:
			return nil, err
		}
	}
	return nil, j.failure(full, errFleetFull)
}

var errFleetFull = errors.New("every number of the fleet is taken")

func (j *joining) nameOf(number int) string { return j.name + "-" + strconv.Itoa(number) }

// take takes a number and its port. The error is registry.ErrHeld where somebody has the number, and EADDRINUSE where
// somebody has the port.
func (j *joining) take(ctx context.Context, number int) (*Instance, error) {
	var slot *registry.Lock
	if j.slots != nil {
		var err error
		slot, err = j.slots.Claim(slotName(number))
		if errors.Is(err, registry.ErrHeld) {
			return nil, err
		}
		if err != nil && j.fleet.Shared {
			return nil, &net.OpError{Op: "join", Net: j.pool.network(), Err: err}
		}
		if err != nil {
			j.log.LogAttrs(ctx, slog.LevelWarn, "no lock for the number", slog.String("name", j.nameOf(number)), slog.Any("error", err))
		}
	}
	return j.instance(ctx, number, slot)
}

// port reserves the port of a number.
func (j *joining) port(ctx context.Context, number int) (*Reservation, error) {
	config := j.config
	config.Name = j.nameOf(number)
	if j.fleet.Shared {
		pool := j.fleet.Pool
		pool.Config, pool.Sticky, pool.Wait = config, true, -1
		return pool.Lease(ctx, config.Name)
	}
	first := rotate(j.ports, number)[0].First
	return config.Reserve(ctx, j.pool.network(), j.pool.address([]strategy.Range{{First: first, Last: first}}))
}

// instance reserves the port of a number that is taken. After an error the number is given up.
func (j *joining) instance(ctx context.Context, number int, slot *registry.Lock) (*Instance, error) {
	release := func() error {
		switch {
		case slot == nil:
			return nil
		case j.lineage != nil && !j.lineage.InCharge():
			return slot.Leave() // another version has it
		}
		return slot.Release()
	}
	lease, err := j.port(ctx, number)
	if err != nil {
		_ = release() // the failure is what counts
		return nil, err
	}
	forget := func() {}
	if slot != nil && j.lineage != nil {
		forget = j.lineage.KeepFile(registry.KeptAs(slot.Path()), slot.File)
	}
	return &Instance{number: number, name: j.nameOf(number), lease: lease, close: sync.OnceValue(func() error {
		forget()
		return errors.Join(lease.Close(), release())
	})}, nil
}

// Number is that of the instance in its fleet, from 0.
func (i *Instance) Number() int { return i.number }

// Name is that of the fleet and the number: "worker-3".
func (i *Instance) Name() string { return i.name }

// Addr is the address of the instance.
func (i *Instance) Addr() net.Addr { return i.lease.Addr() }

// Reservation is what holds the port until Listen: to hand it to a child, say.
func (i *Instance) Reservation() *Reservation { return i.lease }

// Listen is [Reservation.Listen]: no moment passes in which nobody has the port. The listener is the caller's to close; the
// number stays.
func (i *Instance) Listen() (*Listener, error) { return i.lease.Listen() }

// Close gives up the number, and the port where nobody listens on it yet. It does not close a listener. Called again, it
// repeats its first result.
func (i *Instance) Close() error { return i.close() }
