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
	path string
	lock *flock.Flock // shared
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
		lock := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR|noFollow|nonBlock), flock.SetPermissions(0o600))
		shared, err := lock.TryRLock()
		if err != nil {
			return nil, fmt.Errorf("mark %s: %w", path, err)
		}
		if shared {
			info, err := lock.Stat()
			if err == nil {
				err = usable(info)
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("mark %s: %w", path, err), lock.Unlock())
			}
			if isNamed(info, path) {
				return &Mark{path, lock}, nil
			}
			_ = lock.Unlock() // of a file that is gone: nothing to report
			continue
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("mark %s: %w", path, ErrHeld)
}

// Remove takes the mark away, unless others have it too.
func (m *Mark) Remove() error {
	if err := m.lock.Unlock(); err != nil {
		return err
	}
	sweep(m.path)
	return nil
}

// sweep takes a mark away that nobody has, and tells whether it is gone. It opens the file for reading only, so that nobody who
// watches the directory is told of the look.
func sweep(path string) (gone bool) {
	lock := flock.New(path, flock.SetFlag(os.O_RDONLY|noFollow|nonBlock))
	locked, err := lock.TryLock()
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	if !locked {
		return false
	}
	info, err := lock.Stat()
	if err != nil || usable(info) != nil || !isNamed(info, path) { // in the last case, somebody has made another
		_ = lock.Unlock() // it was only a look
		return false
	}
	return (&Lock{path: path, file: info, lock: lock}).Release() == nil
}
