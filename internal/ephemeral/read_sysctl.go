//go:build darwin || freebsd

package ephemeral

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/strategy"
)

// read asks for the range that sockets take from unless they ask for the high or the low one (IP_PORTRANGE).
func read() (strategy.Range, bool) {
	first, err := unix.SysctlUint32("net.inet.ip.portrange.first")
	if err != nil {
		return strategy.Range{}, false
	}
	last, err := unix.SysctlUint32("net.inet.ip.portrange.last")
	if err != nil {
		return strategy.Range{}, false
	}
	return parseRange(fmt.Sprint(first, "\t", last))
}

func reserved() []strategy.Range { return nil }
