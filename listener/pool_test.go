package listener_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/berth-go/berth/internal/ephemeral"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func init() {
	roles["lease"] = role.playLease
	roles["lease and die"] = role.playLeaseAndDie
}

// pool is that of a test: a range of free ports on the loopback, and a state directory of its own.
func pool(t testing.TB, ports int) *listener.Pool {
	t.Helper()
	first := uint16(freeRange(t, ports))
	return &listener.Pool{
		Config: listener.Config{StateDir: filepath.Join(t.TempDir(), "state")},
		Host:   "127.0.0.1", Ranges: []strategy.Range{{First: first, Last: first + uint16(ports) - 1}}, Wait: -1,
	}
}

func (r role) pool() (*listener.Pool, error) {
	ranges, err := strategy.ParseRanges(r.Ranges)
	return &listener.Pool{
		Config: listener.Config{StateDir: r.StateDir}, Host: "127.0.0.1", Ranges: ranges, Sticky: r.Strategy == "sticky", Wait: r.Grace,
	}, err
}

// poolRole is a role that uses the pool.
func poolRole(p *listener.Pool, do, name string) role {
	r := role{Do: do, Name: name, StateDir: p.Config.StateDir, Ranges: p.Ranges[0].String(), Grace: p.Wait}
	if p.Sticky {
		r.Strategy = "sticky"
	}
	return r
}

