package sockets

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inodeOf returns the inode of a socket as /proc/PID/fd has it.
func inodeOf(t testing.TB, c any) uint64 {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	var stat unix.Stat_t
	var statErr error
	require.NoError(t, raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &stat) }))
	require.NoError(t, statErr)
	return stat.Ino
}

type closer interface{ Close() error }

// bind takes an address as package net does.
func bind(network, address string) (closer, net.Addr, error) {
	switch network {
	case "udp", "udp4", "udp6", "unixgram":
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return nil, nil, err
		}
		return c, c.LocalAddr(), nil
	default:
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, nil, err
		}
		return l, l.Addr(), nil
	}
}

func mustBind(t testing.TB, network, address string) (closer, net.Addr) {
	t.Helper()
	c, addr, err := bind(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c, addr
}

func portOf(addr net.Addr) uint16 { return netip.MustParseAddrPort(addr.String()).Port() }

func targetFor(t testing.TB, network string, addr net.Addr) Target {
	t.Helper()
	target, ok := TargetOf(network, addr)
	require.True(t, ok)
	return target
}

func inodes(sockets []Socket) (list []uint64) {
	for _, s := range sockets {
		list = append(list, s.Inode)
	}
	return list
}

// TestAgainstKernel binds every pair of addresses and compares what the kernel says to the second with what the
// first one's line in the table predicts.
func TestAgainstKernel(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		type bindable struct{ network, host string }
		all := []bindable{
			{proto, ""}, {proto, "0.0.0.0"}, {proto, "[::]"}, {proto + "4", ""}, {proto + "4", "0.0.0.0"}, {proto + "6", "[::]"},
			{proto, "127.0.0.1"}, {proto, "127.0.0.2"}, {proto + "4", "127.0.0.1"},
			{proto, "[::1]"}, {proto + "6", "[::1]"}, {proto, "[::ffff:127.0.0.1]"},
		}
		for _, a := range all {
			for _, b := range all {
				name := fmt.Sprintf("%s %s,%s %s", a.network, a.host, b.network, b.host)
				t.Run(name, func(t *testing.T) {
					// Any process may take the port for b between the binds; not five times in a row.
					var mismatch string
					for range 5 {
						if mismatch = tryPair(t, a.network, a.host, b.network, b.host); mismatch == "" {
							return
						}
					}
					t.Fatal(mismatch)
				})
			}
		}
	}
}

func tryPair(t *testing.T, networkA, hostA, networkB, hostB string) (mismatch string) {
	a, addr, err := bind(networkA, hostA+":0")
	require.NoError(t, err)
	defer a.Close()
	port := portOf(addr)
	inode := inodeOf(t, a)

	sockets, err := List(networkA[:3], port, port)
	require.NoError(t, err)
	i := slices.Index(inodes(sockets), inode)
	require.GreaterOrEqual(t, i, 0, "not listed")

	requested := net.JoinHostPort("", strconv.Itoa(int(port)))
	requested = hostB + requested
	target := targetFor(t, networkB, resolve(t, networkB, requested))
	predicted := target.Conflicts(sockets[i])
	holders, err := InTheWay(target)
	require.NoError(t, err)
	ports, err := Taken(target, port-1, port+1)
	require.NoError(t, err)

	b, _, err := bind(networkB, requested)
	if err == nil {
		b.Close()
	} else {
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		fromError, ok := TargetOf(networkB, op.Addr)
		require.True(t, ok)
		require.Equal(t, predicted, fromError.Conflicts(sockets[i]), "the address in the error is another")
	}
	switch taken := err != nil; {
	case predicted != taken:
		return fmt.Sprintf("Conflicts: %v, kernel: %v", predicted, err)
	case slices.Contains(inodes(holders), inode) != taken:
		return fmt.Sprintf("InTheWay: %v, kernel: %v", holders, err)
	case ports.Has(port) != taken:
		return fmt.Sprintf("Taken: %v, kernel: %v", ports.Has(port), err)
	}
	return ""
}

