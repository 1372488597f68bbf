package holder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/internal/testneed"
	"github.com/berth-go/berth/strategy"
)

func init() {
	helpers["listen"] = helperListen
	helpers["stop"] = helperStop
	helpers["init"] = helperInit
}

// reusePort lets several sockets listen on one address.
var reusePort = net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
	controlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(controlErr, err)
}}

// helperListen listens on the address until SIGTERM, or, with the argument "ignore", until SIGKILL.
func helperListen() int {
	stop := make(chan os.Signal, 1)
	if len(os.Args) > 2 && os.Args[2] == "ignore" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(stop, syscall.SIGTERM)
	}
	ln, err := reusePort.Listen(context.Background(), "tcp", os.Args[1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer ln.Close()
	fmt.Println(ln.Addr())
	<-stop
	return 0
}

// helperStop stops who holds the address, within the grace, unless the pid of a third argument is among them, and
// prints whom.
func helperStop() int {
	search, err := searchFor(os.Args[1])
	if err == nil {
		var grace time.Duration
		if grace, err = time.ParseDuration(os.Args[2]); err == nil {
			var stopped []strategy.Holder
			allow := func(h strategy.Holder) bool {
				return strategy.AnyOfMine(h) && (len(os.Args) < 4 || strconv.Itoa(h.PID) != os.Args[3])
			}
			stopped, err = search.Stop(context.Background(), allow, grace, slog.New(slog.DiscardHandler))
			for _, h := range stopped {
				fmt.Print(h.PID, " ")
			}
		}
	}
	fmt.Println(err)
	return 0
}

func searchFor(address string) (Search, error) {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return Search{}, err
	}
	target, _ := sockets.TargetOf("tcp", addr)
	return Search{Target: target}, nil
}

// A child is a process of a test. It ends with the test.
type child struct {
	*exec.Cmd
	stdout *bufio.Reader
	ended  bool
}

func helper(t testing.TB, name string, args ...string) *child {
	t.Helper()
	c, err := startHelper(name, args...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if !c.ended {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	})
	return c
}

