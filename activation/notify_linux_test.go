package activation_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-go/berth/internal/testneed"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/activation"
)

// patience bounds every wait in these tests. It is only reached when something is broken.
const patience = 30 * time.Second

// A manager is the end of the socket where messages come out.
type manager struct{ *net.UnixConn }

// supervise sets NOTIFY_SOCKET.
func supervise(t testing.TB, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{conn}
}

func supervised(t testing.TB) *manager {
	t.Helper()
	return supervise(t, filepath.Join(t.TempDir(), "notify"))
}

// next is the next message, with the descriptors in it.
func (m *manager) next(t testing.TB) (string, []*os.File) {
	t.Helper()
	require.NoError(t, m.SetReadDeadline(time.Now().Add(patience)))
	buffer, rights := make([]byte, 8192), make([]byte, 1024)
	n, n2, _, _, err := m.ReadMsgUnix(buffer, rights)
	require.NoError(t, err)
	messages, err := syscall.ParseSocketControlMessage(rights[:n2])
	require.NoError(t, err)
	var files []*os.File
	for _, message := range messages {
		fds, err := syscall.ParseUnixRights(&message)
		require.NoError(t, err)
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return string(buffer[:n]), files
}

// text is the next message, which has no descriptors.
func (m *manager) text(t testing.TB) string {
	t.Helper()
	text, files := m.next(t)
	require.Empty(t, files)
	return text
}

// pending takes what has come until now.
func (m *manager) pending(t testing.TB) (all []string) {
	t.Helper()
	raw, err := m.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		buffer := make([]byte, 8192)
		for {
			n, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
			if err != nil {
				require.ErrorIs(t, err, unix.EAGAIN)
				return
			}
			all = append(all, string(buffer[:n]))
		}
	}))
	return all
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

func TestNotifyFormats(t *testing.T) {
	for name, path := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@berth-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			m := supervise(t, path)
			before := descriptors(t)
			require.True(t, activation.Supervised())
			for _, test := range []struct {
				call func() error
				want string
			}{
				{activation.Ready, "READY=1"},
				{activation.Stopping, "STOPPING=1"},
				{func() error { return activation.Status("on :3000\nREADY=1") }, "STATUS=on :3000 READY=1"},
				{func() error { return activation.Status("") }, "STATUS="},
				{func() error { return activation.MainPID(4242) }, "MAINPID=4242"},
				{func() error { return activation.Extend(90 * time.Second) }, "EXTEND_TIMEOUT_USEC=90000000"},
				{func() error { return activation.Extend(1001 * time.Nanosecond) }, "EXTEND_TIMEOUT_USEC=2"},
				{func() error { return activation.Extend(1<<63 - 1) }, "EXTEND_TIMEOUT_USEC=9223372036854776"},
				{func() error { return activation.Unstore("web") }, "FDSTOREREMOVE=1\nFDNAME=web"},
				{func() error { return activation.Notify("STATUS=b", "MAINPID=7\n", "X_A=") }, "STATUS=b\nMAINPID=7\nX_A="},
			} {
				require.NoError(t, test.call())
				require.Equal(t, test.want, m.text(t))
			}
			require.NoError(t, activation.Notify())
			require.Empty(t, m.pending(t))
			require.Equal(t, path, os.Getenv("NOTIFY_SOCKET"), "it stays")
			require.Equal(t, before, descriptors(t))
		})
	}
}

// The time is that of the kernel's monotonic clock, in microseconds, between before and after.
func TestReloadingTime(t *testing.T) {
	m := supervised(t)
	now := func() int64 {
		var ts unix.Timespec
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
		return ts.Nano() / 1000
	}
	before := now()
	require.NoError(t, activation.Reloading())
	after := now()
	text, found := strings.CutPrefix(m.text(t), "RELOADING=1\nMONOTONIC_USEC=")
	require.True(t, found, text)
	usec, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, usec, before)
	require.LessOrEqual(t, usec, after)
}

func TestNotifySocketMalformed(t *testing.T) {
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: closed, Net: "unixgram"})
	require.NoError(t, err)
	conn.Close()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	before := descriptors(t)
	for _, test := range []struct {
		socket, want string
		is           error
	}{
		{"notify", "neither an absolute path nor an abstract socket", nil},
		{"/", "neither an absolute path", nil},
		{"@", "neither an absolute path", nil},
		{"vsock:2:9999", "only Unix sockets", errors.ErrUnsupported},
		{"vsock-stream:2:9999", "only Unix sockets", errors.ErrUnsupported},
		{"/" + strings.Repeat("x", 107), "longer than the 107 bytes", nil},
		{"/" + strings.Repeat("x", 106), "systemd cannot be notified", syscall.ENOENT},
		{"@" + strings.Repeat("x", 106), "systemd cannot be notified", syscall.ECONNREFUSED},
		{filepath.Join(dir, "missing"), "systemd cannot be notified", syscall.ENOENT},
		{closed, "systemd cannot be notified", syscall.ECONNREFUSED},
		{file, "systemd cannot be notified", syscall.ECONNREFUSED},
	} {
		t.Setenv("NOTIFY_SOCKET", test.socket)
		t.Setenv("WATCHDOG_USEC", "1000000")
		t.Setenv("WATCHDOG_PID", "")
		for name, call := range map[string]func() error{
			"Ready":   activation.Ready,
			"Barrier": func() error { return activation.Barrier(t.Context()) },
			"Unstore": func() error { return activation.Unstore("a") },
			"Store":   func() error { return activation.Store("a", os.Stdin) },
			"Watchdog": func() error {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				return activation.Watchdog(ctx, func(context.Context) error {
					if !strings.Contains(test.want, "cannot be notified") {
						t.Errorf("with %q there is nothing to check for", test.socket)
					}
					time.AfterFunc(time.Millisecond, cancel)
					return nil
				})
			},
		} {
			err := call()
			require.ErrorContains(t, err, test.want, name)
			require.ErrorContains(t, err, fmt.Sprintf("NOTIFY_SOCKET=%q", test.socket), name)
			if test.is != nil {
				require.ErrorIs(t, err, test.is, name)
			}
		}
	}
	require.Equal(t, before, descriptors(t))
}

