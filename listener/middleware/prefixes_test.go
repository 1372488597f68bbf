package middleware_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

func parse(t testing.TB, networks ...string) []netip.Prefix {
	t.Helper()
	list, err := middleware.ParsePrefixes(strings.NewReader(strings.Join(networks, "\n")))
	require.NoError(t, err)
	return list
}

func TestPrefixes(t *testing.T) {
	for _, test := range []struct {
		networks string
		in, out  string
	}{
		{"", "", "0.0.0.0 10.0.0.1 :: ::1"},
		{"10.0.0.0/8", "10.0.0.0 10.255.255.255 ::ffff:10.1.2.3", "9.255.255.255 11.0.0.0 ::10.0.0.1 a00::"},
		{"10.1.2.3/8", "10.0.0.0 10.255.255.255", "11.0.0.0"},
		{"0.0.0.0/0", "0.0.0.0 255.255.255.255 ::ffff:1.2.3.4", ":: ::1 ffff::"},
		{"::/0", ":: 2001:db8::1 ffff::", "0.0.0.0 1.2.3.4 ::ffff:1.2.3.4"},
		{"::ffff:10.0.0.0/104", "10.0.0.0 10.255.255.255 ::ffff:10.1.2.3", "11.0.0.0 ::"},
		{"::ffff:10.0.0.0/95", "::fffe:102:304", "10.0.0.0 ::ffff:10.0.0.0"}, // reaches beyond what IPv4 is mapped to
		{"1.2.3.4", "1.2.3.4", "1.2.3.5 1.2.3.3"},
		{"2001:db8::/33 2001:db8:8000::/34", "2001:db8:7fff:: 2001:db8:bfff::1", "2001:db8:c000:: 2001:db7:ffff::"},
		{"10.0.0.0/8 10.1.0.0/16 10.0.0.0/8 10.255.255.255/32", "10.0.0.0 10.1.2.3 10.255.255.255", "11.0.0.0"},
		{"0.0.0.0/1 128.0.0.0/1", "0.0.0.0 127.255.255.255 128.0.0.0 255.255.255.255", "::"},
		{"10.0.0.0/9 10.128.0.0/17 10.128.128.0/24", "10.0.0.0 10.127.255.255 10.128.127.255 10.128.128.255", "10.128.129.0 10.129.0.0"},
		{"fe80::/10", "fe80::1%eth0 febf::1", "fec0::"},
		{"2001:db8::1 2001:db8::2:0/112 2001:db8::3", "2001:db8::1 2001:db8::2:ffff 2001:db8::3", "2001:db8::2 2001:db8::3:0 2001:db8::1:0"},
		{"1.2.3.4 1.2.3.6 1.2.4.4", "1.2.3.4 1.2.3.6 1.2.4.4", "1.2.3.5 1.2.4.6 1.3.3.4 2.2.3.4"},
	} {
		t.Run(test.networks, func(t *testing.T) {
			set := middleware.NewPrefixes(parse(t, strings.Fields(test.networks)...)...)
			for _, addr := range strings.Fields(test.in) {
				require.True(t, set.Contains(netip.MustParseAddr(addr)), addr)
			}
			for _, addr := range strings.Fields(test.out) {
				require.False(t, set.Contains(netip.MustParseAddr(addr)), addr)
			}
			require.False(t, set.Contains(netip.Addr{}))
		})
	}
	require.False(t, (*middleware.Prefixes)(nil).Contains(netip.MustParseAddr("1.2.3.4")))
	require.False(t, new(middleware.Prefixes).Contains(netip.MustParseAddr("1.2.3.4")))
	require.False(t, middleware.NewPrefixes(netip.Prefix{}).Contains(netip.Addr{}))
}

