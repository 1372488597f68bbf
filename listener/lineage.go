package listener

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
)

// A lineage is a Keeper of which every version of a program has one, each the parent of the next: package reload. What a
// socket has outside of itself, lock, record, files, goes with it from version to version, and only the one that is in
// charge touches it. Neither package imports the other, so there are only built-in types.
type lineage interface {
	Keeper

	// InCharge tells whether this process is the one that owns what is handed on. The first is from the start, another
	// once its parent has stepped back, and no more from then on is the parent, unless its successor dies before it.
	InCharge() bool
	// OnCharge calls f now, if in charge, and each time that this process comes to be, one call after the other, and none
	// after cancel has returned.
	OnCharge(f func()) (cancel func())
	// KeepFile hands a file on with the sockets. Each upgrade calls open, and closes what it gives; fs.ErrClosed is no
	// failure.
	KeepFile(name string, open func() (*os.File, error)) (forget func())
	// TakeFile gives what the parent kept under the name, or fs.ErrNotExist.
	TakeFile(name string) (*os.File, error)
}

// lineageOf is the one among the sources, nil if there is none.
func lineageOf(sources []Source) lineage {
	for _, source := range sources {
		if l, ok := source.(lineage); ok {
			return l
		}
	}
	return nil
}

// A tenure is the time of a socket in one process of a lineage. It has the lock and the record.
type tenure struct {
	lineage lineage
	cancel  []func() // ends the calls of OnCharge
	warn    func(message string, err error)

	dir              *registry.Dir
	network, address string
	record           func() registry.Record

	mu     sync.Mutex     // not held while the lineage is called, which calls file
	lock   *registry.Lock // nil: none
	forget func()         // ends that it is handed on; nil: it is not
	// shared means that another process may have part in it: the lock came from the parent, or this process was in charge,
	// and whoever is may have handed on what it has.
	shared bool
}

// enter takes the lock, the parent's where there is one, and hands it on. The record of a socket that the parent had stays
// the parent's until this process is in charge; any other is written at once.
func (a *attempt[S]) enter(ctx context.Context, socket S) *tenure {
	later := context.WithoutCancel(ctx)
	t := &tenure{lineage: a.lineage, network: a.network, address: a.lockAddress(socket)}
	t.warn = func(message string, err error) { a.warn(later, message, err) }
	adopted, err := a.takeLock(ctx, t.address)
	if err != nil {
		t.warn(unrecorded, err)
	} else {
		t.dir, t.lock, t.shared = a.records, a.lock, adopted
		// A new version finds out about itself when it is in charge: until then a client may wait for it.
		inode, since := sockets.InodeOf(socket), time.Now()
		t.record = sync.OnceValue(func() registry.Record { return a.newRecord(t.address, inode, since) })
		t.keep()
	}
	t.onCharge(t.charge)
	if a.origin.Kind != Inherited && !t.lineage.InCharge() {
		t.write()
	}
	return t
}

// onCharge has f called whenever this process comes to be in charge, and now if it is. Without a lineage it always is.
func (t *tenure) onCharge(f func()) {
	if t == nil {
		f()
		return
	}
	t.cancel = append(t.cancel, t.lineage.OnCharge(f))
}

func (t *tenure) charge() {
	t.mu.Lock()
	t.shared = true
	t.mu.Unlock()
	t.write()
}

// write writes the record, if there is a lock. A successor that ended in good order, or a parent that closed its listener
// during the upgrade, has freed the lock for all that shared it, and removed its file; then it is taken anew.
func (t *tenure) write() {
	t.mu.Lock()
	renewed, err := t.writeLocked()
	t.mu.Unlock()
	if err != nil {
		t.warn(unrecorded, err)
	}
	if renewed {
		t.keep() // by another descriptor than before
	}
}

func (t *tenure) writeLocked() (renewed bool, err error) {
	if t.lock == nil || t.lock.Write(t.record()) == nil {
		return false, nil
	}
	_ = t.lock.Release() // whatever is wrong with it is mended now, or comes up again
	if t.lock, err = t.dir.Lock(t.network, t.address); err != nil {
		return false, err
	}
	if err := t.lock.Write(t.record()); err != nil {
		err = errors.Join(err, t.lock.Release())
		t.lock = nil
		return false, err
	}
	return true, nil
}

// keep hands the lock on.
func (t *tenure) keep() {
	forget := t.lineage.KeepFile(registry.KeptAs(t.dir.PathFor(t.network, t.address)), t.file)
	t.mu.Lock()
	t.forget = forget
	t.mu.Unlock()
}

// file is what the lineage hands on. An upgrade goes on without it, since a lock is never needed.
func (t *tenure) file() (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock == nil {
		return nil, fs.ErrClosed
	}
	file, err := t.lock.File()
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		t.warn("the next version does not inherit the lock", err)
		return nil, fs.ErrClosed
	}
	return file, err
}

// end ends what was agreed with the lineage, and tells whether another process has what the socket has outside of itself.
// First of all, no upgrade gets it any more, and nothing is written any more. Whoever is in charge after that is who takes
// it away: this process, then a successor that is just being started finds no lock and no file, and makes its own; or the
// successor, or the parent, and then all of it stays.
func (t *tenure) end() (elsewhere bool) {
	if t == nil {
		return false
	}
	for _, cancel := range t.cancel {
		cancel()
	}
	t.mu.Lock()
	forget, shared := t.forget, t.shared
	t.mu.Unlock()
	if forget != nil {
		forget()
	}
	return shared && !t.lineage.InCharge()
}

// release gives up the lock.
func (t *tenure) release(elsewhere bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.lock == nil:
		return nil
	case elsewhere:
		return t.lock.Leave()
	}
	return t.lock.Release()
}

// keepPortFile writes the port file whenever this process comes to be in charge, which without a lineage is now. The error
// is of a write that was done at once; a later one is logged. The function that it returns removes the file, if it is not
// elsewhere's by now.
func keepPortFile(ctx context.Context, l lineage, log *slog.Logger, path string, addresses []string) (remove func(elsewhere bool) error, err error) {
	if l == nil {
		release, err := writePortFile(path, addresses)
		if err != nil {
			return nil, err
		}
		return func(bool) error { return release() }, nil
	}
	if path, err = filepath.Abs(path); err != nil { // the working directory may be another later
		return nil, fmt.Errorf("port file: %w", err)
	}
	var mu sync.Mutex // the first call may come from another goroutine, before or after OnCharge returns
	var release func() error
	var failed error
	listening := false
	later := context.WithoutCancel(ctx)
	cancel := l.OnCharge(func() {
		mu.Lock()
		defer mu.Unlock()
		release, failed = writePortFile(path, addresses)
		if failed != nil && listening {
			log.LogAttrs(later, slog.LevelWarn, "the port file is missing, or is that of another version", slog.Any("error", failed))
		}
	})
	mu.Lock()
	err, listening = failed, true
	mu.Unlock()
	if err != nil {
		cancel()
		return nil, err
	}
	return func(elsewhere bool) error {
		cancel()
		if release == nil || elsewhere {
			return nil
		}
		return release()
	}, nil
}