// playLease leases a port and keeps it until its input ends.
func (r role) playLease() error {
	p, err := r.pool()
	if err != nil {
		return err
	}
	lease, err := p.Lease(context.Background(), r.Name)
	if err != nil {
		return err
	}
	fmt.Println("ready", lease.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return lease.Close()
}

// playLeaseAndDie leases, listens and gives back for ever, so that whoever kills it meets it at any step.
func (r role) playLeaseAndDie() error {
	p, err := r.pool()
	if err != nil {
		return err
	}
	fmt.Println("ready 0")
	for i := 0; ; i++ {
		lease, err := p.Lease(context.Background(), fmt.Sprint(r.Name, i%3))
		if err != nil {
			return err
		}
		if i%2 == 0 {
			ln, err := lease.Listen()
			if err != nil {
				return err
			}
			err = ln.Close()
			if err != nil {
				return err
			}
		}
		if err := lease.Close(); err != nil {
			return err
		}
	}
}

func port(t testing.TB, addr net.Addr) int {
	t.Helper()
	return addr.(*net.TCPAddr).Port
}

func lease(t testing.TB, p *listener.Pool, name string) *listener.Reservation {
	t.Helper()
	l, err := p.Lease(t.Context(), name)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func TestPoolLeaseIsTheSocket(t *testing.T) {
	p := pool(t, 5)
	seen := map[int]bool{}
	for range 5 {
		l := lease(t, p, "web")
		n := port(t, l.Addr())
		require.False(t, seen[n])
		seen[n] = true
		require.GreaterOrEqual(t, n, int(p.Ranges[0].First))
		require.LessOrEqual(t, n, int(p.Ranges[0].Last))
		_, err := net.Listen("tcp", l.Addr().String())
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		_, err = net.Dial("tcp", l.Addr().String())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
}

func TestPoolLeaseListens(t *testing.T) {
	p := pool(t, 1)
	p.Config.PortFile = filepath.Join(t.TempDir(), "port")
	for range 3 { // and the port comes back
		l := lease(t, p, "web")
		ln, err := l.Listen()
		require.NoError(t, err)
		text, err := os.ReadFile(p.Config.PortFile)
		require.NoError(t, err)
		require.Equal(t, ln.Addr().String()+"\n", string(text))
		status, err := p.Status(t.Context())
		require.NoError(t, err)
		require.Len(t, status.Taken, 1)
		require.Equal(t, "web", status.Taken[0].Name)
		require.Equal(t, "listening", status.Taken[0].Holder.State)
		require.NoError(t, ln.Close())
	}
}

// A lease that is kept is recorded, a little later.
func TestPoolStatus(t *testing.T) {
	p := pool(t, 10)
	listening, reserved := lease(t, p, "web"), lease(t, p, "api")
	ln, err := listening.Listen()
	require.NoError(t, err)
	defer ln.Close()
	var stranger net.Listener
	for n := int(p.Ranges[0].First); stranger == nil; n++ {
		stranger, _ = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
	}
	defer stranger.Close()
	other, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(port(t, reserved.Addr())+1)))
	if err == nil {
		defer other.Close() // on an address that is no business of the pool
	}

	var status listener.PoolStatus
	require.Eventually(t, func() bool {
		status, err = p.Status(t.Context())
		require.NoError(t, err)
		return slices.ContainsFunc(status.Taken, func(p listener.PoolPort) bool { return p.Name == "api" })
	}, deadline, time.Millisecond)
	require.Equal(t, 10, status.Ports)
	require.Equal(t, 7, status.Free)
	require.Zero(t, status.Waiting)
	byPort := map[int]listener.PoolPort{}
	for _, taken := range status.Taken {
		require.Equal(t, os.Getpid(), taken.Holder.PID)
		byPort[taken.Port] = taken
	}
	require.Equal(t, "web", byPort[port(t, ln.Addr())].Name)
	require.Equal(t, "listening", byPort[port(t, ln.Addr())].Holder.State)
	require.WithinDuration(t, time.Now(), byPort[port(t, ln.Addr())].Since, deadline)
	require.Equal(t, "bound", byPort[port(t, reserved.Addr())].Holder.State)
	require.Equal(t, "", byPort[port(t, stranger.Addr())].Name)
}

func TestPoolPorts(t *testing.T) {
	clients := ephemeral.Ranges()
	need(t, len(clients) > 0 && clients[0].First > 1000, "ports below those of clients")
	first := clients[0].First
	try := func(p listener.Pool) (int, error) {
		p.Host, p.Wait, p.Config.StateDir = "127.0.0.1", -1, filepath.Join(t.TempDir(), "state")
		l, err := p.Lease(t.Context(), "")
		if err != nil {
			return 0, err
		}
		defer l.Close()
		return port(t, l.Addr()), nil
	}
	_, err := try(listener.Pool{Ranges: clients})
	require.ErrorContains(t, err, "gives all of these ports to clients")
	_, err = try(listener.Pool{Ranges: []strategy.Range{{First: 3000, Last: 3002}}, Except: []strategy.Range{{First: 3000, Last: 3010}}})
	require.ErrorContains(t, err, "no port is left")
	_, err = try(listener.Pool{Ranges: []strategy.Range{{First: 3001, Last: 3000}}})
	require.ErrorContains(t, err, "write 3000-3001")
	_, err = try(listener.Pool{Ranges: []strategy.Range{}})
	require.ErrorContains(t, err, "no port range")
	_, err = try(listener.Pool{Network: "unix"})
	require.ErrorIs(t, err, errors.ErrUnsupported)
	for range 20 {
		n, err := try(listener.Pool{})
		require.NoError(t, err)
		require.True(t, 20000 <= n && n <= 29999, n)
		n, err = try(listener.Pool{Ranges: []strategy.Range{{First: first - 20, Last: first + 1000}}, Except: []strategy.Range{{First: first - 20, Last: first - 11}}})
		require.NoError(t, err)
		require.True(t, int(first)-10 <= n && n < int(first), n)
	}
	n, err := try(listener.Pool{Ranges: []strategy.Range{{First: first, Last: first + 1000}}, Ephemeral: true})
	require.NoError(t, err)
	require.GreaterOrEqual(t, n, int(first))
}

func TestPoolRandom(t *testing.T) {
	p := pool(t, 100)
	seen := map[int]bool{}
	for range 20 {
		l := lease(t, p, "web")
		seen[port(t, l.Addr())] = true
		require.NoError(t, l.Close())
	}
	require.Greater(t, len(seen), 5, "it would be 18 on average")
}

func TestPoolSticky(t *testing.T) {
	p := pool(t, 5)
	p.Sticky = true
	names := []string{"a", "b", "c", "d"}
	ports := map[string]int{}
	for _, name := range names {
		l := lease(t, p, name)
		ports[name] = port(t, l.Addr())
		require.NoError(t, l.Close())
	}
	require.Len(t, slices.Compact(slices.Sorted(maps.Values(ports))), 4, "nobody takes the port of another that is not there")
	for _, name := range []string{"c", "a", "d", "b"} {
		require.Equal(t, ports[name], port(t, lease(t, p, name).Addr()), name)
	}
	// The last port is nobody's, and then there is none but those of others.
	rest := lease(t, p, "e")
	require.NotContains(t, slices.Collect(maps.Values(ports)), port(t, rest.Addr()))
}

// What remains of the connections of a service does not have it move.
func TestPoolStickyAfterConnections(t *testing.T) {
	p := pool(t, 20)
	p.Sticky = true
	var address string
	for range 3 {
		ln, err := lease(t, p, "web").Listen()
		require.NoError(t, err)
		if address == "" {
			address = ln.Addr().String()
		}
		require.Equal(t, address, ln.Addr().String())
		endFirst(t, ln)
		require.NoError(t, ln.Close())
	}
}

// endFirst serves a connection and ends it before the client does, so that it is the server's end that remains.
func endFirst(t testing.TB, ln net.Listener) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, (<-accepted).Close())
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, conn.Close())
}