func resolve(t *testing.T, network, address string) net.Addr {
	t.Helper()
	var addr net.Addr
	var err error
	if network[:3] == "udp" {
		addr, err = net.ResolveUDPAddr(network, address)
	} else {
		addr, err = net.ResolveTCPAddr(network, address)
	}
	require.NoError(t, err)
	return addr
}

func TestSockets(t *testing.T) {
	for _, c := range []struct {
		network, address, local string
		v6only                  bool
	}{
		{"tcp", ":0", "::", false},
		{"tcp4", ":0", "0.0.0.0", false},
		{"tcp6", ":0", "::", true},
		{"tcp", "127.0.0.1:0", "127.0.0.1", false},
		{"udp", ":0", "::", false},
		{"udp6", ":0", "::", true},
		{"udp", "127.0.0.1:0", "127.0.0.1", false},
	} {
		t.Run(c.network+" "+c.address, func(t *testing.T) {
			l, addr := mustBind(t, c.network, c.address)
			holders, err := InTheWay(targetFor(t, c.network, addr))
			require.NoError(t, err)
			want := Socket{
				Network: c.network[:3],
				Local:   netip.AddrPortFrom(netip.MustParseAddr(c.local), portOf(addr)),
				V6Only:  c.v6only,
				State:   Listening,
				Inode:   inodeOf(t, l),
				UID:     os.Getuid(),
			}
			want.Remote = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
			if want.Local.Addr().Is4() {
				want.Remote = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
			}
			if want.Network == "udp" {
				want.State = Bound
			}
			require.Equal(t, []Socket{want}, holders)
		})
	}
}

func TestMultipath(t *testing.T) {
	for _, use := range []bool{false, true} {
		t.Run(strconv.FormatBool(use), func(t *testing.T) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(use)
			l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer l.Close()
			holders, err := InTheWay(targetFor(t, "tcp", l.Addr()))
			require.NoError(t, err)
			require.Equal(t, []uint64{inodeOf(t, l)}, inodes(holders))
		})
	}
}

// boundSocket is bound and does not listen.
func boundSocket(t *testing.T, protocol int, device string) (inode uint64, port uint16) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	if device != "" {
		require.NoError(t, unix.BindToDevice(fd, device))
	}
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	var stat unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &stat))
	return stat.Ino, uint16(sa.(*unix.SockaddrInet4).Port)
}

// Linux 6.8 and later only: before, such a socket is in no table.
func TestBoundNotListening(t *testing.T) {
	for name, protocol := range map[string]int{"tcp": unix.IPPROTO_TCP, "mptcp": unix.IPPROTO_MPTCP} {
		t.Run(name, func(t *testing.T) {
			inode, port := boundSocket(t, protocol, "lo")
			address := fmt.Sprintf("127.0.0.1:%d", port)
			_, err := net.Listen("tcp", address)
			require.ErrorIs(t, err, syscall.EADDRINUSE)

			holders, err := InTheWay(targetFor(t, "tcp", resolve(t, "tcp", address)))
			require.NoError(t, err)
			require.Len(t, holders, 1)
			require.Equal(t, Bound, holders[0].State)
			require.Equal(t, inode, holders[0].Inode)
			lo, err := net.InterfaceByName("lo")
			require.NoError(t, err)
			require.Equal(t, uint32(lo.Index), holders[0].Device)
		})
	}
}