func startHelper(name string, args ...string) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{Cmd: exec.Command(exe, args...)}
	// A program with the race detector in it takes a second to end, otherwise.
	c.Env = append(os.Environ(), helperVariable+"="+name, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if name == "init" {
		c.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.stdout = bufio.NewReader(stdout)
	return c, c.Start()
}

func (c *child) line(t testing.TB) string {
	t.Helper()
	line, err := c.stdout.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

// end waits for the end.
func (c *child) end(t testing.TB) *os.ProcessState {
	t.Helper()
	c.ended = true
	_ = c.Wait() // the state says it
	return c.ProcessState
}

func (c *child) alive(t testing.TB) bool {
	t.Helper()
	h, err := proc.Open(c.Process.Pid)
	if err != nil {
		require.ErrorIs(t, err, os.ErrProcessDone)
		return false
	}
	defer h.Close()
	return h.Alive()
}

func mustSearch(t testing.TB, address string) Search {
	t.Helper()
	s, err := searchFor(address)
	require.NoError(t, err)
	return s
}

func TestDiagnose(t *testing.T) {
	ctx := context.Background()
	first := helper(t, "listen", "127.0.0.1:0")
	address := first.line(t)
	second := helper(t, "listen", address)
	require.Equal(t, address, second.line(t))
	pids := func(d strategy.Diagnosis) []int {
		require.True(t, d.Complete)
		var pids []int
		for _, h := range d.Holders {
			require.Equal(t, "listening", h.State)
			require.Equal(t, address, h.Address)
			require.True(t, h.Ours)
			require.True(t, h.Newer)
			require.Contains(t, h.Refusal, "it was started after this process")
			pids = append(pids, h.PID)
		}
		return pids
	}

	s := mustSearch(t, address)
	require.Equal(t, []int{second.Process.Pid, first.Process.Pid}, pids(s.Diagnose(ctx)), "the newest first")
	require.Equal(t, []int{second.Process.Pid, first.Process.Pid}, pids(s.DiagnoseAll(ctx)))

	// The record comes first, when all that it says is true.
	var err error
	s.Records, err = registry.Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	lock, err := s.Records.Lock("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { lock.Release() })
	start, err := proc.Start(first.Process.Pid)
	require.NoError(t, err)
	inTheWay, err := sockets.InTheWay(s.Target)
	require.NoError(t, err)
	require.Len(t, inTheWay, 2)
	held := inTheWay[0]
	if has, err := proc.Holds(first.Process.Pid, held.Inode); err != nil || !has {
		held = inTheWay[1]
	}
	record := registry.Record{PID: first.Process.Pid, Start: start, Boot: proc.BootID(), Network: "tcp", Address: address, Inode: held.Inode}
	for name, change := range map[string]func(*registry.Record){
		"true":           func(*registry.Record) {},
		"another inode":  func(r *registry.Record) { r.Inode++ },
		"another start":  func(r *registry.Record) { r.Start++ },
		"not the holder": func(r *registry.Record) { r.PID, r.Start = second.Process.Pid, startOf(t, second) },
		"nobody":         func(r *registry.Record) { r.PID = nowhere },
		"another boot":   func(r *registry.Record) { r.Boot = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			r := record
			change(&r)
			require.NoError(t, lock.Write(r))
			want := 0
			if name == "true" {
				want = first.Process.Pid
			}
			pids := recordedPIDs([]*registry.Record{nil, s.record(held)}, []sockets.Socket{{}, held})
			require.Equal(t, want, pids[held.Inode])
		})
	}
	require.NoError(t, lock.Write(record))
	require.Equal(t, []int{first.Process.Pid, second.Process.Pid}, pids(s.Diagnose(ctx)))
}

// A process is looked at once for all of its sockets.
func TestRecordedPIDsOfSeveralSockets(t *testing.T) {
	self := proc.Self()
	var records []*registry.Record
	var found []sockets.Socket
	want := map[uint64]int{}
	for i := range 5 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { ln.Close() })
		inode := sockets.InodeOf(ln)
		require.NotZero(t, inode)
		found = append(found, sockets.Socket{Network: "tcp", Inode: inode})
		records = append(records, &registry.Record{PID: self.PID, Start: self.Start, Inode: inode})
		want[inode] = self.PID
		if i == 3 { // closed meanwhile
			require.NoError(t, ln.Close())
			delete(want, inode)
		}
	}
	records[4].Start++ // of a process before this one
	delete(want, found[4].Inode)
	require.Equal(t, want, recordedPIDs(records, found))
}

func startOf(t testing.TB, c *child) uint64 {
	t.Helper()
	start, err := proc.Start(c.Process.Pid)
	require.NoError(t, err)
	return start
}

func TestDiagnoseNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := mustSearch(t, ln.Addr().String())
	d := s.Diagnose(context.Background())
	require.Len(t, d.Holders, 1)
	require.Equal(t, os.Getpid(), d.Holders[0].PID)
	require.False(t, d.Holders[0].Newer)
	require.NoError(t, ln.Close())
	require.Equal(t, strategy.Diagnosis{Complete: true}, s.Diagnose(context.Background()))
	stopped, err := s.Stop(context.Background(), nil, 0, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Empty(t, stopped)
}

// Stop itself keeps the rules, whatever the strategy that asked for it has seen.
func TestStopRefuses(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	newer := helper(t, "listen", "127.0.0.1:0")
	for _, address := range []string{ln.Addr().String(), newer.line(t)} {
		stopped, err := mustSearch(t, address).Stop(context.Background(), func(strategy.Holder) bool { return true }, -1, slog.New(slog.DiscardHandler))
		require.Empty(t, stopped)
		var refused *RefusedError
		require.ErrorAs(t, err, &refused)
		require.NotEmpty(t, refused.Holder.Refusal)
	}
	require.True(t, newer.alive(t))
}

