package proc

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/testneed"
)

// inherit makes f a descriptor of a child: 3 where it is the first.
func inherit(files ...*os.File) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.ExtraFiles = append(cmd.ExtraFiles, files...) }
}

// descending returns pids as Holders orders them.
func descending(pids ...int) []int {
	slices.Sort(pids)
	slices.Reverse(pids)
	return pids
}

func TestHolds(t *testing.T) {
	f, inode := socket(t)
	c := helper(t, "wait", inherit(f))
	stranger := helper(t, "wait")
	for pid, want := range map[int]bool{os.Getpid(): true, c.Process.Pid: true, stranger.Process.Pid: false} {
		holds, err := Holds(pid, inode)
		require.NoError(t, err)
		require.Equal(t, want, holds)
		holds, err = Holds(pid, 0)
		require.NoError(t, err)
		require.False(t, holds)
	}
}

func TestHolders(t *testing.T) {
	f, inode := socket(t)
	g, alone := socket(t)
	c := helper(t, "wait", inherit(f))
	grandchild := helper(t, "wait", inherit(f, g))
	g.Close()
	pid, other := c.Process.Pid, grandchild.Process.Pid
	unknown := uint64(1 << 50)

	for _, crowd := range []int{0, 300} { // one worker where this is all, and two
		sleepers(t, crowd)
		found, _, err := Holders(t.Context(), []uint64{inode, alone, unknown, inode, 0}, false)
		require.NoError(t, err)
		require.Equal(t, map[uint64][]int{inode: descending(os.Getpid(), pid, other), alone: {other}}, found)

		found, complete, err := Holders(t.Context(), []uint64{alone, inode}, true)
		require.NoError(t, err)
		require.True(t, complete, "all that was asked for is found")
		require.Equal(t, []int{other}, found[alone])
		require.Len(t, found[inode], 1)
		require.Contains(t, []int{os.Getpid(), pid, other}, found[inode][0])

		found, _, err = Holders(t.Context(), []uint64{alone, unknown}, true)
		require.NoError(t, err)
		require.Equal(t, map[uint64][]int{alone: {other}}, found)
	}
}

// The first pass of first looks at the descriptors 3 to 15: a socket outside of them is found in the second.
func TestHoldersUnlikely(t *testing.T) {
	var low, high []*os.File
	var inodes []uint64
	for range 20 {
		f, inode := socket(t)
		high = append(high, f)
		inodes = append(inodes, inode)
	}
	f, stdin := socket(t)
	low = append(low, f)
	cmd := exec.Command("sleep", "600")
	cmd.Stdin = low[0]
	cmd.ExtraFiles = high
	require.NoError(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for _, f := range append(low, high...) {
		f.Close()
	}
	inodes = append(inodes, stdin)

	for _, first := range []bool{true, false} {
		found, _, err := Holders(t.Context(), inodes, first)
		require.NoError(t, err)
		for i, inode := range inodes {
			require.Equal(t, []int{cmd.Process.Pid}, found[inode], "%v %d", first, i)
		}
	}
}

func TestHoldersOfNothing(t *testing.T) {
	for _, inodes := range [][]uint64{nil, {}, {0}, {0, 0}} {
		found, complete, err := Holders(t.Context(), inodes, false)
		require.NoError(t, err)
		require.True(t, complete)
		require.Empty(t, found)
	}
}

func TestHoldersCancelled(t *testing.T) {
	_, inode := socket(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	found, complete, err := Holders(ctx, []uint64{inode}, false)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, complete)
	require.Empty(t, found)
}

// Where only the first thread of a process has ended, its own list of descriptors is empty.
func TestHoldersThreads(t *testing.T) {
	python, err := exec.LookPath("python3")
	testneed.That(t, err == nil, "python3")
	const program = `
import ctypes, threading, sys
main = threading.main_thread().native_id
def run():
    while open("/proc/self/task/%d/stat" % main).read().rsplit(")", 1)[1].split()[0] != "Z":
        pass
    print("ready", flush=True)
    sys.stdin.read()
threading.Thread(target=run).start()
ctypes.CDLL(None).pthread_exit(None)
`
	f, inode := socket(t)
	c := helper(t, "", inherit(f), func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = python, []string{"python3", "-c", program}
	})
	f.Close()
	require.Equal(t, "ready", c.line(t))

	holds, err := Holds(c.Process.Pid, inode)
	require.NoError(t, err)
	require.True(t, holds)
	for _, first := range []bool{true, false} {
		found, _, err := Holders(t.Context(), []uint64{inode}, first)
		require.NoError(t, err)
		require.Equal(t, []int{c.Process.Pid}, found[inode])
	}
	p, err := Get(c.Process.Pid)
	require.NoError(t, err)
	require.False(t, p.Zombie, "it lives")
	h, err := Open(c.Process.Pid)
	require.NoError(t, err)
	defer h.Close()
	require.True(t, h.Alive())
}

// A user who may not inspect a process is told so: "nobody" would be a lie.
func TestHoldersUnprivileged(t *testing.T) {
	testneed.That(t, os.Geteuid() == 0, "root, to become another user")
	dir, err := os.MkdirTemp("", "berth-proc") // t.TempDir is closed to other users
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	program := copyProgram(t, dir, "helper")

	f, inode := socket(t)
	holder := helper(t, "wait", inherit(f))
	f.Close()
	c := helper(t, "holders", func(cmd *exec.Cmd) {
		cmd.Path = program
		cmd.Args = []string{"helper", strconv.FormatUint(inode, 10), strconv.Itoa(holder.Process.Pid)}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	})
	require.Equal(t, "0 false <nil>", c.line(t), "all")
	require.Equal(t, "0 false <nil>", c.line(t), "first")
	require.Equal(t, "false true", c.line(t), "Holds: permission")
	require.Equal(t, "true 0 true true true true <nil>", c.line(t), "Get: what is public")
}

