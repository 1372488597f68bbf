package registry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// A claim is a locked file that is no record: somebody's place in a queue, or number in a fleet. It has the same life as
// the lock of a record: the kernel frees it with its process, and a file that can be locked belongs to nobody.

// PathOf is the path of a claim, whether there is one or not.
func (d *Dir) PathOf(name string) string { return filepath.Join(d.path, name) }

// Claim locks the file of that name, which it makes where it is missing. It tries once: where somebody has it, the error
// is [ErrHeld].
func (d *Dir) Claim(name string) (*Lock, error) {
	for {
		lock, err := tryLockFile(d.PathOf(name), os.O_CREATE)
		if !errors.Is(err, errReplaced) {
			return lock, err
		}
	}
}

// Claimed tells whether somebody has the claim of that name. It opens the file for reading only, so that nobody who watches
// the directory is told of the look.
func (d *Dir) Claimed(name string) bool { return held(d.PathOf(name)) }

// AdoptClaim is to [Dir.Claim] what [Dir.Adopt] is to Dir.Lock.
func (d *Dir) AdoptClaim(name string, file *os.File) (*Lock, error) {
	return adopt(d.PathOf(name), file)
}

// ReadFile reads up to so many bytes of a file that is never locked.
func (d *Dir) ReadFile(name string, most int64) ([]byte, error) {
	file, err := os.OpenFile(d.PathOf(name), os.O_RDONLY|noFollow|nonBlock, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // it was only read
	info, err := file.Stat()
	if err == nil {
		err = usable(info)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(file, most))
}

// MaxNumber bounds the numbers of claims, so that a stray file does not make them overflow.
const MaxNumber = 1 << 31

// Numbers lists the files whose names are the prefix and a number, in no order. A directory that is gone has none.
func (d *Dir) Numbers(prefix string) ([]int, error) {
	dir, err := os.Open(d.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer func() { _ = dir.Close() }() // it was only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var numbers []int
	for _, name := range names {
		if n, ok := parseNumber(name, prefix); ok {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// parseNumber is exact, so that a number has one name.
func parseNumber(name, prefix string) (int, bool) {
	if len(name) <= len(prefix) || name[:len(prefix)] != prefix {
		return 0, false
	}
	n, err := strconv.Atoi(name[len(prefix):])
	return n, err == nil && 0 <= n && n < MaxNumber && name == prefix+strconv.Itoa(n)
}
