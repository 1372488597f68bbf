package proc

import (
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/testneed"
)

func TestGetChild(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	exe, err := filepath.EvalSymlinks("/proc/self/exe")
	require.NoError(t, err)
	link := filepath.Join(dir, "od) S 7 (x")
	require.NoError(t, os.Symlink(exe, link))

	before := time.Now()
	c := helper(t, "wait", func(cmd *exec.Cmd) {
		cmd.Path = link
		cmd.Args = []string{"an arg", "", "-x=é", ""}
		cmd.Dir = dir
	})
	p, err := Get(c.Process.Pid)
	require.NoError(t, err)

	require.Equal(t, c.Process.Pid, p.PID)
	require.Equal(t, os.Getpid(), p.PPID)
	require.Equal(t, os.Geteuid(), p.UID)
	require.Equal(t, os.Getuid(), p.RealUID)
	require.Equal(t, "od) S 7 (x", p.Command)
	require.Equal(t, exe, p.Executable)
	require.False(t, p.Deleted)
	require.Equal(t, dir, p.Dir)
	require.Equal(t, []string{"an arg", "", "-x=é", ""}, p.Args)
	require.False(t, p.Kernel || p.Stopped || p.Zombie)
	require.WithinRange(t, p.Started, before.Add(-50*time.Millisecond), time.Now().Add(50*time.Millisecond))

	start, err := Start(p.PID)
	require.NoError(t, err)
	require.Equal(t, start, p.Start)
	require.NotZero(t, start)

	self := Self()
	require.True(t, self.Before(p))
	require.False(t, p.Before(self))
	require.Equal(t, self.Unit, p.Unit)
	require.Equal(t, self.Container, p.Container)
}

func TestGetOtherUser(t *testing.T) {
	testneed.That(t, os.Geteuid() == 0, "root, to start a process of another user")
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	require.NoError(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, err := Get(cmd.Process.Pid)
	require.NoError(t, err)
	require.Equal(t, 65534, p.UID)
	require.Equal(t, 65534, p.RealUID)
}

func TestGetDeleted(t *testing.T) {
	for _, name := range []string{"plain", "odd (deleted)"} {
		t.Run(name, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			require.NoError(t, err)
			path := copyProgram(t, dir, name)
			c := helper(t, "wait", func(cmd *exec.Cmd) { cmd.Path = path })
			get := func() Process {
				p, err := Get(c.Process.Pid)
				require.NoError(t, err)
				require.Equal(t, path, p.Executable)
				return p
			}
			require.False(t, get().Deleted)

			require.NoError(t, os.Rename(path, path+".old"))
			require.NoError(t, os.Rename(path+".old", path))
			require.False(t, get().Deleted, "the same file again")

			replacement := copyProgram(t, dir, "replacement")
			require.NoError(t, os.Rename(replacement, path))
			require.True(t, get().Deleted, "replaced")

			require.NoError(t, os.Remove(path))
			require.True(t, get().Deleted, "removed")
			require.Equal(t, MainPackage(os.Getpid()), MainPackage(c.Process.Pid), "the file that runs is still there")
		})
	}
}

// copyProgram copies the test binary.
func copyProgram(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, data, 0o755))
	return path
}

func TestGetStopped(t *testing.T) {
	c := helper(t, "wait")
	stop(t, c.Process.Pid)
	p, err := Get(c.Process.Pid)
	require.NoError(t, err)
	require.True(t, p.Stopped)
	require.False(t, p.Zombie)
}

