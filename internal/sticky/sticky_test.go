package sticky

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/registry"
)

const file = "test.ports"

func open(t testing.TB) *registry.Dir {
	t.Helper()
	dir, err := registry.Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	return dir
}

func number(t testing.TB, dir *registry.Dir, name string) int {
	t.Helper()
	e, ok := Read(dir, file).Of(name)
	require.True(t, ok, name)
	return e.Number
}

func TestRemembers(t *testing.T) {
	dir := open(t)
	require.Empty(t, Read(dir, file))
	for i, name := range []string{"web", "api", "with space\n\"and quotes\"", "\xff", ""} {
		require.NoError(t, Remember(dir, file, nil, name, 3000+i))
		require.Equal(t, 3000+i, number(t, dir, name))
	}
	require.Len(t, Read(dir, file), 5)

	require.NoError(t, Remember(dir, file, Read(dir, file), "web", 4000))
	require.Equal(t, 4000, number(t, dir, "web"))
	require.NoError(t, Remember(dir, file, nil, "api", 4000), "a number has one name, the last")
	_, ok := Read(dir, file).Of("web")
	require.False(t, ok)

	entries, err := os.ReadDir(dir.Path())
	require.NoError(t, err)
	require.Len(t, entries, 1, "neither guard nor temporary file is left")
}

func TestDoesNotWriteTheSameAgain(t *testing.T) {
	dir := open(t)
	require.NoError(t, Remember(dir, file, nil, "web", 3000))
	known := Read(dir, file)
	require.NoError(t, os.Remove(dir.PathOf(file)))
	require.NoError(t, Remember(dir, file, known, "web", 3000))
	require.NoFileExists(t, dir.PathOf(file))
	known[0].Used = known[0].Used.Add(-2 * fresh)
	require.NoError(t, Remember(dir, file, known, "web", 3000))
	require.FileExists(t, dir.PathOf(file))
}

func TestManyAtOnceForgetNobody(t *testing.T) {
	dir := open(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() { _ = Remember(dir, file, nil, fmt.Sprint("service-", i), 3000+i) })
	}
	all.Wait()
	for i := range 20 {
		require.Equal(t, 3000+i, number(t, dir, fmt.Sprint("service-", i)))
	}
}

func TestStaysSmall(t *testing.T) {
	dir := open(t)
	var m Memory
	now := time.Now()
	for i := range 3 * maxEntries {
		m = append(m, Entry{Name: strings.Repeat("\x00", maxName-5) + fmt.Sprint(i), Number: i, Used: now.Add(-time.Duration(i) * time.Second)})
	}
	require.NoError(t, os.WriteFile(dir.PathOf(file), m.text(), 0o600))
	require.LessOrEqual(t, len(m.text()), maxSize)
	require.NoError(t, Remember(dir, file, nil, "last", 5000))
	read := Read(dir, file)
	require.LessOrEqual(t, len(read), maxEntries)
	require.Equal(t, "last", read[0].Name)
	require.Error(t, Remember(dir, file, nil, strings.Repeat("x", maxName+1), 1))
}

func TestForgetsWhatIsOldOrDamaged(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	line := func(age time.Duration, number int, name string) string {
		return fmt.Sprintf("%d %d %q\n", number, now.Add(-age).Unix(), name)
	}
	text := "garbage\n\n1\n1 2\n-1 1999999999 \"x\"\n1 1 x\n99999999999 1999999999 \"x\"\n" +
		line(maxAge+time.Second, 1, "old") + line(time.Hour, 2, "a") + line(time.Minute, 2, "b") + line(time.Second, 3, "a") +
		line(-time.Hour, 4, "of the future") + `5 1999999999 "cut`
	require.Equal(t, Memory{
		{Name: "of the future", Number: 4, Used: now},
		{Name: "a", Number: 3, Used: now.Add(-time.Second)},
		{Name: "b", Number: 2, Used: now.Add(-time.Minute)},
	}, parse([]byte(text), now))
}

// A writer that was killed leaves its guard and half a text behind. Neither is in anybody's way.
func TestAfterAKilledWriter(t *testing.T) {
	dir := open(t)
	require.NoError(t, Remember(dir, file, nil, "web", 3000))
	require.NoError(t, os.WriteFile(dir.PathOf(file+".guard"), nil, 0o600))
	require.NoError(t, os.WriteFile(dir.PathOf(file)+"~", []byte("4000 19"), 0o600))
	require.NoError(t, Remember(dir, file, nil, "api", 3001))
	require.Equal(t, 3000, number(t, dir, "web"))
	require.Equal(t, 3001, number(t, dir, "api"))
}

func TestDoesNotFollowLinks(t *testing.T) {
	dir := open(t)
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("7 1999999999 \"web\"\n"), 0o600))
	require.NoError(t, os.Symlink(victim, dir.PathOf(file)+"~"))
	require.NoError(t, os.Symlink(victim, dir.PathOf(file)))
	require.Empty(t, Read(dir, file))
	require.NoError(t, Remember(dir, file, nil, "web", 3000))
	require.Equal(t, 3000, number(t, dir, "web"))
	text, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "7 1999999999 \"web\"\n", string(text))
}

func FuzzParse(f *testing.F) {
	now := time.Unix(2_000_000_000, 0)
	f.Add([]byte("3000 1999999999 \"web\"\n3001 1999999998 \"\\xff\\n\"\n"))
	f.Add([]byte("3000 1999999999 `raw`\n3000 -9223372036854775808 'x'\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := parse(text, now)
		if len(m) > maxEntries {
			t.Fatalf("%d entries", len(m))
		}
		numbers := map[int]bool{}
		for _, e := range m {
			if numbers[e.Number] || e.Number < 0 || e.Used.After(now) || now.Sub(e.Used) > maxAge {
				t.Fatalf("%+v", e)
			}
			numbers[e.Number] = true
		}
		again := parse(m.text(), now)
		if len(again) > len(m) {
			t.Fatalf("%v and then %v", m, again)
		}
		for i := range again {
			if again[i].Name != m[i].Name || again[i].Number != m[i].Number || !again[i].Used.Equal(m[i].Used) {
				t.Fatalf("%v and then %v", m[i], again[i])
			}
		}
	})
}
