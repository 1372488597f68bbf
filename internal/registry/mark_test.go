package registry

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMarkIsThereAsLongAsOneHasIt(t *testing.T) {
	dir := open(t)
	require.False(t, dir.AnyReleased())
	require.False(t, (*Dir)(nil).AnyReleased())
	one, err := dir.MarkReleased()
	require.NoError(t, err)
	two, err := dir.MarkReleased()
	require.NoError(t, err)
	require.True(t, dir.AnyReleased())
	require.NoError(t, one.Remove())
	require.True(t, dir.AnyReleased())
	require.NoError(t, two.Remove())
	require.False(t, dir.AnyReleased())
	require.NoFileExists(t, dir.PathOf(releasedMark))
}

func TestMarkOfACrash(t *testing.T) {
	dir := open(t)
	require.NoError(t, os.WriteFile(dir.PathOf(releasedMark), nil, 0o600))
	require.False(t, dir.AnyReleased())
	require.NoFileExists(t, dir.PathOf(releasedMark))
}

// Whoever has marked is seen, whatever others do meanwhile.
func TestMarksAtOnce(t *testing.T) {
	dir := open(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				mark, err := dir.MarkReleased()
				if err != nil || !dir.AnyReleased() || mark.Remove() != nil {
					t.Error("the mark is not seen", err)
					return
				}
			}
		})
	}
	all.Wait()
	require.False(t, dir.AnyReleased())
}

func TestMarkThatCannotBe(t *testing.T) {
	dir := open(t)
	require.NoError(t, os.Mkdir(dir.PathOf(releasedMark), 0o700))
	_, err := dir.MarkReleased()
	require.ErrorContains(t, err, filepath.Join(dir.Path(), releasedMark))
	require.True(t, dir.AnyReleased(), "nobody knows, so records are read")
}
