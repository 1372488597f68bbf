package bound

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func newSocket(t testing.TB, k Kind) *Socket {
	t.Helper()
	s, err := Open(k)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func bind(t testing.TB, k Kind, addr netip.AddrPort) (*Socket, netip.AddrPort) {
	t.Helper()
	s := newSocket(t, k)
	require.NoError(t, s.Bind(addr))
	return s, address(t, s)
}

func address(t testing.TB, s *Socket) netip.AddrPort {
	t.Helper()
	addr, err := s.Addr()
	require.NoError(t, err)
	return addr
}

// take tries to get the address with these options, and gives the errors of bind and, where that succeeds, of listen.
func take(t testing.TB, addr netip.AddrPort, options ...int) (bindErr, listenErr error) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for _, o := range options {
		require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 1))
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return err, nil
	}
	return nil, unix.Listen(fd, 1)
}

// requireExclusive checks that nobody can even bind the address, whatever options he sets.
func requireExclusive(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	for _, options := range [][]int{{}, {unix.SO_REUSEADDR}, {unix.SO_REUSEPORT}, {unix.SO_REUSEADDR, unix.SO_REUSEPORT}} {
		bindErr, _ := take(t, addr, options...)
		require.ErrorIs(t, bindErr, unix.EADDRINUSE, "%v", options)
	}
}

func requireRefused(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	_, err := net.DialTimeout("tcp", addr.String(), 10*time.Second)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func listener(t testing.TB, s *Socket) net.Listener {
	t.Helper()
	file, err := s.File("test")
	require.NoError(t, err)
	defer file.Close()
	ln, err := net.FileListener(file)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	t.Cleanup(func() { ln.Close() })
	return ln
}

// leaveRemains serves a connection on a new port and ends it first, so that it remains there in TIME_WAIT.
func leaveRemains(t testing.TB, multipath bool) netip.AddrPort {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(multipath)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	server, err := ln.Accept()
	require.NoError(t, err)
	require.NoError(t, server.Close())
	_, err = client.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, client.Close())
	return netip.MustParseAddrPort(ln.Addr().String())
}

func TestBoundIsExclusiveAndRefuses(t *testing.T) {
	for _, multipath := range []bool{false, true} {
		s, addr := bind(t, Kind{Network: "tcp", Multipath: multipath}, loopback)
		requireExclusive(t, addr)
		requireRefused(t, addr)
		require.NoError(t, s.Serve())
		requireExclusive(t, addr)
		require.NoError(t, s.Serve(), "again")

		client, err := net.Dial("tcp", addr.String())
		require.NoError(t, err)
		ln := listener(t, s)
		server, err := ln.Accept()
		require.NoError(t, err)
		conn, err := server.(*net.TCPConn).SyscallConn()
		require.NoError(t, err)
		require.NoError(t, conn.Control(func(fd uintptr) {
			reuse, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR)
			require.NoError(t, err)
			require.Equal(t, 1, reuse, "what remains of the connection is in nobody's way")
		}))
		require.NoError(t, server.Close())
		require.NoError(t, client.Close())
		require.NoError(t, ln.Close())
		again, err := net.Listen("tcp", addr.String())
		require.NoError(t, err)
		require.NoError(t, again.Close())
	}
}

func TestProtocol(t *testing.T) {
	if _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP); err != nil {
		t.Skip("no MPTCP here")
	}
	for multipath, want := range map[bool]int{false: unix.IPPROTO_TCP, true: unix.IPPROTO_MPTCP} {
		s, _ := bind(t, Kind{Network: "tcp", Multipath: multipath}, loopback)
		got, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// One socket looks for a port.
func TestBindAgainAfterAFailure(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		_, taken := bind(t, Kind{Network: network}, loopback)
		s := newSocket(t, Kind{Network: network})
		for range 3 {
			require.ErrorIs(t, s.Bind(taken), unix.EADDRINUSE)
		}
		require.NoError(t, s.Bind(loopback))
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		addr string
		want string
	}{
		{Kind{Network: "tcp"}, "127.0.0.1:0", "127.0.0.1"},
		{Kind{Network: "tcp", V6: true}, "[::1]:0", "::1"},
		{Kind{Network: "tcp", V6: true}, "", "::"},
		{Kind{Network: "udp", V6: true, V6Only: true}, "[::]:0", "::"},
		{Kind{Network: "udp"}, "", "0.0.0.0"},
		{Kind{Network: "tcp", V6: true}, "[::1%1]:0", "::1"}, // a zone means nothing there
	} {
		var addr netip.AddrPort
		if c.addr != "" {
			addr = netip.MustParseAddrPort(c.addr)
		}
		_, got := bind(t, c.kind, addr)
		require.Equal(t, c.want, got.Addr().String(), "%+v", c)
	}
	require.True(t, DualStack())
}

// Both families at one port, where the IPv6 socket leaves IPv4 alone.
func TestV6Only(t *testing.T) {
	v4 := newSocket(t, Kind{Network: "tcp"})
	err := error(unix.EADDRINUSE)
	for i := 0; i < 100 && errors.Is(err, unix.EADDRINUSE); i++ { // IPv4 may be in use at the port that the kernel chose for IPv6
		_, addr := bind(t, Kind{Network: "tcp", V6: true, V6Only: true}, netip.AddrPort{})
		err = v4.Bind(netip.AddrPortFrom(netip.Addr{}, addr.Port()))
	}
	require.NoError(t, err)

	_, addr := bind(t, Kind{Network: "tcp", V6: true}, netip.AddrPort{})
	v4 = newSocket(t, Kind{Network: "tcp"})
	require.ErrorIs(t, v4.Bind(netip.AddrPortFrom(netip.Addr{}, addr.Port())), unix.EADDRINUSE)
}

