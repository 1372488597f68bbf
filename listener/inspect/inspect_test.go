package inspect_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

const (
	holdVariable  = "BERTH_INSPECT_HOLD"  // "NETWORK ADDRESS": listen there until stdin ends
	stateVariable = "BERTH_INSPECT_STATE" // with it, by a Config with this state directory
)

func TestMain(m *testing.M) {
	if what := os.Getenv(holdVariable); what != "" {
		network, address, _ := strings.Cut(what, " ")
		socket, err := hold(network, address)
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		fmt.Println("ready", socket)
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0) // without Close, as a process that was killed
	}
	goleak.VerifyTestMain(m)
}

func hold(network, address string) (net.Addr, error) {
	cfg := listener.Config{StateDir: os.Getenv(stateVariable), Name: "held"}
	switch {
	case network == "udp" || network == "unixgram":
		conn, err := net.ListenPacket(network, address)
		if err != nil {
			return nil, err
		}
		return conn.LocalAddr(), nil
	case cfg.StateDir != "":
		ln, err := cfg.Listen(context.Background(), network, address)
		if err != nil {
			return nil, err
		}
		return ln.Addr(), nil
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return ln.Addr(), nil
}

// holder starts a process that holds an address, and gives its pid, the address, and how to end it.
func holder(t *testing.T, network, address, stateDir string, change ...func(*exec.Cmd)) (pid int, at string, end func()) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	// Under the race detector a process sleeps a second before it exits, unless told otherwise.
	cmd.Env = append(os.Environ(), holdVariable+"="+network+" "+address, stateVariable+"="+stateDir, "GORACE=atexit_sleep_ms=0")
	for _, c := range change {
		c(cmd)
	}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	ended := false
	end = func() {
		if !ended {
			ended = true
			stdin.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	at, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	require.True(t, ok, line)
	return cmd.Process.Pid, at, end
}

// freePort is a port that was free a moment ago, outside of the ephemeral range, and of what other packages' tests use.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(30000 + rand.IntN(2700))
		if ln, err := net.Listen("tcp", ":"+port); err == nil {
			require.NoError(t, ln.Close())
			return port
		}
	}
	require.FailNow(t, "no free port")
	return ""
}

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	return port
}

func TestPortNamesTheHolderOnEveryAddress(t *testing.T) {
	for _, test := range []struct {
		network, address string // of the holder
		asked            string
		state            string
	}{
		{"tcp4", "127.0.0.1:0", "tcp", "listening"},
		{"tcp4", "127.0.0.1:0", "tcp4", "listening"},
		{"tcp4", "127.7.7.7:0", "tcp", "listening"},
		{"tcp6", "[::1]:0", "tcp", "listening"},
		{"tcp6", "[::1]:0", "tcp6", "listening"},
		{"tcp4", "0.0.0.0:0", "tcp4", "listening"},
		{"tcp6", "[::]:0", "tcp6", "listening"},
		{"tcp", ":0", "tcp", "listening"},
		{"tcp", ":0", "tcp4", "listening"},
		{"udp", "127.0.0.1:0", "udp", "bound"},
		{"udp", ":0", "udp6", "bound"},
	} {
		t.Run(test.network+" "+test.address+" asked as "+test.asked, func(t *testing.T) {
			// Not an ephemeral port, which connections of other tests may have, too.
			pid, at, end := holder(t, test.network, strings.TrimSuffix(test.address, "0")+freePort(t), "")
			port := portOf(t, at)
			report, err := inspect.Port(t.Context(), test.asked, port)
			require.NoError(t, err)
			require.Equal(t, inspect.InUse, report.State)
			require.True(t, report.Complete)
			require.Len(t, report.Holders, 1)
			h := report.Holders[0]
			require.Equal(t, pid, h.PID)
			require.Equal(t, os.Geteuid(), h.UID)
			require.NotEmpty(t, h.User)
			require.Equal(t, "inspect.test", h.Command)
			require.Contains(t, h.Executable, "inspect.test")
			require.Equal(t, at, h.Address)
			require.Equal(t, test.state, h.State)
			require.NotEmpty(t, h.Dir)
			require.NotEmpty(t, h.Args)
			require.False(t, h.Started.IsZero())
			require.True(t, h.Ours, "the same program")
			require.True(t, h.Newer)
			require.Contains(t, report.Recommendations[0], "kill "+strconv.Itoa(pid))
			require.Contains(t, report.String(), fmt.Sprintf("%s port %d is in use by inspect.test (pid %d", test.asked, port, pid))

			end()
			report, err = inspect.Port(t.Context(), test.asked, port)
			require.NoError(t, err)
			require.Equal(t, inspect.Available, report.State)
			require.Empty(t, report.Holders)
			require.Empty(t, report.Recommendations)
		})
	}
}

