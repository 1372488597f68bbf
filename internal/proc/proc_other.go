//go:build !linux

package proc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

// Get returns what is known of a process. The error is fs.ErrNotExist where there is none. What this user may not
// read, or this system does not tell, is left empty without an error.
func Get(pid int) (Process, error) {
	info, err := open(pid)
	if err != nil {
		return Process{}, err
	}
	p := Process{PID: pid, UID: -1, RealUID: -1}
	if created, err := info.CreateTime(); err == nil && created > 0 { // milliseconds
		p.Start = uint64(created)
		p.Started = time.UnixMilli(created)
	}
	if ppid, err := info.Ppid(); err == nil {
		p.PPID = int(ppid)
	}
	p.RealUID, p.UID = userIDs(info)
	p.Command, _ = info.Name()
	p.Executable, _ = info.Exe()
	p.Dir, _ = info.Cwd()
	p.Args, _ = info.CmdlineSlice()
	if status, err := info.Status(); err == nil {
		p.Stopped = slices.Contains(status, process.Stop)
		p.Zombie = slices.Contains(status, process.Zombie)
	}
	// Facts that were read while the pid went to another process are of neither.
	if start, err := Start(pid); p.Start != 0 && (err != nil || start != p.Start) {
		return Process{}, &goneError{pid}
	}
	return p, nil
}

// Start returns [Process].Start of a process: the cheap check whether a pid still means the same one. The error is
// errors.ErrUnsupported where this system does not tell (OpenBSD, NetBSD).
func Start(pid int) (uint64, error) {
	info, err := open(pid)
	if err != nil {
		return 0, err
	}
	created, err := info.CreateTime()
	switch {
	case err == nil && created > 0:
		return uint64(created), nil
	case errors.Is(err, fs.ErrPermission):
		return 0, fmt.Errorf("start of process %d: %w", pid, err)
	default:
		return 0, fmt.Errorf("start of process %d: %w", pid, unsupported())
	}
}

func open(pid int) (*process.Process, error) {
	if pid < 1 || pid > math.MaxInt32 {
		return nil, &goneError{pid}
	}
	info, err := process.NewProcess(int32(pid))
	if errors.Is(err, process.ErrorProcessNotRunning) {
		return nil, &goneError{pid}
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return info, nil
}

func lineage(pid int) (ppid int, start uint64, err error) {
	info, err := open(pid)
	if err != nil {
		return 0, 0, err
	}
	parent, err := info.Ppid()
	if err != nil {
		return 0, 0, err
	}
	start, _ = Start(pid)
	return int(parent), start, nil
}

// BootID returns an identifier of this boot of the system, in which a (PID, Start) means one process: a random one of
// the kernel on macOS and FreeBSD, "" elsewhere. The time of the boot would not do: it moves when the clock is set.
func BootID() string { return bootID() }

// pidMax is not known: 0.
func pidMax() int { return 0 }

// executablePath returns where the program file of a process lies, or lay.
func executablePath(pid int) string {
	info, err := open(pid)
	if err != nil {
		return ""
	}
	path, err := info.Exe()
	if err != nil {
		return ""
	}
	return path
}

func currentDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return dir
}

// Holds is Linux's: elsewhere the table of sockets names the processes itself. The error is errors.ErrUnsupported.
func Holds(pid int, inode uint64) (bool, error) { return false, unsupported() }

// Held is Linux's, as [Holds] is. The error is errors.ErrUnsupported.
func Held(pid int, inodes []uint64) ([]uint64, error) { return nil, unsupported() }

// Holders is Linux's, as [Holds] is. The error is errors.ErrUnsupported.
func Holders(ctx context.Context, inodes []uint64, first bool) (found map[uint64][]int, complete bool, err error) {
	return nil, false, unsupported()
}

func unsupported() error {
	return fmt.Errorf("%w on %s/%s", errors.ErrUnsupported, runtime.GOOS, runtime.GOARCH)
}
