package listener_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
)

// Two terminals, one moment. Were each to stop the other, none would be left, or they would go on for ever.
func TestSimultaneousStarts(t *testing.T) {
	const pairs = 50
	address := net.JoinHostPort("127.0.0.1", freePort(t))
	stateDirs := []string{t.TempDir(), unusable(t)}
	begin := time.Now()
	won, stopped := 0, 0
	for pair := range pairs {
		ok := t.Run(strconv.Itoa(pair), func(t *testing.T) {
			b := newBarrier(t)
			r := role{
				Do: "config", Network: "tcp", Address: address, Strategy: "development", Barrier: b.path,
				StateDir: stateDirs[pair%len(stateDirs)],
			}
			older, newer := play(t, r), play(t, r)
			b.wait(t, 2)
			if started(t, newer).Before(started(t, older)) { // the pids have come round
				older, newer = newer, older
			}
			b.release()

			require.Equal(t, address, newer.ready(t))
			// It gave way by itself, or was asked to end.
			if ended := older.exit(t); ended == nil {
				stopped++
			} else if s := older.signalled(t); s == syscall.SIGTERM {
				stopped++
			} else {
				require.Zero(t, s)
				require.Contains(t, older.failed(t), fmt.Sprintf("a newer start of this program (pid %d) has the address", newer.pid()))
				won++
			}
			require.Equal(t, strconv.Itoa(newer.pid()), answers(t, "tcp", address))
			require.True(t, newer.alive())
		})
		if !ok {
			return // each further one would wait for what does not come
		}
	}
	t.Logf("%d pairs in %v; the older one gave way in %d of them, and was stopped in %d", pairs, time.Since(begin).Round(time.Millisecond), won, stopped)
}

func started(t testing.TB, p *process) proc.Process {
	t.Helper()
	facts, err := proc.Get(p.pid())
	require.NoError(t, err)
	return facts
}

func TestRaceForRange(t *testing.T) {
	const processes, ports = 200, 300
	for _, s := range []string{"staging", "spread"} {
		t.Run(s, func(t *testing.T) {
			first := freeRange(t, ports)
			b := newBarrier(t)
			r := role{
				Do: "config", Network: "tcp", Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(first)), Strategy: s,
				Ranges: fmt.Sprintf("%d-%d", first, first+ports-1), StateDir: t.TempDir(), Barrier: b.path,
			}
			var all []*process
			for range processes {
				all = append(all, play(t, r))
			}
			b.wait(t, processes)
			begin := time.Now()
			b.release()
			by := map[string]*process{}
			for _, p := range all {
				address := p.ready(t)
				require.NotContains(t, by, address)
				by[address] = p
			}
			t.Logf("%d processes have their port in %v", processes, time.Since(begin).Round(time.Millisecond))

			require.Contains(t, by, r.Address, "somebody got the port that all wanted")
			for address, p := range by {
				_, port, err := net.SplitHostPort(address)
				require.NoError(t, err)
				number, err := strconv.Atoi(port)
				require.NoError(t, err)
				require.GreaterOrEqual(t, number, first)
				require.Less(t, number, first+ports)
				require.Equal(t, strconv.Itoa(p.pid()), answers(t, "tcp", address))
			}
		})
	}
}

// freeRange is the first of n ports that were free a moment ago, none of them ephemeral.
func freeRange(t testing.TB, n int) int {
	t.Helper()
	for range 1000 {
		// Somewhere else each time, and not where other packages look, whose tests run meanwhile.
		if first := 10000 + rand.IntN(10000-n); allFree(first, n) {
			return first
		}
	}
	require.FailNow(t, "no free range")
	return 0
}

func allFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

// unusable is a state directory that cannot be used, so that nothing is known but what the system tells.
func unusable(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	return path
}

// barrier holds up roles until all have come.
type barrier struct {
	path string
	ln   net.Listener
	came []net.Conn
}

func newBarrier(t testing.TB) *barrier {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // a Unix socket's path is limited to some hundred bytes
	require.NoError(t, err)
	b := &barrier{path: filepath.Join(dir, "b")}
	b.ln, err = net.Listen("unix", b.path)
	require.NoError(t, err)
	t.Cleanup(func() {
		b.release()
		b.ln.Close()
		os.RemoveAll(dir)
	})
	return b
}

// wait returns when n more processes have come.
func (b *barrier) wait(t testing.TB, n int) {
	t.Helper()
	require.NoError(t, b.ln.(*net.UnixListener).SetDeadline(time.Now().Add(deadline)))
	for range n {
		conn, err := b.ln.Accept()
		require.NoError(t, err)
		b.came = append(b.came, conn)
	}
}

// release lets all go on that have come.
func (b *barrier) release() {
	for _, conn := range b.came {
		conn.Close()
	}
	b.came = nil
}
