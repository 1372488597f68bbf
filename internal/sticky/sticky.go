// Package sticky remembers which number a name had: the port of a service, the place of an instance in its fleet. What it
// remembers is a wish and no claim. Whoever has the number decides, so a memory that is lost, damaged or hostile costs
// nobody anything but the same number.
package sticky

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-go/berth/internal/registry"
)

const (
	maxEntries = 1000
	maxSize    = 256 << 10
	maxName    = 200
	maxAge     = 90 * 24 * time.Hour
	// fresh is how long an entry is not written again.
	fresh = time.Hour
)

// An Entry is a name and the number that it had last.
type Entry struct {
	Name   string
	Number int
	Used   time.Time // to the second
}

// A Memory has each name and each number once, the last used first.
type Memory []Entry

// Of is the entry of a name.
func (m Memory) Of(name string) (Entry, bool) {
	i := slices.IndexFunc(m, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		return Entry{}, false
	}
	return m[i], true
}

// parse reads lines of number, seconds since 1970 and quoted name. A line that is none of these is skipped: it was damaged,
// or is of a later version.
func parse(text []byte, now time.Time) Memory {
	var m Memory
	for line := range strings.Lines(string(text)) {
		number, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		seconds, quoted, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(number, 10, 32)
		unix, err2 := strconv.ParseInt(seconds, 10, 64)
		name, err3 := strconv.Unquote(quoted)
		if errors.Join(err, err2, err3) != nil || n < 0 || len(name) > maxName {
			continue
		}
		e := Entry{Name: name, Number: int(n), Used: time.Unix(unix, 0)}
		if e.Used.After(now) { // the clock was wrong, then or now
			e.Used = now.Truncate(time.Second)
		}
		if now.Sub(e.Used) <= maxAge {
			m = append(m, e)
		}
	}
	return m.tidy()
}

// tidy puts the last used first, and takes out what is said twice or is too much.
func (m Memory) tidy() Memory {
	slices.SortStableFunc(m, func(a, b Entry) int { return b.Used.Compare(a.Used) })
	names, numbers := map[string]bool{}, map[int]bool{}
	m = slices.DeleteFunc(m, func(e Entry) bool {
		if names[e.Name] || numbers[e.Number] {
			return true
		}
		names[e.Name], numbers[e.Number] = true, true
		return false
	})
	return m[:min(len(m), maxEntries)]
}

// remember gives the name the number, and takes it from whoever had it.
func (m Memory) remember(name string, number int, now time.Time) Memory {
	m = slices.DeleteFunc(slices.Clone(m), func(e Entry) bool { return e.Name == name || e.Number == number })
	return slices.Insert(m, 0, Entry{Name: name, Number: number, Used: now}).tidy()
}

func (m Memory) text() []byte {
	var b bytes.Buffer
	for _, e := range m {
		line := fmt.Sprintf("%d %d %q\n", e.Number, e.Used.Unix(), e.Name)
		if b.Len()+len(line) > maxSize {
			break
		}
		b.WriteString(line)
	}
	return b.Bytes()
}

// Read gives what the file remembers; nothing where it cannot be read.
func Read(dir *registry.Dir, file string) Memory {
	text, err := dir.ReadFile(file, maxSize)
	if err != nil {
		return nil
	}
	return parse(text, time.Now())
}

// Remember writes that the name has the number, unless that is what the memory says already. Two processes that remember
// at the same moment do not forget each other's.
func Remember(dir *registry.Dir, file string, known Memory, name string, number int) error {
	if len(name) > maxName {
		return fmt.Errorf("remember %s: a name of more than %d bytes", file, maxName)
	}
	now := time.Now()
	if e, ok := known.Of(name); ok && e.Number == number && now.Sub(e.Used) < fresh {
		return nil
	}
	guard, err := claim(dir, file+".guard")
	if err != nil {
		return fmt.Errorf("remember: %w", err)
	}
	path := dir.PathOf(file)
	err = replace(path, Read(dir, file).remember(name, number, now).text())
	if err = errors.Join(err, guard.Release()); err != nil {
		return fmt.Errorf("remember: %w", err)
	}
	return nil
}

// claim waits for those who write meanwhile, each of whom takes microseconds.
func claim(dir *registry.Dir, name string) (*registry.Lock, error) {
	const patience = 100
	for i := 0; ; i++ {
		guard, err := dir.Claim(name)
		if !errors.Is(err, registry.ErrHeld) || i == patience {
			return guard, err
		}
		time.Sleep(time.Millisecond)
	}
}

// replace lets a reader see the old text or the new one, and a writer that is killed leave the old one. The name of the
// temporary file is the same each time, so that nothing piles up; the guard keeps others off it.
func replace(path string, text []byte) error {
	temporary := path + "~"
	// What was left of a killed writer is not followed, should it be a link.
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary) // the failure is what counts
	}
	return err
}
