package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/sdk/freeport"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// raceExperiment is a mass start: many processes want a port of one range at the same instant. What counts is the time
// until the last of them has one, from that instant or from the start of the first process.
var raceExperiment = experiment{name: "Race", title: "Many processes, one range, one instant", prepare: func(l *lab) ([]row, error) {
	first, err := l.portRow(l.ports, 0)
	if err != nil {
		return nil, err
	}
	dir, err := l.dir(true)
	if err != nil {
		return nil, err
	}
	run := func(name string, r role) contestant {
		r.Do, r.StateDir, r.First, r.Last = doRace, dir, first, first+l.ports-1
		return contestant{name, func() (outcome, error) {
			o, err := race(l.racers, r)
			if err == nil && o.failed > 0 && r.By != byFind && r.By != byFreeport {
				err = fmt.Errorf("%d of %d processes have no port", o.failed, l.racers)
			}
			return o, err
		}}
	}
	by := func(name, by string, warm bool) contestant { return run(name, role{By: by, Warm: warm}) }
	start := func(name, by string) contestant { return run(name, role{By: by, AtOnce: true}) }
	text := fmt.Sprintf("%d processes, %d ports", l.racers, l.ports)
	name := fmt.Sprintf("processes=%d/ports=%d", l.racers, l.ports)
	peers := func(warm bool) []contestant {
		return []contestant{by("net-random-start", byRandom, warm), by("find-then-listen", byFind, warm)}
	}
	pool := func(name, text string, warm bool) row {
		return row{
			name: name, text: text, goal: atMost(10 * ms),
			ours: by("berth-pool", byPool, warm), bare: by("bind", byBind, warm),
			peers: append(peers(warm), by("net-in-order", "", warm), by("consul-freeport", byFreeport, warm)),
		}
	}
	spread := func(name, text string, warm bool, goal goal) row {
		return row{name: name, text: text, goal: goal, ours: by("berth", bySpread, warm), bare: by("net", "", warm), peers: peers(warm)}
	}
	return []row{
		{
			name: name + "/lease=start", text: text + ", from the start of the first process to the last `Pool.Lease` (records come half a second later)", goal: beyondBare(10 * ms),
			ours: start("berth-pool", byPool), bare: start("start alone", byNothing),
			peers: []contestant{start("net-random-start", byRandom), start("find-then-listen", byFind), start("net-in-order", ""), start("consul-freeport", byFreeport)},
		},
		pool(name+"/lease=cold", text+", `Pool.Lease`", false),
		pool(name+"/lease=warm", text+", `Pool.Lease`, and each has leased or listened before", true),
		spread(name+"/start=random", text+", `Fallback` with `Spread`", false, atMost(10*ms)),
		spread(name+"/start=random-warm", text+", the same, and each has listened before", true, atMost(10*ms)),
		{
			name: name + "/start=first", text: text + ", `Fallback` in order", goal: timesBare(1.0),
			ours: by("berth", byBerth, false), bare: by("net", "", false), peers: peers(false),
		},
	}, nil
}}

// Descriptors of a racer that its parent gives it: the first ends when the race starts, the second when it is over.
const (
	goDescriptor  = 3
	endDescriptor = 4
)

const (
	racerReady  = "ready"
	racerFailed = "failed"
)

// race is the child's part. It waits in plain system calls, so that nothing but the wake-up itself comes before the job,
// and reads a clock that all processes share.
func (r role) race() error {
	if r.Warm {
		if err := r.warmUp(); err != nil {
			return err
		}
	}
	if !r.AtOnce {
		fmt.Println(racerReady)
		awaitEnd(goDescriptor)
	}
	ln, err := r.takeOne()
	at, clockErr := now()
	if clockErr != nil {
		return clockErr
	}
	if err != nil {
		return tell(racerFailed, at)
	}
	if err := tell(strconv.Itoa(ln.Addr().(*net.TCPAddr).Port), at); err != nil {
		return err
	}
	awaitEnd(endDescriptor)
	return ln.Close()
}

// tell prints with a bare system call: it takes a processor from those who are still racing.
func tell(port string, at time.Duration) error {
	line := strconv.AppendInt(append([]byte(port), ' '), int64(at), 10)
	_, err := unix.Write(unix.Stdout, append(line, '\n'))
	return err
}

// warmUp listens once elsewhere, so that what a process does for its first listener is over.
func (r role) warmUp() error {
	var ln had
	var err error
	switch r.By {
	case byPool:
		ln, err = (&listener.Config{StateDir: r.StateDir}).Reserve(context.Background(), "tcp", at(0))
	case byBerth, bySpread:
		ln, err = (&listener.Config{StateDir: r.StateDir}).Listen(context.Background(), "tcp", at(0))
	default:
		ln, err = net.Listen("tcp", at(0))
	}
	if err != nil {
		return err
	}
	return ln.Close()
}

// had is a port that a racer has: a listener, or a reservation.
type had interface {
	Addr() net.Addr
	Close() error
}

