package proc

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		os.Exit(helpers[name]())
	}
	goleak.VerifyTestMain(m)
}

// helperEnv makes the test binary another program: the helper of this name.
const helperEnv = "BERTH_PROC_TEST_HELPER"

func TestBeforeWherePidsBeganAnew(t *testing.T) {
	const pidMax = 32768
	last, first := Process{PID: 32766, Start: 7}, Process{PID: 301, Start: 7}
	require.True(t, before(last, first, pidMax))
	require.False(t, before(first, last, pidMax))
	require.True(t, before(first, last, 4194304), "they are near each other there")
	require.True(t, before(first, last, 0), "nothing is known")
	later := Process{PID: 300, Start: 8}
	require.True(t, before(first, later, pidMax), "another tick decides")
	require.True(t, before(last, later, pidMax))
	require.False(t, before(first, first, pidMax))
}

func TestBefore(t *testing.T) {
	a, b, c := Process{Start: 1, PID: 9}, Process{Start: 2, PID: 3}, Process{Start: 2, PID: 4}
	sorted := []Process{a, b, c}
	for i, p := range sorted {
		for j, q := range sorted {
			require.Equal(t, i < j, p.Before(q), "%d %d", i, j)
		}
	}
}

func TestAncestorsOf(t *testing.T) {
	type generation struct {
		ppid  int
		start uint64
	}
	tests := []struct {
		name       string
		family     map[int]generation
		pids       []int
		consistent bool
	}{
		{"to pid 1", map[int]generation{9: {8, 30}, 8: {5, 20}, 5: {1, 20}, 1: {0, 1}}, []int{8, 5, 1}, true},
		{"to the edge of a namespace", map[int]generation{9: {8, 30}, 8: {0, 20}}, []int{8}, true},
		{"parent gone", map[int]generation{9: {8, 30}, 8: {5, 20}}, []int{8, 5}, false},
		{"recycled pid", map[int]generation{9: {8, 30}, 8: {5, 31}, 5: {1, 1}, 1: {0, 1}}, []int{8}, false},
		{"loop", map[int]generation{9: {8, 30}, 8: {5, 30}, 5: {8, 30}}, []int{8, 5}, false},
		{"own parent", map[int]generation{9: {8, 30}, 8: {9, 30}}, []int{8}, false},
		{"nothing known of the child", map[int]generation{8: {1, 1}, 1: {0, 1}}, []int{8, 1}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pids, consistent := ancestors(8, 9, 0, func(pid int) (int, uint64, error) {
				g, ok := test.family[pid]
				if !ok {
					return 0, 0, fs.ErrNotExist
				}
				return g.ppid, g.start, nil
			})
			require.Equal(t, test.pids, pids)
			require.Equal(t, test.consistent, consistent)
		})
	}
}

func TestGoneError(t *testing.T) {
	err := error(&goneError{7})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, err, os.ErrProcessDone)
	require.False(t, errors.Is(err, fs.ErrPermission))
	require.EqualError(t, err, "process 7 does not exist")
}

func TestOpenRefuses(t *testing.T) {
	for _, pid := range []int{0, -1, -os.Getpid(), -1 << 31} {
		h, err := Open(pid)
		require.ErrorIs(t, err, fs.ErrInvalid, "%d", pid)
		require.Nil(t, h)
	}
	if huge := uint64(1)<<32 + uint64(os.Getpid()); uint64(int(huge)) == huge {
		_, err := Open(int(huge))
		require.ErrorIs(t, err, fs.ErrNotExist, "a pid is not cut to 32 bits")
	}
}
