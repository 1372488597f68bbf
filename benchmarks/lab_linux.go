package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// A scale says how large the experiments are. Tests take a small one.
type scale struct {
	busy    int    // ports in front of the first free one
	crowds  [2]int // processes beside those that the machine has
	racers  int
	ports   int // for which they race
	seconds int // that a process of a crowd lives, should nobody end it

	upgrades, peerUpgrades int // under load

	idle int // connections
}

var fullScale = scale{busy: 1000, crowds: [2]int{500, 3000}, racers: 200, ports: 300, seconds: 900, upgrades: 1000, peerUpgrades: 50, idle: 10000}

// A lab is where experiments take place. Whatever they set up ends with it, the last first.
type lab struct {
	scale
	undo []func()
}

func (l *lab) later(undo func()) { l.undo = append(l.undo, undo) }

func (l *lab) close() {
	for _, undo := range slices.Backward(l.undo) {
		undo()
	}
	l.undo = nil
}

// dir makes a directory. With memory it is on a tmpfs, where the default state directory of a user is; otherwise where
// this machine keeps temporary files.
func (l *lab) dir(memory bool) (string, error) {
	parent := ""
	if info, err := os.Stat("/dev/shm"); memory && err == nil && info.IsDir() {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, tempPrefix(os.Getpid()))
	if err != nil {
		return "", err
	}
	l.later(func() { _ = os.RemoveAll(dir) }) // a left-over in a directory for temporary files
	return dir, nil
}

func tempPrefix(pid int) string { return fmt.Sprintf("berth-benchmark-%d-", pid) }

// noDir is a state directory that cannot be used.
func (l *lab) noDir() (string, error) {
	dir, err := l.dir(true)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "file")
	return path, os.WriteFile(path, nil, 0o600)
}

const loopback = "127.0.0.1"

// ports takes n ports in a row, all below the usual ephemeral ones, and closes those from index free on.
func (l *lab) portRow(n, free int) (first int, err error) {
	const lowest, highest = 15000, 32000
	for first = lowest; first+n <= highest; {
		var taken []net.Listener
		for len(taken) < n {
			ln, err := net.Listen("tcp", at(first+len(taken)))
			if err != nil {
				if !errors.Is(err, syscall.EADDRINUSE) {
					closeAll(taken)
					return 0, err
				}
				break
			}
			taken = append(taken, ln)
		}
		if len(taken) == n {
			closeAll(taken[free:])
			l.later(func() { closeAll(taken[:free]) })
			return first, nil
		}
		closeAll(taken)
		first += len(taken) + 1
	}
	return 0, fmt.Errorf("no %d free ports in a row between %d and %d", n, lowest, highest)
}

// freePort is a port that was free a moment ago.
func (l *lab) freePort() (int, error) { return l.portRow(1, 0) }

func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		_ = ln.Close() // nothing is lost with it
	}
}

func at(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

func portOf(address string) int {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0
	}
	return int(addr.Port())
}

func portOfListener(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }
