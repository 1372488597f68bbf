package listener_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/listener"
)

func init() { roles["hostile"] = role.playHostile }

// A board is memory that processes share: what reservations have now, and what those who attack them have done.
type board struct {
	targets  [50]atomic.Uint64 // port and phase and, so that no two are alike, a round; 0: nothing to attack
	focus    atomic.Uint64     // which of them changes now, + 1: it is attacked more than the others
	passes   atomic.Uint64     // how often all of them were attacked
	attempts atomic.Uint64
	taken    atomic.Uint64 // the target when a port was taken that was not to be had
	accepted atomic.Uint64 // the target when a connection was accepted that was to be refused
	strange  atomic.Uint64 // the errno of a connection that was neither refused nor accepted, + 1
}

const (
	phaseReserved  = 1 << 16 // nothing is accepted
	phaseUndecided = 2 << 16 // Listen is at work
	phaseListening = 3 << 16 // every connection is accepted
	phaseBits      = 3 << 16
	oneRound       = 1 << 18
)

func openBoard(t testing.TB, path string) *board {
	b, err := mapBoard(path)
	require.NoError(t, err)
	return b
}

func mapBoard(path string) (*board, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	size := os.Getpagesize()
	if err := file.Truncate(int64(size)); err != nil {
		return nil, err
	}
	memory, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*board)(unsafe.Pointer(&memory[0])), nil
}

// playHostile tries without a pause to take the port on the board, at its address and at all of them, with every option that lets
// sockets share one, and to connect to it. What it achieves counts where the board is the same before and after.
func (r role) playHostile() error {
	b, err := mapBoard(r.Address)
	if err != nil {
		return err
	}
	fmt.Println("ready", r.Address)
	orphaned := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(orphaned)
	}()
	for pass := 0; ; pass++ {
		select {
		case <-orphaned:
			return nil
		default:
		}
		for i := range b.targets {
			if err := b.attack(i, pass+i); err != nil {
				return err
			}
			for try := range 3 {
				if focus := b.focus.Load(); focus != 0 {
					if err := b.attack(int(focus-1), try+1); err != nil {
						return err
					}
				}
			}
		}
		b.passes.Add(1)
		runtime.Gosched()
	}
}

// attack tries something on a target, by turns.
func (b *board) attack(index, turn int) error {
	at := &b.targets[index]
	target := at.Load()
	if target == 0 {
		return nil
	}
	b.attempts.Add(1)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	address := &unix.SockaddrInet4{Port: int(target & 0xffff), Addr: [4]byte{127, 0, 0, 1}}
	if turn%5 == 4 {
		// It is bounded, and reset, so that nothing remains of it.
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5})
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		err := unix.Connect(fd, address)
		phase := target & phaseBits
		switch {
		case at.Load() != target:
		case errors.Is(err, unix.EINTR): // by the scheduler's signal, since the kernel begins no call anew that has a time limit
		case err == nil && phase == phaseReserved:
			b.accepted.Store(target)
		case errors.Is(err, unix.ECONNREFUSED) && phase == phaseListening, err != nil && !errors.Is(err, unix.ECONNREFUSED):
			no := syscall.Errno(0)
			errors.As(err, &no)
			b.strange.Store(uint64(no) + 1)
		}
		return nil
	}
	if turn&1 != 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if turn&2 != 0 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if err != nil {
		return err
	}
	if turn&4 != 0 {
		address.Addr = [4]byte{} // which covers it
	}
	if unix.Bind(fd, address) == nil && at.Load() == target {
		b.taken.Store(target)
	}
	return nil
}

// awaitPasses waits until every target was attacked so many times more.
func (b *board) awaitPasses(t testing.TB, by *process, n uint64) {
	t.Helper()
	n++ // one may be half done
	for target, begin := b.passes.Load()+n, time.Now(); b.passes.Load() < target; time.Sleep(10 * time.Microsecond) {
		if !by.alive() {
			require.FailNow(t, "the attacker has ended", by.failed(t))
		}
		if time.Since(begin) > deadline {
			require.FailNow(t, "nobody attacks")
		}
	}
}

// check looks at what was achieved.
func (b *board) check(t testing.TB) {
	t.Helper()
	require.Zero(t, b.taken.Load(), "a port was taken")
	require.Zero(t, b.accepted.Load(), "a connection was accepted before Listen")
	require.Zero(t, b.strange.Load(), "a connection failed otherwise than by refusal")
}

// However often somebody tries to bind it, with whatever options, a reserved port is had by nobody else until the listener
// closes, and what connects to it is refused before Listen and accepted after.
func TestNobodyTakesAReservedPort(t *testing.T) {
	const rounds = 10_000
	path := filepath.Join(t.TempDir(), "board")
	b := openBoard(t, path)
	p := play(t, role{Do: "hostile", Address: path})
	p.ready(t)
	configs := make([]listener.Config, 2)
	for i := range configs {
		configs[i] = listener.Config{StateDir: os.DevNull} // it is the socket that holds, no lock
		configs[i].Net.SetMultipathTCP(i == 0)
	}
	begin := time.Now()
	for round := 0; round < rounds; {
		var reservations [len(b.targets)]*listener.Reservation
		for i := range reservations {
			r, err := configs[i%2].Reserve(t.Context(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer r.Close()
			reservations[i] = r
			round++
			b.targets[i].Store(uint64(portOf(t, r.Addr())) | phaseReserved | uint64(round)*oneRound)
		}
		b.awaitPasses(t, p, 4)
		var listeners [len(b.targets)]*listener.Listener
		for i, r := range reservations {
			target := b.targets[i].Load() &^ phaseBits
			b.focus.Store(uint64(i + 1))
			b.targets[i].Store(target | phaseUndecided)
			ln, err := r.Listen()
			require.NoError(t, err, "round %d", round)
			defer ln.Close()
			listeners[i] = ln
			b.targets[i].Store(target | phaseListening)
		}
		b.focus.Store(0)
		b.awaitPasses(t, p, 1)
		for i, ln := range listeners {
			b.targets[i].Store(0)
			require.NoError(t, ln.Close())
		}
		b.check(t)
	}
	t.Logf("%d rounds with %d attempts in %v", rounds, b.attempts.Load(), time.Since(begin))
}

// The same where what remains of earlier connections is in the way of an exclusive bind.
func TestNobodyTakesAPortThatIsReservedOverRemains(t *testing.T) {
	path := filepath.Join(t.TempDir(), "board")
	b := openBoard(t, path)
	p := play(t, role{Do: "hostile", Address: path})
	p.ready(t)
	cfg := listener.Config{StateDir: os.DevNull}
	for round := range 50 {
		address := leaveRemains(t)
		r, err := cfg.Reserve(t.Context(), "tcp", address)
		require.NoError(t, err)
		defer r.Close()
		b.targets[0].Store(uint64(portOf(t, r.Addr())) | phaseReserved | uint64(round+1)*oneRound)
		b.awaitPasses(t, p, 10)
		b.targets[0].Store(0)
		require.NoError(t, r.Close())
		b.check(t)
	}
}

// leaveRemains serves a connection at a new port and ends it first, so that it remains there in TIME_WAIT.
func leaveRemains(t testing.TB) string {
	t.Helper()
	ln := listenPlain(t, "tcp", "127.0.0.1:0")
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	server, err := ln.Accept()
	require.NoError(t, err)
	require.NoError(t, server.Close())
	_, err = client.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, client.Close())
	require.NoError(t, ln.Close())
	return ln.Addr().String()
}
