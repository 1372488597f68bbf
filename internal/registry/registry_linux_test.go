package registry

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/testneed"
)

// A re-executed test binary takes a lock: it says "ready", or "held" or why not, and keeps it until its stdin ends.
const (
	dirVariable = "BERTH_TEST_LOCK_DIR"
	address     = "127.0.0.1:3000"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(dirVariable); path != "" {
		if os.Getenv(obeyVariable) != "" {
			obey(path)
			os.Exit(0)
		}
		fmt.Println(child(path))
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(path string) string {
	dir, err := Open(path)
	if err != nil {
		return err.Error()
	}
	lock, err := dir.Lock("tcp", address)
	if errors.Is(err, ErrHeld) {
		return "held"
	}
	if err != nil {
		return err.Error()
	}
	rec := sample()
	rec.PID = os.Getpid()
	if err := lock.Write(rec); err != nil {
		return err.Error()
	}
	return "ready"
}

type process struct {
	*exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
}

func spawn(t *testing.T, path string, change ...func(*exec.Cmd)) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), dirVariable+"="+path)
	cmd.Stderr = os.Stderr
	for _, c := range change {
		c(cmd)
	}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { stdin.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &process{cmd, stdin, bufio.NewReader(stdout)}
}

func (p *process) said(t *testing.T) string {
	t.Helper()
	line, err := p.stdout.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func needRoot(t *testing.T) {
	t.Helper()
	testneed.That(t, os.Geteuid() == 0, "root")
}

// Whoever has released the address needs a moment to see that it is taken, and on a busy machine a longer one.
func TestLockOfAReleasedAddressIsWaitedFor(t *testing.T) {
	dir := open(t)
	lock, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	rec := sample()
	rec.State = Released
	require.NoError(t, lock.Write(rec))
	freed := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { freed <- lock.Release() })
	next, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	require.NoError(t, <-freed)
	require.NoError(t, next.Release())
}

func TestErrHeldAcrossProcesses(t *testing.T) {
	dir := open(t)
	holder := spawn(t, dir.Path())
	require.Equal(t, "ready", holder.said(t))

	_, err := dir.Lock("tcp", address)
	require.ErrorIs(t, err, ErrHeld)
	entry, err := dir.Lookup("tcp", address)
	require.NoError(t, err)
	require.NoError(t, entry.Err)
	require.Equal(t, holder.Process.Pid, entry.Record.PID)
	require.True(t, entry.Held())

	// The kernel frees the lock; the file stays and is stale.
	require.NoError(t, holder.Process.Kill())
	_ = holder.Wait()
	entry, err = dir.Lookup("tcp", address)
	require.NoError(t, err)
	require.NoError(t, entry.Err)
	require.Equal(t, holder.Process.Pid, entry.Record.PID)
	require.False(t, entry.Held())

	lock, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	entry, err = dir.Lookup("tcp", address)
	require.NoError(t, err)
	require.Equal(t, holder.Process.Pid, entry.Record.PID, "the record stays until there is a new one")
	require.NoError(t, lock.Write(sample()))
	require.NoError(t, lock.Release())
}

func TestRaceAcrossProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "by", "them")
	var all []*process
	for range 20 {
		all = append(all, spawn(t, path))
	}
	said := map[string]int{}
	for _, p := range all {
		said[p.said(t)]++
	}
	require.Equal(t, map[string]int{"ready": 1, "held": 19}, said)
}

// A reader that asks whether a record is stale holds the lock for an instant. A writer that meets it tries again.
func TestSharedLockDoesNotDisturb(t *testing.T) {
	dir := open(t)
	path := filepath.Join(dir.Path(), fileName("tcp", address))
	file, err := os.Create(path)
	require.NoError(t, err)
	defer file.Close()
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				assertNoError(t, unix.Flock(int(file.Fd()), unix.LOCK_SH))
				runtime.Gosched()
				assertNoError(t, unix.Flock(int(file.Fd()), unix.LOCK_UN))
				runtime.Gosched()
			}
		}
	})
	for range 200 {
		lock, err := dir.Lock("tcp", address)
		if assertNoError(t, err) {
			assertNoError(t, lock.lock.Unlock()) // Release would remove the file
		}
	}
	close(stop)
	reader.Wait()
}

// A child that was started without thought does not keep the lock.
func TestLockIsNotInherited(t *testing.T) {
	dir := open(t)
	lock, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	require.NoError(t, lock.Release())
	lock, err = dir.Lock("tcp", address)
	require.NoError(t, err)
	require.NoError(t, lock.Release())
	require.NoError(t, stdin.Close())
	require.NoError(t, cmd.Wait())
}

