package proc

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Get returns what is known of a process. The error is fs.ErrNotExist where there is none; a thread that is not the
// first of its process counts as none. What this user may not read is left empty without an error.
//
// All facts are of one process: they are read through a descriptor of its directory in /proc, which stays with the
// process where the pid does not.
func Get(pid int) (Process, error) {
	dir, err := openProc(pid)
	if err != nil {
		return Process{}, err
	}
	defer unix.Close(dir)

	text, err := readAt(dir, "stat")
	if err != nil {
		return Process{}, procError(pid, "stat", err)
	}
	st, err := parseStat(text)
	if err != nil {
		return Process{}, procError(pid, "stat", err)
	}
	p := Process{
		PID:     pid,
		PPID:    st.ppid,
		UID:     -1,
		RealUID: -1,
		Start:   st.start,
		Started: started(st.start),
		Command: st.comm,
		Kernel:  st.kernel(),
		Forked:  st.forked(),
		Stopped: st.stopped(),
		Zombie:  st.dead(),
	}
	switch text, err = readAt(dir, "status"); {
	case err == nil:
		s := parseStatus(text)
		if s.tgid >= 0 && s.tgid != pid {
			return Process{}, &goneError{pid} // /proc lists processes only, but resolves threads, too
		}
		p.UID, p.RealUID = s.euid, s.ruid
	case isGone(err):
		return Process{}, &goneError{pid}
	}
	if text, err = readAt(dir, "cmdline"); err == nil {
		p.Args = parseCmdline(text)
	}
	if text, err = readAt(dir, "cgroup"); err == nil {
		p.Unit, p.Container = parseCgroup(text)
		p.UserUnit = ofUserManager(text, p.Unit)
	}
	p.Executable, p.Deleted = executable(dir)
	p.Dir = readlinkAt(dir, "cwd")
	return p, nil
}

// Start returns [Process].Start of a process: the cheap check whether a pid still means the same one.
func Start(pid int) (uint64, error) {
	st, err := readStat(pid)
	return st.start, err
}

// readStat reads /proc/PID/stat.
func readStat(pid int) (stat, error) {
	if pid < 1 {
		return stat{}, &goneError{pid}
	}
	text, err := readAt(unix.AT_FDCWD, "/proc/"+strconv.Itoa(pid)+"/stat")
	if err != nil {
		return stat{}, procError(pid, "stat", err)
	}
	st, err := parseStat(text)
	if err != nil {
		return stat{}, procError(pid, "stat", err)
	}
	return st, nil
}

// lineage is what [Ancestors] asks of every generation.
func lineage(pid int) (ppid int, start uint64, err error) {
	st, err := readStat(pid)
	return st.ppid, st.start, err
}

// BootID returns an identifier of this boot of the system, in which a (PID, Start) means one process: the kernel's
// random boot_id, random(4). It is "" where it cannot be read.
func BootID() string { return bootID() }

var bootID = sync.OnceValue(func() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
})

// executablePath returns a path at which the program file of a process can be opened: it is the file itself, also
// where a rebuild has removed its name.
func executablePath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/exe" }

// currentDir asks getcwd(2), which costs a quarter of the link in /proc; of a directory that was removed only that tells.
func currentDir() string {
	var path [unix.PathMax]byte
	if n, err := unix.Getcwd(path[:]); err == nil && n > 1 && path[0] == '/' {
		return string(path[:n-1]) // it counts the NUL
	}
	return readlinkAt(unix.AT_FDCWD, "/proc/self/cwd")
}

// pidMax is above the highest pid, after which they begin anew at 300: pid_max in proc_sys_kernel(5). 0 is unknown.
var pidMax = sync.OnceValue(func() int {
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
})

// started converts ticks after boot. The unit is 1/100 s for user space on every architecture that Go has, whatever
// the kernel's own HZ; the clock is CLOCK_BOOTTIME (since Linux 2.6; it counts suspended time).
func started(ticks uint64) time.Time {
	const tick = time.Second / 100
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return time.Time{}
	}
	age := time.Duration(boot.Nano()) - time.Duration(ticks)*tick
	return time.Now().Add(-age).Round(0) // no monotonic reading: it says nothing of the past
}

// executable returns the program of the process whose directory is dir, and whether its file was removed or replaced:
// then the kernel adds " (deleted)" to the path, proc_pid_exe(5). A file may have this name without that.
func executable(dir int) (path string, deleted bool) {
	path = readlinkAt(dir, "exe")
	name, marked := strings.CutSuffix(path, " (deleted)")
	if !marked {
		return path, false
	}
	var running, named unix.Stat_t
	if unix.Fstatat(dir, "exe", &running, 0) == nil && unix.Stat(path, &named) == nil &&
		running.Dev == named.Dev && running.Ino == named.Ino {
		return path, false
	}
	return name, true
}

// openProc opens the directory of a process. Read through it, everything is of this process: once it has ended, each
// look-up fails with ESRCH or ENOENT, even where another process has got the pid.
func openProc(pid int) (int, error) {
	if pid < 1 {
		return -1, &goneError{pid}
	}
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, procError(pid, "", err)
	}
	return dir, nil
}

// readAt reads a whole file of /proc. These never block on data, so none of this goes through the poller.
func readAt(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return text, nil
		}
		text = text[:len(text)+n]
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
	}
}

// readlinkAt returns "" where the link cannot be read.
func readlinkAt(dir int, name string) string {
	var target [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, target[:])
	if err != nil {
		return ""
	}
	return string(target[:n])
}

// isGone reports whether an error of /proc/PID means that the process is no more: its files fail with ENOENT before
// they are opened and with ESRCH after.
func isGone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// procError gives an error of /proc/PID/name its meaning.
func procError(pid int, name string, err error) error {
	if isGone(err) {
		return &goneError{pid}
	}
	return &fs.PathError{Op: "read", Path: "/proc/" + strconv.Itoa(pid) + "/" + name, Err: err}
}
