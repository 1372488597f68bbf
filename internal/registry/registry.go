// Package registry keeps locks and records: one file an address, locked as long as its listener is open, with the
// record of who holds it inside.
//
// Beside these there are claims, such as places in a queue, and the mark that some address is released.
//
// The lock is a courtesy between cooperating processes; only a bind decides who has an address. The kernel frees a lock
// when its process dies, so a lock that can be taken marks a stale record. Whatever stands in a file is treated as a
// claim: it is used only after the kernel confirmed it.
package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// version of the record's format. A higher one in a file makes it unreadable here.
const version = 1

// maxRecord bounds what is read of a file: a record has some hundred bytes, two paths of up to 4 KiB included.
const maxRecord = 64 << 10

const extension = ".lock"

// ErrHeld means that another open listener has the lock.
var ErrHeld = errors.New("the lock is held")

var (
	errNotRegular = errors.New("is not a regular file")
	errForeign    = errors.New("belongs to another user")
)

// A State is what the owner of a record does with the address. Readers of before there were any take all for "".
type State string

// The states of an address.
const (
	Listening State = ""
	Reserved  State = "reserved" // its socket is bound, and nothing accepts on it yet
	Released  State = "released" // it has no socket, and is kept for a program that is about to bind it
)

// A Record says who holds an address.
type Record struct {
	Version int `json:"version"`

	PID        int       `json:"pid"`
	Start      uint64    `json:"start"` // with PID and Boot it names one process for ever; see proc.Process
	Started    time.Time `json:"started"`
	Boot       string    `json:"boot,omitempty"`
	Executable string    `json:"executable,omitempty"`
	Main       string    `json:"main,omitempty"` // import path of the main package
	Dir        string    `json:"dir,omitempty"`

	Name      string    `json:"name,omitempty"`
	Network   string    `json:"network"` // as asked for
	Requested string    `json:"requested"`
	Address   string    `json:"address"`         // as the kernel reports it
	Inode     uint64    `json:"inode,omitempty"` // of the socket; Linux
	Since     time.Time `json:"since"`
	Origin    string    `json:"origin"`

	State State     `json:"state,omitempty"`
	Until time.Time `json:"until,omitzero"` // when a reservation or a release ends, for people; zero: no end
}

// parse reads a record. What follows the JSON value does not count: a shorter record may have been written over a
// longer one when its writer was killed.
func parse(r io.Reader) (Record, error) {
	var rec Record
	if err := json.NewDecoder(io.LimitReader(r, maxRecord)).Decode(&rec); err != nil {
		if errors.Is(err, io.EOF) {
			return Record{}, errors.New("the record is empty")
		}
		return Record{}, fmt.Errorf("the record is damaged: %w", err)
	}
	switch {
	case rec.Version > version:
		return Record{}, fmt.Errorf("the record is of version %d and this program reads up to %d", rec.Version, version)
	case rec.Version < 1 || rec.PID < 1 || rec.Address == "":
		return Record{}, errors.New("the record is damaged: version, pid or address is missing")
	}
	return rec, nil
}

// fileName is the name of the file for an address as the kernel reports it: "tcp-127.0.0.1-3000.lock",
// "tcp-any-3000.lock", "unix-app.sock-<hash>.lock". Networks of one kind share it: "tcp4" and "tcp6" are "tcp". The
// wildcards of the two families do not, since sockets can have both at once.
func fileName(network, address string) string {
	kind := safe(Kind(network))
	host, port, err := net.SplitHostPort(address)
	if kind == "unix" || kind == "unixgram" || err != nil {
		sum := sha256.Sum256([]byte(address))
		return kind + "-" + safe(filepath.Base(address)) + "-" + hex.EncodeToString(sum[:6]) + extension
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	if host == "" || host == "::" {
		host = "any"
	}
	return kind + "-" + safe(host) + "-" + safe(port) + extension
}

// parseFileName is what fileName put in.
func parseFileName(name string) (network string, port uint16) {
	network, rest, _ := strings.Cut(strings.TrimSuffix(name, extension), "-")
	if network == "tcp" || network == "udp" {
		if n, err := strconv.ParseUint(rest[strings.LastIndexByte(rest, '-')+1:], 10, 16); err == nil {
			port = uint16(n)
		}
	}
	return network, port
}

// safe keeps what is harmless in a file name on every system; the colons of IPv6 are not.
func safe(text string) string {
	const limit = 80 // three such parts stay below the 255 bytes that a name may have
	text = strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r == '_' || r == '@' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, text)
	return text[:min(len(text), limit)]
}

// Kind is the network without the address family: "tcp", "udp", "unix" (streams of both kinds) or "unixgram".
func Kind(network string) string {
	if network == "unixpacket" {
		return "unix"
	}
	return strings.TrimRight(network, "46")
}

// A Location is where a state directory may be. Nobody has looked yet whether it is safe to use, so it answers only what does not
// need to be believed: whether a closer look is worth it. At the zero Location there is nothing.
type Location struct{ path string }

// A Dir is a state directory that was found safe to use.
type Dir struct{ Location }