func TestPoolStickyWithoutMemory(t *testing.T) {
	p := pool(t, 50)
	p.Sticky = true
	l := lease(t, p, "web")
	was := port(t, l.Addr())
	require.NoError(t, l.Close())
	require.NoError(t, os.RemoveAll(p.Config.StateDir)) // the machine was started anew
	l = lease(t, p, "web")
	require.Equal(t, was, port(t, l.Addr()))
	other := lease(t, p, "web") // of another copy
	now := port(t, other.Addr())
	require.NotEqual(t, was, now)
	require.NoError(t, other.Close())
	require.NoError(t, l.Close())
	require.Equal(t, now, port(t, lease(t, p, "web").Addr()), "the last one is remembered")
}

func TestPoolExhausted(t *testing.T) {
	p := pool(t, 8)
	var held []net.Listener
	for i := range 8 {
		ln, err := lease(t, p, fmt.Sprint("service-", i/2)).Listen()
		require.NoError(t, err)
		defer ln.Close()
		held = append(held, ln)
	}
	_, err := p.Lease(t.Context(), "late")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	require.Equal(t, "reserve", op.Op)
	var full *listener.PoolError
	require.ErrorAs(t, err, &full)
	require.Equal(t, 8, full.Ports)
	require.Len(t, full.Status().Taken, 8)
	require.False(t, full.Timeout())
	pid := os.Getpid()
	require.Equal(t, fmt.Sprintf("reserve tcp: all 8 ports of 127.0.0.1:%s are taken: 2 by service-0 (pid %d), 2 by service-1 (pid %[2]d), "+
		"2 by service-2 (pid %[2]d), 2 by service-3 (pid %[2]d): end some of them, or give the pool more ports", p.Ranges[0], pid), err.Error())

	p.Wait = time.Millisecond
	_, err = p.Lease(t.Context(), "late")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorAs(t, err, &full)
	require.True(t, full.Timeout())

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	_, err = p.Lease(ctx, "late")
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, syscall.EADDRINUSE, "nothing was tried")

	p.Wait = 0
	ctx, stop := context.WithCancel(t.Context())
	go whenOneWaits(p, stop)
	_, err = p.Lease(ctx, "late")
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, syscall.EADDRINUSE)

	go whenOneWaits(p, func() { held[3].Close() })
	l := lease(t, p, "late")
	require.Equal(t, held[3].Addr().String(), l.Addr().String())
}

func TestPoolErrorIsBounded(t *testing.T) {
	p := pool(t, 20)
	for i := range 20 {
		ln, err := lease(t, p, fmt.Sprintf("service-%02d", i)).Listen()
		require.NoError(t, err)
		defer ln.Close()
	}
	_, err := p.Lease(t.Context(), "late")
	require.ErrorContains(t, err, fmt.Sprintf("1 by service-04 (pid %d), 15 by others", os.Getpid()))
}

func TestPoolLeaseAll(t *testing.T) {
	p := pool(t, 4)
	none, err := p.LeaseAll(t.Context())
	require.NoError(t, err)
	require.Empty(t, none)
	held := lease(t, p, "held")
	_, err = p.LeaseAll(t.Context(), "a", "b", "c", "d")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, status.Free, "what it had it gave back")

	p.Wait = 0
	go whenOneWaits(p, func() { held.Close() })
	all, err := p.LeaseAll(t.Context(), "a", "b", "c", "d")
	require.NoError(t, err)
	require.Len(t, all, 4)
	for _, l := range all {
		require.NoError(t, l.Close())
	}
}

