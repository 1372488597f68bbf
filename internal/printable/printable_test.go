package printable

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	require.Equal(t, "a?[31m?b", Text("a\x1b[31m\nb"))
	require.Equal(t, "caf\u00e9 \u00b7 \u65e5\u672c", Text("caf\u00e9 \u00b7 \u65e5\u672c"))
	require.Equal(t, "??\ufffd", Text("\u202e\u200b\xff"), "what reorders or hides text, and what is none")
}
