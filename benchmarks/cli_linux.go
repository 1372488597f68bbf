package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func init() {
	experiments = append(experiments, cliExperiment(0), cliExperiment(1))
}

// cliExperiment compares the command line with other commands, in a crowd of the lab's: the time from the start of the
// command to its end, and for those that free a port, until it can be bound.
func cliExperiment(crowd int) experiment {
	return experiment{name: "CLI", title: "Commands", prepare: func(l *lab) ([]row, error) {
		berth, err := l.commandLine()
		if err != nil {
			return nil, err
		}
		size := l.crowds[crowd]
		if err := l.crowd(size); err != nil {
			return nil, err
		}
		port, err := l.freePort()
		if err != nil {
			return nil, err
		}
		program, err := l.otherProgram()
		if err != nil {
			return nil, err
		}
		held, err := l.start(program, role{Do: doHold})
		if err != nil {
			return nil, err
		}
		kill := func(name string, stop func(held *process) error) contestant {
			return contestant{name, func() (outcome, error) { return freed(program, port, stop) }}
		}
		shell := func(line string) func(*process) error {
			return func(*process) error { return quiet(exec.Command("sh", "-c", line)) }
		}
		text, missing := fmt.Sprintf("free a port from a stranger, among %d more processes", size), ""
		var killers []contestant
		for _, k := range []struct{ name, program, line string }{
			{"fuser -k", "fuser", fmt.Sprintf("exec fuser -s -k -TERM -n tcp %d", port)},
			{"lsof & kill", "lsof", fmt.Sprintf("lsof -ti tcp:%d -sTCP:LISTEN | xargs kill", port)},
			{"lsof -nP & kill", "lsof", fmt.Sprintf("lsof -nP -ti tcp:%d -sTCP:LISTEN | xargs kill", port)},
			{"npm kill-port", "kill-port", fmt.Sprintf("exec kill-port %d", port)},
		} {
			if _, err := exec.LookPath(k.program); err != nil {
				missing += "; " + k.name + " is not installed here"
				continue
			}
			killers = append(killers, kill(k.name, shell(k.line)))
		}
		rows := []row{{
			name: fmt.Sprintf("processes=%d/command=kill", size), text: text + missing, goal: timesPeer(1),
			ours: kill("berth kill", func(*process) error {
				return quiet(exec.Command(berth, "kill", "--any", strconv.Itoa(port)))
			}),
			bare:  kill("known pid", func(held *process) error { return stopKnown(held.pid()) }),
			peers: killers,
		}}

		shows := func(name string, command ...string) contestant {
			return contestant{name, timed(func() error {
				text, err := exec.Command(command[0], command[1:]...).Output()
				if pid := strconv.Itoa(held.pid()); err == nil && !bytes.Contains(text, []byte(pid)) {
					err = fmt.Errorf("%s does not show pid %s", name, pid)
				}
				return err
			})}
		}
		status := row{
			name: fmt.Sprintf("processes=%d/command=status", size), text: fmt.Sprintf("all listeners and their processes, among %d more", size),
			goal: timesPeer(1),
			ours: shows("berth status", berth, "status", "1-65535"),
			bare: contestant{"true", timed(func() error { return exec.Command("true").Run() })},
		}
		for _, command := range [][]string{{"ss", "-ltnp"}, {"lsof", "-nP", "-iTCP", "-sTCP:LISTEN"}} {
			if _, err := exec.LookPath(command[0]); err == nil {
				status.peers = append(status.peers, shows(command[0], command...))
			}
		}
		return append(rows, status), nil
	}}
}

// commandLine builds berth.
func (l *lab) commandLine() (string, error) {
	dir, err := l.dir(false)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "berth")
	return path, quiet(exec.Command("go", "build", "-C", "..", "-o", path, "./cmd/berth"))
}

// freed starts a holder of the port, and takes the time until it was stopped and the port can be bound.
func freed(program string, port int, stop func(*process) error) (outcome, error) {
	held, err := spawn(program, role{Do: doHold, Address: at(port)})
	if err != nil {
		return outcome{}, err
	}
	defer held.end()
	begin := time.Now()
	if err := stop(held); err != nil {
		return outcome{}, err
	}
	for {
		ln, err := net.Listen("tcp", at(port))
		if err == nil {
			return outcome{took: time.Since(begin)}, ln.Close()
		}
		const tooLong = 10 * time.Second
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(begin) > tooLong {
			return outcome{}, err
		}
		time.Sleep(ms / 10)
	}
}

// quiet runs a command whose output counts only where it fails.
func quiet(cmd *exec.Cmd) error {
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", cmd, err, text)
	}
	return nil
}
