package activation_test

import (
	"context"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/activation"
)

func got(what ...string) outcome  { return outcome{Got: what} }
func port(ln net.Listener) string { return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port) }

// pair is a wildcard of each family on one port.
func pair(t *testing.T) (v4, v6 net.Listener) {
	t.Helper()
	for range 20 { // the port may be taken for IPv6
		first, err := net.Listen("tcp4", "0.0.0.0:0")
		require.NoError(t, err)
		second, err := net.Listen("tcp6", "[::]:"+port(first))
		if err == nil {
			t.Cleanup(func() { first.Close(); second.Close() })
			return first, second
		}
		first.Close()
	}
	require.FailNow(t, "no port is free for both families")
	return nil, nil
}

func TestTakeByAddress(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	v4, v6 := pair(t)
	dual, loop4, loop6 := listen(t, "tcp", ":0"), listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "[::1]:0")
	path, abstract, packet := listen(t, "unix", dir+"/stream"), listen(t, "unix", "@berth"+port(v4)), listen(t, "unixpacket", dir+"/packet")
	relative := listen(t, "unix", "relative")
	udp, gram := listenPacket(t, "udp", "127.0.0.1:0"), listenPacket(t, "unixgram", dir+"/gram")
	udpPort := strconv.Itoa(udp.LocalAddr().(*net.UDPAddr).Port)
	const tcpType, unixType = "*net.TCPListener ", "*net.UnixListener "

	for _, c := range []struct {
		name             string
		passed           []any
		network, address string
		want             string // "" none
	}{
		{"loopback", []any{dual, loop4}, "tcp", loop4.Addr().String(), tcpType + loop4.Addr().String()},
		{"loopback by name", []any{dual, loop4}, "tcp", "localhost:" + port(loop4), tcpType + loop4.Addr().String()},
		{"loopback, tcp4", []any{dual, loop4}, "tcp4", loop4.Addr().String(), tcpType + loop4.Addr().String()},
		{"loopback, tcp6", []any{loop4}, "tcp6", loop4.Addr().String(), ""},
		{"loopback, IPv6", []any{dual, loop4, loop6}, "tcp", loop6.Addr().String(), tcpType + loop6.Addr().String()},
		{"loopback, IPv6, tcp6", []any{loop6}, "tcp6", loop6.Addr().String(), tcpType + loop6.Addr().String()},
		{"loopback, wildcard asked", []any{loop4}, "tcp", ":" + port(loop4), ""},
		{"wildcard, loopback asked", []any{dual}, "tcp", "127.0.0.1:" + port(dual), ""},
		{"other port", []any{loop4}, "tcp", "127.0.0.1:1", ""},
		{"port 0", []any{loop4, dual}, "tcp", ":0", ""},
		{"port 0, loopback", []any{loop4, dual}, "tcp", "127.0.0.1:0", ""},

		{"dual", []any{dual}, "tcp", ":" + port(dual), tcpType + dual.Addr().String()},
		{"dual, 0.0.0.0 asked", []any{dual}, "tcp", "0.0.0.0:" + port(dual), tcpType + dual.Addr().String()},
		{"dual, :: asked", []any{dual}, "tcp", "[::]:" + port(dual), tcpType + dual.Addr().String()},
		{"dual, tcp4", []any{dual}, "tcp4", ":" + port(dual), ""},
		{"dual, tcp6", []any{dual}, "tcp6", ":" + port(dual), ""},
		{"both families, :", []any{v6, v4}, "tcp", ":" + port(v4), tcpType + v4.Addr().String()},
		{"both families, 0.0.0.0", []any{v6, v4}, "tcp", "0.0.0.0:" + port(v4), tcpType + v4.Addr().String()},
		{"both families, ::", []any{v4, v6}, "tcp", "[::]:" + port(v4), tcpType + v6.Addr().String()},
		{"both families, tcp4", []any{v6, v4}, "tcp4", ":" + port(v4), tcpType + v4.Addr().String()},
		{"both families, tcp6", []any{v4, v6}, "tcp6", ":" + port(v4), tcpType + v6.Addr().String()},
		{"IPv4 alone, ::", []any{v4}, "tcp", "[::]:" + port(v4), tcpType + v4.Addr().String()},
		{"IPv6 alone, :", []any{v6}, "tcp", ":" + port(v4), tcpType + v6.Addr().String()},
		{"IPv6 alone, 0.0.0.0", []any{v6}, "tcp", "0.0.0.0:" + port(v4), ""},
		{"IPv6 alone, tcp4", []any{v6}, "tcp4", ":" + port(v4), ""},

		{"path", []any{abstract, path}, "unix", dir + "/stream", unixType + dir + "/stream"},
		{"path, relative asked", []any{path}, "unix", "stream", unixType + dir + "/stream"},
		{"relative path", []any{relative}, "unix", dir + "/relative", unixType + "relative"},
		{"path, stream asked as packets", []any{path}, "unixpacket", dir + "/stream", ""},
		{"packets", []any{path, packet}, "unixpacket", dir + "/packet", unixType + dir + "/packet"},
		{"packets asked as stream", []any{packet}, "unix", dir + "/packet", ""},
		{"other path", []any{path}, "unix", dir + "/other", ""},
		{"abstract", []any{path, abstract}, "unix", abstract.Addr().String(), unixType + abstract.Addr().String()},
		{"other abstract", []any{abstract}, "unix", "@other", ""},

		{"udp", []any{udp}, "udp", "127.0.0.1:" + udpPort, "*net.UDPConn 127.0.0.1:" + udpPort},
		{"udp4", []any{udp}, "udp4", "127.0.0.1:" + udpPort, "*net.UDPConn 127.0.0.1:" + udpPort},
		{"udp6", []any{udp}, "udp6", "127.0.0.1:" + udpPort, ""},
		{"udp, tcp asked", []any{udp}, "tcp", "127.0.0.1:" + udpPort, ""},
		{"tcp, udp asked", []any{loop4}, "udp", loop4.Addr().String(), ""},
		{"datagrams", []any{gram}, "unixgram", dir + "/gram", "*net.UnixConn " + dir + "/gram"},
		{"datagrams, stream asked", []any{gram}, "unix", dir + "/gram", ""},
		{"unknown host", []any{loop4}, "tcp", "host.invalid:" + port(loop4), ""},
		{"unknown network", []any{loop4}, "tcp5", loop4.Addr().String(), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			do := "Take"
			if c.network[:3] == "udp" || c.network == "unixgram" {
				do = "TakePacket"
			}
			one := step{do, "", c.network, c.address}
			f := ask(t, c.passed, "", one, one, step{Do: "Unused"})
			require.Empty(t, f.Err)
			if c.want == "" {
				require.True(t, f.Steps[0].Missing)
				require.Contains(t, f.Steps[0].Err, c.network+" "+c.address)
				require.Len(t, f.Steps[2].Got, len(c.passed))
				return
			}
			require.Equal(t, got(c.want), f.Steps[0])
			require.NotEqual(t, f.Steps[0], f.Steps[1], "each is given out once")
			require.Empty(t, f.Inheritable)
		})
	}
}

