package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/testneed"
)

const (
	asProgram = "BERTH_TEST_ACTIVATED"
	timeout   = 30 * time.Second // only reached when something is broken
)

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// need is where a command is.
func need(t *testing.T, command string) string {
	t.Helper()
	path, err := exec.LookPath(command)
	testneed.That(t, err == nil, command)
	return path
}

// process is a command and what it writes to stderr.
type process struct {
	cmd   *exec.Cmd
	lines chan string
}

func start(t *testing.T, env []string, command ...string) *process {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{cmd, make(chan string, 1000)}
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(stderr); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range p.lines { // the reader ends with the process
		}
		_ = cmd.Wait()
	})
	return p
}

// activated is the program by itself.
func activated(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	return start(t, append(env, asProgram+"=1", "GORACE=atexit_sleep_ms=0"), append([]string{exe}, args...)...)
}

// underSystemd is the program as systemd-socket-activate starts it at the first connection. It replaces that command, so
// its process is the one returned.
func underSystemd(t *testing.T, options []string, env []string, args ...string) *process {
	t.Helper()
	program := need(t, "systemd-socket-activate")
	exe, err := os.Executable()
	require.NoError(t, err)
	command := append([]string{program}, options...)
	for _, v := range append(env, asProgram+"=1", "GORACE=atexit_sleep_ms=0") {
		command = append(command, "-E", v)
	}
	return start(t, nil, append(append(command, exe), args...)...)
}

// until reads the program's output up to a line with the text.
func (p *process) until(t *testing.T, text string) string {
	t.Helper()
	late := time.After(timeout)
	for {
		select {
		case line, ok := <-p.lines:
			require.True(t, ok, "the program ended without %q", text)
			if strings.Contains(line, text) {
				return line
			}
		case <-late:
			require.FailNow(t, "no line with "+text)
		}
	}
}

func (p *process) exit(t *testing.T) int {
	t.Helper()
	for range p.lines { // up to the end
	}
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func get(t *testing.T, address string) string {
	t.Helper()
	client := http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

// freeAddress was free a moment ago: systemd-socket-activate takes no port 0.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

// manager is a socket that is notified, as systemd has it.
func manager(t *testing.T) (conn *net.UnixConn, env string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // short enough for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(timeout)))
	return conn, "NOTIFY_SOCKET=" + path
}

func told(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buffer := make([]byte, 4096)
	n, err := conn.Read(buffer)
	require.NoError(t, err)
	return strings.TrimSpace(string(buffer[:n]))
}

func TestByHand(t *testing.T) {
	p := activated(t, nil, "-addr", "127.0.0.1:0")
	found := regexp.MustCompile(`listening on ([0-9.:]+)`).FindStringSubmatch(p.until(t, "listening on"))
	require.NotNil(t, found)
	require.Contains(t, get(t, found[1]), "which is bound\n")
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Zero(t, p.exit(t))
}

func TestUnderSystemd(t *testing.T) {
	for _, addr := range []string{"fd:web", "fd:3", ":1", ""} {
		t.Run("addr="+addr, func(t *testing.T) {
			conn, notify := manager(t)
			address := freeAddress(t)
			name := "--fdname=web"
			if addr == "" { // matched by address alone
				addr, name = address, "--fdname=other"
			}
			p := underSystemd(t, []string{"-l", address, name}, []string{notify}, "-addr", addr)
			p.until(t, "Listening on "+address)
			require.Contains(t, get(t, address), " on "+address+", which is activated\n")
			require.Equal(t, "READY=1", told(t, conn))
			require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
			require.Equal(t, "STOPPING=1", told(t, conn))
			require.Zero(t, p.exit(t))
		})
	}
}

func TestSaysWhatItDoesNotUse(t *testing.T) {
	address, metrics := freeAddress(t), filepath.Join(t.TempDir(), "s")
	p := underSystemd(t, []string{"-l", address, "-l", metrics, "--fdname=web:metrics"}, nil, "-addr", address)
	p.until(t, "Listening on "+metrics)
	require.Contains(t, get(t, address), "which is activated\n")
	line := p.until(t, "does not use")
	require.Contains(t, line, "descriptor 4 (metrics), unix "+metrics)
	require.Contains(t, line, "asked="+address)
}

func TestRefusesToRunWithoutItsSocket(t *testing.T) {
	p := activated(t, nil, "-addr", "fd:web")
	p.until(t, "fd:web: no sockets were passed")
	require.Equal(t, 1, p.exit(t))

	p = activated(t, []string{"LISTEN_FDS=1"}, "-addr", ":0")
	p.until(t, "LISTEN_FDS=1 announces descriptor 3")
	require.Equal(t, 1, p.exit(t))
}

func TestUnitFiles(t *testing.T) {
	program := need(t, "systemd-analyze")
	// The units as they are, but for the path of the program, which is not installed here.
	dir := t.TempDir()
	exe, err := os.Executable()
	require.NoError(t, err)
	var units []string
	for _, name := range []string{"activated.socket", "activated.service"} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		if name == "activated.service" {
			require.Contains(t, string(text), "ExecStart=/usr/local/bin/activated -addr fd:web\n")
			text = []byte(strings.Replace(string(text), "/usr/local/bin/activated", exe, 1))
		}
		units = append(units, filepath.Join(dir, name))
		require.NoError(t, os.WriteFile(units[len(units)-1], text, 0o644))
	}
	verify := func() (string, error) {
		cmd := exec.Command(program, append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...)
		cmd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=notice")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := verify()
	require.NoError(t, err, out)
	require.Empty(t, out)

	// It does look.
	broken, err := os.ReadFile(units[1])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(units[1], append(broken, "[Service]\nNoSuchThing=yes\nType=nonsense\n"...), 0o644))
	out, err = verify()
	require.Contains(t, out, "NoSuchThing")
	require.True(t, err == nil || errors.As(err, new(*exec.ExitError)), err)
}

func TestBadFlags(t *testing.T) {
	p := activated(t, nil, "-nonsense")
	p.until(t, "not defined")
	require.Equal(t, 1, p.exit(t))
}
