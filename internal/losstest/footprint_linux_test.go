package losstest

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFootprint(t *testing.T) {
	first, err := os.Open(os.DevNull) // the runtime's own descriptors come with the first file
	require.NoError(t, err)
	require.NoError(t, first.Close())
	before, err := FootprintOf(os.Getpid())
	require.NoError(t, err)
	require.Positive(t, before.Resident)
	require.Contains(t, before.Environ, "PATH=")
	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	after, err := FootprintOf(os.Getpid())
	require.NoError(t, err)
	require.Len(t, after.Descriptors, len(before.Descriptors)+1)

	// It waits for what is closed meanwhile, and not for what stays.
	go file.Close()
	rest, err := AtRest(os.Getpid(), len(before.Descriptors))
	require.NoError(t, err)
	require.Len(t, rest.Descriptors, len(before.Descriptors))
	rest, err = AtRest(os.Getpid(), 0)
	require.NoError(t, err)
	require.Len(t, rest.Descriptors, len(before.Descriptors))

	_, err = FootprintOf(0)
	require.ErrorIs(t, err, os.ErrNotExist)
}