func TestTwoFamiliesOnOnePort(t *testing.T) {
	v4, v6 := pair(t)
	f := ask(t, []any{v6, v4}, "",
		step{"Take", "", "tcp", ":" + port(v4)}, step{"Take", "", "tcp", ":" + port(v4)}, step{"Take", "", "tcp", ":" + port(v4)})
	require.Equal(t, got("*net.TCPListener "+v4.Addr().String()), f.Steps[0])
	require.Equal(t, got("*net.TCPListener "+v6.Addr().String()), f.Steps[1])
	require.True(t, f.Steps[2].Missing)
}

func TestTakeByName(t *testing.T) {
	a, b, c, d := listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", t.TempDir()+"/s")
	is := func(ln net.Listener) outcome { return got("*net.TCPListener " + ln.Addr().String()) }
	for _, test := range []struct {
		name, names string
		steps       []step
		want        []outcome
	}{
		{"alone of its name, whatever its address", "a:b:c:d",
			[]step{{"Take", "b", "tcp", ":1"}, {"Take", "c", "tcp", a.Addr().String()}, {"Take", "none", "tcp", a.Addr().String()}},
			[]outcome{is(b), is(c), is(a)}},
		{"of its network", "x:d:d:d",
			[]step{{"Take", "d", "unix", "/nowhere"}, {"Take", "x", "tcp4", ":1"}},
			[]outcome{got("*net.UnixListener " + d.Addr().String()), is(a)}},
		{"several of the name, the address decides", "w:w:w:d",
			[]step{{"Take", "w", "tcp", c.Addr().String()}, {"Take", "w", "tcp", ":1"}, {"Take", "w", "tcp", ":2"}},
			[]outcome{is(c), is(a), is(b)}},
		{"the name goes before the address", "w:w:x:d",
			[]step{{"Take", "w", "tcp", c.Addr().String()}, {"Take", "w", "tcp", c.Addr().String()}, {"Take", "w", "tcp", c.Addr().String()}},
			[]outcome{is(a), is(b), is(c)}},
		{"the name goes before the address that comes first", "x:w:w:d",
			[]step{{"Take", "w", "tcp", a.Addr().String()}},
			[]outcome{is(b)}},
		{"an address that cannot be resolved", "w:w:x:d",
			[]step{{"Take", "w", "tcp", "host.invalid:http"}},
			[]outcome{is(a)}},
		{"without a name, none is matched by it", ":::",
			[]step{{"Take", "", "tcp", b.Addr().String()}},
			[]outcome{is(b)}},
		{"without a name, not that without one either", ":x:y:d",
			[]step{{"Take", "", "tcp", b.Addr().String()}, {"Take", "", "tcp", ":1"}},
			[]outcome{is(b), {Err: "activation: no passed socket is a listening stream socket for tcp :1", Missing: true}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := ask(t, []any{a, b, c, d}, test.names, test.steps...)
			require.Empty(t, f.Err)
			require.Equal(t, test.want, f.Steps)
		})
	}

	f := ask(t, []any{a, d}, "a:d", step{"Take", "a", "tcp6", ":1"}, step{"Take", "d", "tcp", ":1"}, step{"TakePacket", "a", "udp", ":1"})
	for _, o := range f.Steps {
		require.True(t, o.Missing, "a name does not make up for another type: %+v", o)
	}
}

