package registry

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/proc"
)

// A re-executed test binary with this variable does what it is told on stdin, a word a line, and answers "ok" or why not.
const obeyVariable = "BERTH_TEST_LOCK_OBEY"

func obey(path string) {
	dir, err := Open(path)
	var lock *Lock
	for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
		switch scanner.Text() {
		case "pid":
			fmt.Println(os.Getpid())
			continue
		case "lock":
			lock, err = dir.Lock("tcp", address)
		case "adopt": // descriptor 3
			unix.CloseOnExec(3)
			lock, err = dir.Adopt("tcp", address, os.NewFile(3, "inherited"))
		case "write":
			rec := sample()
			rec.PID = os.Getpid()
			err = lock.Write(rec)
		case "upgrade": // descriptors 3 and 4 are stdin and stdout of the child
			err = upgrade(lock)
		case "collect":
			collect()
		case "leave":
			err = lock.Leave()
		case "release":
			err = lock.Release()
		}
		if err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
			err = nil
			continue
		}
		fmt.Println("ok")
	}
}

func upgrade(lock *Lock) error {
	file, err := lock.File()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command("/proc/self/exe")
	stdin, stdout := os.NewFile(3, "stdin"), os.NewFile(4, "stdout")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	err = errors.Join(cmd.Start(), stdin.Close(), stdout.Close())
	if err == nil {
		go func() { _ = cmd.Wait() }()
	}
	return err
}

// collect makes the garbage collector close what nobody refers to.
func collect() {
	collected := make(chan struct{})
	runtime.SetFinalizer(new([64]byte), func(*[64]byte) { close(collected) })
	runtime.GC()
	<-collected
	runtime.GC()
}

// generations are a process that has the lock and its record written, and its child, which inherited the descriptor.
func generations(t *testing.T, dir *Dir) (parent, child *process) {
	t.Helper()
	stdin, toChild, err := os.Pipe()
	require.NoError(t, err)
	fromChild, stdout, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { toChild.Close(); fromChild.Close() })
	parent = spawn(t, dir.Path(), func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, obeyVariable+"=1", "GORACE=atexit_sleep_ms=0")
		cmd.ExtraFiles = []*os.File{stdin, stdout}
	})
	require.NoError(t, stdin.Close())
	require.NoError(t, stdout.Close())
	parent.do(t, "lock", "write", "upgrade")
	child = &process{&exec.Cmd{}, toChild, bufio.NewReader(fromChild)}
	child.do(t, "adopt")
	child.tell(t, "pid")
	pid, err := strconv.Atoi(child.said(t))
	require.NoError(t, err)
	child.Process, err = os.FindProcess(pid)
	require.NoError(t, err)
	return parent, child
}

// do has the process do something, which succeeds.
func (p *process) do(t *testing.T, orders ...string) {
	t.Helper()
	for _, order := range orders {
		p.tell(t, order)
		require.Equal(t, "ok", p.said(t), order)
	}
}

func (p *process) tell(t *testing.T, order string) {
	t.Helper()
	_, err := fmt.Fprintln(p.stdin.(interface{ Write([]byte) (int, error) }), order)
	require.NoError(t, err)
}

// kill ends the process and waits until it has.
func (p *process) kill(t *testing.T) {
	t.Helper()
	h, err := proc.Open(p.Process.Pid)
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, h.Kill())
	require.NoError(t, h.Wait(t.Context()))
}

// end lets the process end by itself.
func (p *process) end(t *testing.T) {
	t.Helper()
	h, err := proc.Open(p.Process.Pid)
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, p.stdin.Close())
	require.NoError(t, h.Wait(t.Context()))
}

// requireHeld checks what a third process sees: somebody has the lock, and the record says who.
func requireHeld(t *testing.T, dir *Dir, by *process) {
	t.Helper()
	entry, err := dir.Lookup("tcp", address)
	require.NoError(t, err)
	require.NoError(t, entry.Err)
	require.Equal(t, by.Process.Pid, entry.Record.PID)
	require.True(t, entry.Held())
	_, err = dir.Lock("tcp", address)
	require.ErrorIs(t, err, ErrHeld)
}

// requireFree checks that there is nothing left, and that the next one gets the lock.
func requireFree(t *testing.T, dir *Dir) {
	t.Helper()
	_, err := dir.Lookup("tcp", address)
	require.ErrorIs(t, err, fs.ErrNotExist)
	lock, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	require.NoError(t, lock.Release())
}