func TestStop(t *testing.T) {
	tests := []struct {
		name, grace string
		ignores     bool
		killed      bool
	}{
		{"asked", "0", false, false}, // 0 is 5 s
		{"killed at once", "-1ns", false, true},
		{"killed after grace", "50ms", true, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			args := []string{"127.0.0.1:0"}
			if test.ignores {
				args = append(args, "ignore")
			}
			old := helper(t, "listen", args...)
			address := old.line(t)
			args[0] = address
			second := helper(t, "listen", args...) // and all of them
			require.Equal(t, address, second.line(t))
			stop := helper(t, "stop", address, test.grace)
			require.Equal(t, fmt.Sprintf("%d %d <nil>", old.Process.Pid, second.Process.Pid), stop.line(t))
			for _, c := range []*child{old, second} {
				status := c.end(t).Sys().(syscall.WaitStatus)
				if test.killed {
					require.Equal(t, syscall.SIGKILL, status.Signal())
				} else {
					require.Zero(t, status)
				}
			}
		})
	}
}

// All or none: where one may not be stopped, nothing is done to the others.
func TestStopAllOrNone(t *testing.T) {
	first := helper(t, "listen", "127.0.0.1:0")
	address := first.line(t)
	second := helper(t, "listen", address)
	second.line(t)
	for _, spared := range []*child{first, second} {
		stop := helper(t, "stop", address, "0", strconv.Itoa(spared.Process.Pid))
		require.Contains(t, stop.line(t), fmt.Sprintf("pid %d is not stopped: ", spared.Process.Pid))
		require.True(t, first.alive(t))
		require.True(t, second.alive(t))
	}
}

// The context ends a wait. Whoever was asked to end by then may still do so, but is not killed.
func TestEndCanceled(t *testing.T) {
	c := helper(t, "listen", "127.0.0.1:0", "ignore")
	c.line(t)
	handle, err := proc.Open(c.Process.Pid)
	require.NoError(t, err)
	defer handle.Close()
	h := suspect{holding{process: proc.Process{PID: c.Process.Pid}, holder: strategy.Holder{PID: c.Process.Pid}}, handle}

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	stopped, err := end(ctx, []suspect{h}, Means{Grace: 10 * time.Second}, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, stopped, 1, "it got the signal")
	require.True(t, c.alive(t))
}

// Between the last look and the signal the holder ends, and the kernel gives its pid to another process.
func TestStopRecycledPID(t *testing.T) {
	testneed.That(t, os.Geteuid() == 0, "root, for a pid namespace")
	c := helper(t, "init")
	out, err := io.ReadAll(c.stdout)
	require.NoError(t, err)
	require.Equal(t, "ok", strings.TrimSpace(string(out)))
}

