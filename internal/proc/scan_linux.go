package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Holds reports whether a process has a descriptor of the socket with this inode, which /proc/PID/fd shows as
// "socket:[inode]". The error is fs.ErrPermission where this cannot be seen, fs.ErrNotExist where there is no such
// process. Low descriptors are looked at first, and none after the match.
//
// A socket can be held without a descriptor of its process: by a message that carries it, unix(7), by io_uring, and
// by a thread with a descriptor table of its own, unshare(2). These are not seen.
func Holds(pid int, inode uint64) (bool, error) {
	held, err := Held(pid, []uint64{inode})
	return len(held) > 0, err
}

// Held is [Holds] for several sockets in one look: those of the inodes that the process has a descriptor of.
func Held(pid int, inodes []uint64) (held []uint64, err error) {
	if pid < 1 {
		return nil, &goneError{pid}
	}
	wanted := slices.DeleteFunc(slices.Clone(inodes), func(inode uint64) bool { return inode == 0 }) // no socket has it
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if len(wanted) == 0 {
		return nil, nil
	}
	err = newVisitor(wanted).visit(pid, everyDescriptor, func(inode uint64) (ended bool) {
		held = append(held, inode)
		return len(held) == len(wanted)
	})
	return held, err
}

// Holders finds the processes that hold the sockets with these inodes.
//
// With first it stops as soon as every socket has one holder, and found has one of each. It looks where a holder is
// likely first: in the newest processes, and at the descriptors 3 to 15 of every process before the rest. Without, it
// looks at every process whole, so that found has also the children that inherited a socket. Holders are ordered by
// pid, highest first; a socket without a holder has no entry.
//
// Complete is false where a holder may have been missed: a process had to be looked at and this user may not inspect
// it, or is not even shown it (hidepid, proc(5)). Then "nobody" means nothing. As with [Holds], what holds a socket
// without a descriptor is missed, and so is a process in a pid namespace that is not visible from ours. A process
// that starts or ends meanwhile is no error; one that is forked meanwhile may be missed. A child of any holder, also one
// of this process, holds the sockets itself between its fork and its exec.
//
// Where ctx ends, its error is returned with what was found until then.
func Holders(ctx context.Context, inodes []uint64, first bool) (found map[uint64][]int, complete bool, err error) {
	s := newSearch(inodes, first)
	if s.ended() {
		return s.found, true, ctx.Err()
	}
	pids, err := newestPIDs()
	if err != nil {
		return s.found, false, err
	}
	c := &crawl{search: s, pids: pids}
	if first {
		c.run(ctx, likelyDescriptors)
	}
	c.run(ctx, everyDescriptor)
	complete = c.err == nil && (s.ended() || !c.denied && !hidden(pids))
	return s.result(), complete, c.err
}

// For fewer processes than these, a second goroutine costs more than it saves.
const crowd = 64

// A crawl goes through the descriptors of many processes.
type crawl struct {
	pids []int
	next atomic.Int64 // index of the next pid that no worker has taken
	over atomic.Bool  // set with mu held, read without by workers that need not go on

	mu     sync.Mutex
	search *search
	denied bool  // some process could not be inspected
	err    error // the first one
}

// run looks at descriptors of every process, unless the crawl is over already, and returns when all workers have.
// Two workers halve the time; it is spent in the kernel, so more of them take cores from the program that is served.
func (c *crawl) run(ctx context.Context, r descriptors) {
	c.next.Store(0)
	var wg sync.WaitGroup
	if len(c.pids) > crowd && runtime.GOMAXPROCS(0) > 1 {
		wg.Go(func() { c.work(ctx, r) })
	}
	c.work(ctx, r)
	wg.Wait()
}

func (c *crawl) work(ctx context.Context, r descriptors) {
	v := newVisitor(c.search.wanted)
	for !c.over.Load() {
		i := int(c.next.Add(1)) - 1
		if i >= len(c.pids) {
			return
		}
		if err := ctx.Err(); err != nil {
			c.fail(err)
			return
		}
		pid := c.pids[i]
		err := v.visit(pid, r, func(inode uint64) (ended bool) { return c.add(inode, pid) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.fail(err)
		}
	}
}

func (c *crawl) add(inode uint64, pid int) (ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ended = c.search.add(inode, pid)
	if ended {
		c.over.Store(true)
	}
	return ended
}

// fail records that a process could not be inspected, or ends the crawl with an error.
func (c *crawl) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, fs.ErrPermission) {
		c.denied = true
		return
	}
	if c.err == nil {
		c.err = err
	}
	c.over.Store(true)
}

// A descriptors is a part of a process's descriptors.
type descriptors int

const (
	everyDescriptor   descriptors = iota
	likelyDescriptors             // from 3, the first that a program opens itself, to 15; may miss some
)

// part reports whether fd belongs to r, and whether none above it does.
func (r descriptors) part(fd int) (in, past bool) {
	if r == likelyDescriptors {
		return 3 <= fd && fd <= 15, fd > 15
	}
	return true, false
}