func TestTakeExactly(t *testing.T) {
	a, b, udp := listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", t.TempDir()+"/s"), listenPacket(t, "udp", "127.0.0.1:0")
	all := []any{a, b, udp, a}
	for _, c := range []struct {
		steps []step
		want  string   // of the last step
		errs  []string // its error
	}{
		{steps: []step{{"Take", "", "tcp", "fd:3"}}, want: "*net.TCPListener " + a.Addr().String()},
		{steps: []step{{"Take", "b", "tcp", "fd:3"}}, want: "*net.TCPListener " + a.Addr().String()},
		{steps: []step{{"Take", "", "tcp", "fd:a"}}, want: "*net.TCPListener " + a.Addr().String()},
		{steps: []step{{"Take", "", "unix", "fd:b"}}, want: "*net.UnixListener " + b.Addr().String()},
		{steps: []step{{"TakePacket", "", "udp", "fd:5"}}, want: "*net.UDPConn " + udp.LocalAddr().String()},
		{steps: []step{{"TakePacket", "", "udp", "fd:a"}}, want: "*net.UDPConn " + udp.LocalAddr().String()},
		{steps: []step{{"Take", "", "tcp", "fd:a"}, {"Take", "", "tcp", "fd:a"}}, want: "*net.TCPListener " + a.Addr().String()},

		{steps: []step{{"Take", "", "tcp", "fd:4"}}, errs: []string{"fd:4", "descriptor 4 (b), unix", "listening stream socket for tcp"}},
		{steps: []step{{"Take", "", "tcp6", "fd:3"}}, errs: []string{"fd:3", "listening stream socket for tcp6"}},
		{steps: []step{{"Take", "", "tcp", "fd:5"}}, errs: []string{"is a datagram socket"}},
		{steps: []step{{"TakePacket", "", "udp", "fd:3"}}, errs: []string{"is a listening stream socket", "datagram socket for udp"}},
		{steps: []step{{"Take", "", "nonsense", "fd:3"}}, errs: []string{"nonsense"}},
		{steps: []step{{"Take", "", "tcp", "fd:3"}, {"Take", "", "tcp", "fd:3"}}, errs: []string{"descriptor 3 (a)", "already"}},
		{steps: []step{{Do: "Close"}, {"Take", "", "tcp", "fd:3"}}, errs: []string{"already"}},
		{steps: []step{{"Take", "", "tcp", "fd:7"}}, errs: []string{"fd:7", "no such socket", "descriptor 3 (a)", "descriptor 6 (a)"}},
		{steps: []step{{"Take", "", "tcp", "fd:2"}}, errs: []string{"no such socket"}},
		{steps: []step{{"Take", "", "tcp", "fd:c"}}, errs: []string{"no such socket"}},
		{steps: []step{{"Take", "", "tcp", "fd:"}}, errs: []string{"no such socket"}},
		{steps: []step{{"Take", "", "tcp", "fd:%d"}}, errs: []string{"fd:%d: no such socket"}},
	} {
		f := ask(t, all, "a:b:a:a", c.steps...)
		require.Empty(t, f.Err)
		last := f.Steps[len(f.Steps)-1]
		if c.errs == nil {
			require.Equal(t, got(c.want), last)
			continue
		}
		require.False(t, last.Missing, "the caller asked for nothing else")
		for _, part := range c.errs {
			require.Contains(t, last.Err, part)
		}
		require.NotContains(t, last.Err, "\n")
	}
}