// A connection's local port is taken too, and so it is for a while after the side that closed first.
func TestConnectionInTheWay(t *testing.T) {
	l, addr := mustBind(t, "tcp", "127.0.0.1:0")
	client, err := net.Dial("tcp", addr.String())
	require.NoError(t, err)
	defer client.Close()
	server, err := l.(net.Listener).Accept()
	require.NoError(t, err)
	defer server.Close()

	_, err = net.Listen("tcp", client.LocalAddr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	target := targetFor(t, "tcp", client.LocalAddr())
	got, err := InTheWay(target)
	require.NoError(t, err)
	// Connections to elsewhere may share the port.
	i := slices.Index(inodes(got), inodeOf(t, client))
	require.GreaterOrEqual(t, i, 0)
	require.Equal(t, Connected, got[i].State)
	require.Equal(t, addr.String(), got[i].Remote.String())
	ports, err := Taken(target, target.Addr.Port(), target.Addr.Port())
	require.NoError(t, err)
	require.False(t, ports.Has(target.Addr.Port()))

	// A listener hides its connections.
	got, err = InTheWay(targetFor(t, "tcp", addr))
	require.NoError(t, err)
	require.Equal(t, []uint64{inodeOf(t, l)}, inodes(got))

	require.NoError(t, client.Close())
	_, err = server.Read(make([]byte, 1)) // returns with the client's end
	require.Error(t, err)
	require.NoError(t, server.Close())
	_, err = net.Listen("tcp", target.Addr.String())
	require.ErrorIs(t, err, syscall.EADDRINUSE, "TIME_WAIT of a socket without SO_REUSEADDR")
	got, err = InTheWay(target)
	require.NoError(t, err)
	i = slices.IndexFunc(got, func(s Socket) bool { return s.Remote.String() == addr.String() })
	require.GreaterOrEqual(t, i, 0)
	require.Equal(t, Connected, got[i].State)
	require.Zero(t, got[i].Inode)
	require.Equal(t, -1, got[i].UID)
}

func TestConnectedUDP(t *testing.T) {
	_, addr := mustBind(t, "udp", "127.0.0.1:0")
	client, err := net.Dial("udp", addr.String())
	require.NoError(t, err)
	defer client.Close()
	_, err = net.ListenPacket("udp", client.LocalAddr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	got, err := InTheWay(targetFor(t, "udp", client.LocalAddr()))
	require.NoError(t, err)
	require.Equal(t, []uint64{inodeOf(t, client)}, inodes(got))
	require.Equal(t, Connected, got[0].State)
}

func TestUnix(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	inTheWay := func(network, path string) []uint64 {
		t.Helper()
		got, err := InTheWay(Target{Network: network, Path: path})
		require.NoError(t, err)
		return inodes(got)
	}
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			name := network + ".sock"
			path := filepath.Join(dir, name)
			l, _ := mustBind(t, network, path)
			want := []uint64{inodeOf(t, l)}
			require.Equal(t, want, inTheWay(network, path))
			require.Equal(t, want, inTheWay(network, name))
			require.Equal(t, want, inTheWay("unix", path), "a file is in the way of every type")
			require.Empty(t, inTheWay(network, filepath.Join(dir, "none")))

			relative := "relative-" + name
			r, _ := mustBind(t, network, relative)
			want = []uint64{inodeOf(t, r)}
			require.Equal(t, want, inTheWay(network, relative))
			require.Equal(t, want, inTheWay(network, filepath.Join(dir, relative)))
			link := filepath.Join(t.TempDir(), "dir")
			require.NoError(t, os.Symlink(dir, link))
			require.Equal(t, want, inTheWay(network, filepath.Join(link, relative)))

			abstract := "@" + path
			a, _ := mustBind(t, network, abstract)
			require.Equal(t, []uint64{inodeOf(t, a)}, inTheWay(network, abstract))
		})
	}

	t.Run("abstract names of other types", func(t *testing.T) {
		name := "@" + dir + "/typed"
		l, _ := mustBind(t, "unix", name)
		g, _ := mustBind(t, "unixgram", name)
		require.Equal(t, []uint64{inodeOf(t, l)}, inTheWay("unix", name))
		require.Equal(t, []uint64{inodeOf(t, g)}, inTheWay("unixgram", name))
		require.Empty(t, inTheWay("unixpacket", name))
	})

	t.Run("attributes", func(t *testing.T) {
		path := filepath.Join(dir, "attributes")
		l, _ := mustBind(t, "unix", path)
		got, err := InTheWay(Target{Network: "unix", Path: path})
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, Socket{Network: "unix", Path: path, State: Listening, Inode: inodeOf(t, l), UID: os.Getuid(), kind: stream, file: got[0].file}, got[0])
		require.True(t, Target{Network: "unix", Path: path}.Conflicts(got[0]))
		file, missing := fileOf(path)
		require.False(t, missing)
		require.Equal(t, file, got[0].file)
	})

	t.Run("accepted connection", func(t *testing.T) {
		path := filepath.Join(dir, "accepted")
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		client, err := net.Dial("unix", path)
		require.NoError(t, err)
		defer client.Close()
		server, err := l.Accept()
		require.NoError(t, err)
		defer server.Close()
		require.Equal(t, []uint64{inodeOf(t, l)}, inTheWay("unix", path))

		// What is left is a stale file, although the connection still shows its name.
		require.NoError(t, l.Close())
		_, err = net.Listen("unix", path)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.Empty(t, inTheWay("unix", path))
	})

	t.Run("replaced file", func(t *testing.T) {
		path := filepath.Join(dir, "replaced")
		old, _ := mustBind(t, "unix", path)
		old.(*net.UnixListener).SetUnlinkOnClose(false)
		// Renamed, not removed, so that the new file cannot get the same inode.
		require.NoError(t, os.Rename(path, path+".old"))
		l, _ := mustBind(t, "unix", path)
		require.Equal(t, []uint64{inodeOf(t, l)}, inTheWay("unix", path))
		require.Equal(t, []uint64{inodeOf(t, old)}, inTheWay("unix", path+".old"))
	})

	t.Run("bound, not listening", func(t *testing.T) {
		path := filepath.Join(dir, "bound")
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		got, err := InTheWay(Target{Network: "unix", Path: path})
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, Bound, got[0].State)
	})

	t.Run("connected datagram socket", func(t *testing.T) {
		path := filepath.Join(dir, "peer")
		mustBind(t, "unixgram", path+"2")
		c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}, &net.UnixAddr{Name: path + "2", Net: "unixgram"})
		require.NoError(t, err)
		defer c.Close()
		got, err := InTheWay(Target{Network: "unixgram", Path: path})
		require.NoError(t, err)
		require.Equal(t, []uint64{inodeOf(t, c)}, inodes(got))
		require.Equal(t, Connected, got[0].State)
	})
}

