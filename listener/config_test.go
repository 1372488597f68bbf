package listener_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// freeRun is the first of n ports in a row that were free a moment ago on every interface, far from those that the kernel
// gives to clients.
func freeRun(t testing.TB, n int) int {
	t.Helper()
	for range 100 {
		first := 10000 + rand.IntN(10000)
		if runIsFree(first, n) {
			return first
		}
	}
	require.FailNow(t, "no free run of ports")
	return 0
}

func runIsFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		if !isFree(port) {
			return false
		}
	}
	return true
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func ports(first, last int) strategy.Range {
	return strategy.Range{First: uint16(first), Last: uint16(last)}
}

// script is a strategy that carries out one action after the other, then has no opinion. It keeps what it was told.
type script struct {
	actions []strategy.Action
	asked   []strategy.Failure
}

func (s *script) Decide(f strategy.Failure) strategy.Action {
	s.asked = append(s.asked, f)
	if len(s.asked) > len(s.actions) {
		return nil
	}
	return s.actions[len(s.asked)-1]
}

// A journal is a logger whose lines can be looked at.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newJournal(level slog.Level) (*slog.Logger, *journal) {
	j := new(journal)
	return slog.New(slog.NewJSONHandler(j, &slog.HandlerOptions{Level: level})), j
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

type entry struct {
	Level, Msg, Network, Address, Requested, Action, Error, Path, Name, Origin string
	Complete                                                                   *bool
	Holder                                                                     struct{ PID int }
}

// entries are the lines of the level.
func (j *journal) entries(t testing.TB, level slog.Level) (all []entry) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.buf.String()) {
		var e entry
		require.NoError(t, json.Unmarshal([]byte(line), &e), line)
		if e.Level == level.String() {
			all = append(all, e)
		}
	}
	return all
}