func TestALockOutlivesWhoTookIt(t *testing.T) {
	for name, step := range map[string]func(t *testing.T, dir *Dir, parent, child *process){
		"the parent leaves and ends": func(t *testing.T, dir *Dir, parent, child *process) {
			parent.do(t, "leave")
			requireHeld(t, dir, parent)
			parent.do(t, "collect")
			requireHeld(t, dir, parent)
			child.do(t, "write")
			requireHeld(t, dir, child)
			parent.tell(t, "write")
			require.Contains(t, parent.said(t), "file already closed")
			parent.tell(t, "upgrade")
			require.Contains(t, parent.said(t), "file already closed")
			parent.do(t, "release", "leave") // which does nothing
			requireHeld(t, dir, child)
			parent.end(t)
		},
		"the parent is killed": func(t *testing.T, dir *Dir, parent, child *process) {
			parent.kill(t)
			requireHeld(t, dir, parent)
			child.do(t, "write")
		},
		"the parent lives": func(t *testing.T, _ *Dir, _, child *process) { child.do(t, "write") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := open(t)
			parent, child := generations(t, dir)
			requireHeld(t, dir, parent)
			step(t, dir, parent, child)
			requireHeld(t, dir, child)
			child.do(t, "release")
			requireFree(t, dir)
		})
	}
}

func TestALockStaysWhereTheChildEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, child *process){
		"killed":           func(t *testing.T, child *process) { child.kill(t) },
		"ended":            func(t *testing.T, child *process) { child.end(t) },
		"left, still here": func(t *testing.T, child *process) { child.do(t, "leave") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := open(t)
			parent, child := generations(t, dir)
			end(t, child)
			requireHeld(t, dir, parent)
			parent.do(t, "release")
			requireFree(t, dir)
		})
	}
	t.Run("killed after it wrote its record", func(t *testing.T) {
		dir := open(t)
		parent, child := generations(t, dir)
		child.do(t, "write")
		child.kill(t)
		requireHeld(t, dir, child)
		parent.do(t, "write")
		requireHeld(t, dir, parent)
	})
	t.Run("both killed", func(t *testing.T) {
		dir := open(t)
		parent, child := generations(t, dir)
		child.kill(t)
		parent.kill(t)
		entry, err := dir.Lookup("tcp", address)
		require.NoError(t, err)
		require.False(t, entry.Held())
	})
}

// descriptorsOf is how often this process has the file open.
func descriptorsOf(t *testing.T, path string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && link == path {
			n++
		}
	}
	return n
}

// What is handed on is the description that has the lock, not one of the others of the same file.
func TestFileIsTheLockedDescription(t *testing.T) {
	dir := open(t)
	path := dir.PathFor("tcp", address)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	for range 5 { // a reader has the file open, on lower numbers
		reader, err := os.Open(path)
		require.NoError(t, err)
		defer reader.Close()
	}
	lock, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	require.Equal(t, path, lock.Path())
	require.NoError(t, lock.Write(sample()))

	before := descriptorsOf(t, path)
	file, err := lock.File()
	require.NoError(t, err)
	require.Equal(t, before+1, descriptorsOf(t, path))
	flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NotZero(t, flags&unix.FD_CLOEXEC)
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_UN)) // frees it for all
	require.NoError(t, file.Close())

	// Now another has the lock, so there is nothing to hand on.
	require.Equal(t, "ready", spawn(t, dir.Path()).said(t))
	_, err = lock.File()
	require.ErrorIs(t, err, errNotFound)
	require.ErrorContains(t, err, path)
	require.NoError(t, lock.Release())
	_, err = lock.File()
	require.ErrorIs(t, err, fs.ErrClosed)
	require.ErrorIs(t, lock.Write(sample()), fs.ErrClosed)
}

