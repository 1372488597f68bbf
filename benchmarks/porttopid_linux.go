package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	psnet "github.com/shirou/gopsutil/v4/net"

	"github.com/berth-go/berth/internal/sockets"
)

// portToPIDExperiment asks who holds a port, in a crowd of the lab's. What that costs depends on how many processes there
// are, and on which of them it is.
func portToPIDExperiment(crowd int) experiment {
	return experiment{name: "PortToPID", title: "From a port to its process", prepare: func(l *lab) ([]row, error) {
		dir, err := l.dir(true)
		if err != nil {
			return nil, err
		}
		program, err := l.otherProgram()
		if err != nil {
			return nil, err
		}
		size := l.crowds[crowd]
		recorded, err := l.start("", role{Do: doHold, By: byBerth, StateDir: dir})
		if err != nil {
			return nil, err
		}
		oldest, err := l.start(program, role{Do: doHold})
		if err != nil {
			return nil, err
		}
		if err := l.crowd(size / 2); err != nil {
			return nil, err
		}
		middle, err := l.start(program, role{Do: doHold})
		if err != nil {
			return nil, err
		}
		if err := l.crowd(size - size/2); err != nil {
			return nil, err
		}
		newest, err := l.start(program, role{Do: doHold})
		if err != nil {
			return nil, err
		}

		var rows []row
		add := func(name, text string, held *process, all bool, goal goal) error {
			port, pid := portOf(held.address), held.pid()
			asker, err := l.start("", role{Do: doAsk, StateDir: dir, Address: held.address, All: all})
			if err != nil {
				return err
			}
			r := row{
				name: fmt.Sprintf("processes=%d/%s", size, name),
				text: fmt.Sprintf("%s, among %d more processes", text, size),
				goal: goal,
				ours: contestant{"berth", func() (outcome, error) { return asker.asked(pid) }},
				bare: contestant{"procfs", timed(func() error { return isPID(pid)(walk(port)) })},
			}
			for _, f := range finders {
				if f.available() {
					r.peers = append(r.peers, contestant{f.name, timed(func() error { return isPID(pid)(f.find(port)) })})
				}
			}
			rows = append(rows, r)
			return nil
		}
		err = errors.Join(
			add("holder=recorded/find=one", "a recorded holder", recorded, false, atMost(ms/10)),
			add("holder=newest/find=one", "a stranger, the newest", newest, false, timesPeer(0.2)),
			add("holder=middle/find=one", "a stranger, in the middle", middle, false, timesPeer(0.2)),
			add("holder=oldest/find=one", "a stranger, the oldest", oldest, false, timesPeer(0.2)),
			add("holder=oldest/find=all", "every holder, for a reclaim", oldest, true, timesPeer(0.2)),
		)
		return rows, err
	}}
}

// asked lets a process that is younger than the holder find it, since that is who meets it: of a younger holder, berth
// first makes sure that it is no child in passing.
func (p *process) asked(want int) (outcome, error) {
	if _, err := fmt.Fprintln(p.input); err != nil {
		return outcome{}, err
	}
	var nanoseconds int64
	var pid int
	if _, err := fmt.Fscanln(p.output, &nanoseconds, &pid); err != nil {
		return outcome{}, err
	}
	return outcome{took: time.Duration(nanoseconds)}, isPID(want)(pid, nil)
}

func isPID(want int) func(pid int, err error) error {
	return func(pid int, err error) error {
		if err == nil && pid != want {
			err = fmt.Errorf("found pid %d, not %d", pid, want)
		}
		return err
	}
}

// otherProgram is a copy of this program: of another path and so a stranger.
func (l *lab) otherProgram() (string, error) {
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	dir, err := l.dir(false)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "stranger")
	return path, os.WriteFile(path, text, 0o700)
}

// crowd starts processes that do nothing, and waits until that is what they do.
func (l *lab) crowd(n int) error {
	var pids []int
	for range n {
		cmd := exec.Command("sleep", strconv.Itoa(l.seconds))
		if err := cmd.Start(); err != nil {
			return err
		}
		l.later(func() { end(cmd) })
		pids = append(pids, cmd.Process.Pid)
	}
	const attempts = 1000
	for range attempts {
		if pids = slices.DeleteFunc(pids, sleeps); len(pids) == 0 {
			return nil
		}
		time.Sleep(10 * ms)
	}
	return fmt.Errorf("%d processes are still busy", len(pids))
}

// sleeps tells whether a process waits in nanosleep(2), or is gone.
func sleeps(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/wchan")
	return err != nil || strings.Contains(string(text), "nanosleep")
}

func targetOf(port int) sockets.Target {
	target, _ := sockets.TargetOf("tcp", &net.TCPAddr{IP: net.ParseIP(loopback), Port: port})
	return target
}

// walk is the way without a library: the inode from /proc/net/tcp, then the descriptors of every process.
func walk(port int) (pid int, err error) {
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	local, inode := fmt.Sprintf(":%04X", port), ""
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		// Number, local address, remote address, state, ... and the inode as the tenth.
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], local) && fields[3] == "0A" {
			inode = "socket:[" + fields[9] + "]"
		}
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil {
			continue
		}
		dir := "/proc/" + process.Name() + "/fd/"
		descriptors, err := os.ReadDir(dir)
		if err != nil {
			continue // not ours to see, or gone
		}
		for _, descriptor := range descriptors {
			if link, err := os.Readlink(dir + descriptor.Name()); err == nil && link == inode {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("nobody has port %d", port)
}

// A finder is a tool that leads from a port to a process.
type finder struct {
	name    string
	program string // that has to be installed; "" none
	find    func(port int) (pid int, err error)
}

func (f finder) available() bool {
	if f.program == "" {
		return true
	}
	_, err := exec.LookPath(f.program)
	return err == nil
}

var finders = []finder{
	{"gopsutil", "", func(port int) (int, error) {
		connections, err := psnet.Connections("tcp")
		if err != nil {
			return 0, err
		}
		for _, c := range connections {
			if c.Status == "LISTEN" && int(c.Laddr.Port) == port {
				return int(c.Pid), nil
			}
		}
		return 0, fmt.Errorf("nobody has port %d", port)
	}},
	{"lsof", "lsof", func(port int) (int, error) {
		return pidIn(exec.Command("lsof", "-nP", "-t", "-iTCP:"+strconv.Itoa(port), "-sTCP:LISTEN"))
	}},
	{"fuser", "fuser", func(port int) (int, error) {
		return pidIn(exec.Command("fuser", "-n", "tcp", strconv.Itoa(port)))
	}},
	{"ss", "ss", func(port int) (int, error) {
		return pidIn(exec.Command("ss", "-Hltnp", "sport = :"+strconv.Itoa(port)))
	}},
}

var pidPattern = regexp.MustCompile(`pid=(\d+)|^\s*(\d+)\s*$`)

// pidIn is the pid that a command prints: alone, or as ss does.
func pidIn(cmd *exec.Cmd) (int, error) {
	text, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%v: %w", cmd, err)
	}
	match := pidPattern.FindSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("%v printed no pid: %q", cmd, text)
	}
	return strconv.Atoi(string(bytes.Join(match[1:], nil)))
}
