package registry

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sample() Record {
	return Record{
		PID: 4242, Start: math.MaxUint64, Started: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Boot: "b", Executable: "/usr/bin/web",
		Main: "example.com/web", Dir: "/srv/\"web\"\n", Name: "web", Network: "tcp", Requested: ":3000", Address: "[::]:3000",
		Inode: 77, Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Origin: "bound",
	}
}

func open(t testing.TB) *Dir {
	t.Helper()
	dir, err := Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	return dir
}

func TestRoundTrip(t *testing.T) {
	dir := open(t)
	_, err := dir.Lookup("tcp", "[::]:3000")
	require.ErrorIs(t, err, fs.ErrNotExist)

	lock, err := dir.Lock("tcp", "[::]:3000")
	require.NoError(t, err)
	entry, err := dir.Lookup("tcp", "[::]:3000")
	require.NoError(t, err)
	require.ErrorContains(t, entry.Err, "empty", "locked, and nothing written yet")
	require.True(t, entry.Held())

	rec := sample()
	require.NoError(t, lock.Write(rec))
	rec.Version = version
	for _, ask := range [][2]string{{"tcp", "[::]:3000"}, {"tcp6", "[::]:3000"}, {"tcp", ":3000"}} {
		entry, err = dir.Lookup(ask[0], ask[1])
		require.NoError(t, err)
		require.NoError(t, entry.Err)
		require.Equal(t, rec, entry.Record)
		require.Equal(t, dir.Path(), filepath.Dir(entry.Path))
	}
	require.True(t, entry.Held())

	// A shorter one leaves nothing of the longer behind.
	long, _ := os.ReadFile(entry.Path)
	rec.Dir, rec.Main, rec.Version = "", "", 99
	require.NoError(t, lock.Write(rec))
	short, err := os.ReadFile(entry.Path)
	require.NoError(t, err)
	require.Less(t, len(short), len(long))
	require.Equal(t, 1, strings.Count(string(short), "\n"))
	entry, err = dir.Lookup("tcp", "[::]:3000")
	require.NoError(t, err)
	require.NoError(t, entry.Err, "the version is always this program's own")
	require.Equal(t, version, entry.Record.Version)

	entries, err := dir.Entries("", 0, 0)
	require.NoError(t, err)
	require.Equal(t, []Entry{entry}, entries)

	require.NoError(t, lock.Release())
	require.False(t, entry.Held())
	_, err = dir.Lookup("tcp", "[::]:3000")
	require.ErrorIs(t, err, fs.ErrNotExist)
	entries, err = dir.Entries("", 0, 0)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestErrHeldWithinProcess(t *testing.T) {
	dir := open(t)
	lock, err := dir.Lock("tcp", "127.0.0.1:3000")
	require.NoError(t, err)
	require.NoError(t, lock.Write(sample()))

	for _, ask := range [][2]string{{"tcp", "127.0.0.1:3000"}, {"tcp4", "127.0.0.1:3000"}, {"tcp", "[::ffff:127.0.0.1]:3000"}} {
		_, err = dir.Lock(ask[0], ask[1])
		require.ErrorIs(t, err, ErrHeld, "%v", ask)
	}
	entry, err := dir.Lookup("tcp", "127.0.0.1:3000")
	require.NoError(t, err)
	require.NoError(t, entry.Err, "who failed to lock did not touch the record")

	for _, ask := range [][2]string{{"udp", "127.0.0.1:3000"}, {"tcp", "127.0.0.1:3001"}, {"tcp", "127.0.0.2:3000"}, {"tcp", "[::1]:3000"}, {"tcp", ":3000"}, {"tcp", "0.0.0.0:3000"}} {
		other, err := dir.Lock(ask[0], ask[1])
		require.NoError(t, err, "%v is another address", ask)
		require.NoError(t, other.Release())
	}

	require.NoError(t, lock.Release())
	lock, err = dir.Lock("tcp", "127.0.0.1:3000")
	require.NoError(t, err)
	require.NoError(t, lock.Release())
}

// One after the other, twenty goroutines have the lock; never two at once.
func TestRaceWithinProcess(t *testing.T) {
	dir := open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	holders, obtained := 0, 0
	for range 20 {
		wg.Go(func() {
			for range 50 {
				lock, err := dir.Lock("tcp", ":3000")
				if errors.Is(err, ErrHeld) {
					continue
				}
				if !assertNoError(t, err) {
					return
				}
				mu.Lock()
				holders++
				obtained++
				tooMany := holders > 1
				mu.Unlock()
				if tooMany {
					t.Error("two have the lock at once")
				}
				assertNoError(t, lock.Write(sample()))
				mu.Lock()
				holders--
				mu.Unlock()
				assertNoError(t, lock.Release())
			}
		})
	}
	wg.Wait()
	require.Positive(t, obtained)
	entries, err := dir.Entries("", 0, 0)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// assertNoError is for other goroutines than the test's, where FailNow must not be called.
func assertNoError(t *testing.T, err error) bool {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// A reader that asks whether a record is stale holds the lock for an instant. No writer fails because of it.
func TestReaderDoesNotDisturb(t *testing.T) {
	dir := open(t)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if entry, err := dir.Lookup("tcp", ":3000"); err == nil {
					entry.Held()
				}
			}
		}
	})
	for range 500 {
		lock, err := dir.Lock("tcp", ":3000")
		if assertNoError(t, err) {
			assertNoError(t, lock.Write(sample()))
			assertNoError(t, lock.Release())
		}
	}
	close(stop)
	reader.Wait()
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "the record is empty",
		"\n\n  ":                                "the record is empty",
		"{":                                     "damaged",
		"null":                                  "damaged",
		"{}":                                    "damaged: version, pid or address is missing",
		"[]":                                    "damaged",
		"\"text\"":                              "damaged",
		"4242":                                  "damaged",
		"4242\n":                                "damaged",
		"garbage":                               "damaged",
		"\x00\x00\x00\x00":                      "damaged",
		`{"version":1,"pid":4242`:               "damaged", // cut off
		`{"version":1,"pid":4242}`:              "address is missing",
		`{"version":1,"address":":1"}`:          "pid",
		`{"pid":4242,"address":":1"}`:           "version",
		`{"version":0,"pid":1,"address":":1"}`:  "version",
		`{"version":-1,"pid":1,"address":":1"}`: "version",
		`{"version":1,"pid":0,"address":":1"}`:  "pid",
		`{"version":1,"pid":-1,"address":":1"}`: "pid",
		`{"version":1,"pid":"4242","address":":1"}`:                  "damaged",
		`{"version":1,"pid":1e99,"address":":1"}`:                    "damaged",
		`{"version":1,"pid":4242,"address":":1","since":"tomorrow"}`: "damaged",
		`{"version":1,"pid":4242,"start":-1,"address":":1"}`:         "damaged",
		`{"version":2,"pid":4242,"address":":1"}`:                    "version 2 and this program reads up to 1",
		`{"version":999,"something":{"else":[]}}`:                    "version 999",
		strings.Repeat("[", 50_000):                                  "damaged",
		`{"dir":"` + strings.Repeat("x", 2*maxRecord) + `"}`:         "damaged",
	} {
		rec, err := parse(strings.NewReader(text))
		require.ErrorContains(t, err, want, "%.80q", text)
		require.NotContains(t, err.Error(), "\n")
		require.Zero(t, rec)
	}

	for _, text := range []string{
		`{"version":1,"pid":4242,"address":":1"}`,
		`{"version":1,"pid":4242,"address":":1","unknown":{"field":1}}`,
		`{"version":1,"pid":4242,"address":":1"}` + "\n" + `er","address":":80"}`, // the rest of a longer one
		" \n" + `{"version":1,"pid":4242,"address":":1"}`,
	} {
		rec, err := parse(strings.NewReader(text))
		require.NoError(t, err, "%q", text)
		require.Equal(t, Record{Version: 1, PID: 4242, Address: ":1"}, rec)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, text := range []string{
		"", "{", "null", "garbage", `{"version":1,"pid":4242,"address":":1"}`, `{"version":2}`, `{"version":1,"pid":4242`,
		`{"version":1,"pid":4242,"start":18446744073709551615,"started":"2026-01-02T03:04:05Z","address":"[::]:3000","since":"2026-01-02T03:04:05Z","origin":"bound"}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rec, err := parse(strings.NewReader(text))
		if err != nil {
			require.Zero(t, rec)
			return
		}
		require.Equal(t, version, rec.Version)
		require.Positive(t, rec.PID)
		require.NotEmpty(t, rec.Address)
	})
}

func TestFileName(t *testing.T) {
	long := "/run/" + strings.Repeat("d", 200) + "/" + strings.Repeat("f", 300)
	for _, c := range []struct{ network, address, want string }{
		{"tcp", "127.0.0.1:3000", "tcp-127.0.0.1-3000.lock"},
		{"tcp4", "127.0.0.1:3000", "tcp-127.0.0.1-3000.lock"},
		{"tcp", "[::ffff:127.0.0.1]:3000", "tcp-127.0.0.1-3000.lock"},
		{"tcp", "[::1]:3000", "tcp-__1-3000.lock"},
		{"tcp6", "[::1]:3000", "tcp-__1-3000.lock"},
		{"tcp", "[fe80::1%eth0]:3000", "tcp-fe80__1_eth0-3000.lock"},
		{"tcp", "[2001:DB8:0:0::1]:3000", "tcp-2001_db8__1-3000.lock"},
		{"tcp", "[::]:3000", "tcp-any-3000.lock"},
		{"tcp4", "0.0.0.0:3000", "tcp-0.0.0.0-3000.lock"},
		{"tcp", "[::ffff:0.0.0.0]:3000", "tcp-0.0.0.0-3000.lock"},
		{"tcp", ":3000", "tcp-any-3000.lock"},
		{"udp6", "[::]:53", "udp-any-53.lock"},
		{"udp", "127.0.0.1:53", "udp-127.0.0.1-53.lock"},
		{"tcp", "local host:../../x", "tcp-local_host-.._.._x.lock"},
		{"tcp", "../../etc:80", "tcp-.._.._etc-80.lock"},
		{"unix", "/run/app.sock", "unix-app.sock-"},
		{"unixpacket", "/run/app.sock", "unix-app.sock-"},
		{"unixgram", "/run/app.sock", "unixgram-app.sock-"},
		{"unix", "@app", "unix-@app-"},
		{"unix", "@", "unix-@-"},
		{"unix", "/run/app:3000", "unix-app_3000-"},
		{"unix", "/run/ä\x00\n\\.sock", "unix-____.sock-"},
		{"unix", long, "unix-" + strings.Repeat("f", 80) + "-"},
		{"unix", "", "unix-.-"},
		{"unix", "..", "unix-..-"},
		{"tcp", "no port", "tcp-no_port-"},
		{"../x", "127.0.0.1:80", ".._x-127.0.0.1-80.lock"},
	} {
		got := fileName(c.network, c.address)
		if !strings.HasSuffix(c.want, extension) {
			require.Regexp(t, `-[0-9a-f]{12}\.lock$`, got)
			got = got[:len(got)-len("0123456789ab.lock")]
		}
		require.Equal(t, c.want, got, "%s %q", c.network, c.address)
	}
	require.NotEqual(t, fileName("unix", "/run/a/app.sock"), fileName("unix", "/run/b/app.sock"))
	require.NotEqual(t, fileName("unix", long), fileName("unix", long+"f"))
	require.NotEqual(t, fileName("unix", "@app"), fileName("unix", "/app"))
	require.Equal(t, fileName("unix", "/run/app.sock"), fileName("unixpacket", "/run/app.sock"))
}

func FuzzFileName(f *testing.F) {
	for _, seed := range [][2]string{
		{"tcp", "127.0.0.1:3000"}, {"tcp6", "[fe80::1%eth0]:80"}, {"unix", "/run/app.sock"}, {"unix", "@abstract"}, {"../..", "../..:.."},
		{"tcp", strings.Repeat("h", 300) + ":" + strings.Repeat("8", 300)}, {"unixgram", "\x00"}, {"", ""}, {"tcp", "[::]:80"},
	} {
		f.Add(seed[0], seed[1])
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, network, address string) {
		name := fileName(network, address)
		require.LessOrEqual(t, len(name), 255, "NAME_MAX")
		require.Equal(t, extension, filepath.Ext(name))
		require.True(t, filepath.IsLocal(name))
		require.Equal(t, filepath.Base(name), name)
		require.Equal(t, dir, filepath.Dir(filepath.Join(dir, name)))
		require.False(t, strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\:*?"<>|%`, r) }), "%q", name)
		require.Equal(t, name, fileName(network, address))
	})
}