// Messages of one goroutine stay in order whatever the others send, also when the queue is full.
func TestNotifyOrder(t *testing.T) {
	const senders, each = 8, 200
	m := supervised(t)
	var group sync.WaitGroup
	for sender := range senders {
		group.Go(func() {
			for i := range each {
				if err := activation.Status(fmt.Sprint(sender, " ", i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := map[int]int{}
	for range senders * each {
		var sender, i int
		_, err := fmt.Sscanf(m.text(t), "STATUS=%d %d", &sender, &i)
		require.NoError(t, err)
		require.Equal(t, next[sender], i, "of sender %d", sender)
		next[sender]++
	}
	group.Wait()
	require.Empty(t, m.pending(t))
}

// fill fills the queue of the socket.
func (m *manager) fill(t testing.TB) {
	t.Helper()
	testneed.That(t, os.Geteuid() == 0, "root")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20))
	for err == nil {
		err = unix.Sendto(fd, []byte("X=full"), 0, &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")})
	}
	require.ErrorIs(t, err, unix.EAGAIN)
}

// While systemd does not read, whoever has a context can give up; the others wait.
func TestNotifyFull(t *testing.T) {
	m := supervised(t)
	m.fill(t)
	before := descriptors(t)

	sent := make(chan error)
	go func() { sent <- activation.Ready() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := activation.Barrier(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.ErrorContains(t, err, "it does not read")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, activation.Barrier(cancelled), context.Canceled)

	awaitSenders(t, 1)
	for text := ""; text != "READY=1"; {
		text = m.text(t)
		if text != "READY=1" {
			require.Equal(t, "X=full", text)
		}
	}
	require.NoError(t, <-sent)
	require.Equal(t, before, descriptors(t))
}

// Who comes first is first to send, also when all have to wait.
func TestNotifyTurns(t *testing.T) {
	m := supervised(t)
	m.fill(t)
	const senders = 10
	var group sync.WaitGroup
	for i := range senders {
		group.Go(func() {
			if err := activation.Status(strconv.Itoa(i)); err != nil {
				t.Error(err)
			}
		})
		awaitSenders(t, i+1)
	}
	for i := 0; i < senders; {
		if text := m.text(t); text != "X=full" {
			require.Equal(t, "STATUS="+strconv.Itoa(i), text)
			i++
		}
	}
	group.Wait()
}

// awaitSenders waits until so many goroutines are waiting to send.
func awaitSenders(t testing.TB, n int) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		waiting := 0
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			first, rest, _ := strings.Cut(stack, "\n")
			if strings.Contains(rest, "activation.send(") && (strings.Contains(first, "[IO wait") || strings.Contains(first, "[select")) {
				waiting++
			}
		}
		if waiting == n {
			return
		}
		runtime.Gosched()
	}
	require.FailNow(t, "they do not wait to send")
}

func TestBarrier(t *testing.T) {
	m := supervised(t)
	before := descriptors(t)
	require.NoError(t, activation.Status("before"))
	returned := make(chan error, 1)
	go func() { returned <- activation.Barrier(t.Context()) }()
	require.Equal(t, "STATUS=before", m.text(t))
	text, files := m.next(t)
	require.Equal(t, "BARRIER=1", text, "alone in the message")
	require.Len(t, files, 1, "and one descriptor")
	select {
	case err := <-returned:
		require.FailNow(t, "it does not wait", "%v", err)
	default:
	}
	// While it waits for the answer, the others send.
	require.NoError(t, activation.Status("meanwhile"))
	require.Equal(t, "STATUS=meanwhile", m.text(t))
	require.NoError(t, files[0].Close())
	require.NoError(t, <-returned)

	ctx, cancel := context.WithCancel(t.Context())
	go func() { returned <- activation.Barrier(ctx) }()
	_, files = m.next(t)
	cancel()
	require.ErrorIs(t, <-returned, context.Canceled)
	require.NoError(t, files[0].Close())

	go func() { returned <- activation.Barrier(t.Context()) }()
	_, files = m.next(t)
	_, err := files[0].Write([]byte("x"))
	require.NoError(t, err)
	require.ErrorContains(t, <-returned, "bytes came")
	require.NoError(t, files[0].Close())
	require.Equal(t, before, descriptors(t))
}

// A message that nobody reads because the socket goes away ends the barrier: systemd has it or it has not.
func TestBarrierManagerGone(t *testing.T) {
	m := supervised(t)
	returned := make(chan error, 1)
	go func() { returned <- activation.Barrier(t.Context()) }()
	raw, err := m.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Read(func(fd uintptr) bool { // until there is something
		_, _, err := unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err == nil
	}))
	require.NoError(t, m.Close())
	require.NoError(t, <-returned)
}
