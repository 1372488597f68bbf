package sockets

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const procInetHeading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

// procAddr writes an address as this machine's kernel would.
func procAddr(s string) string {
	a := netip.MustParseAddrPort(s)
	var b strings.Builder
	for ip := a.Addr().AsSlice(); len(ip) > 0; ip = ip[4:] {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(ip))
	}
	fmt.Fprintf(&b, ":%04X", a.Port())
	return b.String()
}

func procInetSeed() string {
	line := func(local, remote, state string, uid, inode int) string {
		return fmt.Sprintf("   0: %s %s %s 00000000:00000000 00:00000000 00000000 %5d        0 %d 1 0000000000000000 100 0 0 10 0\n",
			procAddr(local), procAddr(remote), state, uid, inode)
	}
	return procInetHeading +
		line("127.0.0.1:80", "0.0.0.0:0", "0A", 1000, 42) +
		line("[::1]:81", "[::]:0", "07", 0, 43) +
		line("[::ffff:127.0.0.1]:82", "[::ffff:127.0.0.2]:9", "01", 0, 44) +
		line("127.0.0.1:83", "127.0.0.1:9", "06", 0, 0) +
		line("127.0.0.1:84", "127.0.0.1:9", "03", 0, 0)
}

func TestParseProcInet(t *testing.T) {
	at := netip.MustParseAddrPort
	want := []Socket{
		{Network: "tcp", Local: at("127.0.0.1:80"), Remote: at("0.0.0.0:0"), State: Listening, UID: 1000, Inode: 42},
		{Network: "tcp", Local: at("[::1]:81"), Remote: at("[::]:0"), V6Only: true, State: Bound, Inode: 43},
		{Network: "tcp", Local: at("127.0.0.1:82"), Remote: at("127.0.0.2:9"), State: Connected, Inode: 44},
		{Network: "tcp", Local: at("127.0.0.1:83"), Remote: at("127.0.0.1:9"), State: Connected, UID: -1},
	}
	var got []Socket
	err := parseProcInet(strings.NewReader(procInetSeed()), "tcp", func(s *Socket) { got = append(got, *s) })
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestParseProcInetSkips(t *testing.T) {
	good := strings.Split(procInetSeed(), "\n")[1]
	field := strings.Fields(good)
	for _, bad := range []string{
		"", " ", "0:", procInetHeading,
		strings.Replace(good, field[1], "0100007F", 1),
		strings.Replace(good, field[1], "0100007:0050", 1),
		strings.Replace(good, field[1], "010000ZZ:0050", 1),
		strings.Replace(good, field[1], field[1][:9]+"00ZZ", 1),
		strings.Replace(good, field[1], field[1]+"0", 1),
		strings.Replace(good, field[2], "x", 1),
		strings.Replace(good, " 0A ", " XX ", 1),
		strings.Replace(good, " 0A ", " 10A ", 1),
		strings.Replace(good, " 1000 ", " root ", 1),
		strings.Replace(good, " 42 ", " -1 ", 1),
		good[:strings.Index(good, " 42 ")],
	} {
		require.NotEqual(t, good, bad)
		count := 0
		err := parseProcInet(strings.NewReader(bad+"\n"+good+"\n"), "tcp", func(*Socket) { count++ })
		require.NoError(t, err)
		require.Equal(t, 1, count, "%q", bad)
	}
}

const procUnixSeed = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/with blank
0000000000000000: 00000002 00000000 00000000 0002 01 12 @name@x
0000000000000000: 00000003 00000000 00000000 0001 03 13 /run/with blank
0000000000000000: 00000003 00000000 00000000 0002 03 14 /run/gram
0000000000000000: 00000002 00000000 00000000 0001 01    15
0000000000000000: 00000002 00000000 00000000 0005 01 16 /run/line
feed
0000000000000000: 00000002 00000000 0000000Z 0001 01 17 /bad
0000000000000000: 00000002 00000000 00000000 Z001 01 18 /bad
0000000000000000: 00000002 00000000 00000000 0001 01 Z9 /bad
`

func TestParseProcUnix(t *testing.T) {
	var got []Socket
	err := parseProcUnix(strings.NewReader(procUnixSeed), func(s *Socket) { got = append(got, *s) })
	require.NoError(t, err)
	require.Equal(t, []Socket{
		{Network: "unix", Path: "/run/with blank", State: Listening, Inode: 11, UID: -1, kind: stream},
		{Network: "unix", Path: "@name@x", State: Bound, Inode: 12, UID: -1, kind: datagram},
		{Network: "unix", Path: "/run/gram", State: Connected, Inode: 14, UID: -1, kind: datagram},
		{Network: "unix", Path: "/run/line", State: Bound, Inode: 16, UID: -1, kind: seqpacket},
	}, got)
}

func TestInferV6Only(t *testing.T) {
	at := netip.MustParseAddrPort
	sockets := []Socket{
		{Network: "tcp", Local: at("127.0.0.1:80"), State: Listening},
		{Network: "tcp", Local: at("[::]:80"), State: Listening},  // beside an IPv4 socket
		{Network: "tcp", Local: at("[::]:81"), State: Listening},  // alone
		{Network: "udp", Local: at("[::]:80"), State: Bound},      // another protocol
		{Network: "tcp", Local: at("[::1]:80"), State: Listening}, // specific
		{Network: "tcp", Local: at("[::]:82"), State: Listening},  // beside its own IPv4 connection
		{Network: "tcp", Local: at("127.0.0.1:82"), State: Connected},
	}
	for i := range sockets {
		sockets[i].V6Only = specificV6(sockets[i].Local.Addr())
	}
	inferV6Only(sockets)
	for i, s := range sockets {
		require.Equal(t, i == 1 || i == 4, s.V6Only, "%d", i)
	}
}

func FuzzParseProcNet(f *testing.F) {
	f.Add(procInetSeed())
	f.Add(procUnixSeed)
	f.Add("   0: 0100007F:0050")
	f.Fuzz(func(t *testing.T, text string) {
		_ = parseProcInet(strings.NewReader(text), "tcp", func(s *Socket) {
			require.NotZero(t, s.State)
			require.True(t, s.Local.IsValid())
			require.False(t, s.Local.Addr().Is4In6())
		})
		_ = parseProcUnix(strings.NewReader(text), func(s *Socket) {
			require.NotZero(t, s.State)
			require.NotEmpty(t, s.Path)
		})
	})
}