// dots are the entries of a directory of descriptors before the first descriptor: "." and "..".
const dots = 2

// A visitor looks at the descriptors of one process after another. A look costs a system call a descriptor, about
// 1 us, so the rest is kept off it: the buffers are reused, and names go back to the kernel as they came from it.
type visitor struct {
	wanted  []uint64
	seen    []bool // by index of wanted: in the current process
	path    []byte
	entries [1024]byte // small: the kernel makes an inode for each entry that it lists, and the match may be the first
	tasks   [1024]byte
	link    [64]byte // more than a socket's; a longer target is cut
}

func newVisitor(wanted []uint64) *visitor {
	return &visitor{wanted: wanted, seen: make([]bool, len(wanted))}
}

// visit calls found with each wanted socket that a process has, once each, until it reports the end or all were seen.
// The error is fs.ErrNotExist where the process is no more, fs.ErrPermission where it may not be inspected.
func (v *visitor) visit(pid int, r descriptors, found func(inode uint64) (ended bool)) error {
	clear(v.seen)
	v.path = append(strconv.AppendInt(append(v.path[:0], "/proc/"...), int64(pid), 10), "/fd\x00"...)
	past, ended := v.probe(r, found)
	if ended || past > 0 && r == likelyDescriptors {
		return nil
	}
	n, err := v.list(r, past, found)
	switch {
	case err == nil && n+past == 0 && r != likelyDescriptors:
		// Most likely it has none. But where the first thread has ended alone, pthread_exit(3), the descriptors
		// are seen with the other threads only.
		err = v.visitThreads(pid, found)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		// Permission is refused also for what there is nothing to see of: kernel threads, and processes that
		// have just ended. Their links give EACCES, too, where they end between look-up and reading. And where
		// only the first thread has ended, its files are root's, while those of the others are the user's still.
		st, failed := readStat(pid)
		switch {
		case errors.Is(failed, fs.ErrNotExist):
			return failed
		case failed != nil:
		case st.kernel(), st.dead():
			return nil
		case st.ended():
			err = v.visitThreads(pid, found)
		}
	}
	if err != nil {
		return procError(pid, "fd", err)
	}
	return nil
}

// probe looks at the descriptors in the directory v.path without listing it: the first ones, as many as there are. It
// returns the number of the first that it did not look at; 0 where it met a gap or looked in vain, so that past is all or
// nothing. A process that opens files meanwhile may have closed a gap, and hold more above past.
//
// Listing costs more than 2 us for each entry, since the kernel makes an inode for it; asking for a number that is there
// half of it, and for one that is not less. How many there are is the size of the directory, since Linux 6.2, and they are
// given from 0 on, so most processes have no gaps.
func (v *visitor) probe(r descriptors, found func(inode uint64) (ended bool)) (past int, ended bool) {
	if !sizesDescriptors() {
		return 0, false
	}
	var st unix.Stat_t
	err := unix.Stat(string(v.path[:len(v.path)-1]), &st)
	n := int(st.Size)
	const most = 64 // of more, some are far up
	if err != nil || n < 1 || n > most {
		return 0, false
	}
	first, last := 0, n-1
	if r == likelyDescriptors {
		first, last = 3, min(last, 15)
	}
	cwd := unix.AT_FDCWD
	dir := len(v.path) - 1
	v.path[dir] = '/'
	defer func() { v.path = append(v.path[:dir], 0) }()
	for fd := first; fd <= last; fd++ {
		v.path = append(strconv.AppendInt(v.path[:dir+1], int64(fd), 10), 0)
		size, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(cwd), uintptr(unsafe.Pointer(&v.path[0])),
			uintptr(unsafe.Pointer(&v.link[0])), uintptr(len(v.link)), 0, 0)
		switch errno {
		case 0:
			if v.match(v.link[:size], found) {
				return 0, true
			}
		case unix.ENAMETOOLONG: // no socket: its target has no path
		default:
			return 0, false // a gap, or not for us to see
		}
	}
	return n, false
}

// sizesDescriptors reports whether the size of a directory of descriptors is their number, and an offset in it the
// number of one and 2, for "." and "..".
var sizesDescriptors = sync.OnceValue(func() bool {
	info, err := os.Stat("/proc/self/fd")
	if err != nil || info.Size() < 1 {
		return false // 0 before Linux 6.2
	}
	if !seeksDescriptors() {
		return false
	}
	entries, err := os.ReadDir("/proc/self/fd")
	// A sandbox may mean something else by the size. ReadDir has the directory open itself, and other goroutines may
	// open and close files meanwhile.
	return err == nil && info.Size() >= 3 && math.Abs(float64(int64(len(entries))-info.Size())) <= 8
})