func TestZeroConfig(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	var cfg listener.Config
	ctx := context.Background()
	ln, err := cfg.Listen(ctx, "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	exchange(t, ln)
	_, err = cfg.Listen(ctx, "tcp", ln.Addr().String())
	e := checkInUse(t, err, "tcp", ln.Addr().String(), ln.Addr().String())
	require.Empty(t, e.History, "it fails at once")
	require.NoError(t, ln.Close())

	conn, err := cfg.ListenPacket(ctx, "udp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	all, err := cfg.ListenAll(ctx, "tcp")
	require.NoError(t, err)
	require.Empty(t, all)
}

func TestNilStrategyIsProduction(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	var texts []string
	for _, s := range []strategy.Strategy{nil, strategy.Production(), strategy.Chain()} {
		texts = append(texts, fails(t, &listener.Config{Strategy: s}, context.Background(), "tcp", held.Addr().String()).Error())
	}
	require.Equal(t, texts[0], texts[1])
	require.Equal(t, texts[0], texts[2], "nobody has an opinion")
}

func TestContextDone(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	binds := 0
	cfg := &listener.Config{
		StateDir: filepath.Join(t.TempDir(), "state"),
		Net:      net.ListenConfig{Control: func(string, string, syscall.RawConn) error { binds++; return nil }},
		Sources:  []listener.Source{&source{take: func(string, string, string) (net.Listener, error) { panic("not asked") }}},
	}
	err := fails(t, cfg, ctx, "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, context.Canceled)
	require.IsType(t, (*net.OpError)(nil), err)
	require.Equal(t, "listen tcp: context canceled", err.Error())
	require.False(t, err.(net.Error).Timeout()) //nolint:errorlint // it has to be outermost
	_, err = cfg.ListenPacket(ctx, "udp", "127.0.0.1:0")
	require.ErrorIs(t, err, context.Canceled)
	_, err = cfg.ListenAll(ctx, "tcp", "127.0.0.1:0", "127.0.0.1:0")
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, binds)
	require.NoDirExists(t, cfg.StateDir)

	ctx, cancel = context.WithTimeout(context.Background(), 0)
	defer cancel()
	err = fails(t, cfg, ctx, "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.True(t, err.(net.Error).Timeout()) //nolint:errorlint // it has to be outermost
}

// The context is of the attempt, not of the listener.
func TestContextDoneLater(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cfg := &listener.Config{StateDir: t.TempDir()}
	ln, err := cfg.Listen(ctx, "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	cancel()
	exchange(t, ln)
}

func TestDeadlineDuringWait(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	err := fails(t, &listener.Config{Strategy: strategy.Wait{Every: time.Hour}}, ctx, "tcp", held.Addr().String())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, []strategy.Action{strategy.Retry{After: time.Hour}}, e.History)
	require.ErrorIs(t, e.Cause, context.DeadlineExceeded)
	require.True(t, e.Timeout())
	require.True(t, err.(net.Error).Timeout()) //nolint:errorlint // it has to be outermost
	require.Contains(t, err.Error(), "; context deadline exceeded: ")
	require.Contains(t, err.Error(), fmt.Sprintf("pid %d", os.Getpid()), "the diagnosis outlives the context")
	require.NotContains(t, err.Error(), "\n")
}

func TestCancelDuringWait(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	ctx, cancel := context.WithCancel(context.Background())
	asked := strategy.Func(func(strategy.Failure) strategy.Action {
		cancel()
		return strategy.Retry{After: time.Hour}
	})
	err := fails(t, &listener.Config{Strategy: asked}, ctx, "tcp", held.Addr().String())
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.False(t, err.(net.Error).Timeout()) //nolint:errorlint // it has to be outermost
}

// A context that ends in the midst of any action ends the attempt, and the text stays one line.
func TestCancelDuringAction(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	for name, action := range map[string]strategy.Action{
		"retry":            strategy.Retry{},
		"run":              strategy.Run{Name: "x", Do: func(context.Context) error { return nil }},
		"run that fails":   strategy.Run{Name: "x", Do: func(ctx context.Context) error { return ctx.Err() }},
		"rebind":           strategy.Rebind{Ports: []strategy.Range{ports(portOf(t, held.Addr()), portOf(t, held.Addr()))}},
		"rebind elsewhere": strategy.Rebind{Ports: []strategy.Range{{}}},
		"reclaim":          strategy.Reclaim{Allow: func(strategy.Holder) bool { return false }},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		cfg := &listener.Config{Strategy: strategy.Func(func(strategy.Failure) strategy.Action { cancel(); return action })}
		err := fails(t, cfg, ctx, "tcp", held.Addr().String())
		require.ErrorIs(t, err, context.Canceled, name)
		require.ErrorIs(t, err, syscall.EADDRINUSE, name)
		require.NotContains(t, err.Error(), "\n", name)
		var e *listener.Error
		require.ErrorAs(t, err, &e)
		require.Len(t, e.History, 1, name)
	}
}

// Two causes are one line, too.
func TestCancelAfterFailedAction(t *testing.T) {
	path := anyAddress(t, "unix")
	listenPlain(t, "unix", path)
	ctx, cancel := context.WithCancel(context.Background())
	s := strategy.Func(func(strategy.Failure) strategy.Action { cancel(); return strategy.Rebind{Ports: []strategy.Range{{}}} })
	err := fails(t, &listener.Config{Strategy: s}, ctx, "unix", path)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, "has no port to change")
	require.NotContains(t, err.Error(), "\n")
}

func TestRetry(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	address := held.Addr().String()
	var failures []strategy.Failure
	s := strategy.Func(func(f strategy.Failure) strategy.Action {
		given := f.History
		f.History = slices.Clone(given)
		failures = append(failures, f)
		if len(failures) == 5 {
			require.NoError(t, held.Close())
		}
		for i := range given { // what a strategy does to what it was given changes nothing
			given[i] = strategy.Fail{}
		}
		return strategy.Retry{After: time.Duration(len(failures))}
	})
	ln := listen(t, &listener.Config{Strategy: s}, "tcp", address)
	want := []strategy.Action{strategy.Retry{After: 1}, strategy.Retry{After: 2}, strategy.Retry{After: 3}, strategy.Retry{After: 4}, strategy.Retry{After: 5}}
	require.Equal(t, listener.Origin{Kind: listener.Bound, Requested: address, Address: address, History: want}, ln.Origin())
	for i, f := range failures {
		require.Equal(t, "tcp", f.Network)
		require.Equal(t, address, f.Requested)
		require.Equal(t, address, f.Address)
		require.ErrorIs(t, f.Err, syscall.EADDRINUSE)
		require.Len(t, f.History, i)
		require.True(t, slices.Equal(want[:i], f.History))
		if i > 0 {
			require.Greater(t, f.Elapsed, failures[i-1].Elapsed)
		}
	}
}

// The diagnosis of a failure is taken once, and is that of this failure.
func TestDiagnoseOnce(t *testing.T) {
	first := listenPlain(t, "tcp", "127.0.0.1:0")
	address := first.Addr().String()
	var diagnoses []strategy.Diagnosis
	s := strategy.Func(func(f strategy.Failure) strategy.Action {
		before := f.Diagnose()
		if len(diagnoses) == 0 {
			require.NoError(t, first.Close())
		}
		require.Equal(t, before, f.Diagnose())
		diagnoses = append(diagnoses, before)
		if len(diagnoses) == 1 { // somebody else, who has it before the next attempt
			child := play(t, role{Do: "plain", Network: "tcp", Address: address})
			require.Equal(t, address, child.ready(t))
			return strategy.Retry{}
		}
		return nil
	})
	err := fails(t, &listener.Config{Strategy: s}, context.Background(), "tcp", address)
	require.Len(t, diagnoses, 2)
	require.Equal(t, os.Getpid(), diagnoses[0].Holders[0].PID)
	require.NotEqual(t, os.Getpid(), diagnoses[1].Holders[0].PID)
	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, diagnoses[1], e.Diagnosis(), "the error repeats what the strategy was told")
}

func TestRun(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	address := held.Addr().String()
	type key struct{}
	ctx := context.WithValue(context.Background(), key{}, "of the caller")
	run := strategy.Run{Name: "close it", Do: func(ctx context.Context) error {
		require.Equal(t, "of the caller", ctx.Value(key{}))
		return held.Close()
	}}
	s := &script{actions: []strategy.Action{run}}
	cfg := &listener.Config{Strategy: s, StateDir: t.TempDir()}
	ln, err := cfg.Listen(ctx, "tcp", address)
	require.NoError(t, err)
	defer ln.Close()
	require.Equal(t, listener.Bound, ln.Origin().Kind)
	require.Len(t, ln.Origin().History, 1)
	require.Equal(t, "run close it", ln.Origin().History[0].String())

	failed := errors.New("no such container\nor another one")
	for _, do := range []func(context.Context) error{func(context.Context) error { return failed }, nil} {
		s = &script{actions: []strategy.Action{strategy.Retry{}, strategy.Run{Name: "docker stop web", Do: do}, strategy.Retry{}}}
		err = fails(t, &listener.Config{Strategy: s}, context.Background(), "tcp", address)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.Len(t, s.asked, 2, "it ends the attempt")
		require.Contains(t, err.Error(), "; run docker stop web: ")
		require.NotContains(t, err.Error(), "\n")
		var e *listener.Error
		require.ErrorAs(t, err, &e)
		require.Len(t, e.History, 2)
		if do != nil {
			require.ErrorIs(t, err, failed)
			require.ErrorIs(t, e.Cause, failed)
		}
	}
}

func TestFail(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	s := &script{actions: []strategy.Action{strategy.Retry{}, strategy.Fail{Advice: "ask the other team"}}}
	err := fails(t, &listener.Config{Strategy: s}, context.Background(), "tcp", held.Addr().String())
	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "ask the other team", e.Advice())
	require.True(t, strings.HasSuffix(err.Error(), ": ask the other team"), err.Error())
	require.Equal(t, []strategy.Action{strategy.Retry{}}, e.History, "to fail is nothing that was carried out")
	require.NoError(t, e.Cause)
}

