package reload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A pidFile is written in two steps: what can fail, such as a full disk, before this process says that it is ready, and what
// others see when it is in charge.
type pidFile string

// absolute is the path as it is meant from where this process was started: the program may change its directory.
func absolute(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(startDir, path)
}

// prepared is the file beside it. It always has the same name, so that one which a killed process left is no more than
// replaced.
func (p pidFile) prepared() string {
	dir, name := filepath.Split(string(p))
	return filepath.Join(dir, "."+name+".new")
}

func (p pidFile) prepare() error {
	if p == "" {
		return nil
	}
	_ = os.Remove(p.prepared()) // of a process that was killed
	file, err := os.OpenFile(p.prepared(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		_, err = file.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		_ = os.Remove(p.prepared())
		return fmt.Errorf("PID file: %w", err)
	}
	return nil
}

func (p pidFile) commit() error {
	if p == "" {
		return nil
	}
	if err := os.Rename(p.prepared(), string(p)); err != nil {
		return fmt.Errorf("PID file: %w", err)
	}
	return nil
}

// discard removes what a process prepared that did not take charge.
func (p pidFile) discard(pid int) error {
	if p == "" {
		return nil
	}
	return removeNaming(p.prepared(), pid)
}

// remove removes the file if it names this process.
func (p pidFile) remove() error {
	if p == "" {
		return nil
	}
	return removeNaming(string(p), os.Getpid())
}

func removeNaming(path string, pid int) error {
	text, err := os.ReadFile(path)
	if err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(pid) {
		return nil // somebody else's, or gone
	}
	return os.Remove(path)
}
