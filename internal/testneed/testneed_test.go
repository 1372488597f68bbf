package testneed_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/testneed"
)

// A recorder keeps what became of a test. Unlike the real one, it goes on.
type recorder struct {
	testing.TB
	outcome string
}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(format string, a ...any) {
	r.outcome += "failed: " + fmt.Sprintf(format, a...)
}
func (r *recorder) Skipf(format string, a ...any) {
	r.outcome += "skipped: " + fmt.Sprintf(format, a...)
}

func TestThat(t *testing.T) {
	for _, test := range []struct {
		ci        string
		available bool
		want      string
	}{
		{"", true, ""},
		{"true", true, ""},
		{"", false, "skipped: this test needs root"},
	} {
		t.Setenv("CI", test.ci)
		r := &recorder{}
		testneed.That(r, test.available, "root")
		require.Equal(t, test.want, r.outcome)
	}
	t.Setenv("CI", "true")
	r := &recorder{}
	testneed.That(r, false, "root")
	require.Contains(t, r.outcome, "failed: this test needs root")
}
