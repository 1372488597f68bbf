package activation_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/systemdtest"
)

func init() { roles["server"] = playServer }

// keeper answers the question whether the store takes something, and gives what comes to be stored.
func (m *manager) keeper(t testing.TB, full bool) (string, []*os.File) {
	t.Helper()
	text, probe := m.next(t)
	require.Equal(t, "FDSTORE=1\nFDNAME=berth-probe", text)
	require.Len(t, probe, 1)
	if full {
		require.NoError(t, probe[0].Close())
	}
	text, barrier := m.next(t)
	require.Equal(t, "BARRIER=1", text)
	require.NoError(t, barrier[0].Close())
	if full {
		return "", nil
	}
	require.Equal(t, "FDSTOREREMOVE=1\nFDNAME=berth-probe", m.text(t))
	require.NoError(t, probe[0].Close())
	return m.next(t)
}

func TestStoreFormat(t *testing.T) {
	m := supervised(t)
	ln := listen(t, "tcp", "127.0.0.1:0").(*net.TCPListener)
	packets := listenPacket(t, "udp", "127.0.0.1:0").(*net.UDPConn)
	path := filepath.Join(t.TempDir(), "socket")
	local := listen(t, "unix", path).(*net.UnixListener)
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	udpClient, err := net.Dial("udp", packets.LocalAddr().String())
	require.NoError(t, err)
	defer udpClient.Close()
	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer file.Close()

	before := descriptors(t)
	for _, test := range []struct {
		socket syscall.Conn
		poll   bool
	}{
		{ln, false},
		{packets, false},
		{local, false},
		{file, false},
		{udpClient.(*net.UDPConn), false},
		{client.(*net.TCPConn), true},
	} {
		stored := make(chan error, 1)
		go func() { stored <- activation.Store("web 1", test.socket) }()
		text, files := m.keeper(t, false)
		require.NoError(t, <-stored)
		want := "FDSTORE=1\nFDNAME=web 1"
		if !test.poll {
			want += "\nFDPOLL=0"
		}
		require.Equal(t, want, text)
		require.Len(t, files, 1)
		require.Equal(t, inode(t, test.socket), inode(t, files[0]), "%T", test.socket)
		require.NoError(t, files[0].Close())
	}

	stored := make(chan error, 1)
	go func() { stored <- activation.Store("web", ln) }()
	m.keeper(t, true)
	err = <-stored
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, err, `"web" is not stored`)
	require.ErrorContains(t, err, "FileDescriptorStoreMax= in the unit is 0")
	require.Equal(t, before, descriptors(t))

	require.NoError(t, ln.Close())
	require.ErrorIs(t, activation.Store("web", ln), net.ErrClosed)
	require.NoError(t, local.Close())
	require.FileExists(t, path, "it stays for the one in the store")
	require.Empty(t, m.pending(t))
}

func inode(t testing.TB, socket syscall.Conn) (n uint64) {
	t.Helper()
	raw, err := socket.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		var stat syscall.Stat_t
		require.NoError(t, syscall.Fstat(int(fd), &stat))
		n = stat.Ino
	}))
	return n
}

// Several at once take turns, so that none sees the probe of another in the last free place.
func TestStoreTurns(t *testing.T) {
	m := supervised(t)
	ln := listen(t, "tcp", "127.0.0.1:0").(*net.TCPListener)
	var group sync.WaitGroup
	const n = 10
	for i := range n {
		group.Go(func() {
			if err := activation.Store(strconv.Itoa(i), ln); err != nil {
				t.Error(err)
			}
		})
	}
	for range n {
		_, files := m.keeper(t, false)
		require.NoError(t, files[0].Close())
	}
	group.Wait()
}

func TestStoreWithoutNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	ln := listen(t, "tcp", "127.0.0.1:0").(*net.TCPListener)
	t.Setenv("SYSTEMD_EXEC_PID", "1") // a child of a service
	require.NoError(t, activation.Store("web", ln))
	t.Setenv("SYSTEMD_EXEC_PID", strconv.Itoa(os.Getpid()))
	err := activation.Store("web", ln)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, err, "sets no FileDescriptorStoreMax=")
}