func TestPermissions(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "a", "b")
	dir, err := Open(path)
	require.NoError(t, err)
	for _, p := range []string{path, filepath.Dir(path)} {
		info, err := os.Stat(p)
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o700), info.Mode().Perm(), p)
	}
	lock, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(path, fileName("tcp", address)))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, lock.Release())
}

func TestUntrustedDirectory(t *testing.T) {
	root := t.TempDir()
	good := filepath.Join(root, "good")
	require.NoError(t, os.Mkdir(good, 0o700))

	link := filepath.Join(root, "link")
	require.NoError(t, os.Symlink(good, link))
	dangling := filepath.Join(root, "dangling")
	require.NoError(t, os.Symlink(filepath.Join(root, "nowhere"), dangling))
	writable := filepath.Join(root, "writable")
	require.NoError(t, os.Mkdir(writable, 0o700))
	require.NoError(t, os.Chmod(writable, 0o777))
	sticky := filepath.Join(root, "sticky")
	require.NoError(t, os.Mkdir(sticky, 0o700))
	require.NoError(t, os.Chmod(sticky, 0o777|fs.ModeSticky))

	for path, want := range map[string]string{
		link: "is a symbolic link", dangling: "is a symbolic link", writable: "is writable for others", sticky: "is writable for others",
	} {
		for _, open := range []func(string) (*Dir, error){Open, Existing} {
			_, err := open(path)
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, err, path)
			require.NotContains(t, err.Error(), "\n")
		}
	}
	require.NoDirExists(t, filepath.Join(root, "nowhere"), "nothing is made through a link")

	// A link further up is the administrator's business: /var/run is one.
	_, err := Open(filepath.Join(link, "below"))
	require.NoError(t, err)
}

func TestForeignDirectory(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(path, 0o700))
	require.NoError(t, os.Chown(path, 12345, 12345))
	_, err := Open(path)
	require.ErrorContains(t, err, "belongs to another user")
	_, err = Existing(path)
	require.ErrorContains(t, err, "belongs to another user")
}

func TestReadOnlyDirectory(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "state")
	dir, err := Open(path)
	require.NoError(t, err)
	lock, err := dir.Lock("tcp", "127.0.0.1:1")
	require.NoError(t, err)
	require.NoError(t, lock.Write(sample()))
	require.NoError(t, unix.Mount(path, path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) })
	require.NoError(t, unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	dir, err = Open(path)
	require.NoError(t, err, "it can be trusted, and read")
	_, err = dir.Lock("tcp", address)
	require.ErrorIs(t, err, syscall.EROFS)
	require.NotErrorIs(t, err, ErrHeld)
	entry, err := dir.Lookup("tcp", "127.0.0.1:1")
	require.NoError(t, err)
	require.NoError(t, entry.Err)
	require.True(t, entry.Held(), "a reader needs no right to write")
	_, err = Open(filepath.Join(path, "below"))
	require.ErrorIs(t, err, syscall.EROFS)
	require.ErrorIs(t, lock.Write(sample()), syscall.EROFS)
	require.ErrorIs(t, lock.Release(), syscall.EROFS)
}

func TestReadOnlyForUnprivileged(t *testing.T) {
	needRoot(t)
	const uid = 12345
	// Not below t.TempDir, whose parents are root's alone; the test binary may be, so it is started through its open file.
	path, err := os.MkdirTemp("/tmp", "berth-registry-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(path)) })
	require.NoError(t, os.Chown(path, uid, uid))
	as := func(cmd *exec.Cmd) {
		binary, err := os.Open("/proc/self/exe")
		require.NoError(t, err)
		t.Cleanup(func() { binary.Close() })
		cmd.ExtraFiles = []*os.File{binary}
		cmd.Path = "/proc/self/fd/3"
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	require.NoError(t, os.Chmod(path, 0o500))
	require.Contains(t, spawn(t, path, as).said(t), "permission denied")
	require.Contains(t, spawn(t, filepath.Join(path, "below"), as).said(t), "permission denied")
	require.NoError(t, os.Chmod(path, 0o700))
	require.Equal(t, "ready", spawn(t, path, as).said(t))
	require.NoError(t, os.Chown(path, 0, 0))
	require.Contains(t, spawn(t, path, as).said(t), "belongs to another user")

	// A file that root left behind in a directory of this user.
	require.NoError(t, os.Chown(path, uid, uid))
	file := filepath.Join(path, fileName("tcp", address))
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Chown(file, 0, 0))
	require.Contains(t, spawn(t, path, as).said(t), "permission denied")
}

func TestFullDirectory(t *testing.T) {
	needRoot(t)
	for name, options := range map[string]string{"no inode": "nr_inodes=1", "no block": "size=4k"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			require.NoError(t, os.Mkdir(path, 0o700))
			require.NoError(t, unix.Mount("tmpfs", path, "tmpfs", 0, "mode=700,"+options))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) })
			dir, err := Open(path)
			require.NoError(t, err)
			if name == "no inode" {
				_, err = dir.Lock("tcp", address)
				require.ErrorIs(t, err, syscall.ENOSPC)
				require.NotErrorIs(t, err, ErrHeld)
				return
			}
			require.NoError(t, os.WriteFile(filepath.Join(path, "other"), make([]byte, 4096), 0o600))
			lock, err := dir.Lock("tcp", address)
			require.NoError(t, err, "an empty file needs no block")
			require.ErrorIs(t, lock.Write(sample()), syscall.ENOSPC)
			entry, err := dir.Lookup("tcp", address)
			require.NoError(t, err)
			require.Error(t, entry.Err)
			require.NoError(t, lock.Release())
		})
	}
}