func TestPoolEndsWithItsContext(t *testing.T) {
	p := pool(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := p.Lease(ctx, "web")
	require.NoError(t, err)
	cancel()
	<-l.Done()
	lease(t, p, "web")
}

// waiting waits until so many are in the queue of the pool.
func waiting(t testing.TB, p *listener.Pool, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, err := p.Status(t.Context())
		return err == nil && status.Waiting == n
	}, deadline, time.Millisecond)
}

// whenOneWaits does something when somebody is in the queue of the pool.
func whenOneWaits(p *listener.Pool, do func()) {
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if status, err := p.Status(context.Background()); err == nil && status.Waiting > 0 {
			break
		}
	}
	do()
}

// The processes come one after the other, and are served so. One dies while it waits, and one while it has the port.
func TestPoolServesInOrder(t *testing.T) {
	p := pool(t, 1)
	p.Wait = 0
	held := lease(t, p, "holder")
	var queue []*process
	for i := range 6 {
		queue = append(queue, play(t, poolRole(p, "lease", fmt.Sprint("waiter-", i))))
		waiting(t, p, i+1)
	}
	late := make(chan error, 1)
	go func() { // this process waits in the same queue
		l, err := p.Lease(t.Context(), "late")
		if err == nil {
			err = l.Close()
		}
		late <- err
	}()
	waiting(t, p, 7)
	require.NoError(t, queue[2].Process.Kill())
	queue[2].signalled(t)
	require.NoError(t, held.Close())
	for i, w := range queue {
		if i == 2 {
			continue
		}
		require.Equal(t, held.Addr().String(), w.ready(t))
		for _, behind := range queue[i+1:] {
			select {
			case line := <-behind.lines:
				if line != "" {
					require.Fail(t, "served out of turn", line)
				}
			default:
			}
		}
		require.Empty(t, late)
		require.NoError(t, w.Process.Kill())
		w.signalled(t)
	}
	require.NoError(t, <-late)
	files, err := filepath.Glob(filepath.Join(p.Config.StateDir, "*"))
	require.NoError(t, err)
	require.Empty(t, slices.DeleteFunc(files, func(name string) bool { return filepath.Ext(name) == ".lock" }), "the queue is gone with the last")
}

// Whoever dies waiting stands in nobody's way, also not in that of those who do not wait.
func TestPoolAfterAWaiterHasDied(t *testing.T) {
	const clients = 50
	p := pool(t, clients)
	all, err := p.LeaseAll(t.Context(), make([]string, clients)...)
	require.NoError(t, err)
	p.Wait = 0
	waiter := play(t, poolRole(p, "lease", "waiter"))
	waiting(t, p, 1)
	kill(t, waiter)
	waiting(t, p, 0)
	for _, l := range all {
		require.NoError(t, l.Close())
	}
	p.Wait = -1
	begin, done := make(chan struct{}), make(chan error, clients)
	for i := range clients {
		go func() {
			<-begin
			l, err := p.Lease(t.Context(), fmt.Sprint(i))
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			done <- err
		}()
	}
	close(begin)
	for range clients {
		require.NoError(t, <-done)
	}
}

// A pool that waits for nobody does not overtake those who do wait.
func TestPoolWithoutWaitBehindAWaiter(t *testing.T) {
	p := pool(t, 3)
	held := lease(t, p, "held")
	p.Wait = 0
	three := make(chan error, 1)
	go func() {
		all, err := p.LeaseAll(t.Context(), "a", "b", "c")
		for _, l := range all {
			err = errors.Join(err, l.Close())
		}
		three <- err
	}()
	waiting(t, p, 1)
	impatient := *p
	impatient.Wait = -1
	_, err := impatient.Lease(t.Context(), "d")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.NoError(t, held.Close())
	require.NoError(t, <-three)
	lease(t, p, "d")
}