func (r role) takeOne() (had, error) {
	ports := []strategy.Range{{First: uint16(r.First), Last: uint16(r.Last)}}
	switch r.By {
	case byBerth, bySpread:
		cfg := listener.Config{StateDir: r.StateDir, Strategy: strategy.Fallback{Ranges: ports, Spread: r.By == bySpread}}
		return cfg.Listen(context.Background(), "tcp", at(r.First))
	case byPool:
		pool := listener.Pool{Config: listener.Config{StateDir: r.StateDir}, Host: loopback, Ranges: ports}
		return pool.Lease(context.Background(), "racer")
	case byBind:
		return r.bindOne()
	case byNothing:
		return nothing{}, nil
	case byFreeport:
		return takeFreeport()
	case byFind:
		found, err := listenInOrder(r.First, r.Last)
		if err != nil {
			return nil, err
		}
		address := found.Addr().String()
		if err := found.Close(); err != nil {
			return nil, err
		}
		return net.Listen("tcp", address)
	case byRandom:
		ln, err := listenInOrder(r.First+rand.N(r.Last-r.First+1), r.Last)
		if errors.Is(err, syscall.EADDRINUSE) {
			ln, err = listenInOrder(r.First, r.Last)
		}
		return ln, err
	default:
		return listenInOrder(r.First, r.Last)
	}
}

// bindOne is the least that takes a port: one socket, and binds from a random one on until one succeeds.
func (r role) bindOne() (had, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	size := r.Last - r.First + 1
	start := rand.N(size)
	for i := range size {
		port := r.First + (start+i)%size
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if err == nil {
			return descriptor{fd, port}, nil
		}
	}
	return nil, err
}

// A descriptor is a socket that is bound.
type descriptor struct{ fd, port int }

func (d descriptor) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: d.port} }
func (d descriptor) Close() error   { return unix.Close(d.fd) }

// nothing is what a process has that only starts. In place of a port it shows its pid, which no two have either.
type nothing struct{}

func (nothing) Addr() net.Addr { return &net.TCPAddr{Port: os.Getpid()} }
func (nothing) Close() error   { return nil }

// takeFreeport takes a port that consul's freeport says is free, and listens on it. Its ports are others: a process has a
// block of 1500 to itself, of which there are fifteen below what the system gives to clients. Who finds none left panics.
func takeFreeport() (_ had, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("freeport: %v", reason)
		}
	}()
	if os.Stderr, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil { // where it logs what it does
		return nil, err
	}
	ports, err := freeport.Take(1)
	if err != nil {
		return nil, err
	}
	return net.Listen("tcp", at(ports[0]))
}

// awaitEnd waits until the other end of a pipe is closed.
func awaitEnd(fd int) {
	for {
		n, err := unix.Read(fd, make([]byte, 1))
		if err != unix.EINTR && n <= 0 {
			return
		}
	}
}

// now is the time since boot, the same in every process.
func now() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return time.Duration(t.Nano()), err
}

// race lets n processes play the role at the same instant.
func race(n int, r role) (o outcome, err error) {
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return o, err
	}
	defer goRead.Close()
	defer goWrite.Close()
	endRead, endWrite, err := os.Pipe()
	if err != nil {
		return o, err
	}
	defer endRead.Close()
	output, outputWrite, err := os.Pipe()
	if err != nil {
		return o, err
	}
	defer output.Close()
	defer outputWrite.Close()

	begin, err := now()
	if err != nil {
		return o, err
	}
	for range n {
		cmd, err := command("", r)
		if err != nil {
			return o, err
		}
		cmd.Stdout = outputWrite
		cmd.ExtraFiles = []*os.File{goRead, endRead}
		if err := cmd.Start(); err != nil {
			return o, err
		}
		defer leave(cmd)
	}
	defer endWrite.Close() // before they are waited for
	// Nothing but the children keeps it open: when they are gone, reading ends.
	_ = outputWrite.Close()
	lines := bufio.NewReader(output)
	if !r.AtOnce {
		for range n {
			if line, err := lines.ReadString('\n'); err != nil || strings.TrimSpace(line) != racerReady {
				return o, errors.Join(fmt.Errorf("a racer is not ready: %q", line), err)
			}
		}
		time.Sleep(20 * time.Millisecond) // the last ones reach their system call
		if begin, err = now(); err != nil {
			return o, err
		}
	}
	_ = goWrite.Close()
	// Their lines are short enough to wait in the pipe; whoever read them now would take a processor from the racers.
	time.Sleep(time.Duration(n) * ms / 2)
	seen := map[string]bool{}
	for range n {
		line, err := lines.ReadString('\n')
		port, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		at, parseErr := strconv.ParseInt(text, 10, 64)
		if err := errors.Join(err, parseErr); err != nil {
			return o, fmt.Errorf("a racer printed %q: %w", line, err)
		}
		o.took = max(o.took, time.Duration(at)-begin)
		switch {
		case port == racerFailed:
			o.failed++
		case seen[port]:
			return o, fmt.Errorf("two processes have port %s", port)
		}
		seen[port] = true
	}
	return o, nil
}

// leave waits for a racer that was told that the race is over, so that it takes its lock and record away.
func leave(cmd *exec.Cmd) {
	late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	_ = cmd.Wait() // a loser has ended by itself
}