// TestTablesAgree compares both tables on the same sockets.
func TestTablesAgree(t *testing.T) {
	mine := map[uint64]bool{}
	ports := map[string]uint16{}
	for _, b := range [][2]string{
		{"tcp", "127.0.0.1:0"}, {"tcp4", ":0"}, {"tcp", ":0"}, {"tcp", "[::1]:0"}, {"tcp", "[::ffff:127.0.0.1]:0"},
		{"udp", "127.0.0.1:0"}, {"udp4", ":0"}, {"udp", ":0"}, {"udp", "[::1]:0"},
	} {
		l, addr := mustBind(t, b[0], b[1])
		mine[inodeOf(t, l)] = true
		ports[b[0]+" "+b[1]] = portOf(addr)
	}
	// Provably IPv6 only: beside an IPv4 socket.
	for _, proto := range []string{"tcp", "udp"} {
		l, _ := mustBind(t, proto+"6", fmt.Sprintf("[::]:%d", ports[proto+"4 :0"]))
		mine[inodeOf(t, l)] = true
	}
	for _, network := range []string{"tcp", "udp"} {
		var seen [2][]Socket
		for i, source := range []table{netlinkTable, procTable} {
			sockets, err := list(network, 1, 65535, []table{source})
			require.NoError(t, err)
			for _, s := range sockets {
				if mine[s.Inode] {
					seen[i] = append(seen[i], s)
				}
			}
		}
		require.Len(t, seen[0], map[string]int{"tcp": 6, "udp": 5}[network])
		require.Equal(t, seen[0], seen[1])
	}

	l, addr := mustBind(t, "tcp", "127.0.0.1:0")
	client, err := net.Dial("tcp", addr.String())
	require.NoError(t, err)
	defer client.Close()
	server, err := l.(net.Listener).Accept()
	require.NoError(t, err)
	defer server.Close()
	target := targetFor(t, "tcp", client.LocalAddr())
	var seen []Socket
	for _, source := range []table{netlinkTable, procTable} {
		sockets, err := inTheWay(target, []table{source})
		require.NoError(t, err)
		i := slices.Index(inodes(sockets), inodeOf(t, client))
		require.GreaterOrEqual(t, i, 0)
		seen = append(seen, sockets[i])
	}
	require.Equal(t, seen[0], seen[1])

	path := filepath.Join(t.TempDir(), "x.sock")
	for _, target := range []Target{{Network: "unix", Path: path}, {Network: "unixgram", Path: "@" + path}, {Network: "unixpacket", Path: "@" + path}} {
		l, _ := mustBind(t, target.Network, target.Path)
		a, err := inTheWay(target, []table{netlinkTable})
		require.NoError(t, err)
		b, err := inTheWay(target, []table{procTable})
		require.NoError(t, err)
		require.Equal(t, []uint64{inodeOf(t, l)}, inodes(a))
		a[0].file, a[0].UID = fileID{}, -1 // which the text does not tell
		require.Equal(t, a, b)
	}
}

