// Package queue lets processes wait in the order in which they came.
//
// A waiter has a ticket: a file with a number, locked with flock(2), in a directory that all of them name. The lowest
// number whose lock is held is first. The kernel frees the lock of a process that dies, so it holds up nobody. There is no
// process that leads, and nothing to clean up: the last one to leave takes the directory away.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/berth-go/berth/internal/registry"
)

const prefix = "ticket-"

// A Place is a place in a queue. It is for one goroutine.
type Place struct {
	dir    *registry.Dir
	number int
	ticket *registry.Lock
	watch  *watch // nil: nothing tells of changes
}

// Length is how many wait in the queue at path.
func Length(path string) int {
	dir, err := registry.Existing(path)
	if err != nil {
		return 0
	}
	numbers, _ := dir.Numbers(prefix) // none of a queue that is over
	length := 0
	for _, n := range numbers {
		if dir.Claimed(name(n)) { // else of a process that died
			length++
		}
	}
	return length
}

// Join takes a place behind all others in the queue at path.
func Join(path string) (*Place, error) {
	const attempts = 100 // each is lost to somebody who leaves, and takes the directory away, or comes at this moment
	for range attempts {
		p, err := join(path)
		if err == nil {
			if p.watch, err = newWatch(); err == nil {
				err = p.Watch(path)
			}
			if err != nil && p.watch != nil { // without, waiting takes a little longer
				p.watch.close()
				p.watch = nil
			}
			return p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) { // the latter from os.MkdirAll, where it is taken away meanwhile
			return nil, err
		}
	}
	return nil, fmt.Errorf("queue %s: it is taken away again and again", path)
}

func join(path string) (*Place, error) {
	dir, err := registry.Open(path)
	if err != nil {
		return nil, err
	}
	numbers, err := dir.Numbers(prefix)
	if err != nil {
		return nil, err
	}
	number := 0
	for _, n := range numbers {
		number = max(number, n+1)
	}
	for ; number < registry.MaxNumber; number++ {
		ticket, err := dir.Claim(name(number))
		if err == nil {
			return &Place{dir: dir, number: number, ticket: ticket}, nil
		}
		if !errors.Is(err, registry.ErrHeld) { // by who came at the same moment
			return nil, err
		}
	}
	return nil, fmt.Errorf("queue %s: the numbers are used up: remove it", path)
}

func name(number int) string { return fmt.Sprint(prefix, number) }

// First tells whether nobody is before this place. A queue that cannot be read has lost its order, and everybody is.
func (p *Place) First() bool {
	numbers, err := p.dir.Numbers(prefix)
	if err != nil {
		return true
	}
	slices.SortFunc(numbers, cmp.Compare[int])
	for _, n := range numbers {
		if n >= p.number {
			break
		}
		if p.dir.Claimed(name(n)) {
			return false
		}
		if ticket, err := p.dir.Claim(name(n)); err == nil { // of a process that died
			_ = ticket.Release() // whoever looks next tries again
		} else if errors.Is(err, registry.ErrHeld) {
			return false
		}
	}
	return true
}

// Watch adds a directory whose changes end a Wait.
func (p *Place) Watch(path string) error {
	if p.watch == nil {
		return errors.ErrUnsupported
	}
	return p.watch.add(path)
}

// Watches tells whether changes are seen. Without, a Wait lasts as long as it may.
func (p *Place) Watches() bool { return p.watch != nil }

// Wait returns when somebody has left the queue, a file of a watched directory was removed, or closed by who could write
// it, also by its end, or the time is up. The error is that of the context.
func (p *Place) Wait(ctx context.Context, atMost time.Duration) (changed bool, err error) {
	if p.watch != nil {
		changed, err := p.watch.wait(ctx, atMost)
		if err == nil {
			return changed, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		p.watch.close() // it is of no use any more
		p.watch = nil
	}
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timer.C:
		return false, nil
	}
}

// Leave gives up the place.
func (p *Place) Leave() {
	if p.watch != nil {
		p.watch.close()
	}
	_ = p.ticket.Release()      // whoever is behind sees that nobody has its lock
	_ = os.Remove(p.dir.Path()) // it fails as long as somebody waits
}