// A lock that was adopted is handed on like any other.
func TestAdoptedLockIsHandedOn(t *testing.T) {
	dir := open(t)
	first, err := dir.Lock("tcp", address)
	require.NoError(t, err)
	require.NoError(t, first.Write(sample()))
	file, err := first.File()
	require.NoError(t, err)
	require.NoError(t, first.Leave())
	collect()
	second, err := dir.Adopt("tcp", address, file)
	require.NoError(t, err)
	file, err = second.File()
	require.NoError(t, err)
	before := descriptorsOf(t, second.Path())
	require.NoError(t, second.Leave())
	require.Equal(t, before-1, descriptorsOf(t, second.Path()), "it is closed at once")
	require.NoError(t, second.Leave())
	_, err = dir.Lock("tcp", address)
	require.ErrorIs(t, err, ErrHeld)
	third, err := dir.Adopt("tcp", address, file)
	require.NoError(t, err)
	rec := sample()
	rec.Dir = "" // shorter than what the first wrote
	require.NoError(t, third.Write(rec))
	text, err := os.ReadFile(third.Path())
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), "\n"), "nothing of the longer one is left")

	duplicate, err := third.File()
	require.NoError(t, err)
	defer duplicate.Close()
	other, err := os.Open(third.Path())
	require.NoError(t, err)
	defer other.Close()
	require.ErrorIs(t, unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	require.NoError(t, third.Release())
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB), "it is free also for whoever shares it")
	requireFree(t, dir)
}

func TestWhatIsNotAdopted(t *testing.T) {
	for name, c := range map[string]struct {
		file func(t *testing.T, dir *Dir, path string) (*os.File, error)
		want error
	}{
		"the file was removed": {func(t *testing.T, dir *Dir, path string) (*os.File, error) {
			file, err := os.Create(path)
			require.NoError(t, os.Remove(path))
			return file, err
		}, errReplaced},
		"the file was replaced": {func(t *testing.T, dir *Dir, path string) (*os.File, error) {
			file, err := os.Create(path)
			require.NoError(t, os.WriteFile(path+"2", nil, 0o600))
			require.NoError(t, os.Rename(path+"2", path))
			return file, err
		}, errReplaced},
		"another has the lock": {func(t *testing.T, dir *Dir, path string) (*os.File, error) {
			lock, err := dir.Lock("tcp", address)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, lock.Release()) })
			return os.Open(path)
		}, ErrHeld},
		"a FIFO": {func(t *testing.T, dir *Dir, path string) (*os.File, error) {
			require.NoError(t, unix.Mkfifo(path, 0o600))
			return os.OpenFile(path, os.O_RDWR, 0)
		}, errNotRegular},
		"somebody else's": {func(t *testing.T, dir *Dir, path string) (*os.File, error) {
			needRoot(t)
			require.NoError(t, os.WriteFile(path, nil, 0o600))
			require.NoError(t, os.Chown(path, 12345, 12345))
			return os.OpenFile(path, os.O_RDWR, 0)
		}, errForeign},
		"closed": {func(t *testing.T, dir *Dir, path string) (*os.File, error) {
			file, err := os.Create(path)
			require.NoError(t, file.Close())
			return file, err
		}, fs.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := open(t)
			file, err := c.file(t, dir, dir.PathFor("tcp", address))
			require.NoError(t, err)
			_, err = dir.Adopt("tcp", address, file)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, dir.PathFor("tcp", address))
			require.ErrorIs(t, file.Close(), fs.ErrClosed, "it was taken over")
		})
	}
}

// A descriptor whose lock was freed by LOCK_UN elsewhere has it again.
func TestAdoptTakesAFreeLock(t *testing.T) {
	dir := open(t)
	file, err := os.OpenFile(dir.PathFor("tcp", address), os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)
	lock, err := dir.Adopt("tcp", address, file)
	require.NoError(t, err)
	_, err = dir.Lock("tcp", address)
	require.ErrorIs(t, err, ErrHeld)
	require.NoError(t, lock.Release())
	requireFree(t, dir)
}

// An upgrade goes on in a goroutine of its own, and so does the closing of a listener.
func TestFileWhileReleased(t *testing.T) {
	dir := open(t)
	for range 200 {
		lock, err := dir.Lock("tcp", address)
		require.NoError(t, err)
		var upgrades sync.WaitGroup
		upgrades.Go(func() {
			for {
				file, err := lock.File()
				if errors.Is(err, fs.ErrClosed) {
					return
				}
				if assertNoError(t, err) {
					assertNoError(t, file.Close())
				}
			}
		})
		require.NoError(t, lock.Write(sample()))
		require.NoError(t, lock.Release())
		upgrades.Wait()
	}
}
