package sockets

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStateString(t *testing.T) {
	require.Equal(t, "listening", Listening.String())
	require.Equal(t, "bound", Bound.String())
	require.Equal(t, "connected", Connected.String())
	require.Equal(t, "State(9)", State(9).String())
}

func TestTargetOf(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 80} }
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	noIP := netip.AddrPortFrom(netip.Addr{}, 80)
	for _, c := range []struct {
		name, goos, network string
		addr                net.Addr
		want                Target
		unknown             bool
	}{
		{name: "any", network: "tcp", addr: tcp(""), want: Target{Network: "tcp", Addr: noIP, V4: true, V6: true}},
		{name: "any4", network: "tcp", addr: tcp("0.0.0.0"), want: Target{Network: "tcp", Addr: at("0.0.0.0:80"), V4: true, V6: true}},
		{name: "any6", network: "tcp", addr: tcp("::"), want: Target{Network: "tcp", Addr: at("[::]:80"), V4: true, V6: true}},
		{name: "tcp4 any", network: "tcp4", addr: tcp(""), want: Target{Network: "tcp", Addr: noIP, V4: true}},
		{name: "tcp4 any6", network: "tcp4", addr: tcp("0.0.0.0"), want: Target{Network: "tcp", Addr: at("0.0.0.0:80"), V4: true}},
		{name: "tcp6 any", network: "tcp6", addr: tcp("::"), want: Target{Network: "tcp", Addr: at("[::]:80"), V6: true}},
		{name: "v4", network: "tcp", addr: tcp("127.0.0.1"), want: Target{Network: "tcp", Addr: at("127.0.0.1:80"), V4: true}},
		{name: "mapped", network: "tcp", addr: tcp("::ffff:127.0.0.1"), want: Target{Network: "tcp", Addr: at("127.0.0.1:80"), V4: true}},
		{name: "v6", network: "tcp", addr: tcp("::1"), want: Target{Network: "tcp", Addr: at("[::1]:80"), V6: true}},
		{name: "zone", network: "tcp6", addr: &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 80}, want: Target{Network: "tcp", Addr: at("[fe80::1%eth0]:80"), V6: true}},
		{name: "udp", network: "udp", addr: &net.UDPAddr{Port: 80}, want: Target{Network: "udp", Addr: noIP, V4: true, V6: true}},
		{name: "openbsd any", goos: "openbsd", network: "tcp", addr: tcp(""), want: Target{Network: "tcp", Addr: noIP, V4: true}},
		{name: "openbsd any6", goos: "openbsd", network: "tcp", addr: tcp("::"), want: Target{Network: "tcp", Addr: at("[::]:80"), V6: true}},
		{name: "unix", network: "unix", addr: &net.UnixAddr{Name: "/x", Net: "unix"}, want: Target{Network: "unix", Path: "/x"}},
		{name: "unixgram", network: "unixgram", addr: &net.UnixAddr{Name: "@x"}, want: Target{Network: "unixgram", Path: "@x"}},
		{name: "NUL", network: "unixpacket", addr: &net.UnixAddr{Name: "\x00x"}, want: Target{Network: "unixpacket", Path: "@x"}},

		{name: "nil", network: "tcp", unknown: true},
		{name: "nil TCP", network: "tcp", addr: (*net.TCPAddr)(nil), unknown: true},
		{name: "nil UDP", network: "udp", addr: (*net.UDPAddr)(nil), unknown: true},
		{name: "nil unix", network: "unix", addr: (*net.UnixAddr)(nil), unknown: true},
		{name: "unnamed", network: "unix", addr: &net.UnixAddr{}, unknown: true},
		{name: "ip", network: "ip4:icmp", addr: &net.IPAddr{}, unknown: true},
		{name: "mixed", network: "udp", addr: tcp("::1"), unknown: true},
		{name: "mixed unix", network: "tcp", addr: &net.UnixAddr{Name: "/x"}, unknown: true},
		{name: "suffix", network: "tcp5", addr: tcp("::1"), unknown: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			goos := c.goos
			if goos == "" {
				goos = "linux"
			}
			got, ok := targetOf(goos, c.network, c.addr)
			require.Equal(t, !c.unknown, ok)
			require.Equal(t, c.want, got)
		})
	}
}