// A pid namespace of its own, where every process may be inspected, is complete.
func TestHoldersComplete(t *testing.T) {
	c := helper(t, "complete", newNamespace(t))
	require.Equal(t, "complete", c.line(t))
}

func helperComplete() int {
	if err := mountProc(); err != nil {
		fmt.Println(err)
		return 1
	}
	found, complete, err := Holders(context.Background(), []uint64{1 << 50}, false)
	if len(found) != 0 || !complete || err != nil {
		fmt.Println(found, complete, err)
		return 1
	}
	fmt.Println("complete")
	return 0
}

// newNamespace makes a child pid 1 of a new pid namespace.
func newNamespace(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	testneed.That(t, os.Geteuid() == 0, "root, for a pid namespace")
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	}
}

// mountProc mounts /proc for this pid namespace.
func mountProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("proc", "/proc", "proc", 0, "")
}

// Processes that come and go are no error.
func TestHoldersTurmoil(t *testing.T) {
	f, inode := socket(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			exec.Command("true").Run()
		}
	}()
	for i := range 50 {
		first := i%2 == 0
		found, _, err := Holders(t.Context(), []uint64{inode}, first)
		require.NoError(t, err)
		if first { // it may be a child between fork and exec, which has what its parent has
			require.Len(t, found[inode], 1)
		} else {
			require.Contains(t, found[inode], os.Getpid())
		}
	}
	cancel()
	<-done
	f.Close()
}

// A process opens and closes files while it is looked at: what it holds throughout is found all the same. Here one
// gap below the socket is filled and freed without end.
func TestHoldersAmongDescriptorsThatChange(t *testing.T) {
	f, inode := socket(t)
	c := helper(t, "churn", inherit(f))
	f.Close()
	require.Equal(t, "ready", c.line(t))
	for i := range 5000 {
		holds, err := Holds(c.Process.Pid, inode)
		require.NoError(t, err)
		require.True(t, holds, "look %d", i)
	}
}

// helperChurn moves the socket behind a gap, the only one, and fills and frees the gap until its standard input ends.
func helperChurn() int {
	go func() {
		helperWait()
		os.Exit(0)
	}()
	const passed = 3
	gap, err := unix.FcntlInt(passed, unix.F_DUPFD_CLOEXEC, passed)
	if err == nil {
		_, err = unix.FcntlInt(passed, unix.F_DUPFD_CLOEXEC, gap+1)
	}
	if err == nil {
		err = unix.Dup3(0, passed, unix.O_CLOEXEC)
	}
	if err == nil { // whoever runs the tests may have left us more
		err = unix.CloseRange(uint(gap+2), math.MaxInt32, 0)
	}
	for err == nil {
		if err = unix.Dup3(0, gap, unix.O_CLOEXEC); err == nil {
			err = unix.Close(gap)
		}
	}
	fmt.Println(err)
	return 1
}

func TestHoldersLeakNothing(t *testing.T) {
	f, inode := socket(t)
	sleepers(t, 2*crowd)
	before := openDescriptors(t)
	for range 5 {
		for _, first := range []bool{true, false} {
			_, _, err := Holders(t.Context(), []uint64{inode}, first)
			require.NoError(t, err)
		}
		_, err := Holds(os.Getpid(), inode)
		require.NoError(t, err)
		_, err = Holds(os.Getpid(), 1)
		require.NoError(t, err)
	}
	require.Equal(t, before, openDescriptors(t))
	f.Close()
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 100 {
		name := strings.Repeat("x", i%20) + strconv.Itoa(i)
		want = append(want, name)
		require.NoError(t, os.WriteFile(dir+"/"+name, nil, 0o600))
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	var got []string
	buffer := make([]byte, 512)
	for {
		n, err := getdents(fd, buffer)
		require.NoError(t, err)
		if n == 0 {
			break
		}
		for name := range names(buffer[:n]) {
			got = append(got, string(name))
		}
	}
	require.ElementsMatch(t, append(want, ".", ".."), got)
	cut := make([]byte, 24)
	cut[16] = 32 // longer than what there is
	cut[19] = 'x'
	for _, bad := range [][]byte{nil, []byte("short"), make([]byte, 24), cut} {
		for range names(bad) {
			require.Fail(t, "no entry")
		}
	}
}

func BenchmarkHolds(b *testing.B) {
	f, inode := socket(b)
	c := helper(b, "wait", inherit(f))
	b.ReportAllocs()
	for b.Loop() {
		if holds, err := Holds(c.Process.Pid, inode); !holds || err != nil {
			b.Fatal(holds, err)
		}
	}
}

// The holder is older than the crowd, so the newest are looked at in vain.
func BenchmarkHolders(b *testing.B) {
	f, inode := socket(b)
	helper(b, "wait", inherit(f))
	f.Close()
	have := 0
	for _, processes := range []int{100, 500} {
		sleepers(b, processes-have)
		have = processes
		for _, first := range []bool{true, false} {
			b.Run(fmt.Sprintf("processes=%d/first=%v", processes, first), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					found, _, err := Holders(b.Context(), []uint64{inode}, first)
					if len(found) != 1 || err != nil {
						b.Fatal(found, err)
					}
				}
			})
		}
	}
}

// What a look costs where there is much to look at, and nothing to find.
func BenchmarkHoldsDescriptors(b *testing.B) {
	const descriptors = 1000
	f, _ := socket(b)
	for range descriptors {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(b, err)
		defer unix.Close(fd)
	}
	for b.Loop() {
		if holds, err := Holds(os.Getpid(), 1); holds || err != nil {
			b.Fatal(holds, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/descriptors, "ns/descriptor")
}
