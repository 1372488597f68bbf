package main

import (
	"net"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// first starts a quickstart on a port of the system's choice.
func first(t *testing.T, env string) (q *exampletest.Process, address string) {
	t.Helper()
	q = exampletest.Start(t, "-env", env, "-addr", "127.0.0.1:0")
	line := q.Until(t, "listening on")
	found := regexp.MustCompile(`listening on ([0-9.:]+)`).FindStringSubmatch(line)
	require.NotNil(t, found, line)
	return q, found[1]
}

func TestDevelopmentHandsThePortToTheNewcomer(t *testing.T) {
	old, address := first(t, "development")
	fresh := exampletest.Start(t, "-addr", address)
	fresh.Until(t, "listening on "+address)
	require.Zero(t, old.Exit(t))
	require.Contains(t, exampletest.Get(t, address), "pid "+strconv.Itoa(fresh.Process.Pid)+" on "+address+", which is reclaimed")
}

func TestStagingMovesAndSaysSo(t *testing.T) {
	old, address := first(t, "staging")
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	fresh := exampletest.Start(t, "-env", "staging", "-addr", address)
	line := fresh.Until(t, "is in use by")
	require.Regexp(t, `port `+port+` is in use by \S+ \(pid `+strconv.Itoa(old.Process.Pid)+`, .*\), using \d+`, line)
	require.Contains(t, exampletest.Get(t, address), "pid "+strconv.Itoa(old.Process.Pid)+" ")
}

func TestProductionExitsWithTheDiagnosis(t *testing.T) {
	old, address := first(t, "production")
	fresh := exampletest.Start(t, "-env", "production", "-addr", address)
	line := fresh.Until(t, "address already in use")
	require.Contains(t, line, "(pid "+strconv.Itoa(old.Process.Pid)+",")
	require.Contains(t, line, "kill "+strconv.Itoa(old.Process.Pid))
	require.Equal(t, 1, fresh.Exit(t))
	require.Contains(t, exampletest.Get(t, address), "pid "+strconv.Itoa(old.Process.Pid)+" ")
}

func TestInterruptEndsItCleanly(t *testing.T) {
	q, address := first(t, "production")
	require.NoError(t, q.Process.Signal(syscall.SIGINT))
	require.Zero(t, q.Exit(t))
	ln, err := net.Listen("tcp", address)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
}

func TestBadFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"-env test", "use development, staging or production"},
		{"-addr nonsense", "missing port"},
		{"-nonsense", "not defined"},
	} {
		q := exampletest.Start(t, strings.Fields(test.args)...)
		q.Until(t, test.want)
		require.Equal(t, 1, q.Exit(t), test.args)
	}
}