func TestDefault(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	fallback := "/run/berth"
	if os.Geteuid() != 0 {
		fallback = filepath.Join(os.TempDir(), fmt.Sprintf("berth-%d", os.Geteuid()))
	}
	own := t.TempDir()
	file := filepath.Join(own, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for value, want := range map[string]string{
		own:                               filepath.Join(own, "berth"),
		own + "/":                         filepath.Join(own, "berth"),
		"":                                fallback,
		".":                               fallback,
		"relative/path":                   fallback,
		file:                              fallback,
		filepath.Join(own, "not-there"):   fallback,
		"/proc/1/there-is-no-such-file/x": fallback,
	} {
		t.Setenv("XDG_RUNTIME_DIR", value)
		require.Equal(t, want, Default(), "XDG_RUNTIME_DIR=%s", value)
	}
	if os.Geteuid() == 0 {
		foreign := t.TempDir()
		require.NoError(t, os.Chown(foreign, 12345, 12345))
		t.Setenv("XDG_RUNTIME_DIR", foreign)
		require.Equal(t, fallback, Default(), "as after su")
	}

	t.Setenv("XDG_RUNTIME_DIR", own)
	_, err := Existing("")
	require.ErrorIs(t, err, fs.ErrNotExist)
	dir, err := Open("")
	require.NoError(t, err)
	require.Equal(t, filepath.Join(own, "berth"), dir.Path())
	_, err = Existing("")
	require.NoError(t, err)
}

// within fails the test where f hangs, as an open of a FIFO does.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

// Whatever stands in place of a record, it is reported, never followed, and never holds anybody up.
func TestStrangeFiles(t *testing.T) {
	root := t.TempDir()
	secret := filepath.Join(root, "secret")
	valid := `{"version":1,"pid":4242,"address":":1"}`
	require.NoError(t, os.WriteFile(secret, []byte(valid), 0o600))

	for name, c := range map[string]struct {
		make     func(t *testing.T, path string) error
		err      string // of the record
		lockable bool
	}{
		"garbage":        {func(_ *testing.T, p string) error { return os.WriteFile(p, []byte("\x7fELF\x00garbage"), 0o600) }, "damaged", true},
		"truncated":      {func(_ *testing.T, p string) error { return os.WriteFile(p, []byte(valid[:20]), 0o600) }, "damaged", true},
		"empty":          {func(_ *testing.T, p string) error { return os.WriteFile(p, nil, 0o600) }, "empty", true},
		"future version": {func(_ *testing.T, p string) error { return os.WriteFile(p, []byte(`{"version":7}`), 0o600) }, "version 7", true},
		"huge":           {func(_ *testing.T, p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) }, "damaged", true},
		"huge and sparse": {func(_ *testing.T, p string) error {
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(p, 1<<40)
		}, "damaged", true},
		"FIFO":             {func(_ *testing.T, p string) error { return unix.Mkfifo(p, 0o600) }, "not a regular file", false},
		"directory":        {func(_ *testing.T, p string) error { return os.Mkdir(p, 0o700) }, "not a regular file", false},
		"symlink":          {func(_ *testing.T, p string) error { return os.Symlink(secret, p) }, "too many levels of symbolic links", false},
		"dangling symlink": {func(_ *testing.T, p string) error { return os.Symlink(filepath.Join(root, "nowhere"), p) }, "too many levels", false},
		"socket": {func(_ *testing.T, p string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: p})
		}, "no such device or address", false},
		"device": {func(t *testing.T, p string) error {
			needRoot(t)
			return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) // /dev/zero
		}, "not a regular file", false},
		"foreign": {func(t *testing.T, p string) error {
			needRoot(t)
			if err := os.WriteFile(p, []byte(valid), 0o600); err != nil {
				return err
			}
			return os.Chown(p, 12345, 12345)
		}, "belongs to another user", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := Open(filepath.Join("/tmp", fmt.Sprintf("berth-strange-%d", os.Getpid()))) // short, for the socket
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir.Path())) })
			path := filepath.Join(dir.Path(), fileName("tcp", address))
			require.NoError(t, c.make(t, path))
			before, err := os.Lstat(path)
			require.NoError(t, err)

			within(t, "Lookup", func() {
				entry, err := dir.Lookup("tcp", address)
				if assertNoError(t, err) && (entry.Err == nil || !strings.Contains(entry.Err.Error(), c.err) || !strings.Contains(entry.Err.Error(), path)) {
					t.Errorf("the error is %v", entry.Err)
				}
				if entry.Record != (Record{}) {
					t.Errorf("the record is %v", entry.Record)
				}
				if entry.Held() {
					t.Error("nobody has the lock")
				}
			})
			within(t, "Entries", func() {
				entries, err := dir.Entries("", 0, 0)
				if assertNoError(t, err) && len(entries) != 1 {
					t.Errorf("the entries are %v", entries)
				}
			})
			within(t, "Lock", func() {
				lock, err := dir.Lock("tcp", address)
				if !c.lockable {
					if err == nil || errors.Is(err, ErrHeld) {
						t.Errorf("Lock gives %v", err)
					}
					return
				}
				if !assertNoError(t, err) {
					return
				}
				assertNoError(t, lock.Write(sample()))
				text, err := os.ReadFile(path)
				assertNoError(t, err)
				if len(text) > 1000 {
					t.Errorf("%d bytes of the old file are left", len(text))
				}
				assertNoError(t, lock.Release())
			})
			if !c.lockable {
				now, err := os.Lstat(path)
				require.NoError(t, err)
				require.True(t, os.SameFile(before, now), "what cannot be a lock is not ours to remove")
			}
			text, err := os.ReadFile(secret)
			require.NoError(t, err)
			require.Equal(t, valid, string(text))
			require.NoFileExists(t, filepath.Join(root, "nowhere"))
		})
	}
}

