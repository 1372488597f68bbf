package activation

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePassed(t *testing.T) {
	first, announced, err := parsePassed("9:web:unknown")
	require.NoError(t, err)
	require.Equal(t, 9, first)
	require.Equal(t, plan{count: 2, names: []string{"web", "unknown"}}, announced)
	for _, text := range []string{"9", "9:", "2:web", "-1:web", "x:web", ":web", "99999999999:web", "2147483647:web"} {
		_, _, err := parsePassed(text)
		require.ErrorContains(t, err, "BERTH_LISTEN", text)
	}
}
