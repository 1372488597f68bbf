// Package proc knows facts about processes, and gives a handle by which exactly one process is signalled and
// awaited. It is mechanism only: who may be stopped, and when, is decided above.
//
// A pid is a name that the kernel gives away again. What names one process is its pid together with its start
// (see [Start]), and what holds on to one is a [Handle]. To act on what was learned of a process:
//
//	h, err := proc.Open(pid) // from here on h is one process, whatever becomes of the pid
//	...
//	defer h.Close()
//	p, err := proc.Get(pid)  // facts read after Open, while h.Alive, are facts of that process
//	if err == nil && stale(p) && h.Alive() {
//		err = h.Terminate()
//	}
//
// Paths, pids and sockets are those of this process's own mount, pid and network namespaces. A process in a pid
// namespace that is not a descendant of ours is invisible, and no function here can tell that it exists.
package proc

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

// A Process is what is known of one process at one moment.
//
// A field that this user may not read, or this system does not know, is left at its zero value (or at -1, where
// stated).
type Process struct {
	PID, PPID int

	// UID and RealUID are the effective and the real user id, -1 where unknown.
	UID, RealUID int

	// Start is when the process started, in units of the system: on Linux the ticks after boot that are field 22
	// of /proc/PID/stat, proc_pid_stat(5), elsewhere the milliseconds of the wall clock. Together with PID it
	// names one process of this boot. It is compared, never converted. Zero means unknown: it equals nothing.
	Start uint64

	// Started is Start as a wall-clock time, good for people: to 10 ms, and moving where the clock is set.
	Started time.Time

	// Command is the short name; on Linux at most 15 bytes of any content, see PR_SET_NAME(2const).
	Command string

	// Executable is the path of the program. A process in another mount namespace (a container) may run another
	// file of the same path.
	Executable string

	// Deleted is set where Executable was removed or replaced since the process started, as a rebuild does.
	Deleted bool

	// Dir is the working directory, with symbolic links resolved.
	Dir string

	// Args are the arguments, the program's name first. A process may overwrite its own.
	Args []string

	// Unit is the systemd service that manages the process, and Container the id or name of the container that
	// it runs in. Both are "" for what a person or a program started by themselves, and outside Linux.
	Unit, Container string

	// UserUnit is set where Unit is of a user's service manager and not of the system's.
	UserUnit bool

	// Kernel is set for a thread of the kernel: it has no descriptors, and signals mean nothing to it.
	Kernel bool

	// Forked is set where the process has executed no program since its fork: it is a copy of its parent, with all of
	// its descriptors, for a moment before exec(2) or for good. Linux only.
	Forked bool

	// Stopped is set where job control suspended the process (SIGSTOP, SIGTSTP, ...).
	Stopped bool

	// Zombie is set where the process has ended and was not waited for yet. A process of which only the first
	// thread has ended is alive, although ps shows it as a zombie.
	Zombie bool
}

// Before reports whether p is older than q. It orders by (Start, PID): of two different processes of one boot exactly one
// is before the other, also where both started within one tick, so two processes that compare themselves with each other
// agree on which is the newer. Pids that are far apart within one tick mean that they began anew at the bottom in between.
func (p Process) Before(q Process) bool { return before(p, q, pidMax()) }

func before(p, q Process, pidMax int) bool {
	if p.Start != q.Start {
		return p.Start < q.Start
	}
	if half := pidMax / 2; half > 0 && (p.PID-q.PID > half || q.PID-p.PID > half) {
		return p.PID > q.PID
	}
	return p.PID < q.PID
}

// Self returns the facts of this process. They are read once, when first asked for, except Dir and the
// user ids, which are current.
func Self() Process {
	p := self()
	if uid := os.Geteuid(); uid >= 0 { // a server may give up root between two listeners
		p.UID, p.RealUID = uid, os.Getuid()
	}
	p.Args = slices.Clone(p.Args)
	p.Dir = currentDir()
	return p
}

var self = sync.OnceValue(func() Process {
	p, err := Get(os.Getpid())
	if err == nil {
		return p
	}
	// Where the system tells nothing, this much a process knows of itself. /proc need not be mounted.
	p = Process{PID: os.Getpid(), PPID: os.Getppid(), UID: os.Geteuid(), RealUID: os.Getuid(), Args: os.Args}
	p.Executable, _ = os.Executable()
	return p
})

// Ancestors returns the pids of this process's ancestors, nearest first. The last is pid 1, or the last one that is
// visible in this pid namespace.
//
// An ancestor may end while they are collected, and its children get another parent: then they are collected
// again. The result is current, not a promise: a parent that ends later is no longer an ancestor, and its pid may
// be given to another process.
func Ancestors() []int { return AncestorsSince(0) }

// AncestorsSince is Ancestors up to the first that started before since, in units of [Process].Start. A process is never
// younger than its parent, nor than the one that it is given when that ends: whoever started at since or later and is not
// listed is no ancestor.
func AncestorsSince(since uint64) []int {
	const attempts = 3 // each needs an ancestor to end within microseconds
	var pids []int
	for range attempts {
		var consistent bool
		if pids, consistent = ancestors(os.Getppid(), os.Getpid(), since, lineage); consistent {
			break
		}
	}
	return pids
}

// ancestors climbs from pid, the parent of child. It reports whether every link held: a parent that is gone, or
// younger than its child (its pid was recycled), or met before, means that the family changed on the way.
func ancestors(pid, child int, since uint64, lineage func(int) (ppid int, start uint64, err error)) (pids []int, consistent bool) {
	_, born, err := lineage(child)
	if err != nil {
		born = 0 // unknown
	}
	for pid > 0 {
		if pid == child || slices.Contains(pids, pid) {
			return pids, false
		}
		ppid, start, err := lineage(pid)
		if err != nil {
			// It is listed nonetheless: it was an ancestor a moment ago, and callers use the list to spare.
			return append(pids, pid), false
		}
		pids = append(pids, pid)
		if born != 0 && start > born {
			return pids, false
		}
		if pid == 1 || start < since {
			break
		}
		pid, born = ppid, start
	}
	return pids, true
}

// A goneError says that there is no process of this pid. It is both fs.ErrNotExist and os.ErrProcessDone.
type goneError struct{ pid int }

func (e *goneError) Error() string { return fmt.Sprintf("process %d does not exist", e.pid) }

func (e *goneError) Is(target error) bool {
	return target == fs.ErrNotExist || target == os.ErrProcessDone
}