// An Action from elsewhere cannot be carried out.
func TestUnknownAction(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	for _, action := range []strategy.Action{struct{ strategy.Action }{strategy.Retry{}}, &strategy.Retry{}} {
		logger, _ := newJournal(slog.LevelDebug)
		s := &script{actions: []strategy.Action{action, action}}
		err := fails(t, &listener.Config{Strategy: s, Logger: logger}, context.Background(), "tcp", held.Addr().String())
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.ErrorContains(t, err, fmt.Sprintf("unknown action %T", action))
		require.Len(t, s.asked, 1)
	}
}

func TestFallback(t *testing.T) {
	first := freeRun(t, 8)
	for _, port := range []int{first, first + 1, first + 2, first + 4} {
		listenPlain(t, "tcp", local(port))
	}
	ln := listen(t, &listener.Config{Strategy: strategy.Staging()}, "tcp", local(first))
	require.Equal(t, first+3, portOf(t, ln.Addr()))
	want := listener.Origin{
		Kind: listener.Fallback, Requested: local(first), Address: local(first + 3),
		History: []strategy.Action{strategy.Rebind{Ports: []strategy.Range{ports(first+1, first+10)}}},
	}
	got := ln.Origin()
	got.InTheWay = nil
	require.Equal(t, want, got)
	exchange(t, ln)

	// In the order of the ranges.
	ln = listen(t, &listener.Config{Strategy: strategy.Staging(ports(first+4, first+6), ports(first, first+7))}, "tcp", local(first))
	require.Equal(t, first+5, portOf(t, ln.Addr()))

	// Nothing left.
	s := strategy.Staging(ports(first, first+2), ports(first+5, first+4), ports(first+4, first+4))
	err := fails(t, &listener.Config{Strategy: s}, context.Background(), "tcp", local(first))
	e := checkInUse(t, err, "tcp", local(first), local(first))
	require.Len(t, e.History, 1)
	require.Equal(t, os.Getpid(), e.Diagnosis().Holders[0].PID)
}

func TestFallbackAnyPort(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	ln := listen(t, &listener.Config{Strategy: strategy.Staging(strategy.Range{})}, "tcp", held.Addr().String())
	require.NotEqual(t, portOf(t, held.Addr()), portOf(t, ln.Addr()))
	require.NotZero(t, portOf(t, ln.Addr()))
	require.Equal(t, listener.Fallback, ln.Origin().Kind)
	require.Equal(t, ln.Addr().String(), ln.Origin().Address)
}