func TestConflicts(t *testing.T) {
	const linux, darwin, windows = 1, 2, 4
	const all, none = linux | darwin | windows, 0
	at := netip.MustParseAddrPort
	dual := Target{Network: "tcp", Addr: at("[::]:80"), V4: true, V6: true}
	any4 := Target{Network: "tcp", Addr: at("0.0.0.0:80"), V4: true}
	any6 := Target{Network: "tcp", Addr: at("[::]:80"), V6: true}
	lo4 := Target{Network: "tcp", Addr: at("127.0.0.1:80"), V4: true}
	lo6 := Target{Network: "tcp", Addr: at("[::1]:80"), V6: true}
	udp := Target{Network: "udp", Addr: at("127.0.0.1:80"), V4: true}
	link := Target{Network: "tcp", Addr: at("[fe80::1%eth0]:80"), V6: true}
	tcp := func(addr string) Socket { return Socket{Network: "tcp", Local: at(addr), State: Listening} }
	v6only := tcp("[::]:80")
	v6only.V6Only = true
	onDevice := func(s Socket, device uint32) Socket { s.Device = device; return s }

	for _, c := range []struct {
		name   string
		target Target
		place  place
		socket Socket
		want   int
	}{
		{"same v4", lo4, place{}, tcp("127.0.0.1:80"), all},
		{"same v6", lo6, place{}, tcp("[::1]:80"), all},
		{"port", lo4, place{}, tcp("127.0.0.1:8080"), none},
		{"no port", Target{Network: "tcp", V4: true}, place{}, tcp("0.0.0.0:0"), none},
		{"address", lo4, place{}, tcp("127.0.0.2:80"), none},
		{"loopbacks", lo4, place{}, tcp("[::1]:80"), none},
		{"network", udp, place{}, tcp("127.0.0.1:80"), none},

		{"dual, dual", dual, place{}, tcp("[::]:80"), all},
		{"dual, any4", dual, place{}, tcp("0.0.0.0:80"), linux},
		{"dual, v6only", dual, place{}, v6only, all},
		{"dual, v4", dual, place{}, tcp("127.0.0.1:80"), linux},
		{"dual, v6", dual, place{}, tcp("[::1]:80"), linux},
		{"any4, dual", any4, place{}, tcp("[::]:80"), linux},
		{"any4, any4", any4, place{}, tcp("0.0.0.0:80"), all},
		{"any4, v6only", any4, place{}, v6only, none},
		{"any4, v4", any4, place{}, tcp("127.0.0.1:80"), linux},
		{"any4, v6", any4, place{}, tcp("[::1]:80"), none},
		{"any6, dual", any6, place{}, tcp("[::]:80"), all},
		{"any6, any4", any6, place{}, tcp("0.0.0.0:80"), none},
		{"any6, v6only", any6, place{}, v6only, all},
		{"any6, v4", any6, place{}, tcp("127.0.0.1:80"), none},
		{"any6, v6", any6, place{}, tcp("[::1]:80"), linux},
		{"v4, dual", lo4, place{}, tcp("[::]:80"), linux},
		{"v4, v6only", lo4, place{}, v6only, none},
		{"v4, any4", lo4, place{}, tcp("0.0.0.0:80"), linux},
		{"v6, dual", lo6, place{}, tcp("[::]:80"), linux},
		{"v6, v6only", lo6, place{}, v6only, linux},
		{"v6, any4", lo6, place{}, tcp("0.0.0.0:80"), none},
		{"mapped, v4", Target{Network: "tcp", Addr: at("[::ffff:127.0.0.1]:80"), V4: true}, place{}, tcp("127.0.0.1:80"), all},
		{"mapped any4, any4", Target{Network: "tcp", Addr: at("[::ffff:0.0.0.0]:80"), V4: true}, place{}, tcp("0.0.0.0:80"), all},
		{"mapped any4, v4", Target{Network: "tcp", Addr: at("[::ffff:0.0.0.0]:80"), V4: true}, place{}, tcp("127.0.0.1:80"), linux},
		{"no address", Target{Network: "tcp", Addr: netip.AddrPortFrom(netip.Addr{}, 80), V4: true}, place{}, tcp("0.0.0.0:80"), all},

		{"udp, any4", udp, place{}, Socket{Network: "udp", Local: at("0.0.0.0:80")}, linux | darwin},
		{"udp, same", udp, place{}, Socket{Network: "udp", Local: at("127.0.0.1:80")}, all},
		{"udp, other", udp, place{}, Socket{Network: "udp", Local: at("127.0.0.2:80")}, none},

		{"link-local, same device", link, place{device: 2}, onDevice(tcp("[fe80::1]:80"), 2), all},
		{"link-local, other device", link, place{device: 2}, onDevice(tcp("[fe80::1]:80"), 3), none},
		{"link-local, wildcard on no device", link, place{device: 2}, tcp("[::]:80"), linux},
		{"device", lo4, place{}, onDevice(tcp("127.0.0.1:80"), 3), all},
		{"socket without address", lo4, place{}, Socket{Network: "tcp"}, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want&linux != 0, conflicts("linux", c.target, c.place, c.socket), "linux")
			require.Equal(t, c.want&darwin != 0, conflicts("darwin", c.target, c.place, c.socket), "darwin")
			require.Equal(t, c.want&darwin != 0, conflicts("freebsd", c.target, c.place, c.socket), "freebsd")
			require.Equal(t, c.want&windows != 0, conflicts("windows", c.target, c.place, c.socket), "windows")
		})
	}
}

