package registry

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// A lock goes from one process to the next by its descriptor: flock(2) belongs to the open file description, which every
// duplicate shares, also in another process. So the lock lasts until the last of them is closed, and LOCK_UN on any of
// them frees it for all. Opening the file once more gives another description, which does not have the lock.

// File is a duplicate of the descriptor that has the lock, for another process to [Dir.Adopt]. The caller closes it, which
// does not free the lock. The error is fs.ErrClosed after Release or Leave, and [errors.ErrUnsupported] on Windows.
func (l *Lock) File() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return nil, l.closed()
	}
	file, err := duplicate(l.file, l.path)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", l.path, err)
	}
	return file, nil
}

// Leave gives up this process's part in the lock, which stays with those that have a duplicate, and so do the file and
// what is in it. After Release it does nothing.
func (l *Lock) Leave() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock := l.lock
	l.lock = nil
	if a, ok := lock.(*adopted); ok {
		return a.file.Close()
	}
	// gofrs/flock cannot close its descriptor without LOCK_UN. Now that nothing refers to it, the garbage collector
	// closes it, which frees nothing, or the end of the process does.
	return nil
}

// Adopt makes a lock of a descriptor that came from another process, whose [Lock.File] it was. It takes over the file, and
// closes it where that fails: the path names another file by now, or it is not ours, or does not have the lock, which is
// [ErrHeld] where somebody else has it.
func (d *Dir) Adopt(network, address string, file *os.File) (*Lock, error) {
	return adopt(d.PathFor(network, address), file)
}

func adopt(path string, file *os.File) (*Lock, error) {
	info, err := file.Stat()
	if err == nil {
		err = usable(info)
	}
	if err == nil && !isNamed(info, path) {
		err = errReplaced
	}
	if err == nil {
		err = lockDescriptor(file)
	}
	if err != nil {
		_ = file.Close() // it was only looked at
		return nil, fmt.Errorf("inherited lock %s: %w", path, err)
	}
	return &Lock{path: path, file: info, lock: &adopted{file}}, nil
}

// An adopted descriptor has a lock that another process took.
type adopted struct{ file *os.File }

func (a *adopted) Unlock() error { return errors.Join(unlockDescriptor(a.file), a.file.Close()) }

const kept = "lock "

// KeptAs is the name by which a lock is handed on to the next version of a program.
func KeptAs(path string) string { return kept + path }

// Discard removes the file of a lock that was handed on by the name and that nobody has adopted. Files of other names, and
// one that somebody has put in its place, stay.
func Discard(name string, file *os.File) error {
	path, ok := strings.CutPrefix(name, kept)
	if !ok {
		return nil
	}
	info, err := file.Stat()
	if err != nil || !isNamed(info, path) {
		return err
	}
	return os.Remove(path)
}
