package proc

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// What follows reads the text formats of Linux's /proc. It is free of system calls, so every system tests it.

// Bits of the flags in /proc/PID/stat, from linux/sched.h.
const (
	forkedNoExec = 0x00000040 // PF_FORKNOEXEC
	kernelThread = 0x00200000 // PF_KTHREAD
)

// A stat is what this package uses of /proc/PID/stat.
type stat struct {
	comm    string
	state   byte
	ppid    int
	flags   uint64
	threads int
	start   uint64
}

func (s stat) kernel() bool  { return s.flags&kernelThread != 0 }
func (s stat) forked() bool  { return s.flags&forkedNoExec != 0 }
func (s stat) stopped() bool { return s.state == 'T' } // 't' is a tracer's doing, and SIGCONT does not end it

// dead reports whether the whole process has ended. Its first thread may end alone, pthread_exit(3): it stays a
// zombie for as long as others run.
func (s stat) dead() bool { return s.ended() && s.threads <= 1 }

// ended reports whether the first thread has ended.
func (s stat) ended() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

var errStat = errors.New("malformed stat")

// parseStat parses /proc/PID/stat, proc_pid_stat(5). The second field is the command in parentheses; it may hold
// spaces, newlines and parentheses itself, so it ends at the last one.
func parseStat(text []byte) (stat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return stat{}, errStat
	}
	s := stat{comm: string(text[open+1 : end])}
	// The first field after the command is number 3.
	const state, ppid, flags, threads, start = 3, 4, 9, 20, 22
	number := state - 1
	for field := range bytes.FieldsSeq(text[end+1:]) {
		number++
		var err error
		switch number {
		case state:
			if len(field) != 1 {
				return stat{}, errStat
			}
			s.state = field[0]
		case ppid:
			s.ppid, err = strconv.Atoi(string(field))
		case flags:
			s.flags, err = strconv.ParseUint(string(field), 10, 64)
		case threads:
			s.threads, err = strconv.Atoi(string(field))
		case start:
			s.start, err = strconv.ParseUint(string(field), 10, 64)
			if err != nil {
				return stat{}, errStat
			}
			return s, nil
		}
		if err != nil {
			return stat{}, errStat
		}
	}
	return stat{}, errStat // cut short
}

// A status is what this package uses of /proc/PID/status. What is missing is -1.
type status struct {
	tgid       int
	ruid, euid int
}

// parseStatus parses /proc/PID/status, proc_pid_status(5). The name in its first line is escaped by the kernel, so
// no line is forged.
func parseStatus(text []byte) status {
	s := status{tgid: -1, ruid: -1, euid: -1}
	for line := range bytes.Lines(text) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		switch string(key) {
		case "Tgid":
			s.tgid = id(bytes.TrimSpace(value))
		case "Uid": // real, effective, saved, file system
			fields := bytes.Fields(value)
			if len(fields) >= 2 {
				s.ruid, s.euid = id(fields[0]), id(fields[1])
			}
			return s // Tgid stands before it
		}
	}
	return s
}

// id parses an unsigned 32-bit id, -1 where it is none.
func id(text []byte) int {
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil || int(n) < 0 { // a 32-bit int
		return -1
	}
	return int(n)
}

// parseCmdline parses /proc/PID/cmdline, proc_pid_cmdline(5): every argument ends with a NUL byte. A program that
// writes a title over its arguments may leave the rest of the space NUL: this is one argument.
func parseCmdline(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	all := strings.TrimSuffix(string(text), "\x00")
	if title := strings.TrimRight(all, "\x00"); len(all)-len(title) > 1 && !strings.Contains(title, "\x00") {
		return []string{title}
	}
	return strings.Split(all, "\x00")
}

// parseCgroup finds the systemd service and the container of a process in the text of /proc/PID/cgroup, cgroups(7):
// a line "0::PATH" for version 2, and "NUMBER:CONTROLLERS:PATH" for each hierarchy of version 1.
func parseCgroup(text []byte) (unit, container string) {
	var v2, systemd string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		number, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		controllers, path, ok := strings.Cut(rest, ":") // the path may hold colons
		if !ok {
			continue
		}
		path = strings.TrimSuffix(path, " (deleted)") // so the kernel marks the removed cgroup of a zombie
		switch {
		case controllers == "name=systemd":
			systemd = path
		case number == "0" && controllers == "":
			v2 = path
		}
		if container == "" {
			container = containerOf(path)
		}
	}
	// Where both are mounted systemd may keep to either, and the other says nothing.
	if unit = unitOf(systemd); unit == "" {
		unit = unitOf(v2)
	}
	return unit, container
}

// ofUserManager tells whether a unit that parseCgroup found in the text is below a user's service manager,
// user@UID.service, and not that itself.
func ofUserManager(text []byte, unit string) bool {
	return unit != "" && !strings.HasPrefix(unit, "user@") && bytes.Contains(text, []byte("/user@"))
}

