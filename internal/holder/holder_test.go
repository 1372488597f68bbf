package holder

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
)

// A look at a machine does not wait for the workers of servers, again and again.
func TestMayPass(t *testing.T) {
	now := time.Now()
	require.True(t, mayPass(proc.Process{Forked: true, Started: now.Add(-time.Millisecond)}, now))
	require.True(t, mayPass(proc.Process{Forked: true, Started: now.Add(time.Millisecond)}, now), "clocks differ")
	require.False(t, mayPass(proc.Process{Forked: true, Started: now.Add(-2 * time.Second)}, now))
	require.False(t, mayPass(proc.Process{Started: now}, now), "it has run something else")
}
