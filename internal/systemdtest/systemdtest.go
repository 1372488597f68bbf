//go:build linux

package systemdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/testneed"
)

// deadline bounds every wait. It is only reached when something is broken.
const deadline = 30 * time.Second

const program = "/lib/systemd/systemd"

// A Manager is a systemd for a user, in a mount namespace and in cgroups of its own.
type Manager struct {
	dir     string
	pid     int
	exited  chan struct{} // closed when its process has ended
	nsenter string

	mu      sync.Mutex
	journal []byte // what the manager itself has logged
}

func needCommand(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	testneed.That(t, err == nil, name)
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Start starts a manager with units, which are files by their names. When the test ends, failed or not, everything that it
// has started is killed, and its cgroups, mounts and files are removed. Should the process of the test be killed, the
// manager stops its units and ends.
//
// Where the test lacks what it needs, see [testneed.That]. After a failure the logs are shown.
func Start(t testing.TB, units map[string]string) *Manager {
	t.Helper()
	testneed.That(t, os.Geteuid() == 0, "root")
	unshare, shell := needCommand(t, "unshare"), needCommand(t, "sh")
	_, err := os.Stat(program)
	testneed.That(t, err == nil, program)
	m := &Manager{nsenter: needCommand(t, "nsenter"), exited: make(chan struct{})}
	roots := Hierarchies(t)

	m.dir, err = os.MkdirTemp("", "berth") // sockets are made in it, so its name is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(m.dir) })
	for _, dir := range []string{m.home(), m.Runtime(), m.Units(), m.logs()} {
		must(t, os.MkdirAll(dir, 0o700))
	}
	// There is no journal.
	m.write(t, "service.d/log.conf", fmt.Sprintf("[Service]\nStandardOutput=append:%[1]s/%%n\nStandardError=append:%[1]s/%%n\n", m.logs()))
	for name, text := range units {
		m.write(t, name, text)
	}
	notify := filepath.Join(m.dir, "notify")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	must(t, err)
	defer ready.Close()

	// systemd logs to the journal, or to /dev/console whatever its stderr is.
	journal, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(m.dir, "journal"), Net: "unixgram"})
	must(t, err)
	logged := make(chan struct{})
	go m.readJournal(journal, logged)
	t.Cleanup(func() {
		journal.Close()
		<-logged
	})

	// It wants to believe that systemd runs the machine. And it puts what it finds in its own cgroup into another one, so it
	// gets one of its own.
	script := `set -e
for cgroup; do echo $$ > "$cgroup/cgroup.procs"; done
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system /run/systemd/journal
ln -s ` + filepath.Join(m.dir, "journal") + ` /run/systemd/journal/socket
exec ` + program + ` --user`
	args := []string{"--mount", shell, "-c", script, shell}
	name := fmt.Sprintf("berth-systemd-%d-%d", os.Getpid(), started.Add(1))
	for _, root := range roots {
		args = append(args, Cgroup(t, filepath.Join(root, name)))
	}
	stderr, err := os.Create(filepath.Join(m.logs(), "systemd"))
	must(t, err)
	defer stderr.Close()
	cmd := exec.Command(unshare, args...)
	cmd.Env = append(m.Environ(), "NOTIFY_SOCKET="+notify, "SYSTEMD_LOG_TARGET=journal")
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	result := make(chan error)
	go m.run(cmd, result)
	must(t, <-result)
	m.pid = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs:\n%s", m.Log())
		}
		_ = cmd.Process.Kill()
		<-m.exited
	})

	up := make(chan error, 1)
	go awaitReady(ready, up)
	select {
	case err = <-up:
	case <-m.exited:
		err = errors.New("systemd has ended")
	case <-time.After(deadline):
		err = errors.New("systemd is not ready")
	}
	if err != nil {
		t.Fatalf("%v:\n%s", err, m.Log())
	}
	return m
}

var started atomic.Int32

// run starts the manager and waits for its end in one thread: where that ended, the kernel would send Pdeathsig.
func (m *Manager) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(m.exited)
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait()
	}
}

// readJournal collects messages in the journal's protocol, which are lines NAME=value.
func (m *Manager) readJournal(journal *net.UnixConn, done chan<- struct{}) {
	defer close(done)
	buffer := make([]byte, 64<<10)
	for {
		n, err := journal.Read(buffer)
		if err != nil {
			return
		}
		for line := range bytes.Lines(buffer[:n]) {
			if text, ok := bytes.CutPrefix(line, []byte("MESSAGE=")); ok {
				m.mu.Lock()
				m.journal = append(m.journal, text...)
				m.mu.Unlock()
			}
		}
	}
}

// awaitReady ends with its socket, at the latest.
func awaitReady(ready *net.UnixConn, up chan<- error) {
	buffer := make([]byte, 4096)
	for {
		n, err := ready.Read(buffer)
		if err != nil || strings.Contains("\n"+string(buffer[:n])+"\n", "\nREADY=1\n") {
			up <- err
			return
		}
	}
}

// PID is the process id of the manager.
func (m *Manager) PID() int { return m.pid }