// What is in no range must not reach the caller, and by netlink not even this process.
func TestTablesFilter(t *testing.T) {
	_, addr := mustBind(t, "tcp", "127.0.0.1:0")
	mustBind(t, "tcp", "127.0.0.1:0")
	mustBind(t, "tcp", ":0")
	port := portOf(addr)
	for name, source := range map[string]table{"netlink": netlinkTable, "proc": procTable} {
		t.Run(name, func(t *testing.T) {
			for _, r := range [][2]uint16{{port, port}, {port - 1, port + 1}, {0, port}, {port, 65535}} {
				q := query{network: "tcp", v4: true, first: r[0], last: r[1], states: only(Listening) | only(Connected)}
				found := false
				require.NoError(t, source(q, func(s *Socket) {
					require.True(t, q.has(s), "%v", s)
					found = found || s.Local.Port() == port
				}))
				require.True(t, found)
			}
			require.NoError(t, source(query{network: "tcp", v4: true, first: 1, last: 0, states: anyState}, func(s *Socket) {
				t.Errorf("%v is in no range", s)
			}))
		})
	}
}

// A dump in many pieces.
func TestTakenMany(t *testing.T) {
	want := map[uint16]bool{}
	low, high := uint16(65535), uint16(0)
	for range 600 {
		_, addr := mustBind(t, "tcp", "127.0.0.1:0")
		port := portOf(addr)
		want[port] = true
		low, high = min(low, port), max(high, port)
	}
	target := Target{Network: "tcp", Addr: netip.MustParseAddrPort("127.0.0.1:0"), V4: true}
	for name, source := range map[string]table{"netlink": netlinkTable, "proc": procTable} {
		ports, err := taken(target, low, high, []table{source})
		require.NoError(t, err)
		for port := range want {
			require.True(t, ports.Has(port), "%s: %d", name, port)
		}
	}
	// A socket on another address, which keeps wildcards off the port, is not in the way.
	_, addr := mustBind(t, "tcp", "127.93.41.7:0")
	low = portOf(addr)
	for host, want := range map[string]bool{"127.93.41.7": true, "127.93.41.8": false, "0.0.0.0": true} {
		target.Addr = netip.AddrPortFrom(netip.MustParseAddr(host), 0)
		ports, err := Taken(target, low, low)
		require.NoError(t, err)
		require.Equal(t, want, ports.Has(low), host)
	}
}

func TestList(t *testing.T) {
	inode, port := boundSocket(t, unix.IPPROTO_TCP, "")
	l, addr := mustBind(t, "tcp", "127.0.0.1:0")
	sockets, err := List("tcp", min(port, portOf(addr)), max(port, portOf(addr)))
	require.NoError(t, err)
	require.Subset(t, inodes(sockets), []uint64{inode, inodeOf(t, l)})
	require.True(t, slices.IsSortedFunc(sockets, func(a, b Socket) int { return int(a.Local.Port()) - int(b.Local.Port()) }))
	for _, s := range sockets {
		require.NotEqual(t, Connected, s.State)
	}
}

