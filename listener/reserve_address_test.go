package listener

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/bound"
	"github.com/berth-go/berth/strategy"
)

func TestParseOffer(t *testing.T) {
	ports := func(ends ...uint16) (ranges []strategy.Range) {
		for i := 0; i < len(ends); i += 2 {
			ranges = append(ranges, strategy.Range{First: ends[i], Last: ends[i+1]})
		}
		return ranges
	}
	for address, want := range map[string]offer{
		"":                          {"", ports(0, 0), false, nil},
		":":                         {"", ports(0, 0), false, nil},
		":0":                        {"", ports(0, 0), false, nil},
		"host:80":                   {"host", ports(80, 80), true, nil},
		"[::1]:80":                  {"::1", ports(80, 80), true, nil},
		"[fe80::1%eth0]:80":         {"fe80::1%eth0", ports(80, 80), true, nil},
		":3000-3010":                {"", ports(3000, 3010), false, nil},
		":3000-3000":                {"", ports(3000, 3000), true, nil},
		"[::1]:3000-3010,80":        {"::1", ports(3000, 3010, 80, 80), false, nil},
		":80, 3000 - 3010":          {"", ports(80, 80, 3000, 3010), false, nil},
		":3050-3099,3000-3049":      {"", ports(3050, 3099, 3000, 3049), false, nil},
		"localhost:http":            {"localhost", ports(80, 80), true, nil},
		"localhost:submission":      {"localhost", ports(587, 587), true, nil},
		"localhost:http-alt":        {"localhost", ports(8080, 8080), true, nil},
		"127.0.0.1:000000000000080": {"127.0.0.1", ports(80, 80), true, nil},
	} {
		got, err := parseOffer(t.Context(), "tcp", address)
		require.NoError(t, err, address)
		require.Equal(t, want, got, address)
	}
	for address, want := range map[string]string{
		"host":            "missing port",
		"::1:80":          "too many colons",
		":-5":             "not a port number",
		":5-":             "not a port number",
		":5-3":            "write 3-5",
		":,":              "empty",
		":65536":          "not a port number",
		":nosuchservice":  "unknown port",
		":no-such-thing":  "unknown port",
		":3000-3010-3020": "not a port number",
		":0,0-1":          "port 0",
	} {
		_, err := parseOffer(t.Context(), "tcp", address)
		require.ErrorContains(t, err, want, address)
	}
}

// The words by which a new version asks for a range do not depend on the order that somebody gave it.
func TestPortText(t *testing.T) {
	for address, want := range map[string]string{
		":0": "0", ":80": "80", ":3000-3010": "3000-3010",
		":3050-3099,3000-3049":    "3000-3099",
		":9,7,8":                  "7-9",
		":9000-9010,80,3000-3001": "80,3000-3001,9000-9010",
		":65535,1":                "1,65535",
	} {
		o, err := parseOffer(t.Context(), "tcp", address)
		require.NoError(t, err)
		require.Equal(t, want, o.portText(), address)
	}
}

func TestResolve(t *testing.T) {
	if !bound.DualStack() {
		t.Skip("no IPv6 here")
	}
	tcp := func(v6, only bool) bound.Kind { return bound.Kind{Network: "tcp", V6: v6, V6Only: only} }
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for _, c := range []struct {
		network, host string
		want          []place
	}{
		{"tcp", "", []place{{network: "tcp", kind: tcp(true, false), address: ":1-2"}}},
		{"tcp4", "", []place{{network: "tcp4", kind: tcp(false, false), address: ":1-2"}}},
		{"tcp6", "", []place{{network: "tcp6", kind: tcp(true, true), address: ":1-2"}}},
		{"tcp", "127.0.0.1", []place{{network: "tcp", ip: v4, kind: tcp(false, false), address: "127.0.0.1:1-2"}}},
		{"tcp", "::1", []place{{network: "tcp", ip: v6, kind: tcp(true, false), address: "[::1]:1-2"}}},
		{"tcp", "0.0.0.0", []place{{network: "tcp", ip: netip.IPv4Unspecified(), kind: tcp(true, false), address: "0.0.0.0:1-2"}}},
		{"tcp4", "::", []place{{network: "tcp4", ip: netip.IPv4Unspecified(), kind: tcp(false, false), address: "[::]:1-2"}}},
		{"tcp", "localhost", []place{
			{network: "tcp", ip: v4, kind: tcp(false, false), optional: true, address: "127.0.0.1:1-2"},
			{network: "tcp", ip: v6, kind: tcp(true, false), optional: true, address: "[::1]:1-2"},
		}},
		{"tcp6", "localhost", []place{{network: "tcp6", ip: v6, kind: tcp(true, true), address: "localhost:1-2"}}},
	} {
		o := offer{host: c.host, ports: []strategy.Range{{First: 1, Last: 2}}}
		require.NoError(t, o.resolve(t.Context(), []string{c.network}, false))
		require.Equal(t, c.want, o.places, "%s %s", c.network, c.host)
	}
}

// FuzzParseOffer checks that what is accepted is sound, and says the same as package net where both understand it.
func FuzzParseOffer(f *testing.F) {
	for _, seed := range []string{"", ":0", "127.0.0.1:3000-3010,8000", "[::1]:80", "localhost:http", ":-", ":0-5", ":1,,2", "[::1%1]:9-1", ":\x00"} {
		f.Add("tcp+udp", seed)
	}
	f.Add("tcp4+tcp6", ":5")
	f.Fuzz(func(t *testing.T, network, address string) {
		parts, err := parseNetworks(network)
		if err != nil {
			return
		}
		require.Equal(t, network, strings.Join(parts, "+"))
		if _, ports, err := net.SplitHostPort(address); err == nil && ports != "" && isLetter(ports[0]) {
			return // the name of a service, for which others are asked
		}
		o, err := parseOffer(t.Context(), parts[0], address)
		if err != nil {
			return
		}
		require.NotEmpty(t, o.ports)
		for _, r := range o.ports {
			require.LessOrEqual(t, r.First, r.Last)
			require.True(t, r.First != 0 || r.Last == 0)
		}
		again, err := parseOffer(t.Context(), parts[0], net.JoinHostPort(o.host, o.portText()))
		require.NoError(t, err)
		require.Equal(t, o.portText(), again.portText())
		require.Equal(t, o.fixed, again.fixed)
		if _, err := netip.ParseAddr(o.host); err != nil && o.host != "" && o.host != "localhost" {
			return // a name
		}
		for _, part := range parts {
			if err := o.resolve(t.Context(), []string{part}, false); err != nil {
				continue
			}
			want, err := net.ResolveTCPAddr(strings.Replace(part, "udp", "tcp", 1), net.JoinHostPort(o.host, "0"))
			if o.host == "localhost" {
				continue
			}
			require.NoError(t, err)
			got := o.places[0].addr(0)
			if tcp, ok := got.(*net.TCPAddr); ok && o.host != "" && !o.places[0].ip.IsUnspecified() {
				require.True(t, want.IP.Equal(tcp.IP), "%v %v", want, got)
				require.Equal(t, want.Zone, tcp.Zone)
			}
		}
	})
}