// A wildcard and a specific address of its families exclude each other, two specific ones do not.
func TestFallbackWildcard(t *testing.T) {
	for name, c := range map[string]struct {
		heldNetwork, heldHost, network, host string
		fallback                             bool
	}{
		"specific, then wildcard":             {"tcp", "127.0.0.1", "tcp", "", true},
		"specific IPv6, then wildcard":        {"tcp", "::1", "tcp", "", true},
		"wildcard, then specific":             {"tcp", "", "tcp", "127.0.0.1", true},
		"wildcard, then specific IPv6":        {"tcp", "", "tcp", "::1", true},
		"wildcard, then wildcard":             {"tcp", "", "tcp", "0.0.0.0", true},
		"IPv4 wildcard, then wildcard":        {"tcp4", "", "tcp", "", true},
		"IPv6 wildcard, then wildcard":        {"tcp6", "", "tcp", "", true},
		"IPv4 wildcard, then specific":        {"tcp4", "0.0.0.0", "tcp4", "127.0.0.1", true},
		"IPv4 wildcard, then IPv6 wildcard":   {"tcp4", "", "tcp6", "", false},
		"IPv4 wildcard, then specific IPv6":   {"tcp4", "", "tcp6", "::1", false},
		"IPv6 wildcard, then specific IPv4":   {"tcp6", "", "tcp", "127.0.0.1", false},
		"two specific":                        {"tcp", "127.0.0.1", "tcp", "127.0.0.2", false},
		"the same in IPv4 and IPv6":           {"tcp", "127.0.0.1", "tcp", "::1", false},
		"a name, then what it resolves to":    {"tcp4", "localhost", "tcp4", "127.0.0.1", true},
		"a specific one, then a name":         {"tcp4", "127.0.0.1", "tcp4", "localhost", true},
		"a mapped address and what it is":     {"tcp", "::ffff:127.0.0.1", "tcp", "127.0.0.1", true},
		"an address, then its mapped variant": {"tcp", "127.0.0.1", "tcp", "::ffff:127.0.0.1", true},
	} {
		t.Run(name, func(t *testing.T) {
			first := freeRun(t, 3)
			at := func(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
			listenPlain(t, c.heldNetwork, at(c.heldHost, first))
			listenPlain(t, c.heldNetwork, at(c.heldHost, first+1))
			binds := 0
			cfg := &listener.Config{Strategy: strategy.Staging()}
			cfg.Net.Control = func(string, string, syscall.RawConn) error { binds++; return nil }
			ln := listen(t, cfg, c.network, at(c.host, first))
			if !c.fallback {
				require.Equal(t, first, portOf(t, ln.Addr()))
				require.Equal(t, listener.Bound, ln.Origin().Kind)
				require.Equal(t, 1, binds)
				return
			}
			require.Equal(t, first+2, portOf(t, ln.Addr()))
			require.Equal(t, listener.Fallback, ln.Origin().Kind)
			require.Equal(t, at(c.host, first), ln.Origin().Requested)
			want, err := net.ResolveTCPAddr(c.network, at(c.host, first+2))
			require.NoError(t, err)
			got := ln.Addr().(*net.TCPAddr)
			require.True(t, want.IP == nil && got.IP.IsUnspecified() || want.IP.IsUnspecified() && got.IP.IsUnspecified() || want.IP.Equal(got.IP), "%v, not %v", got, want)
			require.LessOrEqual(t, binds, 3, "a port that is known to be busy is passed over")
			exchange(t, ln)
		})
	}
}

// A path has no ports, not even where it looks as if.
func TestRebindUnix(t *testing.T) {
	dir := shortDir(t)
	for _, name := range []string{"app.sock", "app:3000"} {
		path := filepath.Join(dir, name)
		listenPlain(t, "unix", path)
		s := &script{actions: []strategy.Action{strategy.Rebind{Ports: []strategy.Range{ports(3001, 3003)}}}}
		err := fails(t, &listener.Config{Strategy: s}, context.Background(), "unix", path)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.ErrorContains(t, err, "has no port to change")
		require.Len(t, s.asked, 2)
		for _, chain := range []strategy.Strategy{strategy.Staging(), strategy.Development(), strategy.Staging(ports(3001, 3003))} {
			err = fails(t, &listener.Config{Strategy: chain}, context.Background(), "unix", path)
			require.ErrorIs(t, err, syscall.EADDRINUSE)
			require.NotContains(t, err.Error(), "port")
		}
	}
	require.ElementsMatch(t, []string{"app.sock", "app:3000"}, filesIn(t, dir))
}

// A Rebind that found nothing is history like any other, and the next opinion counts.
func TestRebindThenOther(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	port := portOf(t, held.Addr())
	nothing := strategy.Rebind{Ports: []strategy.Range{ports(port, port)}}
	s := &script{actions: []strategy.Action{nothing, strategy.Rebind{}, strategy.Rebind{Ports: []strategy.Range{{}}}}}
	ln := listen(t, &listener.Config{Strategy: s}, "tcp", held.Addr().String())
	require.Equal(t, s.actions, ln.Origin().History)
	require.Equal(t, listener.Fallback, ln.Origin().Kind)
}

func TestControl(t *testing.T) {
	first := freeRun(t, 4)
	listenPlain(t, "tcp", local(first))
	listenPlain(t, "tcp", local(first+1))
	var bound []string
	cfg := &listener.Config{Strategy: strategy.Chain(&script{actions: []strategy.Action{strategy.Retry{}}}, strategy.Staging())}
	cfg.Net.Control = func(network, address string, c syscall.RawConn) error {
		require.Equal(t, "tcp4", network)
		bound = append(bound, address)
		return c.Control(func(uintptr) {})
	}
	ln := listen(t, cfg, "tcp", local(first))
	require.Equal(t, first+2, portOf(t, ln.Addr()))
	// For each failed bind package net asks twice: when MPTCP fails, it tries without.
	require.Equal(t, []string{local(first), local(first + 2)}, slices.Compact(bound))

	// Its error is no failed bind, so nobody is asked and nothing is added.
	refused := errors.New("not on this machine")
	s := new(script)
	cfg = &listener.Config{Strategy: s}
	cfg.Net.Control = func(string, string, syscall.RawConn) error { return refused }
	err := fails(t, cfg, context.Background(), "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, refused)
	require.Equal(t, closed(cfg.Net.Listen(context.Background(), "tcp", "127.0.0.1:0")), err)
	require.Empty(t, s.asked)

	// The same during a fallback.
	cfg = &listener.Config{Strategy: strategy.Staging()}
	cfg.Net.Control = func(_, address string, _ syscall.RawConn) error {
		if address != local(first) {
			return refused
		}
		return nil
	}
	err = fails(t, cfg, context.Background(), "tcp", local(first))
	require.ErrorIs(t, err, refused)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}

// A source hands out what its functions do.
type source struct {
	take       func(name, network, address string) (net.Listener, error)
	takePacket func(name, network, address string) (net.PacketConn, error)
}

func (s *source) Take(name, network, address string) (net.Listener, error) {
	return s.take(name, network, address)
}

func (s *source) TakePacket(name, network, address string) (net.PacketConn, error) {
	return s.takePacket(name, network, address)
}

// A keeper is a source that also hands on. It is no pointer, and cannot be compared.
type keeper struct {
	*source
	keep func(name, network, address string, socket syscall.Conn) error
}

func (k keeper) Keep(name, network, address string, socket syscall.Conn) error {
	return k.keep(name, network, address, socket)
}

var _ listener.Keeper = keeper{}

// nothing is the answer of a source that has nothing.
func nothing(string, string, string) (net.Listener, error) {
	return nil, fmt.Errorf("no descriptor: %w", fs.ErrNotExist)
}

func TestSources(t *testing.T) {
	var asked []string
	named := func(which string, take func(string, string, string) (net.Listener, error)) listener.Source {
		return &source{take: func(name, network, address string) (net.Listener, error) {
			require.Equal(t, []string{"web", "tcp", ":3000"}, []string{name, network, address})
			asked = append(asked, which)
			return take(name, network, address)
		}}
	}
	inherited := listenPlain(t, "tcp", "127.0.0.1:0")
	has := func(string, string, string) (net.Listener, error) { return inherited, nil }
	state := t.TempDir()
	logger, log := newJournal(slog.LevelInfo)
	cfg := &listener.Config{Name: "web", StateDir: state, Logger: logger, Sources: []listener.Source{
		named("a", nothing), nil, named("b", has), named("c", has),
	}}
	ln := listen(t, cfg, "tcp", ":3000")
	require.Equal(t, []string{"a", "b"}, asked)
	require.Equal(t, inherited.Addr(), ln.Addr())
	require.Equal(t, listener.Origin{Kind: listener.Activated, Requested: ":3000", Address: inherited.Addr().String()}, ln.Origin())
	require.Same(t, inherited, ln.Unwrap())
	recs := records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, "activated", recs[0].Origin)
	require.Equal(t, ":3000", recs[0].Requested)
	require.Equal(t, inherited.Addr().String(), recs[0].Address)
	require.Equal(t, "activated", log.entries(t, slog.LevelInfo)[0].Origin, "it says which it was")
	exchange(t, ln)
	require.NoError(t, ln.Close())
	_, err := inherited.Accept()
	require.ErrorIs(t, err, net.ErrClosed)

	// Nobody has it: then a bind.
	asked = nil
	cfg = &listener.Config{Sources: []listener.Source{&source{take: nothing}}}
	ln = listen(t, cfg, "tcp", "127.0.0.1:0")
	require.Equal(t, listener.Bound, ln.Origin().Kind)

	// Any other error ends the attempt.
	broken := errors.New("LISTEN_FDS is broken")
	s := new(script)
	cfg = &listener.Config{Name: "web", Strategy: s, Sources: []listener.Source{
		named("a", func(string, string, string) (net.Listener, error) { return nil, broken }), named("b", has),
	}}
	err = fails(t, cfg, context.Background(), "tcp", ":3000")
	require.ErrorIs(t, err, broken)
	require.IsType(t, (*net.OpError)(nil), err)
	require.Equal(t, "listen tcp: LISTEN_FDS is broken", err.Error())
	require.Equal(t, []string{"a"}, asked)
	require.Empty(t, s.asked)
}

// A source that gives neither a socket nor an error is wrong, but no reason to crash.
func TestSourceGivesNothing(t *testing.T) {
	cfg := &listener.Config{Sources: []listener.Source{&source{
		take:       func(string, string, string) (net.Listener, error) { return nil, nil },
		takePacket: func(string, string, string) (net.PacketConn, error) { return nil, nil },
	}}}
	err := fails(t, cfg, context.Background(), "tcp", "127.0.0.1:0")
	require.IsType(t, (*net.OpError)(nil), err)
	require.ErrorContains(t, err, "neither a socket nor an error")
	_, err = cfg.ListenPacket(context.Background(), "udp", "127.0.0.1:0")
	require.ErrorContains(t, err, "neither a socket nor an error")
}

type kept struct {
	keeper, name, network, address string
	socket                         syscall.Conn
}

func TestKeeper(t *testing.T) {
	var all []kept
	inherited := listenPlain(t, "tcp", "127.0.0.1:0")
	newKeeper := func(which string, take func(string, string, string) (net.Listener, error)) listener.Source {
		return keeper{&source{take: take}, func(name, network, address string, socket syscall.Conn) error {
			all = append(all, kept{which, name, network, address, socket})
			return nil
		}}
	}
	has := func(string, string, string) (net.Listener, error) { return inherited, nil }

	// Every keeper gets what was bound.
	cfg := &listener.Config{Name: "web", Sources: []listener.Source{newKeeper("a", nothing), &source{take: nothing}, newKeeper("b", nothing)}}
	ln := listen(t, cfg, "tcp", "127.0.0.1:0")
	require.Equal(t, listener.Bound, ln.Origin().Kind)
	require.Equal(t, []kept{
		{"a", "web", "tcp", "127.0.0.1:0", ln.Unwrap().(syscall.Conn)},
		{"b", "web", "tcp", "127.0.0.1:0", ln.Unwrap().(syscall.Conn)},
	}, all)

	// Also after a fallback, by the address that was asked for: the next version will ask for the same.
	all = nil
	cfg.Strategy = strategy.Staging(strategy.Range{})
	second := listen(t, cfg, "tcp", ln.Addr().String())
	require.Equal(t, listener.Fallback, second.Origin().Kind)
	require.Len(t, all, 2)
	require.Equal(t, ln.Addr().String(), all[0].address)

	// Not its own; the others get it.
	all = nil
	cfg = &listener.Config{Name: "web", Sources: []listener.Source{newKeeper("a", nothing), newKeeper("b", has), newKeeper("c", nothing)}}
	ln = listen(t, cfg, "tcp", ":3000")
	require.Equal(t, listener.Inherited, ln.Origin().Kind)
	require.Equal(t, []kept{{"a", "web", "tcp", ":3000", inherited.(syscall.Conn)}, {"c", "web", "tcp", ":3000", inherited.(syscall.Conn)}}, all)

	// What systemd passed is handed on, too.
	all = nil
	activated := listenPlain(t, "tcp", "127.0.0.1:0")
	cfg = &listener.Config{Sources: []listener.Source{
		newKeeper("a", nothing), &source{take: func(string, string, string) (net.Listener, error) { return activated, nil }},
	}}
	ln = listen(t, cfg, "tcp", ":3000")
	require.Equal(t, listener.Activated, ln.Origin().Kind)
	require.Len(t, all, 1)

	// One that is no socket cannot be handed on.
	cfg = &listener.Config{Sources: []listener.Source{
		newKeeper("a", nothing), &source{take: func(string, string, string) (net.Listener, error) { return opaque{activated}, nil }},
	}}
	err := fails(t, cfg, context.Background(), "tcp", ":3000")
	require.ErrorIs(t, err, errors.ErrUnsupported)
}

func TestKeepFails(t *testing.T) {
	broken := errors.New("no more room")
	state, portFile := t.TempDir(), filepath.Join(t.TempDir(), "port")
	var address string
	keeps := keeper{&source{take: nothing}, func(_, _, _ string, socket syscall.Conn) error {
		require.Len(t, filesIn(t, state), 1)
		address = socket.(net.Listener).Addr().String()
		return broken
	}}
	for _, network := range []string{"tcp", "unix"} {
		cfg := &listener.Config{StateDir: state, PortFile: portFile, Sources: []listener.Source{keeps}}
		err := fails(t, cfg, context.Background(), network, anyAddress(t, network))
		require.ErrorIs(t, err, broken)
		require.IsType(t, (*net.OpError)(nil), err)
		require.Equal(t, "listen "+network+" "+address+": no more room", err.Error())
		require.NotErrorIs(t, err, syscall.EADDRINUSE)

		require.Empty(t, filesIn(t, state))
		require.NoFileExists(t, portFile)
		again, err := net.Listen(network, address)
		require.NoError(t, err, "the address is free again")
		require.NoError(t, again.Close())
	}
}

// records are all that can be read in a state directory.
func records(t testing.TB, state string) (all []registry.Record) {
	t.Helper()
	dir, err := registry.Existing(state)
	require.NoError(t, err)
	entries, err := dir.Entries("", 0, 0)
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, e.Err)
		require.True(t, e.Held())
		all = append(all, e.Record)
	}
	return all
}

