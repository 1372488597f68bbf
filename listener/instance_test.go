package listener_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
)

func init() { roles["instance"] = role.playInstance }

// fleet is that of a test. Its instances are in processes of their own, or in this one.
func fleet(t testing.TB, ports int) *listener.Fleet {
	t.Helper()
	return &listener.Fleet{Name: "worker", Pool: *pool(t, ports)}
}

func fleetRole(f *listener.Fleet) role {
	r := poolRole(&f.Pool, "instance", f.Name)
	if f.Shared {
		r.Strategy = "shared"
	}
	r.Control = f.Identity
	return r
}

// playInstance joins a fleet, listens, and stays until its input ends.
func (r role) playInstance() error {
	p, err := r.pool()
	if err != nil {
		return err
	}
	f := listener.Fleet{Name: r.Name, Pool: *p, Shared: r.Strategy == "shared", Identity: r.Control}
	i, err := f.Join(context.Background())
	if err != nil {
		return err
	}
	ln, err := i.Listen()
	if err != nil {
		return err
	}
	fmt.Println("ready", i.Number(), i.Name(), ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := ln.Close(); err != nil {
		return err
	}
	return i.Close()
}

// joined is what a process says of its instance.
func joined(t testing.TB, p *process) (number int, name, address string) {
	t.Helper()
	fields := strings.Fields(p.ready(t))
	require.Len(t, fields, 3)
	number, err := strconv.Atoi(fields[0])
	require.NoError(t, err)
	return number, fields[1], fields[2]
}

func joinFleet(t testing.TB, f *listener.Fleet) *listener.Instance {
	t.Helper()
	i, err := f.Join(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { i.Close() })
	return i
}

func kill(t testing.TB, p *process) {
	t.Helper()
	require.NoError(t, p.Process.Kill())
	p.signalled(t)
}

func TestFleetNumbers(t *testing.T) {
	f := fleet(t, 5)
	var all []*listener.Instance
	for n := range 5 {
		i := joinFleet(t, f)
		require.Equal(t, n, i.Number())
		require.Equal(t, fmt.Sprintf("worker-%d", n), i.Name())
		require.Equal(t, int(f.Pool.Ranges[0].First)+n, port(t, i.Addr()))
		all = append(all, i)
	}
	_, err := f.Join(t.Context())
	require.ErrorContains(t, err, "every number of the fleet is taken")
	var full *listener.PoolError
	require.ErrorAs(t, err, &full)
	require.Equal(t, 5, full.Ports)

	require.NoError(t, all[3].Close())
	require.NoError(t, all[1].Close())
	require.NoError(t, all[1].Close(), "again")
	require.Equal(t, 1, joinFleet(t, f).Number())
	require.Equal(t, 3, joinFleet(t, f).Number())
}

// The number stays where the listener goes.
func TestFleetNumberOutlivesTheListener(t *testing.T) {
	f := fleet(t, 2)
	i := joinFleet(t, f)
	ln, err := i.Listen()
	require.NoError(t, err)
	require.Equal(t, i.Addr(), ln.Addr())
	require.NoError(t, ln.Close())
	require.Equal(t, 1, joinFleet(t, f).Number())
	_, err = i.Listen()
	require.ErrorIs(t, err, net.ErrClosed)
	require.NoError(t, i.Close())
	require.Equal(t, 0, joinFleet(t, f).Number())
}

func TestFleetEachHasItsOwn(t *testing.T) {
	f := fleet(t, 4)
	other := *f
	other.Name = "api"
	a, b := joinFleet(t, f), joinFleet(t, &other)
	require.Equal(t, 0, a.Number())
	require.Equal(t, 1, b.Number(), "its number 0 would have the port of worker-0")
	none := listener.Fleet{Pool: f.Pool}
	_, err := none.Join(t.Context())
	require.ErrorContains(t, err, "set Name")
	none.Pool.Config.Name = "web"
	require.Equal(t, "web-2", joinFleet(t, &none).Name())
}

func TestFleetLeavesOutATakenPort(t *testing.T) {
	f := fleet(t, 3)
	var log lockedBuffer
	f.Pool.Config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	stranger, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(f.Pool.Ranges[0].First))))
	require.NoError(t, err)
	require.Equal(t, 1, joinFleet(t, f).Number())
	require.Contains(t, log.String(), "the number is left out")
	require.Contains(t, log.String(), fmt.Sprintf("(pid %d", os.Getpid()))
	require.NoError(t, stranger.Close())
	require.Equal(t, 0, joinFleet(t, f).Number())
}