func TestEntriesOfPorts(t *testing.T) {
	dir := open(t)
	for _, a := range [][2]string{
		{"tcp", "127.0.0.1:3000"}, {"tcp6", "[::1]:3010"}, {"tcp", ":2999"}, {"tcp", ":3011"}, {"udp", ":3005"}, {"unix", "/run/app.sock"}, {"unix", "/run/app-3005"},
	} {
		lock, err := dir.Lock(a[0], a[1])
		require.NoError(t, err)
		defer func() { require.NoError(t, lock.Release()) }()
		require.NoError(t, lock.Write(Record{PID: 1, Network: a[0], Address: a[1]}))
	}
	addresses := func(network string, first, last uint16) (all []string) {
		entries, err := dir.Entries(network, first, last)
		require.NoError(t, err)
		for _, e := range entries {
			require.NoError(t, e.Err)
			all = append(all, e.Record.Address)
		}
		return all
	}
	require.ElementsMatch(t, []string{"127.0.0.1:3000", "[::1]:3010"}, addresses("tcp", 3000, 3010))
	require.ElementsMatch(t, []string{"127.0.0.1:3000", "[::1]:3010", ":2999", ":3011"}, addresses("tcp", 0, 65535))
	require.Equal(t, []string{":3005"}, addresses("udp", 3005, 3005))
	require.Empty(t, addresses("udp", 3006, 65535))
	require.Len(t, addresses("", 0, 0), 7)
}

