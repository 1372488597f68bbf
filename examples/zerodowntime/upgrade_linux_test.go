package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

// A load is clients that ask without an end, and never a second time.
type load struct {
	over    atomic.Bool
	group   sync.WaitGroup
	mu      sync.Mutex
	lost    []error
	answers map[string]int // by pid
}

func clients(t *testing.T, address string) *load {
	l := &load{answers: map[string]int{}}
	for range 8 {
		l.group.Go(func() {
			for !l.over.Load() {
				if err := l.visit(address); err != nil {
					l.mu.Lock()
					l.lost = append(l.lost, err)
					l.mu.Unlock()
					return
				}
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.over.Store(true)
	l.group.Wait()
}

// visit asks on one connection until the server says that it ends.
func (l *load) visit(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for in := bufio.NewReader(conn); !l.over.Load(); {
		if err := conn.SetDeadline(time.Now().Add(exampletest.Timeout)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: server\r\n\r\n"); err != nil {
			return err
		}
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		var pid string
		if _, err := fmt.Sscanf(string(text), "pid %s on", &pid); err != nil {
			return err
		}
		l.mu.Lock()
		l.answers[pid]++
		l.mu.Unlock()
		if answer.Close {
			break
		}
	}
	return nil
}

func TestUpgrade(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0")
	pid, address := p.Serving(t)
	load := clients(t, address)
	pids := []int{pid}
	for range 5 {
		require.NoError(t, syscall.Kill(pid, syscall.SIGHUP))
		next, again := p.Serving(t)
		require.Equal(t, address, again)
		require.Contains(t, exampletest.Get(t, address), fmt.Sprintf("pid %d on %s, which is inherited\n", next, address))
		pid = next
		pids = append(pids, pid)
	}
	load.stop()
	require.Empty(t, load.lost)
	for _, pid := range pids[:len(pids)-1] {
		require.NotZero(t, load.answers[strconv.Itoa(pid)], load.answers)
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	require.Zero(t, p.Exit(t))
	ln, err := net.Listen("tcp", address)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
}

// The unit file, in a real systemd.
func TestUnit(t *testing.T) {
	const unit = "zerodowntime.service"
	m := exampletest.Systemd(t, "zerodowntime", map[string]string{unit: exampletest.Unit(t, unit, "-addr :8080", "-addr 127.0.0.1:0")})
	m.Systemctl(t, "start", unit)
	address := exampletest.Address(t, m, unit)
	load := clients(t, address)
	answered := func(pid, kind string) {
		t.Helper()
		require.Equal(t, fmt.Sprintf("pid %s on %s, which is %s\n", pid, address, kind), exampletest.Get(t, address))
	}
	pid := m.Property(t, unit, "MainPID")
	answered(pid, "bound")
	for range 3 {
		m.Systemctl(t, "reload", unit)
		next := exampletest.AwaitOther(t, m, unit, "MainPID", pid)
		m.Await(t, unit, "SubState", "running")
		answered(next, "inherited")
		pid = next
	}
	load.stop()
	require.Empty(t, load.lost)
	require.Equal(t, "0", m.Property(t, unit, "NRestarts"))

	// A restart is another thing: idle connections end. Nobody is refused all the same.
	m.Systemctl(t, "restart", unit)
	answered(m.Property(t, unit, "MainPID"), "activated")
	m.Systemctl(t, "stop", unit)
	require.Equal(t, "success", m.Property(t, unit, "Result"))
}