func testStore(t *testing.T, m *systemdtest.Manager) {
	count := func(t testing.TB, unit string) string { return m.Property(t, unit, "NFileDescriptorStore") }

	t.Run("counts", func(t *testing.T) {
		c := newControl(t)
		p := c.started(t, m, "counts.service", "FileDescriptorStoreMax=3")
		p.do(t, "store listener", "a")
		p.do(t, "store listener", "a")
		p.do(t, "store listener", "b")
		p.do(t, "barrier")
		require.Equal(t, "3", count(t, "counts.service"))
		full := p.ask(t, order{Do: "store listener", Text: "c"})
		require.True(t, full.Unsupported)
		require.Contains(t, full.Error, "or fewer than are stored")
		p.do(t, "unstore", "unknown")
		p.do(t, "barrier")
		require.Equal(t, "3", count(t, "counts.service"))
		p.do(t, "unstore", "a")
		p.do(t, "barrier")
		require.Equal(t, "1", count(t, "counts.service"))
		p.do(t, "store listener", "c")
		p.do(t, "barrier")

		restarted := begin(m, "restart", "counts.service")
		again := c.puppet(t)
		again.do(t, "ready")
		require.NoError(t, <-restarted)
		require.ElementsMatch(t, []string{"b", "c"}, again.Names)
		again.do(t, "unstore", "b") // it was stored by the process before
		again.do(t, "barrier")
		require.Equal(t, "1", count(t, "counts.service"))
		m.Systemctl(t, "stop", "counts.service")
	})

	// systemd drops at once what hangs up, and a socket that only has an address always does.
	t.Run("hang-up", func(t *testing.T) {
		c := newControl(t)
		p := c.started(t, m, "hangup.service", "FileDescriptorStoreMax=3")
		p.do(t, "store connection", "connection")
		conn := c.accept(t)
		p.do(t, "barrier")
		require.Equal(t, "1", count(t, "hangup.service"))
		p.do(t, "store bound", "bound")
		p.do(t, "barrier")
		require.Equal(t, "2", count(t, "hangup.service"))
		require.NoError(t, conn.Close())
		m.Await(t, "hangup.service", "NFileDescriptorStore", "1")
		restarted := begin(m, "restart", "hangup.service")
		again := c.puppet(t)
		again.do(t, "ready")
		require.NoError(t, <-restarted)
		require.Equal(t, []string{"bound"}, again.Names)
		m.Systemctl(t, "stop", "hangup.service")
	})

	t.Run("off", func(t *testing.T) {
		c := newControl(t)
		p := c.started(t, m, "off.service")
		a := p.ask(t, order{Do: "store listener", Text: "a"})
		require.True(t, a.Unsupported)
		require.Contains(t, a.Error, "FileDescriptorStoreMax= in the unit is 0, the default")
		m.Systemctl(t, "stop", "off.service")

		m.Add(t, map[string]string{"mute.service": c.service(t, "puppet", "Type=exec")})
		m.Systemctl(t, "start", "mute.service")
		p = c.puppet(t)
		a = p.ask(t, order{Do: "store listener", Text: "a"})
		require.True(t, a.Unsupported)
		require.Contains(t, a.Error, "sets no FileDescriptorStoreMax=")
		p.do(t, "ready")
		m.Systemctl(t, "stop", "mute.service")
	})

	t.Run("not allowed", func(t *testing.T) {
		c := newControl(t)
		p := c.started(t, m, "child.service", "FileDescriptorStoreMax=3")
		p.do(t, "puppet")
		child := c.puppet(t)
		a := child.ask(t, order{Do: "store listener", Text: "a"})
		require.True(t, a.Unsupported)
		require.Contains(t, a.Error, "NotifyAccess= does not allow pid "+strconv.Itoa(child.PID))
		m.Systemctl(t, "stop", "child.service")
	})
}

// playServer has a port, a Unix socket and a UDP port, either from the store or bound and then stored, and answers each
// connection and each datagram with its pid. SIGTERM ends it, after what it has begun.
func playServer() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	set, err := activation.FromEnv()
	if err != nil {
		return err
	}
	h := hello{Restored: true}
	listener := func(network, address string) (net.Listener, error) {
		ln, err := set.Take(network, network, address)
		if !errors.Is(err, fs.ErrNotExist) {
			return ln, err
		}
		h.Restored = false
		if ln, err = net.Listen(network, address); err != nil {
			return nil, err
		}
		return ln, activation.Store(network, ln.(syscall.Conn))
	}
	tcp, err := listener("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	local, err := listener("unix", os.Getenv(textVariable))
	if err != nil {
		return err
	}
	udp, err := set.TakePacket("udp", "udp", "127.0.0.1:0")
	if errors.Is(err, fs.ErrNotExist) {
		h.Restored = false
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
			err = activation.Store("udp", udp.(syscall.Conn))
		}
	}
	if err != nil {
		return err
	}

	var group sync.WaitGroup
	for _, ln := range []net.Listener{tcp, local} {
		group.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, os.Getpid())
				conn.Close()
			}
		})
	}
	group.Go(func() {
		buffer := make([]byte, 100)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(fmt.Append(buffer[:n:n], " ", os.Getpid()), from)
		}
	})
	h.TCP, h.UDP = tcp.Addr().String(), udp.LocalAddr().String()
	conn, err := greet(h)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := activation.Ready(); err != nil {
		return err
	}
	<-stop
	if err := activation.Stopping(); err != nil {
		return err
	}
	past := time.Unix(1, 0)
	if err := errors.Join(tcp.(*net.TCPListener).SetDeadline(past), local.(*net.UnixListener).SetDeadline(past),
		udp.SetReadDeadline(past)); err != nil { // an answer still goes out
		return err
	}
	group.Wait()
	return errors.Join(tcp.Close(), local.Close(), udp.Close())
}