func TestGetZombie(t *testing.T) {
	c := helper(t, "wait")
	c.stdin.Close()
	waitZombie(t, c.Process.Pid)
	p, err := Get(c.Process.Pid)
	require.NoError(t, err)
	require.True(t, p.Zombie)
	require.Empty(t, p.Args)
	holds, err := Holds(p.PID, 1)
	require.NoError(t, err)
	require.False(t, holds)

	require.NoError(t, c.Wait())
	_, err = Get(p.PID)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestGetNothing(t *testing.T) {
	for _, pid := range []int{0, -1, 1 << 30, math.MaxInt} {
		_, err := Get(pid)
		require.ErrorIs(t, err, fs.ErrNotExist, "%d", pid)
		_, err = Start(pid)
		require.ErrorIs(t, err, fs.ErrNotExist, "%d", pid)
		_, err = Holds(pid, 1)
		require.ErrorIs(t, err, fs.ErrNotExist, "%d", pid)
		require.Empty(t, MainPackage(pid))
	}
}

// A thread's id resolves in /proc, and is no process.
func TestGetThread(t *testing.T) {
	c := helper(t, "wait")
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "task"))
	require.NoError(t, err)
	require.Greater(t, len(tasks), 1)
	for _, task := range tasks {
		tid, ok := number([]byte(task.Name()))
		require.True(t, ok)
		if tid == c.Process.Pid {
			continue
		}
		_, err := Get(tid)
		require.ErrorIs(t, err, fs.ErrNotExist)
		_, err = Open(tid)
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
}

func TestKernelThread(t *testing.T) {
	pids, err := newestPIDs()
	require.NoError(t, err)
	for _, pid := range pids {
		p, err := Get(pid)
		if err != nil || !p.Kernel {
			continue
		}
		require.Empty(t, p.Executable)
		require.Empty(t, p.Args)
		holds, err := Holds(pid, 1)
		require.NoError(t, err)
		require.False(t, holds)
		return
	}
	t.Skip("no kernel thread is visible here, as in a container; TestParseStat has the line of one")
}

func TestSelf(t *testing.T) {
	p := Self()
	require.Equal(t, os.Getpid(), p.PID)
	require.Equal(t, os.Getppid(), p.PPID)
	require.Equal(t, os.Args, p.Args)
	exe, err := filepath.EvalSymlinks("/proc/self/exe")
	require.NoError(t, err)
	require.Equal(t, exe, p.Executable)

	real, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(real, link))
	t.Chdir(link)
	require.Equal(t, real, Self().Dir, "current, and with links resolved, as for other processes")

	p.Args[0] = "changed"
	require.Equal(t, os.Args, Self().Args)
}

func TestAncestors(t *testing.T) {
	pids := Ancestors()
	require.NotEmpty(t, pids)
	require.Equal(t, os.Getppid(), pids[0])
	require.NotContains(t, pids, os.Getpid())
	for i, pid := range pids[:len(pids)-1] {
		p, err := Get(pid)
		require.NoError(t, err)
		require.Equal(t, pids[i+1], p.PPID)
	}
	last := pids[len(pids)-1]
	p, err := Get(last)
	require.NoError(t, err)
	require.True(t, last == 1 || p.PPID == 0)
}

func TestBootID(t *testing.T) {
	require.Regexp(t, `^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`, BootID())
	require.Equal(t, BootID(), BootID())
}

func TestMainPackage(t *testing.T) {
	c := helper(t, "wait")
	require.Equal(t, "github.com/berth-go/berth/internal/proc.test", MainPackage(c.Process.Pid))
	require.Equal(t, "github.com/berth-go/berth/internal/proc.test", MainPackage(os.Getpid()))
	require.Empty(t, MainPackage(sleepers(t, 1)[0]), "no Go program")
}

func TestGetLeaksNothing(t *testing.T) {
	Self()
	before := openDescriptors(t)
	for range 10 {
		_, err := Get(os.Getpid())
		require.NoError(t, err)
		_, err = Get(1 << 30)
		require.Error(t, err)
		_, err = Start(os.Getpid())
		require.NoError(t, err)
		Ancestors()
		MainPackage(os.Getppid())
	}
	require.Equal(t, before, openDescriptors(t))
}

func BenchmarkGet(b *testing.B) {
	pid := sleepers(b, 1)[0]
	b.Run("op=get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Get(pid); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("op=start", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Start(pid); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("op=ancestors", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Ancestors()
		}
	})
	c := helper(b, "wait")
	b.Run("op=mainpackage", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if MainPackage(c.Process.Pid) == "" {
				b.Fatal("no main package")
			}
		}
	})
}