func TestRecord(t *testing.T) {
	self := proc.Self()
	for _, network := range supported(streams) {
		state, begin := t.TempDir(), time.Now()
		requested := anyAddress(t, network)
		if network == "tcp4" {
			requested = "localhost:0"
		}
		ln := listen(t, &listener.Config{StateDir: state, Name: "web"}, network, requested)
		recs := records(t, state)
		require.Len(t, recs, 1)
		rec := recs[0]
		require.WithinRange(t, rec.Since, begin.Add(-time.Millisecond), time.Now())
		inode := sockets.InodeOf(ln.Unwrap())
		require.True(t, self.Started.Equal(rec.Started))
		rec.Since, rec.Started = time.Time{}, time.Time{}
		require.Equal(t, registry.Record{
			Version: 1, PID: os.Getpid(), Start: self.Start, Boot: proc.BootID(), Executable: self.Executable,
			Main: proc.MainPackage(os.Getpid()), Dir: self.Dir, Name: "web", Network: network, Requested: requested,
			Address: ln.Addr().String(), Inode: inode, Origin: "bound",
		}, rec)
		require.NotEmpty(t, rec.Executable)
		wd, err := os.Getwd()
		require.NoError(t, err)
		require.Equal(t, wd, rec.Dir)

		dir, err := registry.Open(state)
		require.NoError(t, err)
		found, err := dir.Lookup(network, ln.Addr().String())
		require.NoError(t, err)
		require.NoError(t, found.Err)
		require.NoError(t, ln.Close())
	}
}