// Somebody removed the file of a lock that is held, and another listener made it anew.
func TestReleaseLeavesForeignFile(t *testing.T) {
	dir := open(t)
	first, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	require.NoError(t, first.Write(sample()))
	path := filepath.Join(dir.Path(), fileName("tcp", address))
	require.NoError(t, os.Remove(path))

	second, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	rec := sample()
	rec.PID = 99
	require.NoError(t, second.Write(rec))

	require.Error(t, first.Write(sample()), "its file is gone, and the other one is not its own")
	entry, err := dir.Lookup("tcp", address)
	require.NoError(t, err)
	require.Equal(t, 99, entry.Record.PID)

	require.NoError(t, first.Release())
	entry, err = dir.Lookup("tcp", address)
	require.NoError(t, err)
	require.Equal(t, 99, entry.Record.PID)
	require.True(t, entry.Held())
	require.NoError(t, second.Release())
	require.NoFileExists(t, path)
}

// The same, but what came in its place is no file that one could write to.
func TestWriteToForeignFile(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"FIFO":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"symlink": func(p string) error { return os.Symlink("/dev/null", p) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := open(t)
			lock, err := dir.Lock("tcp", address)
			require.NoError(t, err)
			path := filepath.Join(dir.Path(), fileName("tcp", address))
			require.NoError(t, os.Remove(path))
			require.NoError(t, replace(path))
			within(t, "Write", func() {
				if lock.Write(sample()) == nil {
					t.Error("it was written")
				}
			})
			require.NoError(t, lock.Release())
			_, err = os.Lstat(path)
			require.NoError(t, err, "it is not ours to remove")
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(fds)
}

func TestNoDescriptorLeft(t *testing.T) {
	dir := open(t)
	cycle := func() {
		lock, err := dir.Lock("tcp", address)
		require.NoError(t, err)
		require.NoError(t, lock.Write(sample()))
		_, err = dir.Lock("tcp", address)
		require.ErrorIs(t, err, ErrHeld)
		entry, err := dir.Lookup("tcp", address)
		require.NoError(t, err)
		require.True(t, entry.Held())
		_, err = dir.Entries("", 0, 0)
		require.NoError(t, err)
		require.NoError(t, lock.Release())
		require.False(t, entry.Held())
	}
	cycle()
	before := descriptors(t)
	for range 5 {
		cycle()
	}
	require.Equal(t, before, descriptors(t))
}

// By force also that of a live lock goes. Its owner's Release does not mind.
func TestRemoveHeldEntry(t *testing.T) {
	dir := open(t)
	lock, err := dir.Lock("tcp", ":3000")
	require.NoError(t, err)
	entry, err := dir.Lookup("tcp", ":3000")
	require.NoError(t, err)
	require.NoError(t, entry.RemoveHeld())
	require.NoFileExists(t, entry.Path)
	require.NoError(t, entry.RemoveHeld())
	require.NoError(t, lock.Release())
}
