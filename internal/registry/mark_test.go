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
	require.Nil(t, dir.OpenIfReleased())
	require.Nil(t, Location{}.OpenIfReleased())
	one, err := dir.MarkReleased()
	require.NoError(t, err)
	two, err := dir.MarkReleased()
	require.NoError(t, err)
	require.Equal(t, dir, dir.OpenIfReleased())
	require.NoError(t, one.Remove())
	require.Equal(t, dir, dir.OpenIfReleased())
	require.NoError(t, two.Remove())
	require.Nil(t, dir.OpenIfReleased())
	require.NoFileExists(t, dir.PathOf(releasedMark))
}

func TestMarkOfACrash(t *testing.T) {
	dir := open(t)
	require.NoError(t, os.WriteFile(dir.PathOf(releasedMark), nil, 0o600))
	require.Nil(t, dir.OpenIfReleased())
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
				if err != nil || dir.OpenIfReleased() == nil || mark.Remove() != nil {
					t.Error("the mark is not seen", err)
					return
				}
			}
		})
	}
	all.Wait()
	require.Nil(t, dir.OpenIfReleased())
}

func TestMarkThatCannotBe(t *testing.T) {
	dir := open(t)
	require.NoError(t, os.Mkdir(dir.PathOf(releasedMark), 0o700))
	_, err := dir.MarkReleased()
	require.ErrorContains(t, err, filepath.Join(dir.Path(), releasedMark))
	require.Equal(t, dir, dir.OpenIfReleased(), "nobody knows, so records are read")
}