func TestTwoListeners(t *testing.T) {
	state := t.TempDir()
	cfg := &listener.Config{StateDir: state, Name: "web"}
	first, second := listen(t, cfg, "tcp", "127.0.0.1:0"), listen(t, cfg, "tcp", "127.0.0.1:0")
	require.NotEqual(t, first.Addr().String(), second.Addr().String())
	require.Len(t, records(t, state), 2)
	exchange(t, first)
	exchange(t, second)
	require.NoError(t, first.Close())
	recs := records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, second.Addr().String(), recs[0].Address)
	exchange(t, second)
}

func TestConcurrentUse(t *testing.T) {
	state := t.TempDir()
	cfg := &listener.Config{StateDir: state, Strategy: strategy.Staging(strategy.Range{})}
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			ln, err := cfg.Listen(context.Background(), "tcp", held.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { ln.Close() })
			mu.Lock()
			defer mu.Unlock()
			seen[ln.Addr().String()] = true
		})
	}
	wg.Wait()
	require.Len(t, seen, 20)
	require.Len(t, records(t, state), 20)
}

func TestListenAll(t *testing.T) {
	first := freeRun(t, 2)
	state, portFile := t.TempDir(), filepath.Join(t.TempDir(), "ports")
	cfg := &listener.Config{StateDir: state, PortFile: portFile}
	held := listenPlain(t, "tcp", local(first+1))

	_, err := cfg.ListenAll(context.Background(), "tcp", local(first), "127.0.0.1:0", local(first+1))
	checkInUse(t, err, "tcp", local(first+1), local(first+1))
	require.Empty(t, filesIn(t, state))
	require.NoFileExists(t, portFile)
	again, err := net.Listen("tcp", local(first))
	require.NoError(t, err, "all or none")
	require.NoError(t, again.Close())

	require.NoError(t, held.Close())
	all, err := cfg.ListenAll(context.Background(), "tcp", local(first), "127.0.0.1:0", local(first+1))
	require.NoError(t, err)
	require.Len(t, all, 3)
	var lines []string
	for i, ln := range all {
		exchange(t, ln)
		lines = append(lines, ln.Addr().String())
		require.Equal(t, listener.Bound, ln.Origin().Kind)
		require.Equal(t, []string{local(first), "127.0.0.1:0", local(first + 1)}[i], ln.Origin().Requested)
	}
	want := strings.Join(lines, "\n") + "\n"
	// In any order, and each as often as one likes: the file stays until the last.
	for _, i := range []int{1, 0, 2} {
		text, err := os.ReadFile(portFile)
		require.NoError(t, err)
		require.Equal(t, want, string(text))
		require.NoError(t, all[i].Close())
		require.NoError(t, all[i].Close())
		require.Len(t, filesIn(t, state), map[int]int{1: 2, 0: 1, 2: 0}[i])
	}
	require.NoFileExists(t, portFile)

	_, err = cfg.ListenAll(context.Background(), "tcp", local(first), local(first))
	require.ErrorIs(t, err, syscall.EADDRINUSE, "the second is in the way of itself")
	require.ErrorContains(t, err, "close or share the first listener of this process")

	all, err = cfg.ListenAll(context.Background(), "tcp")
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoFileExists(t, portFile)
}