func TestPortKeepsTheFamiliesApart(t *testing.T) {
	_, at, _ := holder(t, "tcp6", "[::1]:0", "")
	report, err := inspect.Port(t.Context(), "tcp4", portOf(t, at))
	require.NoError(t, err)
	require.Equal(t, inspect.Available, report.State)

	_, at, _ = holder(t, "tcp", "127.0.0.1:0", "")
	report, err = inspect.Address(t.Context(), "tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(portOf(t, at))))
	require.NoError(t, err)
	require.Equal(t, inspect.Available, report.State, "another address of the same port")
	report, err = inspect.Address(t.Context(), "tcp", at)
	require.NoError(t, err)
	require.Equal(t, inspect.InUse, report.State)
	report, err = inspect.Address(t.Context(), "tcp", net.JoinHostPort("localhost", strconv.Itoa(portOf(t, at))))
	require.NoError(t, err)
	require.Equal(t, inspect.InUse, report.State)
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	pid, _, end := holder(t, "unix", path, "")
	report, err := inspect.Address(t.Context(), "unix", path)
	require.NoError(t, err)
	require.Equal(t, inspect.InUse, report.State)
	require.Equal(t, pid, report.Holders[0].PID)
	require.Equal(t, path, report.Holders[0].Address)
	require.Contains(t, report.String(), "unix socket "+path+" is in use by")

	end() // the file stays
	require.FileExists(t, path)
	report, err = inspect.Address(t.Context(), "unix", path)
	require.NoError(t, err)
	require.Equal(t, inspect.Available, report.State)
}

func TestTrackedServiceIsHealthyAndItsCrashLeavesAStaleRecord(t *testing.T) {
	options := inspect.Options{StateDir: t.TempDir()}
	pid, at, end := holder(t, "tcp", "127.0.0.1:0", options.StateDir)
	port := portOf(t, at)
	report, err := options.Port(t.Context(), "tcp", port)
	require.NoError(t, err)
	require.Equal(t, inspect.Healthy, report.State)
	require.Equal(t, "held", report.Service)
	require.Empty(t, report.Records)
	require.Equal(t, pid, report.Holders[0].PID)

	options.Ranges = []strategy.Range{{First: uint16(port), Last: uint16(port)}}
	summary, err := inspect.System(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, [6]int{1, 0, 1, 1, 0, 0}, counts(summary))

	end()
	report, err = options.Port(t.Context(), "tcp", port)
	require.NoError(t, err)
	require.Equal(t, inspect.Available, report.State)
	require.Len(t, report.Records, 1)
	require.Contains(t, report.Records[0], "stale")
	summary, err = inspect.System(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, [6]int{1, 1, 0, 0, 0, 1}, counts(summary))
}

func counts(s inspect.Summary) [6]int {
	return [6]int{s.Total, s.Free, s.InUse, s.Tracked, s.Locked, s.Errors}
}

func TestARecordWithoutItsSocketIsLocked(t *testing.T) {
	options := inspect.Options{StateDir: t.TempDir()}
	cfg := listener.Config{StateDir: options.StateDir, Name: "web"}
	ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	inner, ok := listener.As[*net.TCPListener](ln)
	require.True(t, ok)
	require.NoError(t, inner.Close()) // behind the back of the Listener, which keeps its lock
	report, err := options.Port(t.Context(), "tcp", portOf(t, ln.Addr().String()))
	require.NoError(t, err)
	require.Equal(t, inspect.Locked, report.State)
	require.Equal(t, "web", report.Service)
	require.Contains(t, report.Recommendations[0], strconv.Itoa(os.Getpid()))
}

func TestDamagedRecordIsReported(t *testing.T) {
	options := inspect.Options{StateDir: t.TempDir(), Ranges: []strategy.Range{{First: 3999, Last: 4001}}}
	require.NoError(t, os.WriteFile(filepath.Join(options.StateDir, "tcp-any-4000.lock"), []byte("{garbage"), 0o600))
	report, err := options.Port(t.Context(), "tcp", 4000)
	require.NoError(t, err)
	require.Len(t, report.Records, 1)
	require.Contains(t, report.Records[0], "damaged")
	summary, err := inspect.System(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, 1, summary.Errors)
	require.Equal(t, 3, summary.Total)
}

func TestEphemeralPortOfAClientIsToldApart(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	report, err := inspect.Port(t.Context(), "tcp", portOf(t, client.LocalAddr().String()))
	require.NoError(t, err)
	require.Equal(t, inspect.InUse, report.State)
	require.Equal(t, "connected", report.Holders[0].State)
	require.Contains(t, report.Holders[0].Refusal, "client")
	require.Contains(t, report.Recommendations[0], "ends with its connection")
}

func TestSystemCountsEveryPortOnce(t *testing.T) {
	_, at, _ := holder(t, "tcp", "127.0.0.1:0", "")
	port := uint16(portOf(t, at))
	require.Greater(t, int(port), 100)
	summary, err := inspect.System(t.Context(), inspect.Options{StateDir: t.TempDir(), Ranges: []strategy.Range{
		{First: port - 2, Last: port}, {First: port, Last: port}, {First: port - 1, Last: port}, // overlapping
	}})
	require.NoError(t, err)
	require.Equal(t, 3, summary.Total)
	require.Equal(t, summary.Total, summary.Free+summary.InUse+summary.Locked)
	require.NotEmpty(t, summary.Ports)
	last := summary.Ports[len(summary.Ports)-1]
	require.Equal(t, int(port), last.Port)
	require.Len(t, last.Holders, 1)

	summary, err = inspect.System(t.Context(), inspect.Options{Network: "udp"})
	require.NoError(t, err)
	require.Equal(t, 33, summary.Total, "the default ranges")
	summary, err = inspect.System(t.Context(), inspect.Options{Ranges: []strategy.Range{}})
	require.NoError(t, err)
	require.Zero(t, summary.Total)
}

func TestOneProcessWithSeveralPortsIsListedForEach(t *testing.T) {
	one, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer one.Close()
	two, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer two.Close()
	a, b := uint16(portOf(t, one.Addr().String())), uint16(portOf(t, two.Addr().String()))
	summary, err := inspect.System(t.Context(), inspect.Options{StateDir: t.TempDir(), Ranges: []strategy.Range{{First: a, Last: a}, {First: b, Last: b}}})
	require.NoError(t, err)
	require.Equal(t, 2, summary.InUse)
	for _, report := range summary.Ports {
		require.Len(t, report.Holders, 1)
		require.Equal(t, os.Getpid(), report.Holders[0].PID)
	}
}

func TestMalformedQuestions(t *testing.T) {
	for _, port := range []int{0, -1, 65536, math.MaxInt} {
		_, err := inspect.Port(t.Context(), "tcp", port)
		require.ErrorContains(t, err, "use 1 to 65535")
	}
	for _, network := range []string{"", "tcp5", "unix", "ip", "TCP"} {
		_, err := inspect.Port(t.Context(), network, 80)
		require.ErrorContains(t, err, "unknown network", network)
	}
	for _, address := range []string{"", "3000", "127.0.0.1", "127.0.0.1:x", "[::1:80"} {
		_, err := inspect.Address(t.Context(), "tcp", address)
		require.Error(t, err, address)
	}
	_, err := inspect.System(t.Context(), inspect.Options{Network: "unix"})
	require.ErrorContains(t, err, "unknown network")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	_, err = inspect.Port(ctx, "tcp", portOf(t, ln.Addr().String()))
	require.ErrorIs(t, err, context.Canceled)
}