func TestNamed(t *testing.T) {
	a, b, c := listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", t.TempDir()+"/s")
	udp := listenPacket(t, "udp", "127.0.0.1:0")
	f := ask(t, []any{a, udp, b, c}, "web:web:other:web",
		step{Do: "Named", Name: "none"}, step{Do: "Named", Name: "web"}, step{Do: "Named", Name: "web"},
		step{Do: "PacketNamed", Name: "other"}, step{Do: "PacketNamed", Name: "web"}, step{Do: "PacketNamed", Name: "web"},
		step{Do: "Unused"})
	require.Equal(t, []outcome{
		{}, got("*net.TCPListener "+a.Addr().String(), "*net.UnixListener "+c.Addr().String()), {},
		{}, got("*net.UDPConn " + udp.LocalAddr().String()), {},
		got("descriptor 5 (other), tcp " + b.Addr().String()),
	}, f.Steps)
	require.Len(t, f.After, len(f.Before))

	f = ask(t, []any{a, b}, "", step{Do: "Named", Name: "unknown"})
	require.Len(t, f.Steps[0].Got, 2, "as sd_listen_fds_with_names(3) has it")
}

func TestConn(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	server, err := ln.Accept()
	require.NoError(t, err)
	defer server.Close()
	at := ln.Addr().String()
	f := ask(t, []any{ln, server}, "l:connection",
		step{"Take", "connection", "tcp", "host.invalid:1"}, step{"Take", "", "tcp", "fd:4"}, step{Do: "Named", Name: "connection"},
		step{Do: "Conn"}, step{Do: "Conn"}, step{Do: "Unused"})
	require.True(t, f.Steps[0].Missing)
	require.Contains(t, f.Steps[1].Err, "descriptor 4 (connection), tcp "+at+" is a connection")
	require.Empty(t, f.Steps[2])
	require.Equal(t, got("*net.TCPConn "+at), f.Steps[3])
	require.True(t, f.Steps[4].Missing)
	require.Equal(t, got("descriptor 3 (l), tcp "+at), f.Steps[5])
}

func TestWhatNobodyCanTake(t *testing.T) {
	// Sockets that package net has no type for, and one that is bound and does not listen.
	bound, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	netlink, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	all := []any{os.NewFile(uintptr(bound), "bound"), os.NewFile(uintptr(netlink), "netlink")}
	if err == nil { // it takes a privilege
		all = append(all, os.NewFile(uintptr(raw), "raw"))
	}
	if crypto, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err == nil { // not every kernel has it
		all = append(all, os.NewFile(uintptr(crypto), "crypto"))
	}
	vsock, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		all = append(all, os.NewFile(uintptr(vsock), "vsock"))
	}
	for _, f := range all {
		defer f.(*os.File).Close()
	}
	name, err := unix.Getsockname(bound)
	require.NoError(t, err)
	address := "127.0.0.1:" + strconv.Itoa(name.(*unix.SockaddrInet4).Port)
	f := ask(t, all, "", step{"Take", "unknown", "tcp", address}, step{"TakePacket", "unknown", "udp", address}, step{Do: "Conn"},
		step{"Take", "", "tcp", "fd:3"}, step{Do: "Unused"}, step{Do: "Close"}, step{Do: "Unused"})
	require.Empty(t, f.Err)
	for _, o := range f.Steps[:3] {
		require.True(t, o.Missing)
	}
	require.Contains(t, f.Steps[3].Err, "neither listens nor is connected")
	require.Equal(t, []string{"descriptor 3, tcp " + address, "descriptor 4, unknown"}, f.Steps[4].Got[:2])
	require.Equal(t, []outcome{{}, {}}, f.Steps[5:])
	require.Len(t, f.After, len(f.Before)-len(all))
}

