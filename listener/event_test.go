package listener_test

import (
	"context"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// events are those that a Config told of.
type events struct {
	mu  sync.Mutex
	all []listener.Event
}

func (e *events) add(event listener.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

// kinds are what they are about. A machine that is busy makes anybody wait for a lock.
func (e *events) kinds() (kinds []listener.EventKind) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		if event.Kind != listener.LockWait || event.Err != nil {
			kinds = append(kinds, event.Kind)
		}
	}
	return kinds
}

// of is the only event of a kind.
func (e *events) of(t *testing.T, kind listener.EventKind) listener.Event {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.all, func(event listener.Event) bool { return event.Kind == kind })
	require.GreaterOrEqual(t, i, 0, "no event %v", kind)
	return e.all[i]
}

func TestEvents(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	var heard events
	cfg := listener.Config{
		Name: "events", StateDir: t.TempDir(), OnEvent: heard.add,
		Strategy: strategy.Fallback{Ranges: []strategy.Range{{}}},
	}
	ln, err := cfg.Listen(context.Background(), "tcp", taken.Addr().String())
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.NoError(t, ln.Close())
	require.Equal(t, []listener.EventKind{listener.Conflict, listener.Obtained, listener.Released}, heard.kinds())

	conflict := heard.of(t, listener.Conflict)
	require.Equal(t, taken.Addr().String(), conflict.Address)
	require.ErrorIs(t, conflict.Err, syscall.EADDRINUSE)
	holders := conflict.Diagnose().Holders
	require.Len(t, holders, 1)
	require.Equal(t, os.Getpid(), holders[0].PID)
	obtained := heard.of(t, listener.Obtained)
	require.Equal(t, "events", obtained.Name)
	require.Equal(t, "tcp", obtained.Network)
	require.Equal(t, taken.Addr().String(), obtained.Requested)
	require.Equal(t, ln.Addr().String(), obtained.Address)
	require.Equal(t, listener.Fallback, obtained.Origin.Kind)
	require.Positive(t, obtained.Elapsed)
	require.WithinDuration(t, time.Now(), obtained.Time, time.Minute)
	require.Positive(t, heard.of(t, listener.Released).Elapsed)
}

func TestEventOfFailure(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	var heard events
	cfg := listener.Config{StateDir: t.TempDir(), OnEvent: heard.add}
	_, err = cfg.ListenAll(context.Background(), "tcp", "127.0.0.1:0", taken.Addr().String())
	require.Error(t, err)
	// What was opened before it was never given to anybody.
	require.Equal(t, []listener.EventKind{listener.Conflict, listener.Failed}, heard.kinds())
	require.Equal(t, err, heard.of(t, listener.Failed).Err)

	heard.all = nil
	cfg.Sources = []listener.Source{keeper{&source{take: nothing}, func(string, string, string, syscall.Conn) error { return os.ErrPermission }}}
	_, err = cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, os.ErrPermission)
	require.Equal(t, []listener.EventKind{listener.Failed}, heard.kinds())
}

func TestEventOfReclaim(t *testing.T) {
	state, port := t.TempDir(), freePort(t)
	old := play(t, role{Do: "config", Network: "tcp", Address: "127.0.0.1:" + port, StateDir: state, Name: "events"})
	old.line(t)
	var heard events
	cfg := listener.Config{Name: "events", StateDir: state, OnEvent: heard.add, Strategy: strategy.Aggressive{}}
	// The newest start wins, and this process is older.
	_, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:"+port)
	require.Error(t, err)
	require.Equal(t, []listener.EventKind{listener.Conflict, listener.Failed}, heard.kinds())

	newer := play(t, role{Do: "events", Network: "tcp", Address: "127.0.0.1:" + port, StateDir: state, Name: "events", Strategy: "aggressive"})
	for _, want := range []string{"conflict 0", "reclaim " + strconv.Itoa(old.pid()), "obtained 0"} {
		line, ok := newer.line(t)
		require.True(t, ok)
		require.Equal(t, want, line)
	}
}

func init() { roles["events"] = playEvents }

// playEvents listens and tells of what happens, with the pid of who was stopped.
func playEvents(r role) error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	cfg.OnEvent = func(e listener.Event) {
		pid := 0
		for _, h := range e.Stopped {
			pid = h.PID
		}
		os.Stdout.WriteString(e.Kind.String() + " " + strconv.Itoa(pid) + "\n")
	}
	ln, err := cfg.Listen(context.Background(), r.Network, r.Address)
	if err != nil {
		return err
	}
	return r.serve(ln)
}

// A lock that somebody else has makes a server wait for a moment, and then it does without.
func TestEventOfLock(t *testing.T) {
	port, state := freePort(t), t.TempDir()
	dir, err := registry.Open(state)
	require.NoError(t, err)
	lock, err := dir.Lock("tcp", "127.0.0.1:"+port)
	require.NoError(t, err)
	defer lock.Release()
	var heard events
	cfg := listener.Config{StateDir: state, OnEvent: heard.add}
	ln, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:"+port)
	require.NoError(t, err)
	defer ln.Close()
	require.Equal(t, []listener.EventKind{listener.LockWait, listener.Obtained}, heard.kinds())
	waited := heard.of(t, listener.LockWait)
	require.ErrorIs(t, waited.Err, registry.ErrHeld)
	require.GreaterOrEqual(t, waited.Elapsed, time.Millisecond)
}