func TestListenAllFallback(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	cfg := &listener.Config{StateDir: t.TempDir(), Strategy: strategy.Staging(strategy.Range{}), PortFile: filepath.Join(t.TempDir(), "ports")}
	all, err := cfg.ListenAll(context.Background(), "tcp", held.Addr().String(), held.Addr().String())
	require.NoError(t, err)
	require.Len(t, all, 2)
	for _, ln := range all {
		require.Equal(t, listener.Fallback, ln.Origin().Kind)
		defer ln.Close()
	}
	text, err := os.ReadFile(cfg.PortFile)
	require.NoError(t, err)
	require.Equal(t, all[0].Addr().String()+"\n"+all[1].Addr().String()+"\n", string(text))
}

func TestLog(t *testing.T) {
	first := freeRun(t, 3)
	state := t.TempDir()
	logger, log := newJournal(slog.LevelDebug)
	ln := listen(t, &listener.Config{Logger: logger, Name: "web", StateDir: state}, "tcp", local(first))
	info := log.entries(t, slog.LevelInfo)
	require.Len(t, info, 1)
	require.Equal(t, "listening on "+local(first), info[0].Msg)
	require.Equal(t, "tcp", info[0].Network)
	require.Equal(t, "web", info[0].Name)
	require.Equal(t, []string{"bound", local(first), local(first)}, []string{info[0].Origin, info[0].Requested, info[0].Address})
	require.Empty(t, log.entries(t, slog.LevelWarn))

	// A fallback is for people.
	logger, log = newJournal(slog.LevelDebug)
	s := strategy.Chain(&script{actions: []strategy.Action{strategy.Retry{}}}, strategy.Staging())
	moved := listen(t, &listener.Config{Logger: logger, StateDir: state, Strategy: s}, "tcp", local(first))
	require.Empty(t, log.entries(t, slog.LevelInfo))
	warn := log.entries(t, slog.LevelWarn)
	require.Len(t, warn, 1)
	holder := moved.Origin().InTheWay
	require.Len(t, holder, 1)
	require.Equal(t, os.Getpid(), holder[0].PID)
	require.Equal(t, fmt.Sprintf("port %d is in use by %v, using %d", first, holder[0], first+1), warn[0].Msg)
	require.Contains(t, warn[0].Msg, fmt.Sprintf("(pid %d, ", os.Getpid()))
	require.Equal(t, []string{"fallback", local(first), local(first + 1)}, []string{warn[0].Origin, warn[0].Requested, warn[0].Address})

	// Each failed bind and each decision.
	debug := log.entries(t, slog.LevelDebug)
	require.Len(t, debug, 4)
	for i, want := range []entry{
		{Msg: "bind failed", Address: local(first), Error: "bind: address already in use"},
		{Msg: "decided", Requested: local(first), Action: "retry"},
		{Msg: "bind failed", Address: local(first), Error: "bind: address already in use"},
		{Msg: "decided", Requested: local(first), Action: fmt.Sprintf("rebind to %d-%d", first+1, first+10)},
	} {
		want.Level, want.Network = "DEBUG", "tcp"
		require.Equal(t, want, debug[i])
	}

	// Who was weighed is in the decision.
	logger, log = newJournal(slog.LevelDebug)
	err := fails(t, &listener.Config{Logger: logger, StateDir: state, Strategy: strategy.Aggressive{}}, context.Background(), "tcp", local(first))
	require.ErrorContains(t, err, "it is this process itself")
	debug = log.entries(t, slog.LevelDebug)
	require.Len(t, debug, 2)
	require.Equal(t, "fail", debug[1].Action)
	require.True(t, *debug[1].Complete)
	require.Equal(t, os.Getpid(), debug[1].Holder.PID)
	require.Empty(t, log.entries(t, slog.LevelInfo))
	require.Empty(t, log.entries(t, slog.LevelWarn), "what is returned is not logged")
	require.Empty(t, log.entries(t, slog.LevelError))

	// At a higher level it costs nothing: nobody looks for the holder.
	logger, log = newJournal(slog.LevelError)
	moved = listen(t, &listener.Config{Logger: logger, StateDir: state, Strategy: strategy.Staging()}, "tcp", local(first))
	require.Equal(t, listener.Fallback, moved.Origin().Kind)
	require.Empty(t, moved.Origin().InTheWay)
	require.Empty(t, log.buf.String())
	require.NoError(t, ln.Close())
}
