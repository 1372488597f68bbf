//go:build unix

package reload_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Once the new version says that it is ready, whoever connects is answered by that one, whatever the old one is at.
func TestNewVersionAnswersOnceReady(t *testing.T) {
	r := newHouse(t).role()
	r.At = "block led"
	l := begin(t, r)
	_, addresses := l.said("listens")
	first, _ := l.said("ready")
	r.At = ""
	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	l.said("at led")
	second, _ := l.said("ready")
	for range 100 {
		for i, address := range strings.Fields(addresses) {
			pid, _ := get(t, r.Listen[i].Network, address)
			require.Equal(t, second, pid)
		}
	}
	signalTo(t, second, syscall.SIGTERM)
	l.said("ended")
}
