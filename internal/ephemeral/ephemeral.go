// Package ephemeral tells which ports the system gives to clients, and to binds of port 0. A server that uses one of them
// finds it taken whenever a client happens to have it.
package ephemeral

import (
	"strconv"
	"strings"

	"github.com/berth-go/berth/strategy"
)

// assigned is what IANA has set aside for the purpose (RFC 6335), and the default of Windows, macOS and FreeBSD.
var assigned = []strategy.Range{{First: 49152, Last: 65535}}

// Ranges are the ports that the system takes from as it is set now, without those that it is told to leave alone. Where it
// cannot be asked, they are the ones that IANA has set aside.
func Ranges() []strategy.Range {
	r, ok := read()
	if !ok {
		return assigned
	}
	return Without([]strategy.Range{r}, reserved())
}

// Outside takes the ports of Ranges out of others.
func Outside(ranges []strategy.Range) []strategy.Range {
	r, ok := read()
	if !ok {
		return Without(ranges, assigned)
	}
	for _, asked := range ranges {
		if asked.First <= r.Last && r.First <= asked.Last {
			return Without(ranges, Without([]strategy.Range{r}, reserved()))
		}
	}
	return ranges // nearly always
}

// parseRange reads the two numbers of net.ipv4.ip_local_port_range.
func parseRange(text string) (strategy.Range, bool) {
	first, last, _ := strings.Cut(strings.TrimSpace(text), "\t")
	low, err := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	ok := err == nil && err2 == nil && 0 < low && low <= high
	return strategy.Range{First: uint16(low), Last: uint16(high)}, ok
}

// parseReserved reads net.ipv4.ip_local_reserved_ports, which is empty by default.
func parseReserved(text string) []strategy.Range {
	if text = strings.TrimSpace(text); text == "" {
		return nil
	}
	ranges, err := strategy.ParseRanges(text)
	if err != nil {
		return nil
	}
	return ranges
}

// Without takes the ports of some ranges out of others, and keeps the order of those.
func Without(ranges, out []strategy.Range) []strategy.Range {
	left := ranges
	for _, o := range out {
		var next []strategy.Range
		for _, r := range left {
			if o.Last < r.First || r.Last < o.First || o.First > o.Last {
				next = append(next, r)
				continue
			}
			if r.First < o.First {
				next = append(next, strategy.Range{First: r.First, Last: o.First - 1})
			}
			if o.Last < r.Last {
				next = append(next, strategy.Range{First: o.Last + 1, Last: r.Last})
			}
		}
		left = next
	}
	return left
}