// Fifty at one instant are 0 to 49, and whoever dies is replaced by the next to come.
func TestFleetRace(t *testing.T) {
	const size = 50
	f := fleet(t, size)
	b := newBarrier(t)
	r := fleetRole(f)
	r.Barrier = b.path
	var all []*process
	for range size {
		all = append(all, play(t, r))
	}
	b.wait(t, size)
	b.release()
	byNumber := map[int]*process{}
	for _, p := range all {
		number, name, address := joined(t, p)
		require.NotContains(t, byNumber, number)
		require.Equal(t, fmt.Sprintf("worker-%d", number), name)
		require.Equal(t, fmt.Sprintf("127.0.0.1:%d", int(f.Pool.Ranges[0].First)+number), address)
		byNumber[number] = p
	}
	for n := range size {
		require.Contains(t, byNumber, n)
	}
	for _, n := range []int{31, 7} {
		kill(t, byNumber[n])
	}
	r.Barrier = ""
	for _, want := range []int{7, 31} {
		number, _, _ := joined(t, play(t, r))
		require.Equal(t, want, number)
	}
}

// Connections that the one before left in TIME_WAIT do not move the number.
func TestFleetRestart(t *testing.T) {
	f := fleet(t, 3)
	for range 3 {
		i := joinFleet(t, f)
		require.Equal(t, 0, i.Number())
		ln, err := i.Listen()
		require.NoError(t, err)
		endFirst(t, ln)
		require.NoError(t, ln.Close())
		require.NoError(t, i.Close())
	}
}

func TestFleetIdentity(t *testing.T) {
	f := fleet(t, 5)
	as := func(identity string) *listener.Instance {
		g := *f
		g.Identity = identity
		return joinFleet(t, &g)
	}
	a, b, c := as("a"), as("b"), as("c")
	for _, i := range []*listener.Instance{a, b, c} {
		require.NoError(t, i.Close())
	}
	b = as("b")
	require.Equal(t, 1, b.Number())
	require.Equal(t, 2, as("c").Number())
	require.Equal(t, 0, as("d").Number(), "the lowest that is free, whoever had it")
	require.Equal(t, 3, as("a").Number(), "its own is taken")
	require.Equal(t, 4, as("b").Number(), "there is one of the same name")
}

func TestFleetShared(t *testing.T) {
	f := fleet(t, 6)
	f.Shared = true
	taken := lease(t, &f.Pool, "other")
	a, b := joinFleet(t, f), joinFleet(t, f)
	require.Equal(t, 0, a.Number())
	require.Equal(t, 1, b.Number())
	ports := map[int]bool{port(t, taken.Addr()): true, port(t, a.Addr()): true, port(t, b.Addr()): true}
	require.Len(t, ports, 3)
	was := a.Addr()
	require.NoError(t, a.Close())
	a = joinFleet(t, f)
	require.Equal(t, 0, a.Number())
	require.Equal(t, was, a.Addr(), "by the name of the instance")

	f.Pool.Config.StateDir = unusable(t)
	_, err := f.Join(t.Context())
	require.ErrorContains(t, err, "no numbers without locks")
}

func TestFleetSharedRace(t *testing.T) {
	const size = 20
	f := fleet(t, size+5)
	f.Shared = true
	b := newBarrier(t)
	r := fleetRole(f)
	r.Barrier = b.path
	var all []*process
	for range size {
		all = append(all, play(t, r))
	}
	b.wait(t, size)
	b.release()
	numbers, addresses := map[int]bool{}, map[string]bool{}
	for _, p := range all {
		number, _, address := joined(t, p)
		require.Less(t, number, size)
		require.False(t, numbers[number])
		require.False(t, addresses[address])
		numbers[number], addresses[address] = true, true
	}
}

func TestFleetWithoutStateDirectory(t *testing.T) {
	f := fleet(t, 4)
	var log lockedBuffer
	f.Pool.Config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	f.Pool.Config.StateDir = unusable(t)
	f.Identity = "a"
	require.Equal(t, 0, joinFleet(t, f).Number())
	require.Equal(t, 1, joinFleet(t, f).Number())
	require.Contains(t, log.String(), "so its ports tell them apart")

	g := fleet(t, 4)
	a := joinFleet(t, g)
	require.NoError(t, os.RemoveAll(g.Pool.Config.StateDir))
	require.Equal(t, 1, joinFleet(t, g).Number(), "its port is still taken")
	require.NoError(t, a.Close())
	require.Equal(t, 0, joinFleet(t, g).Number())
}

func TestFleetEndsWithItsContext(t *testing.T) {
	f := fleet(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	i, err := f.Join(ctx)
	require.NoError(t, err)
	cancel()
	<-i.Reservation().Done()
	_, err = i.Listen()
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, i.Close())
	_, err = f.Join(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 0, joinFleet(t, f).Number())
}

// Instances are killed at any step. The numbers are free at once, and all of them can be had again.
func TestFleetInstancesAreKilled(t *testing.T) {
	f := fleet(t, 3)
	for round := range 6 {
		var all []*process
		for range 3 {
			all = append(all, play(t, fleetRole(f)))
		}
		time.Sleep(time.Duration(round) * 3 * time.Millisecond) // so that they are at another step each time
		for _, p := range all {
			kill(t, p)
		}
		var again []*listener.Instance
		for n := range 3 {
			i := joinFleet(t, f)
			require.Equal(t, n, i.Number())
			again = append(again, i)
		}
		for _, i := range again {
			require.NoError(t, i.Close())
		}
	}
}