func seeksDescriptors() bool {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	self := int(dir.Fd())
	if _, err := unix.Seek(self, int64(self)+dots, unix.SEEK_SET); err != nil {
		return false
	}
	var entries [1024]byte
	n, err := getdents(self, entries[:])
	if err != nil {
		return false
	}
	for name := range names(entries[:n]) {
		first, ok := number(name)
		return ok && first == self
	}
	return false
}

// visitThreads looks at the descriptors of the first thread that has some, other than the first one of the process.
// The threads of a process share them.
func (v *visitor) visitThreads(pid int, found func(inode uint64) (ended bool)) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		n, err := getdents(fd, v.tasks[:])
		if err != nil || n == 0 {
			return err
		}
		for name := range names(v.tasks[:n]) {
			if tid, ok := number(name); !ok || tid == pid {
				continue
			}
			v.path = append(append(append(v.path[:0], dir...), '/'), name...)
			v.path = append(v.path, "/fd\x00"...)
			if n, err := v.list(everyDescriptor, 0, found); n > 0 || err != nil && !isGone(err) {
				return err
			}
		}
	}
}

// list looks at the descriptors from a number on in the directory v.path, and returns how many it was shown. What is open
// throughout is shown, whatever comes and goes beside it.
func (v *visitor) list(r descriptors, from int, found func(inode uint64) (ended bool)) (shown int, err error) {
	cwd := unix.AT_FDCWD
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(cwd), uintptr(unsafe.Pointer(&v.path[0])),
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	defer unix.Close(int(fd))
	if from > 0 {
		if _, err := unix.Seek(int(fd), int64(from)+dots, unix.SEEK_SET); err != nil {
			return 0, err
		}
	}
	for {
		n, err := getdents(int(fd), v.entries[:])
		if err != nil || n == 0 {
			return shown, err
		}
		for name := range names(v.entries[:n]) {
			descriptor, ok := number(name)
			if !ok {
				continue // . and ..
			}
			shown++
			in, past := r.part(descriptor)
			if past {
				return shown, nil // the kernel lists them in ascending order
			}
			if !in {
				continue
			}
			// name is followed by its NUL in the buffer.
			size, _, errno := unix.Syscall6(unix.SYS_READLINKAT, fd, uintptr(unsafe.Pointer(&name[0])),
				uintptr(unsafe.Pointer(&v.link[0])), uintptr(len(v.link)), 0, 0)
			switch errno {
			case 0:
			case unix.EACCES, unix.EPERM:
				return shown, errno
			default:
				continue // closed meanwhile (ENOENT), or no socket: its target has no path (ENAMETOOLONG)
			}
			if v.match(v.link[:size], found) {
				return shown, nil
			}
		}
	}
}

// match passes on a wanted socket, and reports whether the visit has ended.
func (v *visitor) match(link []byte, found func(inode uint64) (ended bool)) (ended bool) {
	inode, ok := socketInode(link)
	if !ok {
		return false
	}
	i, ok := slices.BinarySearch(v.wanted, inode)
	if !ok || v.seen[i] {
		return false
	}
	v.seen[i] = true
	return found(inode) || !slices.Contains(v.seen, false)
}

// newestPIDs lists the visible processes, highest pid first. Pids are given in turn, so this is newest first except
// where they have wrapped around since: an order to find fast by, not one to decide by.
func newestPIDs() ([]int, error) {
	fd, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/proc", Err: err}
	}
	defer unix.Close(fd)
	var pids []int
	entries := make([]byte, 32<<10)
	for {
		n, err := getdents(fd, entries)
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: "/proc", Err: err}
		}
		if n == 0 {
			break
		}
		for name := range names(entries[:n]) {
			if pid, ok := number(name); ok {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids) // the kernel's order, already; nothing promises it
	slices.Reverse(pids)
	return pids, nil
}

// hidden reports whether processes may be missing from a list of pids, newest first: each pid namespace has its pid 1,
// so where not even that is shown, others are not either.
func hidden(pids []int) bool {
	return len(pids) == 0 || pids[len(pids)-1] != 1 || os.Geteuid() != 0 && hidepid()
}

var hidepid = sync.OnceValue(func() bool {
	text, err := os.ReadFile("/proc/self/mounts")
	return err == nil && parseHidepid(text)
})

// getdents reads entries of a directory, getdents64(2).
func getdents(fd int, entries []byte) (int, error) {
	for {
		n, err := unix.Getdents(fd, entries)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// names yields the names in a buffer of struct linux_dirent64: inode and offset (8 bytes each), the record's length
// (2), a type (1), and the name, which a NUL byte ends and maybe more follow.
func names(entries []byte) func(yield func(name []byte) bool) {
	const lengthAt, nameAt = 16, 19
	return func(yield func(name []byte) bool) {
		for len(entries) > nameAt {
			length := int(binary.NativeEndian.Uint16(entries[lengthAt:]))
			if length <= nameAt || length > len(entries) {
				return
			}
			name := entries[nameAt:length]
			end := slices.Index(name, 0)
			if end < 1 || !yield(name[:end]) {
				return
			}
			entries = entries[length:]
		}
	}
}
