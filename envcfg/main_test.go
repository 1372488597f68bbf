package envcfg_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/envcfg"
)

// Where it is set, the test binary is a program of one line, envcfg.Listen, in place of the tests. It writes "ready ORIGIN
// ADDRESS" to stdout, or "failed ERROR" and exits 1, and lives until SIGTERM or the end of its stdin.
const roleVariable = "ENVCFG_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		if err := serve(); err != nil {
			fmt.Println("failed", strings.ReplaceAll(err.Error(), "\n", " | "))
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func serve() error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ln, err := envcfg.Listen(context.Background())
	if err != nil {
		return err
	}
	fmt.Println("ready", ln.Origin().Kind, ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	<-stop.Done()
	return ln.Close()
}

// deadline bounds every wait. It is only reached when something is broken.
const deadline = 30 * time.Second

// A process is a run of the program.
type process struct {
	*exec.Cmd
	stdout, stderr <-chan string // lines
	exited         <-chan struct{}
}

// start runs the program in an environment of its own. It ends with the test at the latest.
func start(t *testing.T, environ []string, files ...*os.File) *process {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	// Under the race detector a process sleeps a second before it exits, unless told otherwise.
	cmd.Env = append([]string{roleVariable + "=1", "GORACE=atexit_sleep_ms=0"}, environ...)
	if root := os.Getenv("SYSTEMROOT"); root != "" {
		cmd.Env = append(cmd.Env, "SYSTEMROOT="+root) // without it Windows has no sockets
	}
	cmd.ExtraFiles = files
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, stdoutDone := lines(t, cmd.StdoutPipe)
	stderr, stderrDone := lines(t, cmd.StderrPipe)
	require.NoError(t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		<-stdoutDone
		<-stderrDone
		_ = cmd.Wait() // the tests look at the ProcessState
	}()
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		<-exited
	})
	return &process{Cmd: cmd, stdout: stdout, stderr: stderr, exited: exited}
}

// lines reads a pipe of the process to its end.
func lines(t *testing.T, open func() (io.ReadCloser, error)) (<-chan string, <-chan struct{}) {
	t.Helper()
	pipe, err := open()
	require.NoError(t, err)
	read, done := make(chan string, 1000), make(chan struct{})
	go func() {
		defer close(done)
		defer close(read)
		for scanner := bufio.NewScanner(pipe); scanner.Scan(); {
			read <- scanner.Text()
		}
	}()
	return read, done
}

// says waits for the next line of stdout, and gives what follows the word.
func (p *process) says(t *testing.T, word string) string {
	t.Helper()
	select {
	case line := <-p.stdout:
		text, ok := strings.CutPrefix(line, word+" ")
		require.True(t, ok, "got %q", line)
		return text
	case <-time.After(deadline):
		require.FailNow(t, "no line from the process")
		return ""
	}
}

// logs waits for a line of stderr that has the text in it.
func (p *process) logs(t *testing.T, text string) string {
	t.Helper()
	for timeout := time.After(deadline); ; {
		select {
		case line, ok := <-p.stderr:
			require.True(t, ok, "the log has no %q", text)
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			require.FailNow(t, "no such line in the log", text)
		}
	}
}

// exit waits for the end of the process.
func (p *process) exit(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(deadline):
		require.FailNow(t, "the process does not end")
	}
}

// hold takes a port, as a stranger does.
func hold(t *testing.T) (ln net.Listener, port string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	_, port, err = net.SplitHostPort(ln.Addr().String())
	require.NoError(t, err)
	return ln, port
}