func TestParsePrefixes(t *testing.T) {
	got, err := middleware.ParsePrefixes(strings.NewReader("# offices\n\n 10.0.0.0/8 # Berlin\r\n2001:db8::/32\n192.0.2.7\n"))
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("192.0.2.7/32"),
	}, got)

	_, err = middleware.ParsePrefixes(strings.NewReader("10.0.0.0/8\n10.0.0.0/33\n\nexample.com\nfe80::1%eth0\n10.0.0\n10.0.0.0/8 10.0.0.0/9\n"))
	require.EqualError(t, err, `line 2: "10.0.0.0/33" is no IP network
line 4: "example.com" is no IP address or network
line 5: "fe80::1%eth0" is no IP address or network
line 6: "10.0.0" is no IP address or network
line 7: "10.0.0.0/8 10.0.0.0/9" is no IP network`)
	_, err = middleware.ParsePrefixes(strings.NewReader(strings.Repeat("x\n", 1000)))
	require.Len(t, strings.Split(err.Error(), "\n"), 10)
	broken := errors.New("the disk is gone")
	_, err = middleware.ParsePrefixes(iotest.ErrReader(broken))
	require.ErrorIs(t, err, broken)
	_, err = middleware.ParsePrefixes(strings.NewReader("10.0.0.0/8\n" + strings.Repeat("x", 1<<20)))
	require.ErrorContains(t, err, "line 2: ")

	// After an error the set is what it was.
	set := middleware.NewPrefixes(got...)
	require.Error(t, set.Load(strings.NewReader("0.0.0.0/0\nx")))
	require.True(t, set.Contains(netip.MustParseAddr("10.0.0.1")))
	require.False(t, set.Contains(netip.MustParseAddr("11.0.0.1")))
	require.NoError(t, set.Load(strings.NewReader("11.0.0.0/8")))
	require.False(t, set.Contains(netip.MustParseAddr("10.0.0.1")))
	require.True(t, set.Contains(netip.MustParseAddr("11.0.0.1")))
}

// The set says what a search through the list says.
func FuzzPrefixes(f *testing.F) {
	f.Add("10.0.0.0/8\n10.128.0.0/9\n10.0.0.1\n", uint64(10<<56), uint64(0))
	f.Add("::/0\n::ffff:1.2.3.0/120 # mapped", uint64(0), uint64(0xffff01020304))
	f.Add("2001:db8::/33\n2001:db8:8000::/34\n2001:db8::1/128\n", uint64(0x20010db8_00000000), uint64(1))
	f.Add("0.0.0.0/1\n128.0.0.0/1\n", uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, list string, hi, lo uint64) {
		networks, err := middleware.ParsePrefixes(strings.NewReader(list))
		if err != nil {
			require.Empty(t, networks)
			require.NotContains(t, strings.TrimSpace(err.Error()), "line 0")
			return
		}
		set := middleware.NewPrefixes(networks...)
		check := func(addr netip.Addr) {
			addr = addr.Unmap().WithZone("")
			want := slices.ContainsFunc(networks, func(network netip.Prefix) bool {
				if a := network.Addr(); a.Is4In6() && network.Bits() >= 96 {
					network = netip.PrefixFrom(a.Unmap(), network.Bits()-96)
				}
				return network.Contains(addr)
			})
			require.Equal(t, want, set.Contains(addr), "%s in %s", addr, networks)
		}
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], hi)
		binary.BigEndian.PutUint64(b[8:], lo)
		check(netip.AddrFrom16(b))
		check(netip.AddrFrom4([4]byte(b[:4])))
		for _, network := range networks { // where it begins and ends, and beside
			first := network.Masked().Addr()
			last := lastOf(network)
			for _, addr := range []netip.Addr{first, first.Prev(), first.Next(), last, last.Prev(), last.Next()} {
				if addr.IsValid() {
					check(addr)
				}
			}
		}
	})
}

