package listener_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/reuseport"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func init() { roles["group"] = role.playGroup }

// playGroup serves a group of three, and tells how many queues that are.
func (r role) playGroup() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	all, err := cfg.ListenGroup(context.Background(), r.Network, r.Address, 3)
	if err != nil {
		return err
	}
	for _, ln := range all[1:] {
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(conn, os.Getpid())
				conn.Close()
			}
		}()
	}
	queues := map[uint64]bool{}
	for _, ln := range all {
		number, err := inodeOf(ln)
		if err != nil {
			return err
		}
		queues[number] = true
	}
	fmt.Println(all[0].Origin().Kind, len(queues))
	err = r.serve(all[0])
	for _, ln := range all[1:] {
		err = errors.Join(err, ln.Close())
	}
	return err
}

// listenGroup is ListenGroup, whose listeners are closed at the end of the test.
func listenGroup(t testing.TB, cfg *listener.Config, address string, n int) []*listener.Listener {
	t.Helper()
	all, err := cfg.ListenGroup(t.Context(), "tcp", address, n)
	require.NoError(t, err)
	t.Cleanup(func() { closeAll(all) })
	return all
}

func closeAll(all []*listener.Listener) {
	for _, ln := range all {
		ln.Close()
	}
}

// visit opens connections that stay open until the end of the test.
func visit(t testing.TB, address string, n int) []net.Conn {
	t.Helper()
	var all []net.Conn
	for range n {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
		t.Cleanup(func() { conn.Close() })
		all = append(all, conn)
	}
	return all
}

// acceptAll accepts from a listener until so many have come.
func acceptAll(t testing.TB, ln net.Listener, n int) {
	t.Helper()
	require.NoError(t, ln.(*listener.Listener).SetDeadline(time.Now().Add(deadline)))
	for range n {
		conn, err := ln.Accept()
		require.NoError(t, err)
		require.IsType(t, &net.TCPConn{}, conn)
		require.NoError(t, conn.Close())
	}
}

// inodeOf tells sockets apart.
func inodeOf(conn syscall.Conn) (uint64, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stat unix.Stat_t
	controlErr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &stat) })
	return stat.Ino, errors.Join(controlErr, err)
}

func inode(t testing.TB, conn syscall.Conn) uint64 {
	t.Helper()
	number, err := inodeOf(conn)
	require.NoError(t, err)
	return number
}

// One address, one lock, one record, one port file, which go with the last.
func TestGroup(t *testing.T) {
	const members = 4
	state, portFile := t.TempDir(), filepath.Join(t.TempDir(), "port")
	var events []string
	var controlled atomic.Int64
	cfg := &listener.Config{
		StateDir: state, PortFile: portFile, Name: "web",
		Net: net.ListenConfig{Control: func(string, string, syscall.RawConn) error { controlled.Add(1); return nil }},
		OnEvent: func(e listener.Event) {
			if e.Kind != listener.LockWait { // on a busy machine
				events = append(events, e.Kind.String())
			}
		},
	}
	all := listenGroup(t, cfg, "127.0.0.1:"+freePort(t), members)
	require.Len(t, all, members)
	require.EqualValues(t, members, controlled.Load())
	address := all[0].Addr().String()
	inodes := map[uint64]bool{}
	for _, ln := range all {
		require.Equal(t, address, ln.Addr().String())
		require.Equal(t, listener.Bound, ln.Origin().Kind)
		inodes[inode(t, ln)] = true
		require.Equal(t, unix.IPPROTO_TCP, option(t, ln, unix.SOL_SOCKET, unix.SO_PROTOCOL), "no MPTCP")
		_, ok := listener.As[*net.TCPListener](ln)
		require.True(t, ok)
	}
	require.Len(t, inodes, members)
	text, err := os.ReadFile(portFile)
	require.NoError(t, err)
	require.Equal(t, address+"\n", string(text))
	require.Len(t, records(t, state), 1)

	const connections = 400
	var counts [members]atomic.Int64
	var accepting sync.WaitGroup
	for i, ln := range all {
		accepting.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				counts[i].Add(1)
				conn.Close()
			}
		})
	}
	for _, conn := range visit(t, address, connections) {
		_, err := conn.Read(make([]byte, 1))
		require.Error(t, err, "it is closed when it has been counted")
	}
	for i := range counts {
		require.Greater(t, counts[i].Load(), int64(connections/members/2))
	}

	for i, ln := range all {
		require.NoError(t, ln.Close())
		require.NoError(t, ln.Close())
		_, err := ln.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		require.ErrorIs(t, ln.SetDeadline(time.Time{}), net.ErrClosed)
		_, err = ln.File()
		require.ErrorIs(t, err, net.ErrClosed)
		if i == members-1 {
			break
		}
		require.Len(t, records(t, state), 1)
		require.FileExists(t, portFile)
		_, err = net.Listen("tcp", address)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
	}
	accepting.Wait()
	require.Empty(t, records(t, state))
	require.NoFileExists(t, portFile)
	ln, err := net.Listen("tcp", address)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.Equal(t, []string{"obtained", "released"}, events)
}