// A load asks without a pause, each time by a new connection.
type load struct {
	group   sync.WaitGroup
	stop    atomic.Bool
	counts  sync.Map // of answers, by "network pid"
	failed  atomic.Int64
	failure atomic.Value
}

func (l *load) add(ask func(i int) (pid string, err error), network string) {
	l.group.Go(func() {
		for i := 0; !l.stop.Load(); i++ {
			pid, err := ask(i)
			if err != nil || pid == "" {
				l.failed.Add(1)
				l.failure.Store(fmt.Sprintf("%s: %q, %v", network, pid, err))
				return
			}
			n, _ := l.counts.LoadOrStore(network+" "+pid, new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
		}
	})
}

func (l *load) count(network string, pid int) int64 {
	n, ok := l.counts.Load(network + " " + strconv.Itoa(pid))
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

func askStream(network, address string) func(int) (string, error) {
	return func(int) (string, error) {
		conn, err := net.DialTimeout(network, address, patience)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return "", err
		}
		text, err := io.ReadAll(conn)
		return string(text), err
	}
}

func askPacket(address string) func(int) (string, error) {
	return func(i int) (string, error) {
		conn, err := net.Dial("udp", address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return "", err
		}
		if _, err := fmt.Fprint(conn, i); err != nil {
			return "", err
		}
		buffer := make([]byte, 100)
		n, err := conn.Read(buffer)
		if err != nil {
			return "", err
		}
		number, pid, _ := strings.Cut(string(buffer[:n]), " ")
		if number != strconv.Itoa(i) {
			return "", fmt.Errorf("answer %q to %d", buffer[:n], i)
		}
		return pid, nil
	}
}

// No socket unit: the store alone keeps the sockets, and what comes while nobody is there waits in them.
func testRestart(t *testing.T, m *systemdtest.Manager) {
	c := newControl(t)
	path := filepath.Join(t.TempDir(), "socket")
	m.Add(t, map[string]string{"server.service": c.service(t, "server", "Type=notify", "FileDescriptorStoreMax=3",
		"Restart=on-failure", "RestartSec=0", "Environment="+textVariable+"="+path)})
	m.Systemctl(t, "start", "server.service")
	first := c.puppet(t)
	require.False(t, first.Restored)

	l := new(load)
	for range 3 {
		l.add(askStream("tcp", first.TCP), "tcp")
		l.add(askStream("unix", path), "unix")
		l.add(askPacket(first.UDP), "udp")
	}
	defer l.group.Wait()
	defer l.stop.Store(true)
	// served waits until a process has answered on all of them.
	served := func(pid int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for l.count("tcp", pid) < 20 || l.count("unix", pid) < 20 || l.count("udp", pid) < 20 {
			require.NoError(t, ctx.Err(), l.failure.Load())
			require.Zero(t, l.failed.Load(), l.failure.Load())
			time.Sleep(time.Millisecond)
		}
	}
	served(first.PID)
	pids := map[int]bool{first.PID: true}
	for range 5 {
		m.Systemctl(t, "restart", "server.service")
		p := c.puppet(t)
		require.True(t, p.Restored)
		require.False(t, pids[p.PID])
		pids[p.PID] = true
		require.Equal(t, []string{first.TCP, first.UDP}, []string{p.TCP, p.UDP})
		served(p.PID)
	}
	l.stop.Store(true)
	l.group.Wait()
	require.Zero(t, l.failed.Load(), l.failure.Load())

	// Also when it crashes, but for what it had begun.
	m.Systemctl(t, "kill", "--signal=KILL", "server.service")
	p := c.puppet(t)
	require.True(t, p.Restored)
	require.Equal(t, first.TCP, p.TCP)
	pid, err := askStream("unix", path)(0)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(p.PID), pid)

	// A stop is the end of them.
	m.Systemctl(t, "stop", "server.service")
	m.Await(t, "server.service", "NFileDescriptorStore", "0")
	_, err = askStream("tcp", first.TCP)(0)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