func lastOf(network netip.Prefix) netip.Addr {
	b := network.Masked().Addr().AsSlice()
	for i := network.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// Many networks of all kinds, against the search through the list.
func TestManyPrefixes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	networks := someNetworks(random, 1000)
	set := middleware.NewPrefixes(networks...)
	in := 0
	for i := range 4000 {
		addr := someAddr(random, i%2 == 0)
		if i%4 < 2 { // near one of them
			near := networks[random.IntN(len(networks))]
			if addr = lastOf(near); i%8 < 4 && addr.Next().IsValid() {
				addr = addr.Next()
			}
		}
		want := slices.ContainsFunc(networks, func(network netip.Prefix) bool { return network.Contains(addr) })
		require.Equal(t, want, set.Contains(addr), addr)
		if want {
			in++
		}
	}
	require.Greater(t, in, 200)
	require.Less(t, in, 3800)
}

func someAddr(random *rand.Rand, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, random.Uint32())))
	}
	b := binary.BigEndian.AppendUint64(nil, 0x2000<<48|random.Uint64()>>3)
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(b, random.Uint64())))
}

// someNetworks are half IPv4 and half IPv6, of lengths as in lists of real networks.
func someNetworks(random *rand.Rand, n int) []netip.Prefix {
	networks := make([]netip.Prefix, n)
	for i := range networks {
		length := 14 + random.IntN(19)
		if i%2 == 1 {
			length = 20 + random.IntN(109)
		}
		networks[i] = netip.PrefixFrom(someAddr(random, i%2 == 0), length).Masked()
	}
	return networks
}

// The rules on real connections; the list changes while the listener is in use.
func TestAllowAndDeny(t *testing.T) {
	seen, allowed, denied := new(refusals), middleware.NewPrefixes(parse(t, "127.0.0.0/8")...), new(middleware.Prefixes)
	ln := listen(t, "tcp", seen.wrap, middleware.Deny{Prefixes: denied}.Wrap, middleware.Allow{Prefixes: allowed}.Wrap)
	results := accepting(t, ln)
	dial(t, ln)
	next(t, results)
	denied.Set(parse(t, "127.0.0.1"))
	refused(t, dial(t, ln))
	denied.Set(nil)
	dial(t, ln)
	next(t, results)
	allowed.Set(parse(t, "10.0.0.0/8", "::/0"))
	refused(t, dial(t, ln))
	eventually(t, func() bool { return seen.count(middleware.ReasonDenied) == 2 }, "the hook is told")

	// Nobody is allowed by nothing, and nobody denied.
	ln = listen(t, "tcp", middleware.Allow{}.Wrap)
	accepting(t, ln)
	refused(t, dial(t, ln))
	connect(t, listen(t, "tcp", middleware.Deny{}.Wrap))

	// Unix sockets have no addresses; what has an unknown one is not allowed.
	connect(t, listen(t, "unix", middleware.Allow{}.Wrap))
	unknown := middleware.Allow{Prefixes: everywhere}.Wrap(&pretending{Listener: listen(t, "tcp"), from: []net.Addr{nil, netAddr("?")}})
	accepting(t, unknown)
	refused(t, dial(t, unknown))
	refused(t, dial(t, unknown))
}

type netAddr string

func (a netAddr) Network() string { return "other" }
func (a netAddr) String() string  { return string(a) }

// A look-up takes as long in a hundred thousand networks as in ten.
func BenchmarkPrefixes(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		random := rand.New(rand.NewPCG(3, 4))
		networks := someNetworks(random, n)
		addrs := make([]netip.Addr, 1024)
		for i := range addrs {
			if addrs[i] = someAddr(random, i%2 == 0); i%4 < 2 {
				addrs[i] = lastOf(networks[random.IntN(n)])
			}
		}
		set := middleware.NewPrefixes(networks...)
		b.Run(fmt.Sprintf("op=contains/networks=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				set.Contains(addrs[i%len(addrs)])
				i++
			}
		})
		b.Run(fmt.Sprintf("op=set/networks=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				set.Set(networks)
			}
		})
	}
}