// What a socket with SO_REUSEPORT takes along when it is closed goes to the other members of a group.
func TestCloseOfOneLosesNothing(t *testing.T) {
	const members, connections = 4, 64
	bare, address := inheritance(t, 2)
	clients := visit(t, address, connections)
	require.NoError(t, bare[1].Close())
	left, err := reuseport.Watch(bare[0].(*net.TCPListener))
	require.NoError(t, err)
	defer left.Close()
	for conn, err := left.Accept(); conn != nil; conn, err = left.Accept() {
		require.NoError(t, err)
		conn.Close()
		clients = clients[1:]
	}
	require.NotEmpty(t, clients, "lost: that is why")

	all := listenGroup(t, &listener.Config{StateDir: t.TempDir()}, "127.0.0.1:0", members)
	address = all[0].Addr().String()
	clients = visit(t, address, connections)
	for _, i := range []int{1, 0, 3} { // whichever: the first, the last and one in between
		require.NoError(t, all[i].Close())
	}
	clients = append(clients, visit(t, address, connections)...)
	acceptAll(t, all[2], len(clients))
	for _, client := range clients {
		require.NoError(t, client.SetReadDeadline(time.Now().Add(deadline)))
		_, err := client.Read(make([]byte, 1))
		require.ErrorContains(t, err, "EOF")
	}
}

// The kernel deals to what is open.
func TestAClosedMemberGetsNothing(t *testing.T) {
	all := listenGroup(t, &listener.Config{StateDir: t.TempDir()}, "127.0.0.1:0", 3)
	socket, ok := listener.As[*net.TCPListener](all[1])
	require.True(t, ok)
	require.NoError(t, all[1].Close())
	visit(t, all[0].Addr().String(), 64)
	queue, err := reuseport.Watch(socket)
	require.NoError(t, err)
	defer queue.Close()
	require.True(t, queue.Empty())
}

// Nothing stays open, in whatever order it is closed, and of what fails.
func TestGroupsLeaveNoDescriptor(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close what was forgotten
	state, path := t.TempDir(), filepath.Join(shortDir(t), "s")
	taken := listenPlain(t, "tcp", "127.0.0.1:0").Addr().String()
	cycle := func() {
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
			for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": path} {
				all, err := (&listener.Config{StateDir: state}).ListenGroup(t.Context(), network, address, len(order))
				require.NoError(t, err)
				for _, i := range order {
					require.NoError(t, all[i].Close())
				}
			}
			conns, err := (&listener.Config{StateDir: state}).ListenPacketGroup(t.Context(), "udp", "127.0.0.1:0", len(order))
			require.NoError(t, err)
			for _, i := range order {
				require.NoError(t, conns[i].Close())
			}
		}
		_, err := (&listener.Config{StateDir: state}).ListenGroup(t.Context(), "tcp", taken, 3)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		for _, failing := range []string{"keep", "keep member"} {
			cfg := &listener.Config{StateDir: state, Sources: []listener.Source{&heirs{fail: failing}}}
			_, err = cfg.ListenGroup(t.Context(), "tcp", "127.0.0.1:0", 3)
			require.ErrorIs(t, err, errHeirs)
		}
	}
	cycle()
	before, err := descriptors()
	require.NoError(t, err)
	for range 5 {
		cycle()
	}
	after, err := descriptors()
	require.NoError(t, err)
	require.Len(t, after, len(before), "%v", after)
}

