package inspect

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/strategy"
)

// freePort is free, and the system does not give it to clients.
func freePort(t *testing.T) int {
	for range 1000 {
		port := 30000 + rand.IntN(2700)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			require.NoError(t, ln.Close())
			return port
		}
	}
	require.FailNow(t, "no port is free")
	return 0
}

// A service that starts or ends between a look at the sockets and one at the records is none that has lost its socket.
func TestServicesThatStartOrEndDuringALook(t *testing.T) {
	listen := func(t *testing.T, address string) net.Listener {
		ln, err := net.Listen("tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	lock := func(t *testing.T, dir *registry.Dir, address string) *registry.Lock {
		lock, err := dir.Lock("tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { lock.Release() })
		return lock
	}
	record := func(t *testing.T, lock *registry.Lock, address string) {
		self := proc.Self()
		require.NoError(t, lock.Write(registry.Record{PID: self.PID, Start: self.Start, Network: "tcp", Address: address, Name: "web"}))
	}
	for name, c := range map[string]struct {
		begin func(t *testing.T, dir *registry.Dir, address string) (later func())
		want  State
	}{
		"binds": {func(t *testing.T, dir *registry.Dir, address string) func() {
			record(t, lock(t, dir, address), address)
			return func() { listen(t, address) }
		}, Healthy},
		"writes its record": {func(t *testing.T, dir *registry.Dir, address string) func() {
			listen(t, address)
			l := lock(t, dir, address)
			return func() { record(t, l, address) }
		}, Healthy},
		"frees its lock": {func(t *testing.T, dir *registry.Dir, address string) func() {
			l := lock(t, dir, address)
			record(t, l, address)
			return func() { require.NoError(t, l.Release()) }
		}, Available},
		"is stuck": {func(t *testing.T, dir *registry.Dir, address string) func() {
			record(t, lock(t, dir, address), address)
			return func() {}
		}, Locked},
	} {
		t.Run(name, func(t *testing.T) {
			for _, one := range []bool{true, false} {
				port := freePort(t)
				address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
				dir, err := registry.Open(t.TempDir())
				require.NoError(t, err)
				later := c.begin(t, dir, address)
				looks := 0
				o := Options{StateDir: dir.Path(), Ranges: []strategy.Range{{First: uint16(port), Last: uint16(port)}}, settle: func(context.Context) {
					looks++
					later()
				}}
				if one {
					report, err := o.Port(t.Context(), "tcp", port)
					require.NoError(t, err)
					require.Equal(t, c.want, report.State, report)
					require.Empty(t, report.Records)
				} else {
					summary, err := System(t.Context(), o)
					require.NoError(t, err)
					require.Equal(t, c.want == Available, summary.Free == 1, summary)
					for _, report := range summary.Ports {
						require.Equal(t, c.want, report.State, report)
						require.Empty(t, report.Records)
					}
				}
				require.Equal(t, 1, looks, "no more than one pause")
			}
		})
	}
	t.Run("a damaged record", func(t *testing.T) {
		for _, age := range []time.Duration{0, time.Hour} {
			dir, port := t.TempDir(), freePort(t)
			path := filepath.Join(dir, "tcp-any-"+strconv.Itoa(port)+".lock")
			require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
			then := time.Now().Add(-age)
			require.NoError(t, os.Chtimes(path, then, then))
			looks := 0
			report, err := Options{StateDir: dir, settle: func(context.Context) { looks++ }}.Port(t.Context(), "tcp", port)
			require.NoError(t, err)
			require.Len(t, report.Records, 1)
			require.Equal(t, age == 0, looks == 1, "only a new one may be in the making")
		}
	})
}
