package strategy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

const maxPort = 65535

// A Range is a range of ports, both ends included. {0, 0} means any ephemeral port, chosen by the kernel. A range whose
// First is above its Last is empty.
type Range struct{ First, Last uint16 }

// String is what [ParseRanges] reads: "3000-3010", "3000", or "0" for any ephemeral port.
func (r Range) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return strconv.Itoa(int(r.First)) + "-" + strconv.Itoa(int(r.Last))
}

// ParseRanges reads port ranges such as "3000-3010,8000-8010,9000". Spaces around numbers do not count. "0" alone is
// any ephemeral port. Ranges that overlap are merged at the place of the first, since the order is the order of
// preference. The error names the part that is wrong.
func ParseRanges(text string) ([]Range, error) {
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("strategy: no port range in %q: write for example 3000-3010,8000", text)
	}
	var ranges []Range
	for part := range strings.SplitSeq(text, ",") {
		r, err := parseRange(part)
		if err != nil {
			return nil, fmt.Errorf("strategy: port range %q: %w", strings.TrimSpace(part), err)
		}
		ranges = append(ranges, r)
	}
	return merge(ranges), nil
}

func parseRange(part string) (Range, error) {
	if strings.TrimSpace(part) == "" {
		return Range{}, fmt.Errorf("empty: remove the comma or write a range such as 3000-3010")
	}
	firstText, lastText, isRange := strings.Cut(part, "-")
	first, err := parsePort(firstText)
	if err != nil {
		return Range{}, err
	}
	if !isRange {
		return Range{First: first, Last: first}, nil
	}
	last, err := parsePort(lastText)
	switch {
	case err != nil:
		return Range{}, err
	case first == 0:
		return Range{}, fmt.Errorf("port 0 (any free port) cannot be part of a range: write it alone")
	case first > last:
		return Range{}, fmt.Errorf("the first port is above the last: write %d-%d", last, first)
	}
	return Range{First: first, Last: last}, nil
}

func parsePort(text string) (uint16, error) {
	text = strings.TrimSpace(text)
	// ParseUint also takes "+80" and "0x50" in other bases; only digits make a port.
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%q is not a port number: use 1 to %d", text, maxPort)
		}
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port number: use 1 to %d", text, maxPort)
	}
	return uint16(port), nil
}

// merge joins ranges that overlap, at the place of the first of them.
func merge(ranges []Range) []Range {
	var merged []Range
	for _, r := range ranges {
		// What r swallows may overlap what stands before it, so r grows until nothing overlaps any more.
		at := len(merged)
		for {
			i := slices.IndexFunc(merged, func(m Range) bool { return m.First <= r.Last && r.First <= m.Last })
			if i < 0 {
				break
			}
			r = Range{First: min(r.First, merged[i].First), Last: max(r.Last, merged[i].Last)}
			at = min(at, i)
			merged = slices.Delete(merged, i, i+1)
		}
		merged = slices.Insert(merged, min(at, len(merged)), r)
	}
	return merged
}

// spread turns each range around, so that it starts at a random port of it.
func spread(ranges []Range) []Range {
	var turned []Range
	for _, r := range ranges {
		if r.First >= r.Last {
			turned = append(turned, r)
			continue
		}
		start := r.First + uint16(rand.N(int(r.Last)-int(r.First)+1))
		turned = append(turned, Range{First: start, Last: r.Last})
		if start > r.First {
			turned = append(turned, Range{First: r.First, Last: start - 1})
		}
	}
	return turned
}
