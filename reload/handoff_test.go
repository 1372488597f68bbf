package reload

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLabels(t *testing.T) {
	for _, l := range []label{
		{Control: true},
		{File: "lock /run/berth/tcp-any-80.lock"},
		{Stream: "target", Of: 2},
		{Socket: &identity{Network: "tcp", Address: "[::1]:0", Order: 3}},
		{Socket: &identity{Network: "tcp", Address: "[::1]:0", Order: 3, Member: 7}},
		{Socket: &identity{Packet: true, Name: `a:b "c"`, Network: "unixgram", Address: "/tmp/ä b", File: &socketFile{"/tmp/ä b", 1, 1 << 63}}},
	} {
		parsed, err := parseLabel("fd:" + l.encode() + ":")
		require.NoError(t, err)
		require.Equal(t, l, parsed)
	}
	for name, reason := range map[string]string{
		"listener:tcp::80":                 "not from this package",
		"fd:":                              "no label",
		"fd:name:":                         "no label",
		"fd:{}:":                           "of 0 kinds",
		`fd:{"control":true,"file":"x"}:`:  "of 2 kinds",
		`fd:{"socket":{"address":":80"}}:`: "without a network",
		`fd:{"socket":{"network":"tcp","order":-1}}:`:  "without a network",
		`fd:{"socket":{"network":"tcp","member":-1}}:`: "without a network",
		`fd:{"stream":"target","of":3}:`:               "stream of 3",
	} {
		_, err := parseLabel(name)
		require.ErrorContains(t, err, reason, name)
	}
}

func TestIdentities(t *testing.T) {
	for address, notFixed := range map[string]bool{
		":3000-3010": true, "localhost:3000,3010": true, "127.0.0.1:http-alt": false,
		":0": true, "127.0.0.1:": true, "[::1]:00": true, "localhost:0": true,
		":80": false, "127.0.0.1:http": false, "[::1%eth0]:1": false, "no port": false,
	} {
		require.Equal(t, notFixed, identity{Network: "tcp", Address: address}.notFixed(), address)
	}
	for address, notFixed := range map[string]bool{"": true, "@": true, "/run/x:0": false, "@x": false} {
		require.Equal(t, notFixed, identity{Network: "unix", Address: address}.notFixed(), address)
	}
	for _, c := range []struct {
		network, requested, has string
		same                    bool
	}{
		{"tcp", ":80", "[::]:80", true},
		{"tcp", "0.0.0.0:80", "[::]:80", true},
		{"tcp", "127.0.0.1:80", "127.0.0.1:80", true},
		{"tcp", "[::ffff:127.0.0.1]:80", "127.0.0.1:80", true},
		{"tcp", "127.0.0.1:80", "127.0.0.1:8080", false},
		{"tcp", "127.0.0.1:80", "[::1]:80", false},
		{"tcp", "127.0.0.1:80", "[::]:80", false},
		{"tcp", "localhost:80", "127.0.0.1:80", false},
		{"tcp", ":0", "[::]:80", false},
		{"tcp", ":80", "", false},
		{"unix", "/run/a", "/run/a", true},
		{"unix", "/run/a", "/run/b", false},
		{"unix", "", "", false},
	} {
		require.Equal(t, c.same, identity{Network: c.network, Address: c.requested}.isObtained(c.has), "%+v", c)
	}
	require.Equal(t, "tcp :80", identity{Network: "tcp", Address: ":80"}.String())
	require.Equal(t, "web (tcp :80)", identity{Name: "web", Network: "tcp", Address: ":80"}.String())
}

func FuzzLabel(f *testing.F) {
	for _, seed := range []string{"fd:", `fd:{"control":true}:`, `fd:{"socket":{"network":"tcp","address":":0","order":1}}:`, `fd:{"file":"x"}:`, "fd:{}:::", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		l, err := parseLabel(name)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			require.Zero(t, l)
			return
		}
		again, err := parseLabel("fd:" + l.encode() + ":")
		require.NoError(t, err)
		require.Equal(t, l, again)
		if l.Socket != nil {
			_ = l.Socket.notFixed()
			_ = l.Socket.isObtained(l.Socket.Address)
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, seed := range []string{`{"do":"hello","version":1}`, `{"do":"keep","label":{"file":"x"}}`, "{", "null", `[]`, strings.Repeat("[", 1000)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if err != nil {
			require.ErrorIs(t, err, errMessage)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		text, err := json.Marshal(m)
		require.NoError(t, err)
		again, err := parseMessage(text)
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}