// Default is the state directory of this user: berth below $XDG_RUNTIME_DIR, for root below /run, else berth-<uid> in
// the directory for temporary files. A runtime directory that belongs to somebody else, as after `su`, does not count.
func Default() string {
	uid := os.Geteuid()
	if runtimeDir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(runtimeDir) {
		if info, err := os.Stat(runtimeDir); err == nil && info.IsDir() && ownedBy(info, uid) {
			return filepath.Join(runtimeDir, "berth")
		}
	}
	if uid == 0 {
		if info, err := os.Stat("/run"); err == nil && info.IsDir() {
			return "/run/berth"
		}
	}
	if uid < 0 { // Windows, where the temporary directory is the user's own
		return filepath.Join(os.TempDir(), "berth")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("berth-%d", uid))
}

// Locate is where a path leads, wherever the working directory is later. An empty path means [Default].
func Locate(path string) (Location, error) {
	if path == "" {
		path = Default()
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return Location{}, fmt.Errorf("state directory: %w", err)
	}
	return Location{path}, nil
}

// Open is [Location.Open] for a path.
func Open(path string) (*Dir, error) {
	location, err := Locate(path)
	if err != nil {
		return nil, err
	}
	return location.Open()
}

// Open makes the directory where it is missing (0700) and checks that it can be trusted: a directory, no symbolic link,
// of this user, and not writable for others.
func (l Location) Open() (*Dir, error) {
	path := l.path
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		info, err = os.Lstat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := trusted(info); err != nil {
		return nil, fmt.Errorf("state directory %s %w", path, err)
	}
	return &Dir{l}, nil
}

// Existing is Open for a reader: it makes nothing, and a missing directory is an error that is fs.ErrNotExist.
func Existing(path string) (*Dir, error) {
	if path == "" {
		path = Default()
	}
	if _, err := os.Lstat(path); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return Open(path)
}

func trusted(info fs.FileInfo) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return errors.New("is a symbolic link: name the directory itself")
	case !info.IsDir():
		return errors.New("is not a directory: remove it or name another")
	case !ownedBy(info, os.Geteuid()):
		return errors.New("belongs to another user: name another")
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("is writable for others (mode %v): chmod 700 it", info.Mode().Perm())
	}
	return nil
}

// Path is the directory's path.
func (l Location) Path() string { return l.path }

// MayHave tells whether there may be a file of that name.
func (l Location) MayHave(name string) bool {
	return l.path != "" && mayExist(l.path+string(filepath.Separator)+name)
}

// PathFor is the path of the file for an address as the kernel reports it, whether there is one or not.
func (d *Dir) PathFor(network, address string) string {
	return filepath.Join(d.path, fileName(network, address))
}

var errReplaced = errors.New("it was removed, or replaced by another file")

// A Lock is held until Release, or until the last process ends that has part in it. Its methods may be called
// concurrently.
type Lock struct {
	path string
	file fs.FileInfo // the locked one

	mu   sync.Mutex
	lock interface{ Unlock() error } // *flock.Flock or *adopted; nil once it is given up
}

// Lock takes the lock for an address without waiting for another listener: where one has it, the error is [ErrHeld].
// The record in the file stays as it is until Write.
func (d *Dir) Lock(network, address string) (*Lock, error) {
	return lockFile(d.PathFor(network, address), os.O_CREATE)
}

// lockFile locks the file at path, which it makes where the flag is os.O_CREATE.
func lockFile(path string, flag int) (*Lock, error) {
	// A reader that checks for staleness holds the lock for microseconds, and a file may be removed between open and
	// lock. Neither lasts, unless the machine is so busy that the reader has to wait for a processor.
	const patience = 200 * time.Millisecond
	// A listener frees its lock a moment after its address, which somebody may have bound by then.
	const handover = 20 * time.Millisecond
	// Whoever has released the address frees its lock when he sees that it is taken, for which he too has to wait for a processor.
	const noticing = time.Second
	limit := patience
	for begin := time.Now(); time.Since(begin) < limit; {
		lock, err := tryLockFile(path, flag)
		switch {
		case errors.Is(err, errReplaced):
			continue
		case !errors.Is(err, ErrHeld):
			return lock, err
		}
		if time.Since(begin) >= handover && held(path) {
			entry, gone := (&Dir{Location{filepath.Dir(path)}}).read(filepath.Base(path))
			switch {
			case gone != nil: // it is freed at this moment
			case entry.Err == nil && entry.Record.State == Released:
				limit = noticing
			default:
				return nil, err
			}
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("lock %s: %w", path, ErrHeld)
}

// tryLockFile tries once. The error is [ErrHeld] where somebody has the lock, a reader too, and errReplaced where the file
// was removed between open and lock.
func tryLockFile(path string, flag int) (*Lock, error) {
	return tryLock(path, flag|os.O_RDWR, (*flock.Flock).TryLock)
}

// tryLock is tryLockFile with all flags of the open, and for a lock of either kind.
func tryLock(path string, flag int, try func(*flock.Flock) (bool, error)) (*Lock, error) {
	lock := flock.New(path, flock.SetFlag(flag|noFollow|nonBlock), flock.SetPermissions(0o600))
	locked, err := try(lock)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !locked {
		return nil, fmt.Errorf("lock %s: %w", path, ErrHeld)
	}
	info, err := lock.Stat()
	if err == nil {
		if err := usable(info); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Unlock())
		}
		if isNamed(info, path) {
			return &Lock{path: path, file: info, lock: lock}, nil
		}
	}
	_ = lock.Unlock() // of a file that is gone: nothing to report
	return nil, fmt.Errorf("lock %s: %w", path, errReplaced)
}

