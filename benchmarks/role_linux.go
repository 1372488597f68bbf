package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// A role is what this program does as a child of itself. What it finds it prints, one line each; see process.
type role struct {
	Do       string
	By       string // the contestant; "" net
	Address  string
	StateDir string
	All      bool // doAsk: every holder
	PID      int  // doReclaim: the holder, for who has to know it
	Warm     bool // doRace: the first listener of the process is behind it
	AtOnce   bool // doRace: it does not wait for the others
	First    int  // doRace: the range
	Last     int
	Socket   string // doServe: a path; then it listens in TLS too
}

const (
	roleVariable = "BERTH_BENCHMARK_ROLE"

	doHold    = "hold"    // listens until a signal ends it, or its standard input does
	doReclaim = "reclaim" // takes an address over
	doAsk     = "ask"     // finds out who has an address, as often as it is asked
	doTake    = "take"    // takes over sockets that were passed
	doRace    = "race"    // takes a port of a range when all others do
	doServe   = "serve"   // serves HTTP, and is replaced at SIGHUP
	doIdle    = "idle"    // holds connections

	byBerth     = "berth"
	byBerthCold = "berth-cold"
	bySpread    = "berth-spread"
	byPool      = "berth-pool"
	byBind      = "bind"
	byNothing   = "nothing"
	byFreeport  = "consul-freeport"
	byFuser     = "fuser"
	byRandom    = "net-random"
	byFind      = "find-then-listen"
	byExec      = "exec"
	byTableflip = "tableflip"
	byShutdown  = "tableflip-shutdown"
)

// play does what the role in the environment says. It is false where there is none: then this is no child.
func play() bool {
	text := os.Getenv(roleVariable)
	if text == "" {
		// What a shell left open would go to every child, and each descriptor more makes it slower to look at.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // since Linux 5.11; a nicety
		return false
	}
	var r role
	err := json.Unmarshal([]byte(text), &r)
	if err == nil {
		switch r.Do {
		case doHold:
			err = r.hold()
		case doReclaim:
			err = r.reclaim()
		case doAsk:
			err = r.ask()
		case doTake:
			err = r.take()
		case doRace:
			err = r.race()
		case doServe:
			err = r.serve()
		case doIdle:
			err = r.idle()
		default:
			err = fmt.Errorf("role %q is unknown", r.Do)
		}
	}
	if err != nil {
		fmt.Println("failed:", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
	return true
}

// hold takes SIGTERM by default, so it ends at once when asked.
func (r role) hold() error {
	listen := net.Listen
	if r.By == byBerth {
		cfg := listener.Config{StateDir: r.StateDir}
		listen = func(network, address string) (net.Listener, error) {
			return cfg.Listen(context.Background(), network, address)
		}
	}
	ln, err := listen("tcp", r.Address)
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent is gone, whatever ended it
	return ln.Close()
}

// ask answers every line of its input with the time that it took and the pid that it found.
func (r role) ask() error {
	records, err := registry.Open(r.StateDir)
	if err != nil {
		return err
	}
	search := holder.Search{Target: targetOf(portOf(r.Address)), Records: records}
	find := search.Diagnose
	if r.All {
		find = search.DiagnoseAll
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		begin := time.Now()
		diagnosis := find(context.Background())
		took := time.Since(begin)
		pid := 0
		if len(diagnosis.Holders) == 1 {
			pid = diagnosis.Holders[0].PID
		}
		fmt.Println(int64(took), pid)
	}
	return nil
}

// reclaim prints how long it took to listen on an address that another process has.
func (r role) reclaim() error {
	begin := time.Now()
	var ln net.Listener
	var err error
	switch r.By {
	case byBerth:
		cfg := listener.Config{StateDir: r.StateDir, Strategy: strategy.Aggressive{}}
		ln, err = cfg.Listen(context.Background(), "tcp", r.Address)
	case byFuser:
		ln, err = r.stopThenListen(func() error {
			// Without -s it prints whom it stopped, which nobody reads here.
			return exec.Command("fuser", "-k", "-TERM", "-n", "tcp", fmt.Sprint(portOf(r.Address))).Run()
		})
	default:
		ln, err = r.stopThenListen(func() error { return stopKnown(r.PID) })
	}
	took := time.Since(begin)
	if err != nil {
		return err
	}
	fmt.Println(took)
	return ln.Close()
}

// stopThenListen binds, which fails, and binds again after stop until it succeeds.
func (r role) stopThenListen(stop func() error) (net.Listener, error) {
	ln, err := net.Listen("tcp", r.Address)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return ln, fmt.Errorf("nobody was in the way: %w", err)
	}
	if err := stop(); err != nil {
		return nil, err
	}
	for range 1000 {
		if ln, err = net.Listen("tcp", r.Address); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return ln, err
}

// stopKnown is the least that stops a process: its pid is known, and nothing is verified.
func stopKnown(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}

// A process is a child.
type process struct {
	*exec.Cmd
	line    string         // the first that it printed
	address string         // the same, of a holder
	input   io.WriteCloser // whose closing ends a holder
	output  *bufio.Reader
}

func (p *process) pid() int { return p.Process.Pid }

// start starts a role as a child that ends with the lab, and waits for its first line. The program is this one where it
// is "".
func (l *lab) start(program string, r role) (*process, error) {
	p, err := spawn(program, r)
	if err == nil {
		l.later(p.end)
	}
	return p, err
}

func spawn(program string, r role, passed ...*os.File) (*process, error) {
	if r.Address == "" {
		r.Address = at(0)
	}
	cmd, err := command(program, r)
	if err != nil {
		return nil, err
	}
	if len(passed) > 0 {
		cmd.ExtraFiles = passed
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(passed)))
	}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{Cmd: cmd, input: input, output: bufio.NewReader(output)}
	line, err := p.output.ReadString('\n')
	p.line = strings.TrimSpace(line)
	p.address = p.line
	if err != nil || strings.HasPrefix(p.line, "failed:") {
		p.end()
		return nil, errors.Join(fmt.Errorf("%s by %q: %s", r.Do, r.By, p.line), err)
	}
	return p, nil
}

func command(program string, r role) (*exec.Cmd, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// end ends the process, if nobody has yet, and waits for it.
func (p *process) end() {
	_ = p.input.Close() // of a process that ends now
	end(p.Cmd)
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // how it ended is known
}