// What a source hands on is found again by the same words, whatever the memory says by then: it may name the port of another
// lease of this process, and then the source knows that it is in use.
func TestPoolAsksItsSourcesByTheSameWords(t *testing.T) {
	p := pool(t, 4)
	p.Sticky = true
	var asked, kept []string
	p.Config.Sources = []listener.Source{keeper{&source{take: func(name, network, address string) (net.Listener, error) {
		asked = append(asked, strings.Join([]string{name, network, address}, " "))
		return nothing(name, network, address)
	}}, func(name, network, address string, _ syscall.Conn) error {
		kept = append(kept, strings.Join([]string{name, network, address}, " "))
		return nil
	}}}
	for range 3 {
		ln, err := lease(t, p, "web").Listen()
		require.NoError(t, err)
		defer ln.Close()
	}
	want := "web tcp " + net.JoinHostPort(p.Host, p.Ranges[0].String())
	require.Len(t, kept, 3)
	require.Equal(t, []string{want}, slices.Compact(kept))
	require.Equal(t, []string{want}, slices.Compact(asked))
}

// Nobody barges in: whoever gives a port back and wants another has to let those pass who wait.
func TestPoolIsFair(t *testing.T) {
	p := pool(t, 2)
	p.Wait = 0
	const clients, turns = 6, 10
	both, err := p.LeaseAll(t.Context(), "x", "y")
	require.NoError(t, err)
	served := make(chan int, clients*turns)
	done := make(chan error, clients)
	for c := range clients {
		go func() {
			for range turns {
				l, err := p.Lease(t.Context(), fmt.Sprint(c))
				if err != nil {
					done <- err
					return
				}
				served <- c
				if err := l.Close(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	waiting(t, p, clients)
	for _, l := range both {
		require.NoError(t, l.Close())
	}
	for range clients {
		require.NoError(t, <-done)
	}
	close(served)
	turn := make([]int, clients)
	for c := range served {
		turn[c]++
		if turn[c] == turns {
			break // from now on not all take part
		}
		require.LessOrEqual(t, slices.Max(turn)-slices.Min(turn), 3, "%v", turn)
	}
}

func TestPoolRace(t *testing.T) {
	const processes = 200
	p := pool(t, 300)
	b := newBarrier(t)
	r := poolRole(p, "lease", "racer")
	r.Barrier = b.path
	var all []*process
	for range processes {
		all = append(all, play(t, r))
	}
	b.wait(t, processes)
	b.release()
	seen := map[string]bool{}
	for _, racer := range all {
		address := racer.ready(t)
		require.False(t, seen[address], "%s is given twice", address)
		seen[address] = true
	}
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, 100, status.Free)
	pids := map[int]bool{}
	for _, taken := range status.Taken {
		require.True(t, seen[taken.Holder.Address], taken)
		pids[taken.Holder.PID] = true
	}
	require.Len(t, pids, processes)
}

// Holders are killed at any step. What they had comes back at once, and nothing that they left is in anybody's way.
func TestPoolHoldersAreKilled(t *testing.T) {
	p := pool(t, 6)
	p.Sticky, p.Wait = true, 0
	const rounds, holders = 8, 3
	for round := range rounds {
		var all []*process
		for i := range holders {
			all = append(all, play(t, poolRole(p, "lease and die", fmt.Sprint(i))))
		}
		for _, h := range all {
			h.ready(t)
		}
		time.Sleep(time.Duration(round) * time.Millisecond) // so that they are at another step each time
		for _, h := range all {
			require.NoError(t, h.Process.Kill())
			require.Equal(t, syscall.SIGKILL, h.signalled(t), h.stderr)
		}
		all6, err := (&listener.Pool{Config: p.Config, Host: p.Host, Ranges: p.Ranges, Wait: deadline}).LeaseAll(t.Context(), "1", "2", "3", "4", "5", "6")
		require.NoError(t, err)
		for _, l := range all6 {
			require.NoError(t, l.Close())
		}
	}
}

// Each lease is recorded under its name, in the directory that was meant when it was asked for.
func TestPoolLeasesAreRecorded(t *testing.T) {
	t.Chdir(t.TempDir())
	p := pool(t, 3)
	p.Config.StateDir = "state"
	state, err := filepath.Abs(p.Config.StateDir)
	require.NoError(t, err)
	leases, err := p.LeaseAll(t.Context(), "a", "b")
	require.NoError(t, err)
	elsewhere := t.TempDir()
	t.Chdir(elsewhere)
	ln, err := leases[0].Listen()
	require.NoError(t, err)
	require.NoError(t, leases[1].Extend(time.Hour))
	names := map[string]registry.State{}
	for _, r := range records(t, state) {
		names[r.Name] = r.State
	}
	require.Equal(t, map[string]registry.State{"a": registry.Listening, "b": registry.Reserved}, names)
	require.Empty(t, filesIn(t, elsewhere))
	require.NoError(t, ln.Close())
	require.NoError(t, leases[1].Close())
	require.Empty(t, filesIn(t, state))
}

func TestPoolStateDirectory(t *testing.T) {
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	t.Run("is none", func(t *testing.T) {
		p := pool(t, 2)
		p.Sticky, p.Config.StateDir, p.Config.Logger = true, unusable(t), logger
		a, b := lease(t, p, "a"), lease(t, p, "b")
		require.NotEqual(t, a.Addr(), b.Addr())
		require.Contains(t, log.String(), "no queue and no memory for this pool")
		_, err := p.Lease(t.Context(), "c")
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.ErrorContains(t, err, fmt.Sprintf("(pid %d)", os.Getpid()))
		p.Wait = 0
		time.AfterFunc(5*time.Millisecond, func() { b.Close() })
		require.Equal(t, b.Addr(), lease(t, p, "c").Addr(), "it waits without a queue")
	})
	t.Run("is deleted underneath", func(t *testing.T) {
		p := pool(t, 2)
		p.Sticky, p.Wait = true, 0
		a, b := lease(t, p, "a"), lease(t, p, "b")
		got := make(chan *listener.Reservation, 1)
		go func() {
			l, err := p.Lease(t.Context(), "c")
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		waiting(t, p, 1)
		require.NoError(t, os.RemoveAll(p.Config.StateDir))
		require.NoError(t, a.Close())
		c := <-got
		require.Equal(t, a.Addr(), c.Addr())
		require.NoError(t, c.Close())
		require.NoError(t, b.Close())
	})
	t.Run("is full of garbage", func(t *testing.T) {
		p := pool(t, 3)
		p.Sticky, p.Wait = true, 0
		l := lease(t, p, "web")
		was := l.Addr()
		require.NoError(t, l.Close())
		names, err := filepath.Glob(filepath.Join(p.Config.StateDir, "*"))
		require.NoError(t, err)
		require.NotEmpty(t, names)
		for _, name := range names {
			require.NoError(t, os.WriteFile(name, []byte("\x00\xff garbage\n99999 1 \"web\"\n-1 1 \"web\"\n"+strings.Repeat("x", 1<<20)), 0o600))
		}
		require.Equal(t, was, lease(t, p, "web").Addr(), "it follows from the name")
	})
}

// What a pool does, held against what it should do, in any order of things that can happen. The kernel is the judge.
func TestPoolProperties(t *testing.T) {
	const ports = 4
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		require.NoError(t, checks.Value.Set("30")) // with a process in every third
		t.Cleanup(func() { _ = checks.Value.Set(checks.DefValue) })
	}
	rapid.Check(t, func(r *rapid.T) {
		p := pool(t, ports)
		p.Sticky = rapid.Bool().Draw(r, "sticky")
		ours := map[int]*listener.Reservation{}
		listening := map[int]*listener.Listener{}
		strangers := map[int]net.Listener{}
		children := map[int]*process{}
		kept := map[int]*listener.Reservation{} // released for whoever binds without asking
		taken := func() int { return len(ours) + len(listening) + len(strangers) + len(children) + len(kept) }
		isBound := func(n int) bool {
			return ours[n] != nil || listening[n] != nil || strangers[n] != nil || children[n] != nil
		}
		isTaken := func(n int) bool { return isBound(n) || kept[n] != nil }
		defer func() {
			for _, l := range ours {
				l.Close()
			}
			for _, l := range kept {
				l.Close()
			}
			for _, ln := range listening {
				ln.Close()
			}
			for _, ln := range strangers {
				ln.Close()
			}
			for _, c := range children {
				_ = c.Process.Kill()
				<-c.exited
			}
		}()
		pick := func(name string, from []int) int {
			slices.Sort(from)
			if len(from) == 0 {
				r.Skip(name)
			}
			return rapid.SampledFrom(from).Draw(r, name)
		}
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		r.Repeat(map[string]func(*rapid.T){
			"lease": func(r *rapid.T) {
				l, err := p.Lease(context.Background(), names.Draw(r, "name"))
				if taken() == ports {
					require.ErrorIs(r, err, syscall.EADDRINUSE)
					return
				}
				require.NoError(r, err)
				n := port(t, l.Addr())
				require.False(r, isTaken(n), "%d is given twice", n)
				ours[n] = l
			},
			"lease two": func(r *rapid.T) {
				two, err := p.LeaseAll(context.Background(), "x", "y")
				if taken() > ports-2 {
					require.ErrorIs(r, err, syscall.EADDRINUSE)
					return
				}
				require.NoError(r, err)
				for _, l := range two {
					n := port(t, l.Addr())
					require.False(r, isTaken(n), "%d is given twice", n)
					ours[n] = l
				}
			},
			"give back": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(ours)))
				require.NoError(r, ours[n].Close())
				delete(ours, n)
			},
			"extend": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(ours)))
				require.NoError(r, ours[n].Extend(time.Hour))
			},
			"run out": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(ours)))
				require.NoError(r, ours[n].Extend(time.Nanosecond))
				<-ours[n].Done()
				delete(ours, n)
			},
			"release": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(ours)))
				require.NoError(r, ours[n].Release(context.Background(), time.Hour))
				kept[n] = ours[n]
				delete(ours, n)
			},
			"grace ends": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(kept)))
				require.NoError(r, kept[n].Close())
				delete(kept, n)
			},
			"listen": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(ours)))
				ln, err := ours[n].Listen()
				require.NoError(r, err)
				delete(ours, n)
				listening[n] = ln
			},
			"close": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(listening)))
				require.NoError(r, listening[n].Close())
				delete(listening, n)
			},
			"steal": func(r *rapid.T) {
				n := rapid.IntRange(int(p.Ranges[0].First), int(p.Ranges[0].Last)).Draw(r, "port")
				ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
				if isBound(n) {
					require.ErrorIs(r, err, syscall.EADDRINUSE)
					return
				}
				require.NoError(r, err)
				strangers[n] = ln
				if kept[n] != nil { // for him
					<-kept[n].Done()
					require.ErrorIs(r, kept[n].Err(), net.ErrClosed)
					delete(kept, n)
				}
			},
			"stranger leaves": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(strangers)))
				require.NoError(r, strangers[n].Close())
				delete(strangers, n)
			},
			"child leases": func(r *rapid.T) {
				if taken() == ports {
					r.Skip("full")
				}
				c := play(t, poolRole(p, "lease", names.Draw(r, "name")))
				_, text, err := net.SplitHostPort(c.ready(t))
				require.NoError(r, err)
				n, err := strconv.Atoi(text)
				require.NoError(r, err)
				require.False(r, isTaken(n), "%d is given twice", n)
				children[n] = c
			},
			"child crashes": func(r *rapid.T) {
				n := pick("port", slices.Collect(maps.Keys(children)))
				require.NoError(r, children[n].Process.Kill())
				children[n].signalled(t)
				delete(children, n)
			},
			"": func(r *rapid.T) { // after each step
				free := 0
				for n := int(p.Ranges[0].First); n <= int(p.Ranges[0].Last); n++ {
					if kept[n] != nil {
						continue // a look at it would end that
					}
					ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
					require.Equal(r, isTaken(n), err != nil, "port %d: %v", n, err)
					if err == nil {
						free++
						ln.Close()
					}
				}
				require.Equal(r, ports-taken(), free)
			},
		})
	})
}

func TestPoolErrorText(t *testing.T) {
	err := &listener.PoolError{Address: ":1-2", Ports: 2, Cause: context.Canceled}
	require.Equal(t, "no port of :1-2 was tried; context canceled", err.Error())
	require.Equal(t, listener.PoolStatus{}, err.Status())
	require.Equal(t, 0, cmp.Compare(len(err.Unwrap()), 1))
}

func BenchmarkPoolLease(b *testing.B) {
	for _, sticky := range []bool{false, true} {
		b.Run(fmt.Sprintf("sticky=%v", sticky), func(b *testing.B) {
			p := pool(b, 300)
			p.Sticky = sticky
			b.ReportAllocs()
			for b.Loop() {
				l, err := p.Lease(b.Context(), "web")
				if err != nil {
					b.Fatal(err)
				}
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("by=net", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			ln.Close()
		}
	})
}
