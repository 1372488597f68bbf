package activation_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/activation"
)

// A step is one thing that a child with passed descriptors does. It keeps what it takes open to the end.
type step struct {
	Do                     string // a method of Set; or "unlisten", which closes what was taken
	Name, Network, Address string
}

// outcome is what came of a step.
type outcome struct {
	Got     []string // type and address of each
	Err     string
	Missing bool // the error is fs.ErrNotExist
}

// findings is what a child reports.
type findings struct {
	Err           string // of FromEnv
	Nil           bool   // no Set
	Steps         []outcome
	Before, After map[int]string // descriptors from 3 on, before FromEnv and after the steps
	Inheritable   []int          // of those after
	Environment   []string       // LISTEN_* that are left
}

const (
	stepsVariable = "BERTH_TEST_STEPS"
	pidVariable   = "BERTH_TEST_LISTEN_PID"
)

func init() {
	if os.Getenv(roleVariable) == "" {
		// What the shell that runs the tests left open is not to be taken for a descriptor of the tests.
		for fd := range openDescriptors() {
			unix.CloseOnExec(fd)
		}
	}
	roles["inquire"] = inquire
	roles["descriptors"] = func() error { return json.NewEncoder(os.Stdout).Encode(look()) }
	roles["parent"] = parent
	roles["concurrent"] = concurrent
}

func look() findings {
	f := findings{After: openDescriptors(), Environment: listenVariables()}
	for fd := range f.After {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			f.Inheritable = append(f.Inheritable, fd)
		}
	}
	slices.Sort(f.Inheritable)
	return f
}

// openDescriptors are those from 3 on, with what they lead to.
func openDescriptors() map[int]string {
	found := make(map[int]string)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && fd >= 3 { // not that of the directory itself, closed by now
			found[fd] = link
		}
	}
	return found
}

func listenVariables() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return !strings.HasPrefix(v, "LISTEN_") })
}

func inquire() error {
	if text, ok := os.LookupEnv(pidVariable); ok {
		os.Setenv("LISTEN_PID", strings.ReplaceAll(text, "SELF", strconv.Itoa(os.Getpid())))
	}
	var steps []step
	if err := json.Unmarshal([]byte(os.Getenv(stepsVariable)), &steps); err != nil {
		return err
	}
	// A listener of the child's own, with the poller of its runtime, which a lying environment must not take away.
	own, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	before := openDescriptors()
	set, err := activation.FromEnv()
	f := findings{Nil: set == nil}
	if err != nil {
		f.Err = err.Error()
	}
	again, errAgain := activation.FromEnv()
	if again != set || !errors.Is(errAgain, err) {
		return fmt.Errorf("FromEnv gave %v, %w, and then %v, %w", set, err, again, errAgain)
	}
	var taken []interface{ Close() error }
	for _, s := range steps {
		var o outcome
		keep := func(socket interface{ Close() error }, addr net.Addr) {
			o.Got = append(o.Got, fmt.Sprintf("%T %s", socket, addr))
			taken = append(taken, socket)
		}
		var err error
		switch s.Do {
		case "Take":
			var ln net.Listener
			if ln, err = set.Take(s.Name, s.Network, s.Address); err == nil {
				keep(ln, ln.Addr())
			}
		case "TakePacket":
			var conn net.PacketConn
			if conn, err = set.TakePacket(s.Name, s.Network, s.Address); err == nil {
				keep(conn, conn.LocalAddr())
			}
		case "Conn":
			var conn net.Conn
			if conn, err = set.Conn(); err == nil {
				keep(conn, conn.LocalAddr())
			}
		case "Named":
			for _, ln := range set.Named(s.Name) {
				keep(ln, ln.Addr())
			}
		case "PacketNamed":
			for _, conn := range set.PacketNamed(s.Name) {
				keep(conn, conn.LocalAddr())
			}
		case "Unused":
			for _, u := range set.Unused() {
				o.Got = append(o.Got, u.String())
			}
		case "Close":
			err = set.Close()
		case "unlisten":
			for _, socket := range taken {
				err = errors.Join(err, socket.Close())
			}
			taken = nil
		case "exhaust": // no further descriptor can be opened
			var limit unix.Rlimit
			if err = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
				limit.Cur = 3
				err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
			}
		case "recover":
			// What a file that failed to be taken leaves behind must not close the descriptor.
			collected := make(chan struct{})
			runtime.SetFinalizer(new([64]byte), func(*[64]byte) { close(collected) })
			runtime.GC()
			<-collected
			runtime.GC()
			var limit unix.Rlimit
			if err = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
				limit.Cur = limit.Max
				err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
			}
		default:
			return fmt.Errorf("step %q is unknown", s.Do)
		}
		if err != nil {
			o.Err, o.Missing = err.Error(), errors.Is(err, fs.ErrNotExist)
		}
		f.Steps = append(f.Steps, o)
	}
	left := look()
	f.Before, f.After, f.Inheritable, f.Environment = before, left.After, left.Inheritable, left.Environment

	conn, err := net.Dial("tcp", own.Addr().String())
	if err != nil {
		return fmt.Errorf("the process's own listener: %w", err)
	}
	conn.Close()
	if conn, err = own.Accept(); err != nil {
		return fmt.Errorf("the process's own listener: %w", err)
	}
	conn.Close()
	return json.NewEncoder(os.Stdout).Encode(f)
}