func TestClose(t *testing.T) {
	a, b := listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0")
	f := ask(t, []any{a, b}, "a:b",
		step{"Take", "a", "tcp", ""}, step{Do: "Close"}, step{Do: "Close"}, step{Do: "Unused"},
		step{"Take", "b", "tcp", ""}, step{Do: "Named", Name: "b"}, step{Do: "Conn"})
	require.Equal(t, []outcome{got("*net.TCPListener " + a.Addr().String()), {}, {}, {}}, f.Steps[:4])
	require.True(t, f.Steps[4].Missing)
	require.Empty(t, f.Steps[5])
	require.True(t, f.Steps[6].Missing)
	require.Len(t, f.After, len(f.Before)-1, "what was taken stays open, the other is closed")
}

func TestDescriptorsRunOut(t *testing.T) {
	a, udp := listen(t, "tcp", "127.0.0.1:0"), listenPacket(t, "udp", "127.0.0.1:0")
	f := ask(t, []any{a, udp}, "a:b",
		step{Do: "exhaust"}, step{"Take", "a", "tcp", ""}, step{Do: "Named", Name: "a"}, step{Do: "PacketNamed", Name: "b"}, step{Do: "Unused"},
		step{Do: "recover"}, step{"Take", "a", "tcp", ""}, step{Do: "Close"})
	require.Contains(t, f.Steps[1].Err, "too many open files")
	require.Contains(t, f.Steps[1].Err, "descriptor 3 (a), tcp")
	require.False(t, f.Steps[1].Missing)
	require.Equal(t, []outcome{{}, {}}, f.Steps[2:4])
	require.Len(t, f.Steps[4].Got, 2, "what cannot be opened is not lost")
	require.Equal(t, got("*net.TCPListener "+a.Addr().String()), f.Steps[6])
	require.Equal(t, outcome{}, f.Steps[7])
	require.Len(t, f.After, len(f.Before)-1)
}

func TestSocketFileStays(t *testing.T) {
	path := t.TempDir() + "/s"
	ln := listen(t, "unix", path)
	f := ask(t, []any{ln}, "", step{"Take", "", "unix", path}, step{Do: "unlisten"})
	require.Equal(t, []outcome{got("*net.UnixListener " + path), {}}, f.Steps)
	_, err := os.Stat(path)
	require.NoError(t, err, "it belongs to the passer")
}

func TestNilSet(t *testing.T) {
	var set *activation.Set
	_, err := set.Take("a", "tcp", ":80")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.EqualError(t, err, "activation: no sockets were passed")
	_, err = set.TakePacket("a", "udp", ":80")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = set.Conn()
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, address := range []string{"fd:3", "fd:a"} {
		_, err = set.Take("", "tcp", address)
		require.ErrorContains(t, err, address)
		require.NotErrorIs(t, err, fs.ErrNotExist, "a bind of %q must not be tried", address)
	}
	require.Empty(t, set.Named("a"))
	require.Empty(t, set.PacketNamed("a"))
	require.Empty(t, set.Unused())
	require.NoError(t, set.Close())
	require.NoError(t, set.Close())
}

func TestMPTCP(t *testing.T) {
	// Package net listens with MPTCP where it can; systemd 257 does with SocketProtocol=mptcp.
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	ln, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	config.SetMultipathTCP(false)
	plain, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer plain.Close()
	f := ask(t, []any{ln, plain}, "", step{"Take", "", "tcp", ln.Addr().String()}, step{"Take", "", "tcp", plain.Addr().String()})
	require.Equal(t, []outcome{got("*net.TCPListener " + ln.Addr().String()), got("*net.TCPListener " + plain.Addr().String())}, f.Steps)
}

func TestBlockingModeOfThePassedSocketDoesNotMatter(t *testing.T) {
	// Both come: systemd clears O_NONBLOCK unless NonBlocking=yes. What is given out never blocks a thread.
	for _, nonblock := range []bool{false, true} {
		ln := listen(t, "tcp", "127.0.0.1:0")
		passed := files(t, ln)
		raw, err := passed[0].SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), nonblock) }))
		require.NoError(t, err)
		cmd := child(t, "close while accepting", passed, "LISTEN_FDS=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
}

func init() {
	// Close ends Accept, which it cannot where the descriptor blocks.
	roles["close while accepting"] = func() error {
		set, err := activation.FromEnv()
		if err != nil {
			return err
		}
		ln, err := set.Take("", "tcp", "fd:3")
		if err != nil {
			return err
		}
		ended := make(chan error)
		go func() {
			_, err := ln.Accept()
			ended <- err
		}()
		ln.Close()
		<-ended
		return nil
	}
}
