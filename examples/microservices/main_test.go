package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/listener"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// A copyOf is one run of the command and what it said of its parts.
type copyOf struct {
	*exampletest.Process
	name, gateway string
	parts         map[string]part
}

type part struct {
	pid     int
	address string
}

var (
	starting = regexp.MustCompile(`starting (shop-\d+).* gateway=(\S+)`)
	serving  = regexp.MustCompile(`serving on (\S+).* name=(\S+) pid=(\d+)`)
)

func start(t *testing.T, args []string) *copyOf {
	t.Helper()
	c := &copyOf{Process: exampletest.Start(t, args...), parts: map[string]part{}}
	found := starting.FindStringSubmatch(c.Until(t, "starting shop-"))
	require.NotNil(t, found)
	c.name, c.gateway = found[1], found[2]
	for range len(services) + 1 {
		c.next(t)
	}
	require.Len(t, c.parts, len(services)+1)
	return c
}

// next waits until a part serves, and gives its name.
func (c *copyOf) next(t *testing.T) string {
	t.Helper()
	line := c.Until(t, "serving on")
	found := serving.FindStringSubmatch(line)
	require.NotNil(t, found, line)
	pid, err := strconv.Atoi(found[3])
	require.NoError(t, err)
	name := strings.TrimPrefix(found[2], c.name+"/")
	c.parts[name] = part{pid, found[1]}
	return name
}

func (c *copyOf) kill(t *testing.T, name string) part {
	t.Helper()
	killed := c.parts[name]
	process, err := os.FindProcess(killed.pid)
	require.NoError(t, err)
	require.NoError(t, process.Kill())
	return killed
}

// answers asks every service through the gateway.
func (c *copyOf) answers(t *testing.T) {
	t.Helper()
	for _, name := range services {
		require.Equal(t, fmt.Sprintf("%s/%s pid=%d on %s\n", c.name, name, c.parts[name].pid, c.parts[name].address), exampletest.Get(t, c.gateway+"/"+name))
	}
}

// gone waits until none of the parts is left.
func (c *copyOf) gone(t *testing.T) {
	t.Helper()
	for name, p := range c.parts {
		require.Eventually(t, func() bool {
			_, err := proc.Get(p.pid)
			return err != nil
		}, exampletest.Timeout, time.Millisecond, name)
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			conn.Close()
		}
		require.ErrorIs(t, err, syscall.ECONNREFUSED, name)
	}
}

// free gives ports in a row that were free a moment ago: the shop reserves them itself.
func free(t *testing.T, n int) (ports []int) {
	t.Helper()
	for len(ports) < n {
		ports = ports[:0]
		first := 13000 + rand.IntN(6000)
		for port := first; port < first+n; port++ {
			r, err := new(listener.Config).Reserve(t.Context(), "tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				break
			}
			ports = append(ports, port)
			require.NoError(t, r.Close())
		}
	}
	return ports
}

func TestTwoCopiesSideBySide(t *testing.T) {
	gateways, ports := free(t, 2), free(t, 10)
	dir := t.TempDir()
	args := []string{
		"-gateways", fmt.Sprintf("%d-%d", gateways[0], gateways[1]), "-ports", fmt.Sprintf("%d-%d", ports[0], ports[9]),
		"-dir", dir, "-state", filepath.Join(dir, "state"),
	}
	a, b := start(t, args), start(t, args)
	require.Equal(t, "shop-0", a.name)
	require.Equal(t, "shop-1", b.name)
	addresses := map[string]bool{}
	for _, c := range []*copyOf{a, b} {
		c.answers(t)
		for _, p := range c.parts {
			addresses[p.address] = true
		}
	}
	require.Len(t, addresses, 8)
	list := exampletest.Get(t, a.gateway+"/")
	for _, name := range services {
		require.Regexp(t, fmt.Sprintf(`(?m)^shop-0/%s +%s pid=%d since `, name, a.parts[name].address, a.parts[name].pid), list)
		require.Regexp(t, fmt.Sprintf(`(?m)^shop-1/%s +%s pid=%d since `, name, b.parts[name].address, b.parts[name].pid), list)
	}
	require.Contains(t, list, "4 of 10 ports are free")

	// A service that is killed is there again, on its port, and its clients only wait.
	was := a.kill(t, "orders")
	answer := exampletest.Get(t, a.gateway+"/orders")
	require.Equal(t, "orders", a.next(t))
	require.NotEqual(t, was.pid, a.parts["orders"].pid)
	require.Equal(t, was.address, a.parts["orders"].address)
	require.Equal(t, fmt.Sprintf("shop-0/orders pid=%d on %s\n", a.parts["orders"].pid, was.address), answer)

	// So is the gateway; nobody is refused meanwhile, since the command has its socket.
	was = a.kill(t, "gateway")
	a.answers(t)
	require.Equal(t, "gateway", a.next(t))
	require.NotEqual(t, was.pid, a.parts["gateway"].pid)

	// A copy ends with its command, and the other does not notice.
	require.NoError(t, a.Process.Process.Signal(syscall.SIGTERM))
	require.Zero(t, a.Exit(t))
	a.gone(t)
	require.NoDirExists(t, filepath.Join(dir, "shop-0"))
	b.answers(t)

	// The next copy is the first again, and its services have their ports again.
	again := start(t, args)
	require.Equal(t, a.name, again.name)
	require.Equal(t, a.gateway, again.gateway)
	for _, name := range services {
		require.Equal(t, a.parts[name].address, again.parts[name].address)
	}

	// Also when nobody asks.
	require.NoError(t, b.Process.Process.Kill())
	b.gone(t)
	again.answers(t)
}

func TestBadFlags(t *testing.T) {
	p := exampletest.Start(t, "-ports", "2-1")
	p.Until(t, "write 1-2")
	require.Equal(t, 1, p.Exit(t))
}