// usable tells what is wrong with a file that should be a lock and a record.
func usable(info fs.FileInfo) error {
	switch {
	case !info.Mode().IsRegular():
		return errNotRegular
	case !ownedBy(info, os.Geteuid()):
		return errForeign
	}
	return nil
}

// held tells whether somebody has the exclusive lock, in contrast to readers with a shared one.
func held(path string) bool {
	lock := flock.New(path, flock.SetFlag(os.O_RDONLY|noFollow|nonBlock))
	shared, err := lock.TryRLock()
	if err != nil {
		return false
	}
	if shared {
		_ = lock.Unlock()
	}
	return !shared
}

// isNamed tells whether the locked file is still the one that the path names.
func isNamed(locked fs.FileInfo, path string) bool {
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(locked, named)
}

// Path is that of the locked file.
func (l *Lock) Path() string { return l.path }

// Write puts the record into the locked file. A reader may see half of it; then it takes it for damaged. After Release
// or Leave the error is fs.ErrClosed.
func (l *Lock) Write(rec Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return l.closed()
	}
	rec.Version = version
	text, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	text = append(text, '\n')
	// gofrs/flock keeps its descriptor to itself, so the file is opened once more.
	if err := write(l.path, l.file, text); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

func (l *Lock) closed() error { return fmt.Errorf("lock %s: %w", l.path, fs.ErrClosed) }

// Release removes the file and frees the lock, for every process that has part in it. A file that somebody put in its
// place stays. After Leave it does nothing.
func (l *Lock) Release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock := l.lock
	if lock == nil {
		return nil
	}
	l.lock = nil
	if removeLocked {
		var removed error
		if isNamed(l.file, l.path) {
			removed = os.Remove(l.path)
		}
		return errors.Join(removed, lock.Unlock())
	}
	err := lock.Unlock()
	_ = os.Remove(l.path) // it fails where somebody has the lock by now, and then the file is his
	return err
}

// An Entry is a file of the state directory.
type Entry struct {
	Path    string
	Network string // kind of network, from the file's name: "tcp", "udp", "unix" or "unixgram"
	Port    uint16 // from the file's name; 0 for Unix sockets
	Record  Record
	Err     error // why there is no Record: damaged, of a future version, unreadable

	Modified time.Time // zero where this cannot be seen
}

// Held tells whether the owner of the record still has the lock. Without it, the record is stale.
func (e Entry) Held() bool { return held(e.Path) }

// Remove removes the file of a stale or damaged record. It does so under the lock, so that no listener loses a live one: where
// somebody has the lock the error is [ErrHeld].
func (e Entry) Remove() error {
	lock, err := lockFile(e.Path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return lock.Release()
}

// RemoveHeld removes the file whoever has the lock. Its owner goes on without one.
func (e Entry) RemoveHeld() error {
	if err := os.Remove(e.Path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Lookup reads the record for an address as the kernel reports it. The error is fs.ErrNotExist where there is none; a
// file that cannot be used is an Entry with Err.
func (d *Dir) Lookup(network, address string) (Entry, error) {
	return d.read(fileName(network, address))
}

func (d *Dir) read(name string) (Entry, error) {
	entry := Entry{Path: filepath.Join(d.path, name)}
	entry.Network, entry.Port = parseFileName(name)
	file, err := os.OpenFile(entry.Path, os.O_RDONLY|noFollow|nonBlock, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, err
	}
	if err != nil {
		entry.Err = err
		return entry, nil
	}
	defer func() { _ = file.Close() }() // it was only read
	info, err := file.Stat()
	if err == nil {
		entry.Modified = info.ModTime()
		err = usable(info)
	}
	if err == nil {
		entry.Record, err = parse(io.NewSectionReader(file, recordOffset, maxRecord))
	}
	if err != nil {
		entry.Err = fmt.Errorf("%s: %w", entry.Path, err)
	}
	return entry, nil
}

// Entries reads the records of the network's ports, in the order of their file names; with "", those of every network,
// Unix sockets included.
func (d *Dir) Entries(network string, first, last uint16) ([]Entry, error) {
	files, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var entries []Entry
	for _, file := range files {
		if filepath.Ext(file.Name()) != extension {
			continue
		}
		if kind, port := parseFileName(file.Name()); network != "" && (kind != network || port < first || port > last) {
			continue
		}
		entry, err := d.read(file.Name())
		if err != nil { // released in the meantime
			continue
		}
		entries = append(entries, entry)
	}
	return entries, nil
}