// The deadline of one who accepts is his, whatever wakes him.
func TestGroupDeadline(t *testing.T) {
	const rounds = 50
	all := listenGroup(t, &listener.Config{StateDir: t.TempDir()}, "127.0.0.1:0", 3)
	address := all[0].Addr().String()
	require.NoError(t, all[0].Close())
	require.NoError(t, all[1].SetDeadline(time.Now().Add(-time.Second)))
	_, err := all[1].Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	// Both wait, and are woken for what comes to the first until the kernel deals to them alone, and after.
	require.NoError(t, all[1].SetDeadline(time.Time{}))
	accepted := make(chan error)
	var accepting sync.WaitGroup
	for _, ln := range all[1:] {
		for range 2 {
			accepting.Go(func() {
				for {
					conn, err := ln.Accept()
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil {
						conn.Close()
					}
					accepted <- err
				}
			})
		}
	}
	steer := func(to ...int) {
		file, err := all[2].File()
		require.NoError(t, err)
		defer file.Close()
		require.NoError(t, reuseport.Steer(file, to))
	}
	steer(0) // as nobody does: everything comes to the one that is closed
	for range rounds {
		visit(t, address, 1)
		require.NoError(t, <-accepted)
	}
	require.NoError(t, all[1].Close())
	require.NoError(t, all[2].Close())
	accepting.Wait()
}

// A second start finds the address taken, and hears by whom; a group moves as one, and is stopped as one.
func TestGroupConflict(t *testing.T) {
	port, other := freePort(t), freePort(t)
	r := role{Do: "group", Network: "tcp", Address: "127.0.0.1:" + port, StateDir: t.TempDir(), Ranges: other + "-" + other}
	first := play(t, r)
	line, _ := first.line(t)
	require.Equal(t, "bound 3", line)
	require.Equal(t, r.Address, first.ready(t))

	second := play(t, r)
	text := second.failed(t)
	require.Contains(t, text, "address already in use")
	require.Contains(t, text, "pid "+strconv.Itoa(first.pid()))
	require.Equal(t, 1, strings.Count(text, "pid "), text)

	r.Strategy = "staging"
	third := play(t, r)
	line, _ = third.line(t)
	require.Equal(t, "fallback 3", line)
	require.Equal(t, "127.0.0.1:"+other, third.ready(t))

	r.Strategy = "development"
	fourth := play(t, r)
	line, _ = fourth.line(t)
	require.Equal(t, "reclaimed 3", line)
	require.Equal(t, r.Address, fourth.ready(t))
	require.NoError(t, first.exit(t), "it was asked to end, and could finish")
	for range 20 {
		require.Equal(t, strconv.Itoa(fourth.pid()), answers(t, "tcp", r.Address))
	}

	require.NoError(t, fourth.Process.Kill())
	_ = fourth.exit(t)
	fifth := play(t, r)
	line, _ = fifth.line(t)
	require.Equal(t, "bound 3", line, "nothing is left of one that was killed")
}

// Whoever joins uninvited gets nothing, also when members have been closed.
func TestStrangersGetNothing(t *testing.T) {
	const connections = 100
	all := listenGroup(t, &listener.Config{StateDir: t.TempDir()}, "127.0.0.1:0", 3)
	uninvited, err := (&net.ListenConfig{Control: reuseport.Control}).Listen(t.Context(), "tcp", all[0].Addr().String())
	require.NoError(t, err, "of the same user: the kernel lets it in")
	defer uninvited.Close()
	require.NoError(t, all[1].Close())
	var accepted sync.WaitGroup
	for _, ln := range []*listener.Listener{all[0], all[2]} {
		accepted.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, "ours")
				conn.Close()
			}
		})
	}
	for _, conn := range visit(t, all[0].Addr().String(), connections) {
		text := make([]byte, 4)
		_, err := conn.Read(text)
		require.NoError(t, err)
		require.Equal(t, "ours", string(text))
	}
	queue, err := reuseport.Watch(uninvited.(*net.TCPListener))
	require.NoError(t, err)
	defer queue.Close()
	require.True(t, queue.Empty())
	closeAll(all)
	accepted.Wait()
}

// All or none: whatever fails, nothing is left.
func TestGroupThatFails(t *testing.T) {
	state := t.TempDir()
	refused := errors.New("refused")
	var calls atomic.Int64
	cfg := &listener.Config{StateDir: state, Net: net.ListenConfig{Control: func(string, string, syscall.RawConn) error {
		if calls.Add(1) > 2 {
			return refused
		}
		return nil
	}}}
	address := "127.0.0.1:" + freePort(t)
	_, err := cfg.ListenGroup(t.Context(), "tcp", address, 4)
	require.ErrorIs(t, err, refused)
	require.IsType(t, &net.OpError{}, err)
	require.Empty(t, records(t, state))

	cfg.Net.Control = nil
	for _, failing := range []string{"keep", "keep member"} {
		cfg.Sources = []listener.Source{&heirs{fail: failing}}
		_, err = cfg.ListenGroup(t.Context(), "tcp", address, 4)
		require.ErrorIs(t, err, errHeirs)
		require.Empty(t, records(t, state))
	}
	cfg.Sources = nil
	all := listenGroup(t, cfg, address, 4)
	require.Equal(t, address, all[0].Addr().String())
}

