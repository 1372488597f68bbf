package listener

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// writePortFile puts the addresses into the file, one a line, so that a reader sees all of them or the file before. The
// function that it returns removes the file again, if it is still that one: another instance may have written its own
// in the meantime.
func writePortFile(path string, addresses []string) (release func() error, err error) {
	path, err = filepath.Abs(path) // the working directory may be another at Close
	if err != nil {
		return nil, fmt.Errorf("port file: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("port file: %w", err)
	}
	temporary := file.Name()
	text := strings.Join(addresses, "\n") + "\n"
	written, err := fill(file, text)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, fmt.Errorf("port file: %w", errors.Join(err, os.Remove(temporary)))
	}
	return func() error {
		// Nobody has the file open, so its inode alone does not tell: the file system may have given it to that of a
		// successor.
		now, err := os.Stat(path)
		if err != nil || !now.ModTime().Equal(written.ModTime()) {
			return nil
		}
		if found, err := os.ReadFile(path); err != nil || string(found) != text {
			return nil
		}
		return removeSame(path, written)
	}, nil
}

// fill writes the text, makes the file readable for those who look for the port, and closes it.
func fill(file *os.File, text string) (fs.FileInfo, error) {
	_, err := file.WriteString(text)
	if err == nil {
		err = file.Chmod(0o644) // os.CreateTemp gives 0600
	}
	info, statErr := file.Stat()
	return info, errors.Join(err, statErr, file.Close())
}

// removeSame removes a file if it is still the one that info describes. A file that is gone already is no failure.
func removeSame(path string, info fs.FileInfo) error {
	now, err := os.Lstat(path)
	if err == nil && os.SameFile(info, now) {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// afterCalls is a function that does nothing until it was called n times; the last call is release.
func afterCalls(n int, release func(elsewhere bool) error) func(elsewhere bool) error {
	var calls atomic.Int64
	return func(elsewhere bool) error {
		if calls.Add(1) < int64(n) {
			return nil
		}
		return release(elsewhere)
	}
}