func TestKind(t *testing.T) {
	for network, want := range map[string]string{
		"tcp": "tcp", "tcp4": "tcp", "tcp6": "tcp", "udp": "udp", "udp4": "udp", "udp6": "udp",
		"unix": "unix", "unixpacket": "unix", "unixgram": "unixgram",
	} {
		require.Equal(t, want, Kind(network))
	}
}

func TestOpen(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "not", "there", "yet")
	dir, err := Open(path)
	require.NoError(t, err)
	require.Equal(t, path, dir.Path())
	again, err := Open(path)
	require.NoError(t, err)
	require.Equal(t, dir, again)

	_, err = Existing(filepath.Join(root, "other"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoDirExists(t, filepath.Join(root, "other"), "a reader makes nothing")
	again, err = Existing(path)
	require.NoError(t, err)
	require.Equal(t, dir, again)

	file := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Open(file)
	require.ErrorContains(t, err, "is not a directory")
	_, err = Existing(file)
	require.ErrorContains(t, err, "is not a directory")
	_, err = Open(filepath.Join(file, "below"))
	require.Error(t, err)
}

// Whoever removes the directory takes the courtesy away, and nothing else.
func TestDirectoryRemoved(t *testing.T) {
	dir := open(t)
	lock, err := dir.Lock("tcp", ":3000")
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir.Path()))
	require.Error(t, lock.Write(sample()))
	require.NoError(t, lock.Release())
	_, err = dir.Lock("tcp", ":3000")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = dir.Lookup("tcp", ":3000")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = dir.Entries("", 0, 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestEntriesSkipsOthers(t *testing.T) {
	dir := open(t)
	for _, address := range []string{":3001", ":3000"} {
		lock, err := dir.Lock("tcp", address)
		require.NoError(t, err)
		defer func() { require.NoError(t, lock.Release()) }()
		rec := sample()
		rec.Address = address
		require.NoError(t, lock.Write(rec))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir.Path(), "notes.txt"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir.Path(), "tcp-any-1.lock"), []byte("garbage"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir.Path(), "tcp-any-2.lock"), 0o700))

	entries, err := dir.Entries("", 0, 0)
	require.NoError(t, err)
	require.Len(t, entries, 4)
	for i, name := range []string{"tcp-any-1.lock", "tcp-any-2.lock", "tcp-any-3000.lock", "tcp-any-3001.lock"} {
		require.Equal(t, filepath.Join(dir.Path(), name), entries[i].Path)
		require.Equal(t, i < 2, entries[i].Err != nil, name)
		if i < 2 {
			require.ErrorContains(t, entries[i].Err, name, "the error says where")
			require.False(t, entries[i].Held())
		}
	}
}

