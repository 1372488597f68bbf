package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// releasedMark is the file that is there as long as an address is released, so that who binds one need not look whether it is
// this. Whoever finds it left over from a crash takes it away.
const releasedMark = "released"

// A Mark says in the state directory that some record is [Released]. Several processes can have one at a time.
type Mark struct {
	lock *Lock // shared with others
}

// OpenIfReleased is the directory where there may be a record in it that is [Released]; else nil.
func (l Location) OpenIfReleased() *Dir {
	if !l.MayHave(releasedMark) {
		return nil
	}
	d, err := l.Open()
	if err != nil || sweep(d.PathOf(releasedMark)) {
		return nil
	}
	return d
}

// MarkReleased is to be called before a record becomes [Released].
func (d *Dir) MarkReleased() (*Mark, error) {
	const patience = 200 * time.Millisecond // whoever takes a mark away has it for microseconds, if he has a processor
	path := d.PathOf(releasedMark)
	for begin := time.Now(); time.Since(begin) < patience; {
		lock, err := tryLock(path, os.O_CREATE|os.O_RDWR, (*flock.Flock).TryRLock)
		switch {
		case err == nil:
			return &Mark{lock}, nil
		case errors.Is(err, errReplaced):
		case errors.Is(err, ErrHeld):
			time.Sleep(time.Millisecond)
		default:
			return nil, fmt.Errorf("mark: %w", err)
		}
	}
	return nil, fmt.Errorf("mark %s: %w", path, ErrHeld)
}

// Remove takes the mark away, unless others have it too.
func (m *Mark) Remove() error {
	if err := m.lock.lock.Unlock(); err != nil {
		return err
	}
	sweep(m.lock.path)
	return nil
}

// sweep takes a mark away that nobody has, and tells whether it is gone. It opens the file for reading only, so that nobody who
// watches the directory is told of the look.
func sweep(path string) (gone bool) {
	lock, err := tryLock(path, os.O_RDONLY, (*flock.Flock).TryLock)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return lock.Release() == nil
}
