// Package porttest gives tests ports that nobody else has, also when the tests of many packages run at once, as under
// `go test ./...`. Everything is given back when the test ends, or its process dies.
//
//	func TestServer(t *testing.T) {
//		ln := porttest.Listen(t) // best: the test has the socket
//		go http.Serve(ln, handler)
//		...
//	}
//
//	func TestProgram(t *testing.T) {
//		port := porttest.Port(t) // for what binds by itself
//		cmd := exec.Command("program", "-port", strconv.Itoa(port))
//		...
//	}
//
// The usual way, to listen on port 0, close the listener and hand on its port, is a race that is lost from time to time: in
// between the port is anybody's.
package porttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// Listen listens on a free port of 127.0.0.1 and closes the listener when the test ends. It is of the standard library's own
// type.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("porttest: no port to listen on: %v", err)
	}
	t.Cleanup(func() { _ = ln.Close() }) // the test may have closed it
	return ln
}

// Port gives a TCP port for a program that binds it by itself, on whatever address. It is this test's until the test ends;
// the program may bind it, stop, and bind it again.
//
// On Linux the port stays bound meanwhile, on all addresses and without listening, so that connections are refused until the
// program listens. The program gets it by SO_REUSEADDR, which servers set: those in Go, Node, Python, Java, Rust's tokio,
// nginx and Redis do. Who does not set it finds the port taken, be it a stranger, or the kernel when it chooses a port, or
// a [listener.Config.Reserve] or [listener.Pool] in any process; a program that has to bind without it needs
// [listener.Reservation.Release]. Elsewhere the port is kept by its record alone: those who use this library keep off for an
// hour, others do not know.
func Port(t testing.TB) int {
	t.Helper()
	return Range(t, 1)[0]
}

// Range gives n ports in a row, as [Port] gives one.
func Range(t testing.TB, n int) []int {
	t.Helper()
	ports, err := take(t.Context(), t.Name(), n)
	if err != nil {
		t.Fatalf("porttest: no %d ports in a row: %v", n, err)
	}
	t.Cleanup(ports.close)
	return ports.numbers()
}

// Where the ports are from: below those that systems give to clients, as the ports of a [listener.Pool] are.
const first, last = 20000, 29999

// kept are ports in a row.
type kept []*listener.Reservation

func (k kept) close() {
	for _, r := range k {
		_ = r.Close() // of a test that is over
	}
}

func (k kept) numbers() []int {
	ports := make([]int, len(k))
	for i, r := range k {
		ports[i] = portOf(r)
	}
	return ports
}

func portOf(r *listener.Reservation) int { return r.Addr().(*net.TCPAddr).Port }

// take looks for n ports in a row from a random one on. What is taken it jumps over.
func take(ctx context.Context, name string, n int) (kept, error) {
	const size = last - first + 1
	if n < 1 || n > size {
		return nil, fmt.Errorf("there are %d", size)
	}
	ctx = context.WithoutCancel(ctx) // it ends before the cleanups of the test
	cfg := listener.Config{Name: name, Strategy: strategy.FailFast{}, Sources: []listener.Source{}}
	cfg.Net.SetMultipathTCP(false)
	start := rand.N(size)
	var failed error
	for tried := 0; tried < size; tried++ {
		port := first + (start+tried)%size
		if port+n-1 > last {
			continue
		}
		row, err := takeRow(ctx, &cfg, port, n)
		if err == nil {
			return row, nil
		}
		failed = err
		if !inUse(err) {
			return nil, err
		}
		tried += len(row) // up to the one that is taken
	}
	return nil, failed
}

// takeRow takes the ports from first on. After an error it tells how many it could have had, which are closed.
func takeRow(ctx context.Context, cfg *listener.Config, first, n int) (kept, error) {
	var row kept
	for i := range n {
		r, err := cfg.Reserve(ctx, "tcp", ":"+strconv.Itoa(first+i))
		if err == nil {
			row = append(row, r)
			err = share(ctx, r)
		}
		if err != nil {
			row.close()
			return row, err
		}
	}
	return row, nil
}

// Isolated runs the test in a network namespace of its own, which has its own loopback and all ports free, and nothing else:
// no other test, no network. Call it first, and return where it is false: then the test has run there, in a process of its
// own, and passed.
//
//	func TestFixedPort(t *testing.T) {
//		if !porttest.Isolated(t) {
//			return
//		}
//		ln, err := net.Listen("tcp", ":80")
//		...
//	}
//
// It is true in that process, and where the system allows no namespace (it takes Linux, and root or user namespaces): then
// it logs that, and the test runs as any other. A test that fails there fails here, with what it printed, and one that skips
// skips. The process runs this test alone, by the test binary and its TestMain, with the flags of this run but those that
// choose tests or write profiles. A benchmark, or a fuzz target, is not isolated.
//
// In a test that is isolated, subtests are in its namespace, whether they ask for one or not.
func Isolated(t testing.TB) bool {
	t.Helper()
	if isolated() {
		if err := prepare(); err != nil {
			t.Fatalf("porttest: the loopback of the namespace: %v", err)
		}
		return true
	}
	runner, ok := t.(*testing.T)
	if !ok {
		t.Logf("porttest: not isolated: %T", t)
		return true
	}
	err := rerun(runner)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Logf("porttest: not isolated: %v", err)
		return true
	}
	if err != nil {
		t.Fatalf("porttest: %v", err)
	}
	return false
}

var prepare = sync.OnceValue(loopbackUp)
