package strategy_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/strategy"
)

func TestParseRanges(t *testing.T) {
	for text, want := range map[string][]strategy.Range{
		"0":                              {{First: 0, Last: 0}},
		"0,0":                            {{First: 0, Last: 0}},
		"1":                              {{First: 1, Last: 1}},
		"65535":                          {{First: 65535, Last: 65535}},
		"1-65535":                        {{First: 1, Last: 65535}},
		"3000-3000":                      {{First: 3000, Last: 3000}},
		"03000":                          {{First: 3000, Last: 3000}},
		" 3000 - 3010 ,\t9000 ":          {{First: 3000, Last: 3010}, {First: 9000, Last: 9000}},
		"3000-3010,8000-8010,9000-9010":  {{First: 3000, Last: 3010}, {First: 8000, Last: 8010}, {First: 9000, Last: 9010}},
		"9000,3000,8000":                 {{First: 9000, Last: 9000}, {First: 3000, Last: 3000}, {First: 8000, Last: 8000}},
		"9000,0,3000":                    {{First: 9000, Last: 9000}, {First: 0, Last: 0}, {First: 3000, Last: 3000}},
		"3000-3010,3005-3020":            {{First: 3000, Last: 3020}},
		"3005-3020,3000-3010":            {{First: 3000, Last: 3020}},
		"3000-3010,3002":                 {{First: 3000, Last: 3010}},
		"3000,3000,3000":                 {{First: 3000, Last: 3000}},
		"3000-3005,3006-3010":            {{First: 3000, Last: 3005}, {First: 3006, Last: 3010}}, // next to each other, no overlap
		"3000-3005,9000,3005-3010":       {{First: 3000, Last: 3010}, {First: 9000, Last: 9000}}, // at the place of the first
		"9000,3000-3005,3010-3020,1-100": {{First: 9000, Last: 9000}, {First: 3000, Last: 3005}, {First: 3010, Last: 3020}, {First: 1, Last: 100}},
		// The last one joins two that had nothing in common, with a third between them.
		"10-20,50,30-40,15-35": {{First: 10, Last: 40}, {First: 50, Last: 50}},
		"30-40,50,10-20,15-60": {{First: 10, Last: 60}},
	} {
		got, err := strategy.ParseRanges(text)
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	}
}

func TestParseRangesError(t *testing.T) {
	for text, want := range map[string]string{
		"":                  `no port range in ""`,
		" ":                 `no port range in " "`,
		"\t\n":              `no port range in "\t\n"`,
		",":                 `port range "": empty`,
		"3000,":             `port range "": empty`,
		",3000":             `port range "": empty`,
		"3000,,4000":        `port range "": empty`,
		"3000, ,4000":       `port range "": empty`,
		"abc":               `port range "abc": "abc" is not a port number`,
		"80,abc,90":         `port range "abc": "abc" is not a port number`,
		"3010-3000":         `port range "3010-3000": the first port is above the last: write 3000-3010`,
		"80, 3010-3000 ,90": `port range "3010-3000": the first port`,
		"0-70000":           `port range "0-70000": "70000" is not a port number`,
		"1-70000":           `"70000" is not a port number: use 1 to 65535`,
		"65536":             `port range "65536"`,
		"0-10":              `port range "0-10": port 0 (any free port) cannot be part of a range`,
		"0-0":               `port range "0-0": port 0`,
		"3000-":             `port range "3000-": "" is not a port number`,
		"-3000":             `port range "-3000": "" is not a port number`,
		"-":                 `port range "-"`,
		"1-2-3":             `port range "1-2-3": "2-3" is not a port number`,
		"+80":               `port range "+80": "+80" is not a port number`,
		"1-+80":             `port range "1-+80": "+80" is not a port number`,
		"0x50":              `port range "0x50"`,
		"8_0":               `port range "8_0"`,
		"80 90":             `port range "80 90"`,
		"80;90":             `port range "80;90"`,
		"8O":                `port range "8O"`,
		"٣":                 `port range "٣"`, // a digit, but not of this alphabet
		"3000–3010":         `port range "3000–3010"`,
		"99999999999999999": `port range "99999999999999999"`,
	} {
		got, err := strategy.ParseRanges(text)
		require.ErrorContains(t, err, want, "%q", text)
		require.True(t, strings.HasPrefix(err.Error(), "strategy: "), "%q: %v", text, err)
		require.NotContains(t, err.Error(), "\n")
		require.Nil(t, got, "%q", text)
	}
}

func TestRangeString(t *testing.T) {
	for want, r := range map[string]strategy.Range{
		"0":         {},
		"3000":      {First: 3000, Last: 3000},
		"3000-3010": {First: 3000, Last: 3010},
		"1-65535":   {First: 1, Last: 65535},
	} {
		require.Equal(t, want, r.String())
	}
}

func FuzzParseRanges(f *testing.F) {
	for _, text := range []string{
		"", " ", ",", "0", "3000", "3000-3010,8000-8010,9000", "3010-3000", "0-70000", "abc", "1-2-3", "+80", "3000,", "1-65535",
		"10-20,50,30-40,15-35", "3000 - 3010 , 9000", "65535,65534-65535",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := strategy.ParseRanges(text)
		if err != nil {
			require.Nil(t, ranges)
			require.NotContains(t, err.Error(), "\n") // whatever was in the text is quoted
			return
		}
		require.NotEmpty(t, ranges)
		var texts []string
		for i, r := range ranges {
			require.LessOrEqual(t, r.First, r.Last)
			if r.First == 0 {
				require.Zero(t, r.Last)
			}
			for _, other := range ranges[:i] {
				require.True(t, r.Last < other.First || other.Last < r.First, "%v overlaps %v", r, other)
			}
			texts = append(texts, r.String())
		}
		again, err := strategy.ParseRanges(strings.Join(texts, ","))
		require.NoError(t, err)
		require.Equal(t, ranges, again)
		checkUnion(t, text, ranges)
	})
}

// checkUnion reads the text by a simpler way: a set of ports instead of ranges.
func checkUnion(t *testing.T, text string, ranges []strategy.Range) {
	t.Helper()
	var want, got [65536]bool
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.Atoi(strings.TrimSpace(first))
		require.NoError(t, err)
		to, err := strconv.Atoi(strings.TrimSpace(last))
		require.NoError(t, err)
		for port := from; port <= to; port++ {
			want[port] = true
		}
	}
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			got[port] = true
		}
	}
	require.True(t, slices.Equal(want[:], got[:]), "%q gives %v", text, ranges)
}