// What remains of connections keeps nobody from an address, and what is bound over it is as exclusive as any.
func TestBindOverRemains(t *testing.T) {
	for _, multipath := range []bool{false, true} {
		addr := leaveRemains(t, multipath)
		s := newSocket(t, Kind{Network: "tcp"})
		require.ErrorIs(t, s.Bind(addr), unix.EADDRINUSE, "or this test shows nothing")
		require.NoError(t, s.BindOverRemains(addr, nil))
		require.Equal(t, addr, address(t, s))
		requireExclusive(t, addr)
		requireRefused(t, addr)
		require.ErrorIs(t, newSocket(t, Kind{Network: "tcp"}).BindOverRemains(addr, nil), unix.EADDRINUSE)

		require.NoError(t, s.Serve())
		requireExclusive(t, addr)
		client, err := net.Dial("tcp", addr.String())
		require.NoError(t, err)
		server, err := listener(t, s).Accept()
		require.NoError(t, err)
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	}
}

func TestBindOverRemainsFindsTheAddressTaken(t *testing.T) {
	_, reserved := bind(t, Kind{Network: "tcp"}, loopback)
	require.ErrorIs(t, newSocket(t, Kind{Network: "tcp"}).BindOverRemains(reserved, nil), unix.EADDRINUSE)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	addr := netip.MustParseAddrPort(ln.Addr().String())
	require.ErrorIs(t, newSocket(t, Kind{Network: "tcp"}).BindOverRemains(addr, nil), unix.EADDRINUSE)
}

// Of many that bind over the same remains at once, one has the address.
func TestBindOverRemainsOnce(t *testing.T) {
	addr := leaveRemains(t, false)
	for round := range 300 {
		const starters = 4
		sockets := make([]*Socket, starters)
		errs := make([]error, starters)
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i := range starters {
			s, err := Open(Kind{Network: "tcp"})
			require.NoError(t, err)
			sockets[i] = s
			all.Go(func() {
				<-begin
				errs[i] = s.BindOverRemains(addr, nil)
			})
		}
		close(begin)
		all.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			require.ErrorIs(t, err, unix.EADDRINUSE)
		}
		require.Equal(t, 1, won, "round %d", round)
		for _, s := range sockets {
			require.NoError(t, s.Close())
		}
	}
}

// Datagrams from before Serve are nobody's.
func TestDatagramsBeforeServe(t *testing.T) {
	s, addr := bind(t, Kind{Network: "udp"}, loopback)
	requireTaken := func() {
		_, err := net.ListenPacket("udp", addr.String())
		require.ErrorIs(t, err, unix.EADDRINUSE)
	}
	requireTaken()
	client, err := net.Dial("udp", addr.String())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("early"))
	require.NoError(t, err)
	require.NoError(t, s.Serve())
	requireTaken()
	_, err = client.Write([]byte("late"))
	require.NoError(t, err)

	file, err := s.File("test")
	require.NoError(t, err)
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	require.NoError(t, err)
	defer conn.Close()
	buffer := make([]byte, 10)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, _, err := conn.ReadFrom(buffer)
	require.NoError(t, err)
	require.Equal(t, "late", string(buffer[:n]))
}

func TestClosed(t *testing.T) {
	s, addr := bind(t, Kind{Network: "tcp"}, loopback)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Serve(), net.ErrClosed)
	_, err := s.File("test")
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = s.Addr()
	require.ErrorIs(t, err, net.ErrClosed)
	raw, err := s.SyscallConn()
	require.NoError(t, err)
	require.ErrorIs(t, raw.Control(func(uintptr) { t.Error("called") }), net.ErrClosed)
	bindErr, listenErr := take(t, addr)
	require.NoError(t, bindErr)
	require.NoError(t, listenErr)
}

// A child inherits none of it.
func TestCloseOnExec(t *testing.T) {
	s, _ := bind(t, Kind{Network: "tcp"}, loopback)
	file, err := s.File("test")
	require.NoError(t, err)
	defer file.Close()
	for _, fd := range []int{s.fd, int(file.Fd())} {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err)
		require.NotZero(t, flags&unix.FD_CLOEXEC)
		_, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		require.NoError(t, err)
	}
}

func BenchmarkBind(b *testing.B) {
	b.Run("of=bound", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s, err := Open(Kind{Network: "tcp"})
			if err == nil {
				err = s.Bind(loopback)
			}
			if err == nil {
				err = s.Serve()
			}
			if err != nil {
				b.Fatal(err)
			}
			_ = s.Close()
		}
	})
	b.Run("of=net", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			_ = ln.Close()
		}
	})
	b.Run("of=busy", func(b *testing.B) { // a port that is taken
		b.ReportAllocs()
		_, addr := bind(b, Kind{Network: "tcp"}, loopback)
		s := newSocket(b, Kind{Network: "tcp"})
		for b.Loop() {
			if s.Bind(addr) == nil {
				b.Fatal("bound")
			}
		}
	})
}
