package porttest_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/internal/testneed"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/porttest"
)

const roleVariable = "BERTH_TEST_PORTTEST"

func TestMain(m *testing.M) {
	os.Setenv("XDG_RUNTIME_DIR", "") // no records among those of this user
	switch os.Getenv(roleVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case "tests": // of a package that is tested at the same time
		os.Exit(m.Run())
	}
}

func at(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func TestListen(t *testing.T) {
	var ln net.Listener
	t.Run("in use", func(t *testing.T) {
		ln = porttest.Listen(t)
		require.IsType(t, (*net.TCPListener)(nil), ln)
		_, err := net.Listen("tcp", ln.Addr().String())
		require.ErrorIs(t, err, syscall.EADDRINUSE)
	})
	_, err := ln.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestPortIsForWhoeverBindsIt(t *testing.T) {
	port := porttest.Port(t)
	for _, address := range []string{at(port), fmt.Sprintf(":%d", port), fmt.Sprintf("localhost:%d", port), at(port)} {
		_, err := net.Dial("tcp", at(port))
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		ln, err := net.Listen("tcp", address)
		require.NoError(t, err, address)
		done := make(chan struct{})
		go func() {
			conn, err := ln.Accept()
			if err == nil {
				conn.Close()
			}
			close(done)
		}()
		conn, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		<-done
		require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
		require.NoError(t, conn.Close())
		require.NoError(t, ln.Close())
	}
}

func TestPortIsGivenBack(t *testing.T) {
	var ports []int
	t.Run("in use", func(t *testing.T) { ports = porttest.Range(t, 3) })
	for _, port := range ports {
		r, err := new(listener.Config).Reserve(t.Context(), "tcp", fmt.Sprintf(":%d", port))
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
}

func TestRange(t *testing.T) {
	var all []int
	for _, n := range []int{1, 2, 50} {
		ports := porttest.Range(t, n)
		require.Len(t, ports, n)
		for i, port := range ports {
			require.Equal(t, ports[0]+i, port)
		}
		all = append(all, ports...)
	}
	slices.Sort(all)
	require.Len(t, slices.Compact(all), 53)
}

// A recorder is a test that goes on after it failed.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestFailureSaysWhy(t *testing.T) {
	r := &recorder{TB: t}
	var done sync.WaitGroup
	done.Go(func() { porttest.Range(r, 20_000) })
	done.Wait()
	require.Equal(t, "porttest: no 20000 ports in a row: there are 10000", r.fatal)
}

// The tests of several packages run at once, each in a process of its own, and find ports of each other's all the time. They are
// isolated together, where that can be: they take hundreds, which the tests of other packages of this module might want.
func TestPackagesInParallel(t *testing.T) {
	if !porttest.Isolated(t) {
		return
	}
	if os.Getenv(roleVariable) != "" {
		ports := porttest.Range(t, 20)
		for range 50 {
			ports = append(ports, porttest.Port(t))
		}
		var listeners []net.Listener
		for _, port := range ports {
			ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			require.NoError(t, err)
			listeners = append(listeners, ln)
		}
		for _, ln := range listeners {
			require.NoError(t, ln.Close())
		}
		return
	}
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestPackagesInParallel$")
			cmd.Env = append(os.Environ(), roleVariable+"=tests", "GORACE=atexit_sleep_ms=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
}

func namespaces(t testing.TB) {
	t.Helper()
	testneed.That(t, runtime.GOOS == "linux" && exec.Command("unshare", "-n", "true").Run() == nil, "network namespaces")
}

func TestIsolated(t *testing.T) {
	namespaces(t)
	taken := porttest.Listen(t) // in the process that is not isolated
	t.Run("has its own ports", func(t *testing.T) {
		if !porttest.Isolated(t) {
			return
		}
		require.NotEmpty(t, os.Getenv("BERTH_PORTTEST_ISOLATED"))
		interfaces, err := net.Interfaces()
		require.NoError(t, err)
		for _, i := range interfaces {
			if i.Flags&net.FlagUp != 0 {
				require.Equal(t, net.FlagLoopback, i.Flags&net.FlagLoopback, "%s is up", i.Name)
			}
		}
		ln, err := net.Listen("tcp", "127.0.0.1:80")
		require.NoError(t, err)
		defer ln.Close()
		server := http.Server{Handler: http.NotFoundHandler()}
		go server.Serve(ln)
		defer server.Close()
		response, err := http.Get("http://127.0.0.1:80/") // by other threads than this one
		require.NoError(t, err)
		response.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		t.Run("for its subtests too", func(t *testing.T) {
			require.True(t, porttest.Isolated(t))
			_, err := net.Listen("tcp", "127.0.0.1:80")
			require.ErrorIs(t, err, syscall.EADDRINUSE)
		})
	})
	require.NotNil(t, taken)
}

// What an isolated test does is what the test does. The cases run in another process, since they fail.
func TestIsolatedOutcome(t *testing.T) {
	namespaces(t)
	for _, outcome := range []struct{ name, want string }{
		{"passes", "--- PASS: TestOutcome/passes ("},
		{"fails", "--- FAIL: TestOutcome/fails ("},
		{"skips", "--- SKIP: TestOutcome/skips ("},
		{"panics", "--- FAIL: TestOutcome/panics ("},
		{"with space, (and) more/than one", "--- PASS: TestOutcome/with_space,_(and)_more/than_one ("},
	} {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestOutcome$/^"+strings.NewReplacer("(", `\(`, ")", `\)`, " ", "_", "/", "$/^").Replace(outcome.name)+"$",
			"-test.v", "-test.count", "2", "-test.cpuprofile", filepath.Join(dir, "cpu"))
		cmd.Env = append(os.Environ(), roleVariable+"=tests", "GORACE=atexit_sleep_ms=0", "BERTH_TEST_OUTCOME="+dir)
		out, err := cmd.CombinedOutput()
		require.Equal(t, strings.Contains(outcome.want, "FAIL"), err != nil, "%s", out)
		require.Contains(t, string(out), outcome.want)
		require.Contains(t, string(out), "it ran")
		runs, err := filepath.Glob(filepath.Join(dir, "ran-*"))
		require.NoError(t, err)
		require.Len(t, runs, 2, "each of two times in a process of its own: %s", out)
	}
}

func TestOutcome(t *testing.T) {
	dir := os.Getenv("BERTH_TEST_OUTCOME")
	if dir == "" {
		t.Skip("TestIsolatedOutcome runs it")
	}
	for name, do := range map[string]func(*testing.T){
		"passes":                          func(t *testing.T) {},
		"fails":                           func(t *testing.T) { t.Error("wrong") },
		"skips":                           func(t *testing.T) { t.Skip("enough") },
		"panics":                          func(t *testing.T) { panic("oh") },
		"with space, (and) more/than one": func(t *testing.T) {},
	} {
		t.Run(name, func(t *testing.T) {
			if !porttest.Isolated(t) {
				return
			}
			require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("ran-%d", os.Getpid())), nil, 0o600))
			t.Log("it ran")
			do(t)
		})
	}
}
