package middleware

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// However many addresses come, so many are remembered: those that came last.
func TestRateUnderSpray(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	r := &Rate{SourcePerSecond: 1, SourceBurst: 2, Sources: 1000}
	r.Wrap(ln)
	now := time.Now()
	regular := netip.MustParseAddr("192.0.2.1")
	require.True(t, r.allow(regular, now))
	require.True(t, r.allow(regular, now))
	for i := range uint32(100_000) {
		var b [16]byte
		binary.BigEndian.PutUint32(b[2:], i)
		require.True(t, r.allow(netip.AddrFrom16(b), now))
		if i%500 == 0 {
			require.False(t, r.allow(regular, now), "is remembered, since it comes again and again")
		}
	}
	require.Len(t, r.visits, 1000)
	n := 0
	for v := r.latest.next; v != &r.latest; v = v.next {
		require.Same(t, v, r.visits[v.source])
		require.Same(t, v, v.next.prev)
		n++
	}
	require.Equal(t, 1000, n)
	require.True(t, r.allow(regular, now.Add(time.Second)), "the bucket fills")
	require.False(t, r.allow(regular, now.Add(time.Second)))
	require.Equal(t, 1<<16, new(Rate).sources())
}
