// Package exampletest runs the programs of the examples in their tests, by hand and under systemd.
package exampletest

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
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/testneed"
)

const (
	asProgram = "BERTH_TEST_EXAMPLE"
	// Timeout bounds what should take milliseconds.
	Timeout = 30 * time.Second
)

// Env is the variables that make the test binary the example's program, in this process's children.
var Env = []string{asProgram + "=1", "GORACE=atexit_sleep_ms=0"}

// Main is for TestMain: it runs the tests, or the program.
func Main(m *testing.M, program func()) {
	if os.Getenv(asProgram) != "" {
		program()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Need is where a command is.
func Need(t testing.TB, command string) string {
	t.Helper()
	path, err := exec.LookPath(command)
	testneed.That(t, err == nil, command)
	return path
}

// Executable is the test binary.
func Executable(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	return exe
}

// A Process is a command and what it writes to stderr, its later versions too.
type Process struct {
	*exec.Cmd
	lines chan string
	seen  []string // and not asked for

	mu       sync.Mutex
	versions []*proc.Handle // that serve, or have served
	over     bool           // the test has ended
}

// Start starts the program.
func Start(t testing.TB, args ...string) *Process {
	t.Helper()
	return StartCommand(t, Env, append([]string{Executable(t)}, args...)...)
}

// StartCommand starts a command with variables added to the environment. What is left of it when the test ends, later
// versions included, is killed.
func StartCommand(t testing.TB, env []string, command ...string) *Process {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	stderr, writer, err := os.Pipe() // that of cmd would be closed with the first version
	must(t, err)
	cmd.Stderr = writer
	must(t, cmd.Start())
	writer.Close()
	p := &Process{Cmd: cmd, lines: make(chan string, 1000)}
	go p.read(stderr)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		p.mu.Lock()
		p.over = true
		for _, version := range p.versions {
			_ = version.Kill() // it may have ended
			_ = version.Close()
		}
		p.mu.Unlock()
		for range p.lines { // the reader ends with the last version
		}
		_ = cmd.Wait()
	})
	return p
}

func (p *Process) read(stderr *os.File) {
	defer close(p.lines)
	defer stderr.Close()
	for scanner := bufio.NewScanner(stderr); scanner.Scan(); {
		if found := serving.FindStringSubmatch(scanner.Text()); found != nil {
			p.version(found[2])
		}
		p.lines <- scanner.Text()
	}
}

func (p *Process) version(pid string) {
	n, _ := strconv.Atoi(pid) // all digits
	version, err := proc.Open(n)
	if err != nil {
		return // it has ended
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.versions = append(p.versions, version); p.over {
		_ = version.Kill()
		_ = version.Close()
	}
}

var serving = regexp.MustCompile(`serving on ([0-9.:]+).* pid=(\d+)`)

// Serving waits until the program, or its next version, serves, and gives its pid and address.
func (p *Process) Serving(t testing.TB) (pid int, address string) {
	t.Helper()
	found := serving.FindStringSubmatch(p.Until(t, "serving on"))
	if found == nil {
		t.Fatal("it does not say where")
	}
	pid, err := strconv.Atoi(found[2])
	must(t, err)
	return pid, found[1]
}

// Until waits for a line with the text that it has not given before.
func (p *Process) Until(t testing.TB, text string) string {
	t.Helper()
	for i, line := range p.seen {
		if strings.Contains(line, text) {
			p.seen = slices.Delete(p.seen, i, i+1)
			return line
		}
	}
	late := time.After(Timeout)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("the program ended without %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
			p.seen = append(p.seen, line)
		case <-late:
			t.Fatalf("no line with %q", text)
		}
	}
}

// Exit waits for the end of the process and of all its versions, and gives its exit status.
func (p *Process) Exit(t testing.TB) int {
	t.Helper()
	late := time.After(Timeout)
	for {
		select {
		case _, more := <-p.lines:
			if !more {
				_ = p.Wait()
				return p.ProcessState.ExitCode()
			}
		case <-late:
			t.Fatal("the program does not end")
		}
	}
}

// Get asks an HTTP server once, on a connection of its own.
func Get(t testing.TB, address string) string {
	t.Helper()
	client := http.Client{Timeout: Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address)
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	return string(body)
}

// FreeAddress was free a moment ago. It is for what takes no port 0.
func FreeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

// Unit is the text of a unit file, with some of it replaced: old, new, old, new. All of that has to be there.
func Unit(t testing.TB, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	must(t, err)
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(text), replace[i]) {
			t.Fatalf("%s has no %q", name, replace[i])
		}
	}
	return strings.NewReplacer(replace...).Replace(string(text))
}

// Verify has systemd-analyze look at unit files, in which the program is not installed: it stands in /usr/local/bin.
func Verify(t *testing.T, program string, names ...string) {
	t.Helper()
	analyze := Need(t, "systemd-analyze")
	dir := t.TempDir()
	var units []string
	for _, name := range names {
		text := Unit(t, name)
		if strings.HasSuffix(name, ".service") {
			text = Unit(t, name, "ExecStart=/usr/local/bin/"+program, "ExecStart="+Executable(t))
		}
		units = append(units, filepath.Join(dir, name))
		must(t, os.WriteFile(units[len(units)-1], []byte(text), 0o600))
	}
	verify := func() (string, error) {
		cmd := exec.Command(analyze, append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...)
		cmd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=notice")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err != nil || out != "" {
		t.Fatalf("%v: %s", err, out)
	}

	// It does look.
	broken, err := os.OpenFile(units[len(units)-1], os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = broken.WriteString("[Service]\nNoSuchThing=yes\nType=nonsense\n")
	must(t, errors.Join(err, broken.Close()))
	out, err := verify()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if !strings.Contains(out, "NoSuchThing") {
		t.Fatalf("systemd-analyze overlooks a mistake: %s", out)
	}
}