// Alive tells whether it runs.
func (m *Manager) Alive() bool {
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

// Units is the directory of its unit files. After a change there it wants Systemctl(t, "daemon-reload").
func (m *Manager) Units() string { return filepath.Join(m.home(), ".config/systemd/user") }

// Runtime is its XDG_RUNTIME_DIR, %t in units.
func (m *Manager) Runtime() string { return filepath.Join(m.dir, "run") }

func (m *Manager) home() string { return filepath.Join(m.dir, "home") }
func (m *Manager) logs() string { return filepath.Join(m.dir, "log") }

// Environ is the environment of the manager's user.
func (m *Manager) Environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.home(), "XDG_RUNTIME_DIR=" + m.Runtime()}
}

func (m *Manager) write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(m.Units(), name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// Add adds or replaces units, and has the manager read them.
func (m *Manager) Add(t testing.TB, units map[string]string) {
	t.Helper()
	for name, text := range units {
		m.write(t, name, text)
	}
	m.Systemctl(t, "daemon-reload")
}

// Command is a command of the manager's user, in its namespace: systemd-run, systemd-analyze and others.
func (m *Manager) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, m.nsenter, append([]string{"--target", strconv.Itoa(m.pid), "--mount", name}, args...)...)
	cmd.Env = m.Environ()
	return cmd
}

// Try runs systemctl --user and gives what it has printed, and an error when it fails. It may be called from any goroutine.
func (m *Manager) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	out, err := m.Command(ctx, "systemctl", append([]string{"--user"}, args...)...).CombinedOutput()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("systemctl --user %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// Systemctl is Try that fails the test.
func (m *Manager) Systemctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := m.Try(args...)
	must(t, err)
	return out
}

// Property is what systemctl show tells about a unit: ActiveState, MainPID, StatusText, NFileDescriptorStore ...
func (m *Manager) Property(t testing.TB, unit, name string) string {
	t.Helper()
	return m.Systemctl(t, "show", "--property="+name, "--value", unit)
}

// Await waits until a property has a value. It is for what nothing else announces.
func (m *Manager) Await(t testing.TB, unit, name, value string) {
	t.Helper()
	last := ""
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		if last = m.Property(t, unit, name); last == value {
			return
		}
	}
	t.Fatalf("%s of %s is %q, not %q", name, unit, last, value)
}

// UnitLog is what a unit's processes have written to stdout and stderr.
func (m *Manager) UnitLog(unit string) string {
	text, _ := os.ReadFile(filepath.Join(m.logs(), unit))
	return string(text)
}

// Log is what the manager has logged, and the end of what it and all units have written.
func (m *Manager) Log() string {
	const most = 4 << 10
	var all strings.Builder
	m.mu.Lock()
	all.Write(m.journal)
	m.mu.Unlock()
	entries, _ := os.ReadDir(m.logs())
	for _, entry := range entries {
		if text := m.UnitLog(entry.Name()); text != "" {
			fmt.Fprintf(&all, "== %s\n%s\n", entry.Name(), text[max(0, len(text)-most):])
		}
	}
	return all.String()
}

// AwaitLog waits until the manager has logged something.
func (m *Manager) AwaitLog(t testing.TB, text string) {
	t.Helper()
	for end := time.Now().Add(deadline); ; {
		m.mu.Lock()
		found := bytes.Contains(m.journal, []byte(text))
		m.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("systemd has not logged %q", text)
		}
		time.Sleep(time.Millisecond)
	}
}

// Hierarchies are the places where cgroups can be made: that of version 2, and the one of version 1 that systemd uses.
func Hierarchies(t testing.TB) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	var roots []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[2] != "cgroup2" && (fields[2] != "cgroup" || !strings.Contains(","+fields[3]+",", ",name=systemd,")) {
			continue
		}
		if unix.Access(filepath.Join(fields[1], "cgroup.procs"), unix.W_OK) == nil {
			roots = append(roots, fields[1])
		}
	}
	testneed.That(t, len(roots) > 0, "a cgroup hierarchy that can be written to")
	return roots
}

// Cgroup makes a cgroup. What is in it when the test ends is killed, and it goes with all below it. Its name is the same in
// every hierarchy, since systemd makes what it needs in both.
func Cgroup(t testing.TB, dir string) string {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := remove(ctx, dir); err != nil {
			t.Errorf("cgroup %s: %v", dir, err)
		}
	})
	return dir
}

func remove(ctx context.Context, dir string) error {
	for {
		var all []string
		_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		if len(all) == 0 {
			return nil
		}
		var failed error
		for i := len(all) - 1; i >= 0; i-- { // the inner ones first
			if err := kill(ctx, all[i]); err != nil {
				return err
			}
			if err := os.Remove(all[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = err
			}
		}
		if failed == nil {
			return nil
		}
		// A process leaves its cgroup a moment after it has ended, and one that was just forked may be new in it.
		select {
		case <-ctx.Done():
			return failed
		case <-time.After(time.Millisecond):
		}
	}
}

// kill kills all members of a cgroup, and waits for their end.
func kill(ctx context.Context, dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	for field := range bytes.FieldsSeq(text) {
		pid, err := strconv.Atoi(string(field))
		if err != nil {
			return err
		}
		h, err := proc.Open(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		_ = h.Kill()
		err = h.Wait(ctx)
		h.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