func TestConflictsUnix(t *testing.T) {
	abs, err := filepath.Abs("dir/x.sock") // differs between systems
	require.NoError(t, err)
	file := func(device uint64, inode uint32) fileID { return fileID{device: device, inode: inode, known: true} }
	for _, c := range []struct {
		name   string
		target string
		place  place
		socket Socket
		want   bool
	}{
		{"name", abs, place{path: abs}, Socket{Path: abs}, true},
		{"unclean name", abs, place{path: abs}, Socket{Path: filepath.Dir(abs) + "/./x.sock"}, true},
		{"other name", abs, place{path: abs}, Socket{Path: abs + "x"}, false},
		{"no name", abs, place{path: abs}, Socket{}, false},
		{"no file", abs, place{path: abs, missing: true}, Socket{Path: abs}, false},
		{"relative name", "dir/x.sock", place{path: abs}, Socket{Path: "dir/x.sock"}, false},
		{"relative target", "dir/x.sock", place{path: abs}, Socket{Path: abs}, true},
		{"relative name, same file", abs, place{path: abs, file: file(1, 2)}, Socket{Path: "x.sock", file: file(1, 2)}, true},
		{"other name, same file", abs, place{path: abs, file: file(1, 2)}, Socket{Path: "/link", file: file(1, 2)}, true},
		{"same name, replaced file", abs, place{path: abs, file: file(1, 2)}, Socket{Path: abs, file: file(1, 3)}, false},
		{"relative name, other device, same inode", abs, place{path: abs, file: file(1, 2)}, Socket{Path: "x.sock", file: file(9, 2)}, true},
		{"other name, other device, same inode", abs, place{path: abs, file: file(1, 2)}, Socket{Path: "/y.sock", file: file(9, 2)}, false},
		{"same name, other device and inode", abs, place{path: abs, file: file(1, 2)}, Socket{Path: abs, file: file(9, 3)}, true},
		{"same base name, other device and inode", abs, place{path: abs, file: file(1, 2)}, Socket{Path: "x.sock", file: file(9, 3)}, false},
		{"abstract", "@x", place{}, Socket{Path: "@x", kind: stream}, true},
		{"abstract, type unknown", "@x", place{}, Socket{Path: "@x"}, true},
		{"abstract, other type", "@x", place{}, Socket{Path: "@x", kind: datagram}, false},
		{"abstract, other name", "@x", place{}, Socket{Path: "@y", kind: stream}, false},
		{"abstract and path", "@x", place{}, Socket{Path: "x", kind: stream}, false},
		{"path and abstract", abs, place{path: abs}, Socket{Path: "@" + abs, kind: stream}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := Target{Network: "unix", Path: c.target}
			c.socket.Network = "unix"
			require.Equal(t, c.want, conflicts("linux", target, c.place, c.socket))
			c.socket.Network = "tcp"
			require.False(t, conflicts("linux", target, c.place, c.socket))
		})
	}
}