// unitOf returns the systemd service that manages what runs in a cgroup. The deepest component that is a unit
// tells: a service is systemd's own, while a scope holds processes that somebody else started, systemd.scope(5).
// Below its unit a cgroup may be divided further (Delegate=).
func unitOf(path string) string {
	parts := strings.Split(path, "/")
	for i, name := range slices.Backward(parts) {
		switch {
		case name == "init.scope":
			// The service manager itself: pid 1, or the one of a user, user@.service(5).
			if i > 0 && strings.HasPrefix(parts[i-1], "user@") && strings.HasSuffix(parts[i-1], ".service") {
				return parts[i-1]
			}
			return name
		case strings.HasSuffix(name, ".service"):
			return name
		case strings.HasSuffix(name, ".scope"), strings.HasSuffix(name, ".slice"):
			return ""
		}
	}
	return ""
}

// containerOf returns the id or the name of the container that a cgroup belongs to, the innermost where they are
// nested. The host-side supervisors of a container (conmon, lxc's monitor) count as part of it: what serves its
// ports is among them.
func containerOf(path string) string {
	parts := strings.Split(path, "/")
	for i, name := range slices.Backward(parts) {
		parent := ""
		if i > 0 {
			parent = parts[i-1]
		}
		if id := containerID(name, parent); id != "" {
			return id
		}
	}
	return ""
}

// containerID returns the container that one component of a cgroup's path names, given the component above it.
func containerID(name, parent string) string {
	switch parent {
	case "lxc", "lxc.payload", "lxc.monitor", "buildkit":
		return name
	}
	for _, prefix := range [...]string{"lxc.payload.", "lxc.monitor."} {
		if id, ok := strings.CutPrefix(name, prefix); ok {
			return id
		}
	}
	if id, ok := strings.CutPrefix(name, "systemd-nspawn@"); ok && strings.HasSuffix(id, ".service") {
		return strings.TrimSuffix(id, ".service")
	}
	name, scope := strings.CutSuffix(name, ".scope")
	if id, ok := strings.CutPrefix(name, "machine-"); ok && scope && parent == "machine.slice" {
		return id
	}
	// "ID" below docker, kubepods and others, "RUNTIME-ID.scope" or "RUNTIME-ID", and containerd's
	// "SLICE:cri-containerd:ID". No other use of cgroups is known to end in 64 hexadecimal digits.
	if n := len(name) - 64; n == 0 || n > 0 && (name[n-1] == '-' || name[n-1] == ':') {
		if isHex(name[n:]) {
			return name[n:]
		}
	}
	if scope { // ids of another form: those of docker's BuildKit have 25 letters and digits
		for _, runtime := range [...]string{"docker-", "cri-containerd-", "crio-", "libpod-", "nerdctl-"} {
			if id, ok := strings.CutPrefix(name, runtime); ok && len(id) >= 12 && isAlphanumeric(id) {
				return id
			}
		}
	}
	return ""
}

func isHex(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') }) < 0
}

func isAlphanumeric(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }) < 0
}

// parseHidepid reports whether some process of another user is hidden: whether text, of the form of
// /proc/self/mounts, mounts /proc with a hidepid other than off, proc(5).
func parseHidepid(text []byte) bool {
	hidden := false
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line)) // device, mount point, type, options, ...
		if len(fields) < 4 || fields[1] != "/proc" || fields[2] != "proc" {
			continue
		}
		hidden = false // a later mount covers an earlier one
		for option := range strings.SplitSeq(fields[3], ",") {
			if value, ok := strings.CutPrefix(option, "hidepid="); ok {
				hidden = value != "0" && value != "off"
			}
		}
	}
	return hidden
}

// socketInode parses the target of a link in /proc/PID/fd, proc_pid_fd(5): "socket:[inode]" for a socket.
func socketInode(link []byte) (inode uint64, ok bool) {
	const before, after = "socket:[", "]"
	if len(link) <= len(before)+len(after) || string(link[:len(before)]) != before || link[len(link)-1] != ']' {
		return 0, false
	}
	for _, c := range link[len(before) : len(link)-len(after)] {
		if c < '0' || c > '9' || inode > (1<<64-1-9)/10 {
			return 0, false
		}
		inode = inode*10 + uint64(c-'0')
	}
	return inode, true
}

// number parses a directory's name that is a number: a pid, a thread or a descriptor. Linux has none of more than nine
// digits: pids end at 2^22, and a table of 2^28 descriptors (pointers of 8 bytes) is refused by its size alone.
func number(name []byte) (n int, ok bool) {
	if len(name) == 0 || len(name) > 9 {
		return 0, false
	}
	for _, c := range name {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
