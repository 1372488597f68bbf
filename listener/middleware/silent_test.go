package middleware_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/testneed"
	"github.com/berth-go/berth/listener/middleware"
)

const silentVariable = "BERTH_TEST_SILENT"

func init() { roles["silent"] = playSilent }

// playSilent connects so many times, and says nothing until its stdin is closed.
func playSilent() error {
	var network, address string
	var clients int
	if _, err := fmt.Sscan(os.Getenv(silentVariable), &network, &address, &clients); err != nil {
		return err
	}
	conns := make([]net.Conn, clients)
	for i := range conns {
		conn, err := net.Dial(network, address)
		if err != nil {
			return err
		}
		defer reset(conn)
		conns[i] = conn
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// silence has another process connect and be silent. Its connections end when hush is called.
func silence(t testing.TB, ln net.Listener, clients int) (hush func()) {
	t.Helper()
	cmd := command(t, "silent")
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s %s %d", silentVariable, ln.Addr().Network(), ln.Addr(), clients))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	timer := time.AfterFunc(2*deadline, func() { cmd.Process.Kill() })
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	hushed := false
	hush = func() {
		if !hushed {
			hushed = true
			stdin.Close()
			_ = cmd.Wait()
			timer.Stop()
		}
	}
	t.Cleanup(hush)
	require.Equal(t, "ready\n", line)
	return hush
}

// used is the memory that the runtime uses for what lives.
func used() uint64 {
	var m runtime.MemStats
	for range 2 { // what finalizers hold
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

const manyClients = 10000

func needDescriptors(t testing.TB) {
	t.Helper()
	testneed.That(t, maxDescriptors() >= manyClients+500, "10,500 descriptors (ulimit -n)")
}

// roundTrips is how long clients take, from connecting to their first answer: the median.
func roundTrips(t testing.TB, e examining, ln net.Listener, clients int) time.Duration {
	took := make([]time.Duration, clients)
	b := make([]byte, 4)
	for i := range took {
		begin := time.Now()
		socket, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		client := e.begin(socket)
		require.NoError(t, client.SetDeadline(begin.Add(deadline)))
		_, err = io.WriteString(client, "ping")
		require.NoError(t, err)
		_, err = io.ReadFull(client, b)
		require.NoError(t, err)
		took[i] = time.Since(begin)
		reset(socket)
	}
	slices.Sort(took)
	return took[clients/2]
}

// echo answers everybody.
func (e examining) echo(t testing.TB, ln net.Listener) {
	from := accepting(t, ln)
	go func() {
		for a := range from {
			if a.conn == nil {
				continue
			}
			go func() {
				defer a.conn.Close()
				if e.took != nil {
					_, _ = io.ReadFull(a.conn, make([]byte, 6))
				}
				b := make([]byte, 4)
				for {
					if _, err := io.ReadFull(a.conn, b); err != nil {
						return
					}
					if _, err := a.conn.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// Ten thousand silent clients, all of them kept: each takes no more memory than is promised, and nobody waits for them.
func TestTenThousandSilent(t *testing.T) {
	needDescriptors(t)
	for name, e := range examinings() {
		t.Run(name, func(t *testing.T) {
			ln := listen(t, "tcp", e.wrap(t, bounds{timeout: 2 * deadline, pending: manyClients + 100}))
			e.echo(t, ln)
			alone := roundTrips(t, e, ln, 50)
			before := used()
			hush := silence(t, ln, manyClients)
			eventually(t, func() bool { return pendingOf(ln) == manyClients }, "all are there")

			each := int(used()-before) / manyClients
			crowded := roundTrips(t, e, ln, 50)
			t.Logf("%d bytes each; a good one takes %v, and %v without the silent", each, crowded, alone)
			// The promise is 4 KiB; the race detector needs more of its own.
			require.Less(t, each, 8<<10)
			// Were one of them waited for, it would be a minute.
			require.Less(t, crowded, alone+time.Second)
			hush()
			eventually(t, func() bool { return pendingOf(ln) == 0 }, "all are gone")
		})
	}
}

// With the bound as it is by default, ten thousand leave no more than that.
func TestTenThousandSilentBounded(t *testing.T) {
	needDescriptors(t)
	e := examinings()["Mux"]
	ln := listen(t, "tcp", e.wrap(t, bounds{timeout: 2 * deadline}))
	e.echo(t, ln)
	goroutines := runtime.NumGoroutine()
	silence(t, ln, manyClients)
	eventually(t, func() bool { return pendingOf(ln) == 4096 }, "as many as may")
	roundTrips(t, e, ln, 20)
	eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+4096+10 }, "a goroutine each")
}

// Connections that are reset at once, in between those that are good.
func TestResetsAmongGood(t *testing.T) {
	eachExamining(t, bounds{}, func(t *testing.T, e examining, ln net.Listener, _ <-chan *middleware.Refusal) {
		e.echo(t, ln)
		storm := make(chan struct{})
		stop := make(chan struct{})
		go func() {
			defer close(storm)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					continue
				}
				if i%2 == 0 {
					_, _ = io.WriteString(conn, e.fragment)
				}
				reset(conn)
			}
		}()
		roundTrips(t, e, ln, 100)
		close(stop)
		<-storm
		eventually(t, func() bool { return pendingOf(ln) == 0 }, "nothing is left")
	})
}

// How long a good client takes, alone and among ten thousand silent ones.
func BenchmarkAmongSilent(b *testing.B) {
	needDescriptors(b)
	for _, name := range []string{"Proxy", "TLS", "Mux"} {
		for _, silent := range []int{0, manyClients} {
			b.Run(fmt.Sprintf("%s/silent=%d", name, silent), func(b *testing.B) {
				e := examinings()[name]
				ln := listen(b, "tcp", e.wrap(b, bounds{timeout: time.Hour, pending: manyClients + 100}))
				e.echo(b, ln)
				before := used()
				if silent > 0 {
					silence(b, ln, silent)
					eventually(b, func() bool { return pendingOf(ln) == silent }, "all are there")
				}
				after := used()
				b.ResetTimer()
				median := roundTrips(b, e, ln, b.N)
				if silent > 0 {
					b.ReportMetric(float64(after-before)/float64(silent), "B/silent")
				}
				b.ReportMetric(float64(median.Nanoseconds()), "median-ns")
			})
		}
	}
}