func TestPorts(t *testing.T) {
	var zero Ports
	require.False(t, zero.Has(0))
	require.False(t, zero.Has(80))

	for _, r := range [][2]uint16{{0, 65535}, {1000, 1000}, {1000, 1063}, {1000, 1064}, {65535, 65535}} {
		p := Ports{first: r[0], bits: make([]uint64, (int(r[1])-int(r[0]))/64+1)}
		p.add(r[0])
		p.add(r[1])
		for port := range 65536 {
			want := port == int(r[0]) || port == int(r[1])
			require.Equal(t, want, p.Has(uint16(port)), "%v: port %d", r, port)
		}
	}
}

// fake is a table with the given sockets.
func fake(sockets ...Socket) table {
	return func(_ query, visit func(*Socket)) error {
		for i := range sockets {
			visit(&sockets[i])
		}
		return nil
	}
}

func broken(err error) table {
	return func(query, func(*Socket)) error { return err }
}

func TestSecondTable(t *testing.T) {
	denied, absent := errors.New("denied"), errors.New("absent")
	holder := Socket{Network: "tcp", Local: netip.MustParseAddrPort("127.0.0.1:80"), State: Listening, Inode: 7}
	target := Target{Network: "tcp", Addr: holder.Local, V4: true}

	good := []table{broken(denied), fake(holder)}
	got, err := inTheWay(target, good)
	require.NoError(t, err)
	require.Equal(t, []Socket{holder}, got)
	got, err = list("tcp", 1, 100, good)
	require.NoError(t, err)
	require.Equal(t, []Socket{holder}, got)
	ports, err := taken(target, 1, 100, good)
	require.NoError(t, err)
	require.True(t, ports.Has(80))

	bad := []table{broken(denied), broken(absent)}
	_, err = inTheWay(target, bad)
	require.ErrorIs(t, err, denied)
	_, err = list("tcp", 1, 100, bad)
	require.ErrorIs(t, err, denied)
	_, err = taken(target, 1, 100, bad)
	require.ErrorIs(t, err, denied)
}

func TestEachOnce(t *testing.T) {
	local := netip.MustParseAddrPort("127.0.0.1:80")
	target := Target{Network: "tcp", Addr: local, V4: true}
	listening := Socket{Network: "tcp", Local: local, State: Listening, Inode: 7}
	bound := Socket{Network: "tcp", Local: local, State: Bound, Inode: 8}
	connected := Socket{Network: "tcp", Local: local, State: Connected, Inode: 9}

	got, err := inTheWay(target, []table{fake(connected, listening, listening, bound)})
	require.NoError(t, err)
	require.Equal(t, []Socket{listening}, got)

	got, err = inTheWay(target, []table{fake(connected, bound, bound)})
	require.NoError(t, err)
	require.Equal(t, []Socket{bound}, got)

	got, err = inTheWay(target, []table{fake(connected, connected)})
	require.NoError(t, err)
	require.Equal(t, []Socket{connected}, got)

	// Without inodes, the holders of one socket are rows of their own.
	held := func(pids ...int) Socket { return Socket{Network: "tcp", Local: local, State: Listening, PIDs: pids} }
	got, err = inTheWay(target, []table{fake(held(1), held(2), held(1))})
	require.NoError(t, err)
	require.Equal(t, []Socket{held(1, 2)}, got)
}

// Tables of other systems tell every state, in any order.
func TestTableTellsMore(t *testing.T) {
	socket := func(port uint16, ip string, state State, inode uint64) Socket {
		return Socket{Network: "tcp", Local: netip.AddrPortFrom(netip.MustParseAddr(ip), port), State: state, Inode: inode}
	}
	a := socket(80, "127.0.0.1", Listening, 3)
	b := socket(80, "127.0.0.1", Bound, 4)
	c := socket(80, "127.0.0.2", Listening, 1)
	d := socket(81, "127.0.0.1", Listening, 2)
	client := socket(82, "127.0.0.1", Connected, 5)
	all := []table{fake(client, d, c, b, a)}

	got, err := list("tcp", 80, 90, all)
	require.NoError(t, err)
	require.Equal(t, []Socket{a, b, c, d}, got)

	ports, err := taken(Target{Network: "tcp", Addr: a.Local, V4: true}, 80, 90, all)
	require.NoError(t, err)
	for port, want := range map[uint16]bool{79: false, 80: true, 81: true, 82: false, 83: false} {
		require.Equal(t, want, ports.Has(port), "%d", port)
	}
}

