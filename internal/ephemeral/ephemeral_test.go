package ephemeral

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/strategy"
)

func TestParseRange(t *testing.T) {
	for text, want := range map[string]strategy.Range{
		"32768\t60999\n": {First: 32768, Last: 60999},
		"1024\t65535":    {First: 1024, Last: 65535},
		"5000\t5000":     {First: 5000, Last: 5000},
	} {
		r, ok := parseRange(text)
		require.True(t, ok)
		require.Equal(t, want, r)
	}
	for _, text := range []string{"", "1", "a\tb", "2\t1", "1\t2\t3", "1\t65536", "0\t5", "-1\t5"} {
		_, ok := parseRange(text)
		require.False(t, ok, text)
	}
}

func TestParseReserved(t *testing.T) {
	for text, want := range map[string][]strategy.Range{
		"\n":               nil,
		"8080,9148-9200\n": {{First: 8080, Last: 8080}, {First: 9148, Last: 9200}},
	} {
		require.Equal(t, want, parseReserved(text))
	}
	require.Empty(t, parseReserved("8080;9"))
}

func TestSystemHasARange(t *testing.T) {
	ranges := Ranges()
	require.NotEmpty(t, ranges)
	for _, r := range ranges {
		require.LessOrEqual(t, r.First, r.Last)
		require.NotZero(t, r.First)
	}
}

func TestOutside(t *testing.T) {
	for _, r := range Ranges() {
		low, high := strategy.Range{First: 1, Last: r.First - 1}, strategy.Range{First: r.First - 1, Last: r.First}
		require.Equal(t, []strategy.Range{low}, Outside([]strategy.Range{low}))
		require.Equal(t, []strategy.Range{{First: r.First - 1, Last: r.First - 1}}, Outside([]strategy.Range{high}))
		require.Empty(t, Outside([]strategy.Range{r}))
	}
}

// The sets say what Without has to give; it works on the ends of ranges alone.
func TestWithout(t *testing.T) {
	random := func() []strategy.Range {
		var ranges []strategy.Range
		for range rand.IntN(4) {
			first := 65535 - uint16(rand.IntN(40))
			ranges = append(ranges, strategy.Range{First: first, Last: first + uint16(rand.IntN(int(65535-first)+1))})
		}
		return ranges
	}
	list := func(ranges []strategy.Range) (ports []int) {
		for _, r := range ranges {
			for p := int(r.First); p <= int(r.Last); p++ {
				ports = append(ports, p)
			}
		}
		return ports
	}
	for range 10_000 {
		ranges, out := random(), random()
		taken := map[int]bool{}
		for _, p := range list(out) {
			taken[p] = true
		}
		var want []int
		for _, p := range list(ranges) {
			if !taken[p] {
				want = append(want, p)
			}
		}
		require.Equal(t, want, list(Without(ranges, out)), "%v without %v", ranges, out)
	}
	require.Equal(t, []strategy.Range{{First: 1, Last: 3}}, Without([]strategy.Range{{First: 1, Last: 3}}, []strategy.Range{{First: 3, Last: 2}}), "an empty range takes nothing")
}

func FuzzParse(f *testing.F) {
	f.Add("32768\t60999\n")
	f.Add("8080,9148-9200\n")
	f.Fuzz(func(t *testing.T, text string) {
		if r, ok := parseRange(text); ok && (r.First == 0 || r.First > r.Last) {
			t.Fatalf("%q is %v", text, r)
		}
		for _, r := range parseReserved(text) {
			if r.First > r.Last {
				t.Fatalf("%q is %v", text, r)
			}
		}
	})
}