// child is a re-executed test binary in a role, with descriptors from 3 on and variables.
func child(t testing.TB, role string, files []*os.File, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = files
	return cmd
}

// run returns what a child reports.
func run(t testing.TB, cmd *exec.Cmd) findings {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	var f findings
	require.NoError(t, json.Unmarshal(out, &f), string(out))
	return f
}

// ask has a child take the steps, which was passed the sockets under the names (none: no LISTEN_FDNAMES).
func ask(t testing.TB, sockets []any, names string, steps ...step) findings {
	t.Helper()
	text, err := json.Marshal(steps)
	require.NoError(t, err)
	env := []string{"LISTEN_FDS=" + strconv.Itoa(len(sockets)), pidVariable + "=SELF", stepsVariable + "=" + string(text)}
	if names != "" {
		env = append(env, "LISTEN_FDNAMES="+names)
	}
	return run(t, child(t, "inquire", files(t, sockets...), env...))
}

// files are duplicates of sockets and files, to be passed.
func files(t testing.TB, sockets ...any) []*os.File {
	t.Helper()
	var all []*os.File
	for _, s := range sockets {
		f, isFile := s.(*os.File)
		if filer, ok := s.(interface{ File() (*os.File, error) }); ok && !isFile {
			var err error
			f, err = filer.File()
			require.NoError(t, err)
			t.Cleanup(func() { f.Close() })
		}
		all = append(all, f)
	}
	return all
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

func listenPacket(t testing.TB, network, address string) net.PacketConn {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// linkOf is what /proc shows for a socket or file.
func linkOf(t testing.TB, f *os.File) string {
	t.Helper()
	raw, err := f.SyscallConn()
	require.NoError(t, err)
	var link string
	require.NoError(t, raw.Control(func(fd uintptr) { link, err = os.Readlink(fmt.Sprint("/proc/self/fd/", fd)) }))
	require.NoError(t, err)
	return link
}

func TestNothingPassed(t *testing.T) {
	for _, env := range [][]string{nil, {"LISTEN_FDS=0"}, {"LISTEN_FDS="}, {"LISTEN_FDNAMES=a:b"}, {"LISTEN_PIDFDID=1"}} {
		f := run(t, child(t, "inquire", nil, append(env, stepsVariable+`=[{"Do": "Take", "Network": "tcp", "Address": ":80"}]`)...))
		require.Empty(t, f.Err)
		require.True(t, f.Nil)
		require.Empty(t, f.Environment)
		require.True(t, f.Steps[0].Missing)
		require.Equal(t, f.Before, f.After)
	}
}

func TestFromEnvTakesOver(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	address := ln.Addr().String()
	for _, pid := range []string{pidVariable + "=SELF", "LISTEN_PID="} {
		steps := stepsVariable + `=[{"Do": "Unused"}, {"Do": "Take", "Network": "tcp", "Address": "` + address + `"}, {"Do": "Unused"}]`
		f := run(t, child(t, "inquire", files(t, ln), "LISTEN_FDS=1", "LISTEN_PIDFDID=1", pid, steps))
		require.Empty(t, f.Err)
		require.False(t, f.Nil)
		require.Empty(t, f.Environment)
		require.Empty(t, f.Inheritable)
		require.Equal(t, []outcome{
			{Got: []string{"descriptor 3, tcp " + address}},
			{Got: []string{"*net.TCPListener " + address}},
			{},
		}, f.Steps)
		require.Len(t, f.After, len(f.Before), "the passed descriptor is closed where its duplicate is given out")
	}
}

func TestNotMeantForThisProcess(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	f := run(t, child(t, "inquire", files(t, ln), "LISTEN_FDS=1", "LISTEN_FDNAMES=a", "LISTEN_PID=1", stepsVariable+"=[]"))
	require.Empty(t, f.Err)
	require.True(t, f.Nil)
	require.Empty(t, f.Environment)
	require.Equal(t, f.Before, f.After)
	require.Equal(t, []int{3}, f.Inheritable, "nothing is taken")
}

func TestLies(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	file, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer file.Close()
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	defer writer.Close()
	one, two := []any{ln}, []any{ln, listen(t, "tcp", "127.0.0.1:0")}
	for _, c := range []struct {
		name   string
		passed []any
		env    []string
		kept   bool // nothing tells which descriptors were meant, or they were not
		want   []string
	}{
		{"count is a word", one, []string{"LISTEN_FDS=x"}, true, []string{`LISTEN_FDS="x"`}},
		{"negative count", one, []string{"LISTEN_FDS=-1"}, true, []string{`LISTEN_FDS="-1"`}},
		{"count beyond descriptors", one, []string{"LISTEN_FDS=2147483647"}, true, []string{`LISTEN_FDS="2147483647"`}},
		{"count too high by one", one, []string{"LISTEN_FDS=2"}, false, []string{"LISTEN_FDS=2", "descriptor 4"}},
		{"count too high by a hundred", two, []string{"LISTEN_FDS=102"}, false, []string{"LISTEN_FDS=102", "descriptor 5"}},
		{"count in the billions", two, []string{"LISTEN_FDS=2000000000"}, false, []string{"LISTEN_FDS=2000000000", "descriptor 5"}},
		{"closed descriptor", []any{ln, (*os.File)(nil), ln}, []string{"LISTEN_FDS=3"}, false, []string{"LISTEN_FDS=3", "descriptor 4"}},
		{"nothing came", nil, []string{"LISTEN_FDS=1"}, false, []string{"LISTEN_FDS=1", "descriptor 3"}},
		{"a file", []any{ln, file, ln}, []string{"LISTEN_FDS=3"}, false, []string{"descriptor 4", "no socket"}},
		{"a pipe", []any{reader}, []string{"LISTEN_FDS=1"}, false, []string{"descriptor 3", "no socket"}},
		{"too few names", two, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=a"}, false, []string{`LISTEN_FDNAMES="a"`, "LISTEN_FDS"}},
		{"too many names", two, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=a:b:c"}, false, []string{`LISTEN_FDNAMES="a:b:c"`, "LISTEN_FDS"}},
		{"no process id", one, []string{"LISTEN_FDS=1", "LISTEN_PID=me"}, false, []string{`LISTEN_PID="me"`}},
		{"process id with a tail", one, []string{"LISTEN_FDS=1", pidVariable + "=SELFx"}, false, []string{`LISTEN_PID="`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			passed := files(t, c.passed...)
			f := run(t, child(t, "inquire", passed, append(c.env, stepsVariable+`=[{"Do": "Take", "Network": "tcp", "Address": "fd:3"}, {"Do": "Unused"}, {"Do": "Close"}]`)...))
			for _, part := range append(c.want, "activation: ", "; ") {
				require.Contains(t, f.Err, part)
			}
			require.NotContains(t, f.Err, "\n")
			require.True(t, f.Nil)
			require.NotEmpty(t, f.Steps[0].Err)
			require.False(t, f.Steps[0].Missing)
			require.Equal(t, []outcome{{}, {}}, f.Steps[1:])
			require.Empty(t, f.Environment)
			if c.kept {
				require.Equal(t, f.Before, f.After)
				return
			}
			require.Empty(t, f.Inheritable)
			for i, file := range passed {
				if file != nil {
					require.Equal(t, linkOf(t, file), f.Before[3+i])
				}
				if _, isPassed := f.Before[3+i]; isPassed && file != nil {
					require.NotContains(t, f.After, 3+i)
					delete(f.Before, 3+i)
				}
			}
			require.Equal(t, f.Before, f.After, "only what was passed is closed")
		})
	}
}

// parent looks at what a child of its own has, before FromEnv and after it.
func parent() error {
	look := func() (json.RawMessage, error) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleVariable+"=descriptors")
		cmd.Stderr = os.Stderr
		return cmd.Output()
	}
	before, err := look()
	if err != nil {
		return err
	}
	set, err := activation.FromEnv()
	if err != nil {
		return err
	}
	ln, err := set.Take("a", "tcp", "")
	if err != nil {
		return err
	}
	defer ln.Close()
	after, err := look()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode([]json.RawMessage{before, after})
}

func TestChildInheritsNothing(t *testing.T) {
	passed := files(t, listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0"))
	out, err := child(t, "parent", passed, "LISTEN_FDS=2", "LISTEN_FDNAMES=a:b").Output()
	require.NoError(t, err)
	var reports []findings
	require.NoError(t, json.Unmarshal(out, &reports), string(out))
	before, after := reports[0], reports[1]
	require.Equal(t, []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=a:b"}, before.Environment, "what would be inherited without FromEnv")
	require.Equal(t, linkOf(t, passed[0]), before.After[3])
	require.Equal(t, []int{3, 4}, before.Inheritable)
	require.Empty(t, after.Environment)
	for _, link := range after.After {
		require.NotContains(t, link, "socket:")
	}
	require.Empty(t, after.Inheritable)
}

// concurrent calls everything from many goroutines. The race detector looks on.
func concurrent() error {
	const many = 32
	var sets [many]*activation.Set
	taken := make(chan net.Listener, 10*many)
	var wait sync.WaitGroup
	begin := make(chan struct{})
	for i := range many {
		wait.Go(func() {
			<-begin
			set, err := activation.FromEnv()
			if err != nil {
				panic(err)
			}
			sets[i] = set
			for _, ln := range set.Named("d") { // first, as a lock of another call would order these too
				taken <- ln
			}
			for _, address := range []string{"fd:3", "fd:b", "localhost:1", ":1"} {
				if ln, err := set.Take("c", "tcp", address); err == nil {
					taken <- ln
				}
			}
			set.Unused()
			if i == many/2 {
				_ = set.Close()
			}
		})
	}
	close(begin)
	wait.Wait()
	close(taken)
	seen := make(map[string]bool)
	for ln := range taken {
		if address := ln.Addr().String(); seen[address] {
			return fmt.Errorf("%s was given out twice", address)
		}
		seen[ln.Addr().String()] = true
		ln.Close()
	}
	for _, set := range sets {
		if set != sets[0] || set == nil {
			return fmt.Errorf("FromEnv gave %p and %p", sets[0], set)
		}
	}
	if len(seen) == 0 || len(sets[0].Unused()) != 0 {
		return fmt.Errorf("%d taken, left %v", len(seen), sets[0].Unused())
	}
	return nil
}

func TestConcurrentCalls(t *testing.T) {
	var sockets []any
	for range 9 {
		sockets = append(sockets, listen(t, "tcp", "127.0.0.1:0"))
	}
	out, err := child(t, "concurrent", files(t, sockets...), "LISTEN_FDS=9", "LISTEN_FDNAMES=a:b:c:c:d:d:d:d:d").CombinedOutput()
	require.NoError(t, err, string(out))
}
