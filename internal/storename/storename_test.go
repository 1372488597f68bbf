package storename

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFor(t *testing.T) {
	require.Equal(t, "berth web tcp 127.0.0.1%3A80", For("web", "tcp", "127.0.0.1:80"))
	require.Equal(t, "berth  unix %2Frun%2Fweb.sock", For("", "unix", "/run/web.sock"))

	long := strings.Repeat("ä:", 200)
	seen := map[string]bool{}
	for _, ask := range [][3]string{
		{"web", "tcp", ":80"}, {"web", "tcp4", ":80"}, {"web", "tcp", ":81"}, {"api", "tcp", ":80"}, {"web tcp", "", ":80"},
		{long, "tcp", ":80"}, {long, "tcp", ":81"}, {long + "x", "tcp", ":80"},
	} {
		name := For(ask[0], ask[1], ask[2])
		require.False(t, seen[name], "%q is given twice", name)
		seen[name] = true
		require.True(t, strings.HasPrefix(name, Prefix))
		require.LessOrEqual(t, len(name), 255)
		require.NotContains(t, name, ":")
		for _, r := range name {
			require.True(t, ' ' <= r && r <= '~', "%q", name)
		}
	}
}