// heirs is a source that has a group, as the upgrader of package reload.
type heirs struct {
	has     []net.Listener
	packets []net.PacketConn
	kept    []string
	fail    string
}

var errHeirs = errors.New("no")

func (h *heirs) Take(string, string, string) (net.Listener, error) {
	if len(h.has) == 0 {
		return nil, fs.ErrNotExist
	}
	ln := h.has[0]
	h.has = h.has[1:]
	return ln, nil
}

func (h *heirs) TakePacket(string, string, string) (net.PacketConn, error) {
	if len(h.packets) == 0 {
		return nil, fs.ErrNotExist
	}
	conn := h.packets[0]
	h.packets = h.packets[1:]
	return conn, nil
}

func (h *heirs) Keep(_, _, address string, _ syscall.Conn) error {
	h.kept = append(h.kept, "first "+address)
	return h.failure("keep")
}

func (h *heirs) TakeMember(name, network, address, _ string) (net.Listener, error) {
	return h.Take(name, network, address)
}

func (h *heirs) TakePacketMember(name, network, address, _ string) (net.PacketConn, error) {
	return h.TakePacket(name, network, address)
}

func (h *heirs) KeepMember(_, _, address string, _ syscall.Conn) error {
	h.kept = append(h.kept, "member "+address)
	return h.failure("keep member")
}

func (h *heirs) failure(of string) error {
	if h.fail == of {
		return errHeirs
	}
	return nil
}

// inheritance is sockets of one address, as an earlier version had them.
func inheritance(t testing.TB, n int) (all []net.Listener, address string) {
	t.Helper()
	first, err := net.Listen("tcp", "127.0.0.1:0") // MPTCP, as it was before there was a group
	require.NoError(t, err)
	require.NoError(t, reuseport.Allow(first.(*net.TCPListener)))
	all = append(all, first)
	config := net.ListenConfig{Control: reuseport.Control}
	config.SetMultipathTCP(false)
	for len(all) < n {
		ln, err := config.Listen(t.Context(), "tcp", first.Addr().String())
		require.NoError(t, err)
		all = append(all, ln)
	}
	t.Cleanup(func() {
		for _, ln := range all {
			ln.Close()
		}
	})
	return all, first.Addr().String()
}

func isOpen(ln net.Listener) bool {
	raw, err := ln.(syscall.Conn).SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// Sockets that are not in use any more are closed when nothing can be under way to them, and not before.
func TestSurplusIsClosedWhenItIsQuiet(t *testing.T) {
	defer listener.SetQuiet(20 * time.Millisecond)()
	const members, connections = 5, 64
	for _, n := range []int{0, 1, 2} { // 0 is Config.Listen
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			inherited, address := inheritance(t, members)
			visit(t, address, connections)
			source := &heirs{has: slices.Clone(inherited)}
			cfg := &listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{source}}
			var all []*listener.Listener
			if n == 0 {
				ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
				require.NoError(t, err)
				defer ln.Close()
				all = append(all, ln)
			} else {
				all = listenGroup(t, cfg, "127.0.0.1:0", n)
			}
			require.Equal(t, listener.Inherited, all[0].Origin().Kind)
			require.Empty(t, source.kept, "it is all theirs")
			require.Empty(t, source.has)
			used := max(n, 1)
			var accepted atomic.Int64
			var accepting sync.WaitGroup
			for _, ln := range all {
				accepting.Go(func() {
					for {
						conn, err := ln.Accept()
						if err != nil {
							return
						}
						conn.Close()
						accepted.Add(1)
					}
				})
			}
			require.Eventually(t, func() bool { return accepted.Load() == connections }, deadline, time.Millisecond)
			for _, ln := range inherited[used:] {
				require.Eventually(t, func() bool { return !isOpen(ln) }, deadline, time.Millisecond)
			}
			for _, ln := range inherited[:used] {
				require.True(t, isOpen(ln))
			}
			visit(t, address, connections)
			require.Eventually(t, func() bool { return accepted.Load() == 2*connections }, deadline, time.Millisecond)
			closeAll(all)
			accepting.Wait()
		})
	}
}