func TestNothingToAsk(t *testing.T) {
	never := []table{broken(errors.New("asked"))}
	got, err := inTheWay(Target{Network: "tcp", V4: true}, never)
	require.NoError(t, err)
	require.Empty(t, got)
	got, err = inTheWay(Target{Network: "unix", Path: filepath.Join(t.TempDir(), "none")}, never)
	require.NoError(t, err)
	require.Empty(t, got)
	got, err = list("tcp", 2, 1, never)
	require.NoError(t, err)
	require.Empty(t, got)
	ports, err := taken(Target{Network: "tcp", V4: true}, 2, 1, never)
	require.NoError(t, err)
	require.Equal(t, Ports{}, ports)

	var unknown net.UnknownNetworkError
	_, err = List("unix", 1, 2)
	require.ErrorAs(t, err, &unknown)
	_, err = Taken(Target{Network: "unix", Path: "/x"}, 1, 2)
	require.ErrorAs(t, err, &unknown)
}

func TestRow(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		name string
		row  row
		want Socket
		none bool
	}{
		{name: "lsof any4", row: row{network: "tcp", local: "*", localPort: 80, status: "LISTEN", pid: 7},
			want: Socket{Network: "tcp", Local: at("0.0.0.0:80"), State: Listening, UID: -1, PIDs: []int{7}}},
		{name: "lsof any6", row: row{network: "tcp", v6: true, local: "*", localPort: 80, status: "LISTEN", pid: 7},
			want: Socket{Network: "tcp", Local: at("[::]:80"), State: Listening, UID: -1, PIDs: []int{7}}},
		{name: "closed", row: row{network: "tcp", local: "127.0.0.1", localPort: 80, status: "CLOSED"},
			want: Socket{Network: "tcp", Local: at("127.0.0.1:80"), State: Bound, UID: -1}},
		{name: "link-local", row: row{network: "tcp", v6: true, local: "[fe80::1%en0]", localPort: 80, status: "LISTEN"},
			want: Socket{Network: "tcp", Local: at("[fe80::1]:80"), V6Only: true, State: Listening, UID: -1}},
		{name: "windows listener", row: row{network: "tcp", local: "0.0.0.0", localPort: 80, remote: "0.0.0.0", status: "LISTEN", pid: 4},
			want: Socket{Network: "tcp", Local: at("0.0.0.0:80"), State: Listening, UID: -1, PIDs: []int{4}}},
		{name: "connected", row: row{network: "tcp", local: "10.0.0.1", localPort: 80, remote: "10.0.0.2", remotePort: 9, status: "ESTABLISHED"},
			want: Socket{Network: "tcp", Local: at("10.0.0.1:80"), Remote: at("10.0.0.2:9"), State: Connected, UID: -1}},
		{name: "udp", row: row{network: "udp", v6: true, local: "::", localPort: 53},
			want: Socket{Network: "udp", Local: at("[::]:53"), State: Bound, UID: -1}},
		{name: "unix", row: row{network: "unix", local: "/x"}, want: Socket{Network: "unix", Path: "/x", State: Bound, UID: -1}},
		{name: "unix peer", row: row{network: "unix", local: "->0xabc"}, none: true},
		{name: "request", row: row{network: "tcp", local: "10.0.0.1", localPort: 80, remote: "10.0.0.2", remotePort: 9, status: "SYN_RCVD"}, none: true},
		{name: "no port", row: row{network: "udp", local: "*"}, none: true},
		{name: "bad port", row: row{network: "udp", local: "*", localPort: 1 << 16}, none: true},
		{name: "bad host", row: row{network: "udp", local: "localhost", localPort: 1}, none: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := c.row.socket()
			require.Equal(t, !c.none, ok)
			if ok {
				require.Equal(t, c.want, got)
			}
		})
	}
}