// The server's end of a connection is nobody's until it is accepted.
func TestConnection(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	local, remote := netip.MustParseAddrPort(client.LocalAddr().String()), netip.MustParseAddrPort(client.RemoteAddr().String())
	end, ok, err := Connection(remote, local)
	require.NoError(t, err)
	require.True(t, ok)
	require.Zero(t, end.Inode)

	server, err := ln.Accept()
	require.NoError(t, err)
	defer server.Close()
	end, ok, err = Connection(remote, local)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, inodeOf(t, server), end.Inode)
	end, ok, err = Connection(local, remote)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, inodeOf(t, client), end.Inode)

	_, ok, err = Connection(remote, netip.AddrPortFrom(local.Addr(), 1))
	require.NoError(t, err)
	require.False(t, ok)
}

func TestDumpErrors(t *testing.T) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	require.NoError(t, err)
	defer unix.Close(fd)
	parse := func(b []byte) (bool, error) { return parseInetDiag(b, "tcp", func(*Socket) {}) }
	require.ErrorIs(t, dump(fd, appendInetRequest(nil, 99, protocolTCP, 1<<stateListen, 0, 1), parse), unix.EINVAL, "no such family")
	bad := appendInetRequest(nil, afInet, protocolTCP, 1<<stateListen, 0, 1)
	bad[len(bad)-bytecodeSize] = 99 // no such operation
	require.Error(t, dump(fd, bad, parse))
	require.NoError(t, dump(fd, appendInetRequest(nil, afInet, protocolTCP, 1<<stateListen, 0, 1), parse))
	require.ErrorIs(t, dump(-1, nil, parse), unix.EBADF)

	err = parseFile("/proc/net/none", nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestNothingLeft(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	_, addr := mustBind(t, "tcp", "127.0.0.1:0")
	target := targetFor(t, "tcp", addr)
	before := count()
	for _, source := range []table{netlinkTable, procTable} {
		both := []table{source}
		_, err := inTheWay(target, both)
		require.NoError(t, err)
		_, err = inTheWay(Target{Network: "unix", Path: "@none"}, both)
		require.NoError(t, err)
		_, err = list("udp", 1, 65535, both)
		require.NoError(t, err)
		_, err = taken(target, 1, 65535, both)
		require.NoError(t, err)
	}
	require.Equal(t, before, count())
}

// busy listens on n ports and returns the range that they are in.
func busy(b *testing.B, n int) (first, last uint16) {
	first = 65535
	for range n {
		_, addr := mustBind(b, "tcp", "127.0.0.1:0")
		first, last = min(first, portOf(addr)), max(last, portOf(addr))
	}
	return first, last
}

func BenchmarkInTheWay(b *testing.B) {
	_, addr := mustBind(b, "tcp", "127.0.0.1:0")
	path := filepath.Join(b.TempDir(), "x.sock")
	mustBind(b, "unix", path)
	_, packet := mustBind(b, "udp", "127.0.0.1:0")
	for name, target := range map[string]Target{
		"tcp":  targetFor(b, "tcp", addr),
		"udp":  targetFor(b, "udp", packet),
		"unix": {Network: "unix", Path: path},
	} {
		b.Run("network="+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, err := InTheWay(target); err != nil || len(got) != 1 {
					b.Fatal(got, err)
				}
			}
		})
	}
	b.Run("network=tcp-client", func(b *testing.B) {
		client, err := net.Dial("tcp", addr.String())
		if err != nil {
			b.Fatal(err)
		}
		defer client.Close()
		target := targetFor(b, "tcp", client.LocalAddr())
		b.ReportAllocs()
		for b.Loop() {
			if got, err := InTheWay(target); err != nil || len(got) != 1 {
				b.Fatal(got, err)
			}
		}
	})
	b.Run("network=net.Listen", func(b *testing.B) { // what failed before anybody asks
		b.ReportAllocs()
		for b.Loop() {
			if _, err := net.Listen("tcp", addr.String()); !errors.Is(err, syscall.EADDRINUSE) {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTaken(b *testing.B) {
	target := Target{Network: "tcp", Addr: netip.MustParseAddrPort("127.0.0.1:0"), V4: true}
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("ports=%d", n), func(b *testing.B) {
			first, last := busy(b, n)
			for name, t := range map[string][]table{"netlink": {netlinkTable}, "proc": {procTable}} {
				b.Run("table="+name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if _, err := taken(target, first, last, t); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/port")
				})
			}
		})
	}
}
