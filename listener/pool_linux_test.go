package listener_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
)

func init() {
	roles["lease without flock"] = withoutFlock(role.playLease)
	roles["instance without flock"] = withoutFlock(role.playInstance)
}

func withoutFlock(play func(role) error) func(role) error {
	return func(r role) error {
		if err := forbidFlock(); err != nil {
			return err
		}
		return play(r)
	}
}

// Where nobody can lock a file nobody waits in order, and still no port and no number is two processes'.
func TestPoolStateDirectoryWithoutFlock(t *testing.T) {
	p := pool(t, 2)
	p.Sticky, p.Wait = true, 0
	r := poolRole(p, "lease without flock", "web")
	a, b := play(t, r), play(t, r)
	addresses := []string{a.ready(t), b.ready(t)}
	require.NotEqual(t, addresses[0], addresses[1])
	late := *p
	late.Wait = -1
	_, err := late.Lease(t.Context(), "late")
	require.ErrorContains(t, err, fmt.Sprintf("(pid %d)", a.pid()))
	waiter := play(t, r)
	kill(t, b)
	require.Equal(t, addresses[1], waiter.ready(t))

	f := fleet(t, 2)
	r = fleetRole(f)
	r.Do = "instance without flock"
	for want := range 2 {
		number, _, _ := joined(t, play(t, r))
		require.Equal(t, want, number)
	}
	r.Strategy = "shared"
	require.Contains(t, play(t, r).failed(t), "not supported")
}

func TestPoolStateDirectoryFullOrReadOnly(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	for _, options := range []string{"size=4k,nr_inodes=1", "ro"} {
		t.Run(options, func(t *testing.T) {
			var log lockedBuffer
			p := pool(t, 3)
			p.Sticky, p.Config.Logger = true, slog.New(slog.NewTextHandler(&log, nil))
			p.Config.StateDir = mountAt(t, options)
			a, b, c := lease(t, p, "a"), lease(t, p, "b"), lease(t, p, "c")
			require.Len(t, map[int]bool{port(t, a.Addr()): true, port(t, b.Addr()): true, port(t, c.Addr()): true}, 3)
			require.Contains(t, log.String(), "the port is not remembered")
			p.Wait = 0
			go func() {
				for end := time.Now().Add(deadline); !strings.Contains(log.String(), "no queue for this pool") && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				b.Close()
			}()
			require.Equal(t, b.Addr(), lease(t, p, "d").Addr())
			require.Contains(t, log.String(), "no queue for this pool")
		})
	}
}

// Whoever waits looks when something has changed, and his own look is no change, whatever there is in the state directory.
func TestPoolWaitsQuietly(t *testing.T) {
	tries := func(t *testing.T, p *listener.Pool, names ...string) int64 {
		var sockets atomic.Int64
		waiter := *p
		waiter.Wait = 500 * time.Millisecond
		waiter.Config.Net.Control = func(string, string, syscall.RawConn) error {
			sockets.Add(1)
			return nil
		}
		_, err := waiter.LeaseAll(t.Context(), names...)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return sockets.Load()
	}
	const few = 120 // a look each 50 ms and two sockets each; without rest there would be one each millisecond
	t.Run("while another port is released", func(t *testing.T) {
		p := pool(t, 1)
		lease(t, p, "web")
		other := reserve(t, &p.Config, "tcp", "127.0.0.1:"+freePort(t))
		require.NoError(t, other.Release(t.Context(), time.Hour))
		require.Less(t, tries(t, p, "a"), int64(few))
	})
	t.Run("for several ports of which some are free", func(t *testing.T) {
		p := pool(t, 2)
		lease(t, p, "web")
		require.Less(t, tries(t, p, "a", "b"), int64(few))
	})
}