// One that something may still come to is not closed: where what waits is not accepted, and where the kernel would put another
// into its place.
func TestSurplusIsNotClosedEarly(t *testing.T) {
	defer listener.SetQuiet(time.Millisecond)()
	inherited, address := inheritance(t, 3)
	visit(t, address, 32) // which nobody accepts
	cfg := &listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{&heirs{has: slices.Clone(inherited)}}}
	ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()

	all := listenGroup(t, &listener.Config{StateDir: t.TempDir()}, "127.0.0.1:0", 3)
	middle, ok := listener.As[*net.TCPListener](all[1])
	require.True(t, ok)
	last, ok := listener.As[*net.TCPListener](all[2])
	require.True(t, ok)
	require.NoError(t, all[1].Close())
	time.Sleep(20 * time.Millisecond) // nothing tells that nothing happens
	for _, ln := range inherited {
		require.True(t, isOpen(ln))
	}
	require.True(t, isOpen(middle))
	require.NoError(t, all[2].Close()) // now both are last, one after the other
	for _, ln := range []net.Listener{last, middle} {
		require.Eventually(t, func() bool { return !isOpen(ln) }, deadline, time.Millisecond)
	}
	visit(t, all[0].Addr().String(), 16)
	acceptAll(t, all[0], 16)
}

// A new version that joins in is given no connections until it leads; what it has joined is handed on.
func TestGroupGrows(t *testing.T) {
	inherited, address := inheritance(t, 1)
	source := &heirs{has: slices.Clone(inherited)}
	all := listenGroup(t, &listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{source}}, "127.0.0.1:0", 3)
	require.Equal(t, []string{"member 127.0.0.1:0", "member 127.0.0.1:0"}, source.kept)
	for _, ln := range all {
		require.Equal(t, address, ln.Addr().String())
	}
}

// Where the address was bound by another user, whom the kernel asks for, listeners share what there is.
func TestGroupOfAnotherUser(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	config := net.ListenConfig{}
	config.SetMultipathTCP(false)
	first, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer first.Close()
	raw, err := first.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	const nobody = 65534
	require.NoError(t, raw.Control(func(fd uintptr) { err = unix.Fchown(int(fd), nobody, -1) }))
	require.NoError(t, err)
	log, journal := newJournal(slog.LevelWarn)
	all := listenGroup(t, &listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{&heirs{has: []net.Listener{first}}}, Logger: log}, "127.0.0.1:0", 3)
	for _, ln := range all {
		require.Equal(t, inode(t, first.(syscall.Conn)), inode(t, ln))
	}
	require.Len(t, journal.entries(t, slog.LevelWarn), 1)
	visit(t, first.Addr().String(), len(all))
	for _, ln := range all {
		acceptAll(t, ln, 1)
	}
}

// Packet sockets that are not asked for any more are closed; who is left gets what comes.
func TestPacketGroupShrinks(t *testing.T) {
	const members, peers = 4, 32
	source := &heirs{}
	config := net.ListenConfig{Control: reuseport.Control}
	address := "127.0.0.1:0"
	for range members {
		conn, err := config.ListenPacket(t.Context(), "udp", address)
		require.NoError(t, err)
		defer conn.Close()
		source.packets, address = append(source.packets, conn), conn.LocalAddr().String()
	}
	inherited := slices.Clone(source.packets)
	all, err := (&listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{source}}).ListenPacketGroup(t.Context(), "udp", address, 2)
	require.NoError(t, err)
	require.Len(t, all, 2)
	for i, conn := range inherited {
		raw, err := conn.(*net.UDPConn).SyscallConn()
		require.NoError(t, err)
		require.Equal(t, i < 2, raw.Control(func(uintptr) {}) == nil)
	}
	for range peers {
		conn, err := net.Dial("udp", address)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		require.NoError(t, err)
	}
	got := make(chan struct{})
	for _, conn := range all {
		go func() {
			for {
				if _, _, err := conn.ReadFrom(make([]byte, 1)); err != nil {
					return
				}
				got <- struct{}{}
			}
		}()
	}
	for range peers {
		<-got
	}
	for _, conn := range all {
		require.NoError(t, conn.Close())
	}
}

