package activation

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/descriptor"
)

func tcp(addr string) descriptor.Socket {
	return descriptor.Socket{Network: "tcp", Addr: netip.MustParseAddrPort(addr), Listening: true}
}

func v6only(s descriptor.Socket) descriptor.Socket {
	s.V6Only = true
	return s
}

func TestFit(t *testing.T) {
	var (
		v4    = tcp("0.0.0.0:8080")
		dual  = tcp("[::]:8080")
		only6 = v6only(tcp("[::]:8080"))
	)
	for _, c := range []struct {
		network, address string
		v4, dual, only6  int // which is preferred to which, 0 not taken
	}{
		{"tcp", ":8080", 2, 3, 1},
		{"tcp", ":http-alt", 2, 3, 1},
		{"tcp", "0.0.0.0:8080", 3, 2, 0},
		{"tcp", "[::]:8080", 1, 3, 3},
		{"tcp4", ":8080", 1, 0, 0},
		{"tcp4", "0.0.0.0:8080", 1, 0, 0},
		{"tcp6", ":8080", 0, 0, 1},
		{"tcp6", "[::]:8080", 0, 0, 1},
		{"tcp", ":0", 0, 0, 0},
		{"tcp", "", 0, 0, 0},
		{"tcp", ":8081", 0, 0, 0},
		{"tcp", "127.0.0.1:8080", 0, 0, 0},
		{"tcp", "[::1]:8080", 0, 0, 0},
		{"udp", ":8080", 0, 0, 0},
	} {
		t.Run(c.network+" "+c.address, func(t *testing.T) {
			at, err := resolve(c.network, c.address)
			require.NoError(t, err)
			fit := func(s descriptor.Socket) int {
				if !ofNetwork(&s, c.network) {
					return 0
				}
				return at.fit(&s)
			}
			got := [3]int{fit(v4), fit(dual), fit(only6)}
			if c.network == "tcp4" {
				got[0] = one(got[0] > 0) // alone, so that how well it fits does not matter
			}
			require.Equal(t, [3]int{c.v4, c.dual, c.only6}, got)
		})
	}
}

func TestFitSpecificAddresses(t *testing.T) {
	local := map[string]string{}
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	for _, i := range interfaces {
		local["index"], local["name"] = strconv.Itoa(i.Index), i.Name
	}
	for _, c := range []struct {
		network, address, socket string
		want                     bool
	}{
		{"tcp", "127.0.0.1:80", "127.0.0.1:80", true},
		{"tcp", "127.0.0.1:http", "127.0.0.1:80", true},
		{"tcp", "127.0.0.1:80", "[::ffff:127.0.0.1]:80", true},
		{"tcp", "[::ffff:127.0.0.1]:80", "127.0.0.1:80", true},
		{"tcp4", "127.0.0.1:80", "127.0.0.1:80", true},
		{"tcp4", "127.0.0.1:80", "[::ffff:127.0.0.1]:80", false},
		{"tcp", "127.0.0.1:80", "127.0.0.2:80", false},
		{"tcp", "127.0.0.1:80", "127.0.0.1:81", false},
		{"tcp", "127.0.0.1:0", "127.0.0.1:80", false},
		{"tcp", "127.0.0.1:0", "127.0.0.1:0", false},
		{"tcp", "127.0.0.1:80", "0.0.0.0:80", false},
		{"tcp", "[::1]:80", "[::1]:80", true},
		{"tcp6", "[::1]:80", "[::1]:80", true},
		{"tcp", "[::1]:80", "[::]:80", false},
		{"tcp", "[::1]:80", "127.0.0.1:80", false},
		{"tcp", "[fe80::1%" + local["name"] + "]:80", "[fe80::1%" + local["index"] + "]:80", true},
		{"tcp", "[fe80::1%" + local["index"] + "]:80", "[fe80::1%" + local["index"] + "]:80", true},
		{"tcp", "[fe80::1]:80", "[fe80::1%" + local["index"] + "]:80", true},
		{"tcp", "[fe80::1%99999]:80", "[fe80::1%" + local["index"] + "]:80", false},
	} {
		at, err := resolve(c.network, c.address)
		require.NoError(t, err)
		s := tcp(c.socket)
		require.Equal(t, c.want, ofNetwork(&s, c.network) && at.fit(&s) > 0, "%s %s, passed %s", c.network, c.address, c.socket)
	}
}

func TestResolveIsWhatListenBinds(t *testing.T) {
	at, err := resolve("tcp", "localhost:http")
	require.NoError(t, err)
	ln, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	defer ln.Close()
	bound := ln.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	require.Equal(t, netip.AddrPortFrom(bound, 80), at.addr)

	for _, c := range [][2]string{
		{"tcp", "host.invalid:80"}, {"tcp", "127.0.0.1"}, {"tcp", ":nonsense"}, {"udp", ":70000"}, {"tcp4", "[::1]:80"},
	} {
		_, err := resolve(c[0], c[1])
		require.Error(t, err, c)
	}
	for _, network := range []string{"", "ip", "tcp5", "unix4", "4"} {
		_, err := resolve(network, ":80")
		require.ErrorIs(t, err, net.UnknownNetworkError(network))
		for _, s := range []descriptor.Socket{tcp("0.0.0.0:80"), {Network: "unix", Path: ":80"}, {}} {
			require.False(t, ofNetwork(&s, network), "%q %+v", network, s)
		}
	}
}

func TestFitPaths(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths of Unix")
	}
	dir := t.TempDir()
	t.Chdir(dir)
	require.NoError(t, os.Mkdir("real", 0o755))
	require.NoError(t, os.WriteFile("real/s", nil, 0o644))
	require.NoError(t, os.WriteFile("real/other", nil, 0o644))
	require.NoError(t, os.Symlink("real", "link"))
	for _, c := range []struct {
		want, have string
		fit        bool
	}{
		{dir + "/real/s", dir + "/real/s", true},
		{"real/s", dir + "/real/s", true},
		{dir + "/real/s", "real/s", true},
		{"./real/../real/s", dir + "/real/s", true},
		{filepath.Join(dir, "link/s"), dir + "/real/s", true},
		{"gone", dir + "/gone", true},
		{"real/other", dir + "/real/s", false},
		{"gone", "lost", false},
		{"@a", "@a", true},
		{"\x00a", "@a", true},
		{"@a", "@b", false},
		{"@real/s", "real/s", false},
		{"@a", dir + "/@a", false},
		{"./@a", "@a", false},
		{"", "", false},
		{"", "@a", false},
		{"real/s", "", false},
	} {
		at, err := resolve("unix", c.want)
		require.NoError(t, err)
		require.Equal(t, c.fit, at.fit(&descriptor.Socket{Network: "unix", Path: c.have}) > 0, "%q, passed %q", c.want, c.have)
	}
}