// A stale record is removed, a live one is not, and of what is gone nothing is left to do.
func TestRemoveEntry(t *testing.T) {
	dir := open(t)
	lock, err := dir.Lock("tcp", ":3000")
	require.NoError(t, err)
	require.NoError(t, lock.Write(sample()))
	live, err := dir.Lookup("tcp", ":3000")
	require.NoError(t, err)
	require.ErrorIs(t, live.Remove(), ErrHeld)
	require.FileExists(t, live.Path)
	require.NoError(t, lock.Release())
	require.NoError(t, live.Remove())
	require.NoFileExists(t, live.Path, "and none was made")

	stale := filepath.Join(dir.Path(), "tcp-any-3001.lock")
	require.NoError(t, os.WriteFile(stale, []byte("garbage"), 0o600))
	entry, err := dir.Lookup("tcp", ":3001")
	require.NoError(t, err)
	require.Error(t, entry.Err)
	require.NoError(t, entry.Remove())
	require.NoFileExists(t, stale)

	strange := filepath.Join(dir.Path(), "tcp-any-3002.lock")
	require.NoError(t, os.Mkdir(strange, 0o700))
	entry, err = dir.Lookup("tcp", ":3002")
	require.NoError(t, err)
	require.Error(t, entry.Remove())
	require.DirExists(t, strange)
}