// helperInit is pid 1 of a namespace, where it starts a holder and then, as another process, the one who stops it.
func helperInit() int {
	if err := recycleInside(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ok")
	return 0
}

func recycleInside() error {
	if os.Getenv("BERTH_HOLDER_TEST_ADDRESS") != "" {
		return stopAndRecycle(os.Getenv("BERTH_HOLDER_TEST_ADDRESS"))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	holder, err := startHelper("listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address, err := holder.stdout.ReadString('\n')
	if err != nil {
		return err
	}
	go func() { _ = holder.Wait() }() // its pid is free when it has ended
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperVariable+"=init", "BERTH_HOLDER_TEST_ADDRESS="+strings.TrimSpace(address))
	out, err := cmd.CombinedOutput()
	if err != nil || string(bytes.TrimSpace(out)) != "ok" {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func stopAndRecycle(address string) error {
	search, err := searchFor(address)
	if err != nil {
		return err
	}
	var other *echo
	var recycled error
	stopped, err := search.Stop(context.Background(), func(h strategy.Holder) bool {
		other, recycled = recycle(h.PID)
		return h.Refusal == ""
	}, time.Second, slog.New(slog.DiscardHandler))
	if err := errors.Join(err, recycled); err != nil {
		return err
	}
	defer other.end()
	if len(stopped) != 1 || stopped[0].PID != other.Process.Pid {
		return fmt.Errorf("stopped %v", stopped)
	}
	// A signal that is pending comes before an answer.
	if _, err := io.WriteString(other.stdin, "alive\n"); err != nil {
		return err
	}
	if line, err := other.stdout.ReadString('\n'); line != "alive\n" {
		return fmt.Errorf("the innocent process was hit: %q %w", line, err)
	}
	return nil
}

// An echo is a process that sends back what it gets.
type echo struct {
	*exec.Cmd
	stdin  io.Writer
	stdout *bufio.Reader
}

func startEcho() (*echo, error) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &echo{cmd, stdin, bufio.NewReader(stdout)}, cmd.Start()
}

func (e *echo) end() {
	_ = e.Process.Kill()
	_ = e.Wait()
}

// recycle kills a process and starts another one with its pid.
func recycle(pid int) (*echo, error) {
	handle, err := proc.Open(pid)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	if err := errors.Join(handle.Kill(), handle.Wait(context.Background())); err != nil {
		return nil, err
	}
	for range 1000 { // threads take pids, too; and its parent has to wait for it
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			return nil, err
		}
		other, err := startEcho()
		if err != nil {
			return nil, err
		}
		if other.Process.Pid == pid {
			return other, nil
		}
		other.end()
	}
	return nil, errors.New("the pid was not given again")
}

// Whom Stop would stop, it stops, in the same order, and WouldStop nobody.
func TestWouldStop(t *testing.T) {
	first := helper(t, "listen", "127.0.0.1:0")
	address := first.line(t)
	second := helper(t, "listen", address)
	second.line(t)
	would := helper(t, "would", address)
	require.Equal(t, fmt.Sprintf("%d %d <nil>", first.Process.Pid, second.Process.Pid), would.line(t))
	would.end(t)
	require.True(t, first.alive(t))
	require.True(t, second.alive(t))

	_, err := mustSearch(t, address).WouldStop(context.Background(), nil)
	var refused *RefusedError
	require.ErrorAs(t, err, &refused, "they are newer than this process")
}

// Who is only asked is not killed, and by the signal that was chosen.
func TestMeans(t *testing.T) {
	stubborn := helper(t, "listen", "127.0.0.1:0", "ignore")
	address := stubborn.line(t)
	ask := helper(t, "ask", address, "TERM")
	require.Equal(t, fmt.Sprintf("%d %v was asked to end and has not within 20ms", stubborn.Process.Pid, held(t, address)), ask.line(t))
	ask.end(t)
	require.True(t, stubborn.alive(t))

	ask = helper(t, "ask", address, "HUP")
	require.Equal(t, fmt.Sprintf("%d <nil>", stubborn.Process.Pid), ask.line(t))
	require.Equal(t, syscall.SIGHUP, stubborn.end(t).Sys().(syscall.WaitStatus).Signal())
}

func held(t testing.TB, address string) strategy.Holder {
	t.Helper()
	d := mustSearch(t, address).Diagnose(context.Background())
	require.Len(t, d.Holders, 1)
	return d.Holders[0]
}

func init() {
	helpers["would"] = func() int {
		return inHelper(func(s Search) ([]strategy.Holder, error) {
			return s.WouldStop(context.Background(), strategy.AnyOfMine)
		})
	}
	helpers["ask"] = func() int {
		by := Means{Grace: 20 * time.Millisecond, AskOnly: true}
		if os.Args[2] == "HUP" {
			by.Signal, by.Grace = syscall.SIGHUP, 20*time.Second
		}
		return inHelper(func(s Search) ([]strategy.Holder, error) {
			return s.StopBy(context.Background(), strategy.AnyOfMine, by, slog.New(slog.DiscardHandler))
		})
	}
}

// inHelper does something to the address of the first argument, and prints the pids and the error.
func inHelper(do func(Search) ([]strategy.Holder, error)) int {
	search, err := searchFor(os.Args[1])
	if err == nil {
		var holders []strategy.Holder
		holders, err = do(search)
		for _, h := range holders {
			fmt.Print(h.PID, " ")
		}
	}
	fmt.Println(err)
	return 0
}
