package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const asProgram = "BERTH_TEST_QUICKSTART"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// quickstart is one run of the program.
type quickstart struct {
	cmd   *exec.Cmd
	lines chan string
}

func start(t *testing.T, args ...string) *quickstart {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=0")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	q := &quickstart{cmd, make(chan string, 100)}
	go func() {
		defer close(q.lines)
		for scanner := bufio.NewScanner(stderr); scanner.Scan(); {
			q.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range q.lines { // the reader ends with the process
		}
		_ = cmd.Wait()
	})
	return q
}

// until reads the program's output up to a line with the text.
func (q *quickstart) until(t *testing.T, text string) string {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-q.lines:
			require.True(t, ok, "the program ended without %q", text)
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			require.FailNow(t, "no line with "+text)
		}
	}
}

func (q *quickstart) exit(t *testing.T) int {
	t.Helper()
	for range q.lines { // up to the end
	}
	_ = q.cmd.Wait()
	return q.cmd.ProcessState.ExitCode()
}

func get(t *testing.T, address string) string {
	t.Helper()
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

// first starts a quickstart on a port of the system's choice.
func first(t *testing.T, env string) (q *quickstart, address string) {
	t.Helper()
	q = start(t, "-env", env, "-addr", "127.0.0.1:0")
	line := q.until(t, "listening on")
	found := regexp.MustCompile(`listening on ([0-9.:]+)`).FindStringSubmatch(line)
	require.NotNil(t, found, line)
	return q, found[1]
}

func TestDevelopmentHandsThePortToTheNewcomer(t *testing.T) {
	old, address := first(t, "development")
	fresh := start(t, "-addr", address)
	fresh.until(t, "listening on "+address)
	require.Zero(t, old.exit(t))
	require.Contains(t, get(t, address), "pid "+strconv.Itoa(fresh.cmd.Process.Pid)+" on "+address+", which is reclaimed")
}

func TestStagingMovesAndSaysSo(t *testing.T) {
	old, address := first(t, "staging")
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	fresh := start(t, "-env", "staging", "-addr", address)
	line := fresh.until(t, "is in use by")
	require.Regexp(t, `port `+port+` is in use by \S+ \(pid `+strconv.Itoa(old.cmd.Process.Pid)+`, .*\), using \d+`, line)
	require.Contains(t, get(t, address), "pid "+strconv.Itoa(old.cmd.Process.Pid)+" ")
}

func TestProductionExitsWithTheDiagnosis(t *testing.T) {
	old, address := first(t, "production")
	fresh := start(t, "-env", "production", "-addr", address)
	line := fresh.until(t, "address already in use")
	require.Contains(t, line, "(pid "+strconv.Itoa(old.cmd.Process.Pid)+",")
	require.Contains(t, line, "kill "+strconv.Itoa(old.cmd.Process.Pid))
	require.Equal(t, 1, fresh.exit(t))
	require.Contains(t, get(t, address), "pid "+strconv.Itoa(old.cmd.Process.Pid)+" ")
}

func TestInterruptEndsItCleanly(t *testing.T) {
	q, address := first(t, "production")
	require.NoError(t, q.cmd.Process.Signal(syscall.SIGINT))
	require.Zero(t, q.exit(t))
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
		q := start(t, strings.Fields(test.args)...)
		q.until(t, test.want)
		require.Equal(t, 1, q.exit(t), test.args)
	}
}