// Where sockets cannot join, listeners share one.
func TestGroupShares(t *testing.T) {
	const members = 3
	path := filepath.Join(shortDir(t), "s")
	cfg := &listener.Config{StateDir: t.TempDir()}
	all, err := cfg.ListenGroup(t.Context(), "unix", path, members)
	require.NoError(t, err)
	require.Len(t, all, members)
	for _, ln := range all {
		require.Equal(t, inode(t, all[0]), inode(t, ln))
	}
	for i, ln := range all {
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		accepted, err := ln.Accept()
		require.NoError(t, err)
		require.NoError(t, accepted.Close())
		require.NoError(t, conn.Close())
		if i+1 < members { // the first goes first, and the others go on
			require.NoError(t, ln.Close())
			_, err = ln.Accept()
			require.ErrorIs(t, err, net.ErrClosed)
			require.FileExists(t, path)
		}
	}
	all[1].SetUnlinkOnClose(false)
	require.NoError(t, all[members-1].Close())
	require.FileExists(t, path)
}

// The sockets of systemd are a group where there are several of one address, and else shared.
func TestGroupOfSystemd(t *testing.T) {
	address := "127.0.0.1:" + freePort(t)
	p := socketActivate(t, role{Do: "group", Network: "tcp", Address: address, StateDir: t.TempDir()}, "-l", address)
	conn := dialOnceListening(t, address)
	line, _ := p.line(t)
	require.Equal(t, "activated 1", line)
	text := make([]byte, 20)
	n, err := conn.Read(text)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(p.pid()), strings.TrimSpace(string(text[:n])))
	for range 20 {
		require.Equal(t, strconv.Itoa(p.pid()), answers(t, "tcp", address))
	}

	passed, address := inheritance(t, 2)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("/bin/sh", "-c", "LISTEN_PID=$$ exec "+exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+encodeRole(t, role{Do: "group", Network: "tcp", Address: address, StateDir: t.TempDir()}),
		"GORACE=atexit_sleep_ms=0", "LISTEN_FDS=2")
	for _, ln := range passed {
		file, err := ln.(*net.TCPListener).File()
		require.NoError(t, err)
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	p = start(t, cmd)
	line, _ = p.line(t)
	require.Equal(t, "activated 2", line)
	p.ready(t)
	for range 20 {
		require.Equal(t, strconv.Itoa(p.pid()), answers(t, "tcp", address))
	}
}

func TestPacketGroup(t *testing.T) {
	const members, peers = 4, 64
	state := t.TempDir()
	cfg := &listener.Config{StateDir: state}
	all, err := cfg.ListenPacketGroup(t.Context(), "udp", "127.0.0.1:0", members)
	require.NoError(t, err)
	require.Len(t, all, members)
	address := all[0].LocalAddr().String()
	require.Len(t, records(t, state), 1)
	_, err = net.ListenPacket("udp", address)
	require.ErrorIs(t, err, syscall.EADDRINUSE)

	var reading sync.WaitGroup
	var counts [members]atomic.Int64
	for i, conn := range all {
		reading.Go(func() {
			for {
				_, from, err := conn.ReadFrom(make([]byte, 10))
				if err != nil {
					return
				}
				counts[i].Add(1)
				_, _ = conn.WriteTo([]byte("x"), from)
			}
		})
	}
	for range peers {
		conn, err := net.Dial("udp", address)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, 1))
		require.NoError(t, err)
	}
	for i := range counts {
		require.Positive(t, counts[i].Load())
	}
	for i, conn := range all {
		require.NoError(t, conn.Close())
		if i+1 < members {
			require.Len(t, records(t, state), 1)
		}
	}
	reading.Wait()
	require.Empty(t, records(t, state))

	_, err = cfg.ListenPacketGroup(t.Context(), "udp", "127.0.0.1:70000", 2)
	require.Error(t, err)
}

// The strategy decides about a group as about one.
func TestGroupFallsBackAsOne(t *testing.T) {
	taken := listenPlain(t, "tcp", "127.0.0.1:0")
	cfg := &listener.Config{StateDir: t.TempDir(), Strategy: strategy.Staging(strategy.Range{})}
	all := listenGroup(t, cfg, taken.Addr().String(), 0)
	for _, ln := range all {
		require.Equal(t, listener.Fallback, ln.Origin().Kind)
		require.Equal(t, all[0].Addr().String(), ln.Addr().String())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := cfg.ListenGroup(ended, "tcp", "127.0.0.1:0", 2)
	require.ErrorIs(t, err, context.Canceled)
}
