//go:build linux

package listener_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// every strategy treats a stale file alike.
func everyStrategy() map[string]strategy.Strategy {
	return map[string]strategy.Strategy{
		"nil": nil, "development": strategy.Development(), "staging": strategy.Staging(), "production": strategy.Production(),
		"wait": strategy.Wait{Every: time.Hour}, "none": strategy.Chain(),
	}
}

// bindUnix makes a socket that is bound and does not listen.
func bindUnix(t testing.TB, network, path string) (fd int) {
	t.Helper()
	kind := map[string]int{"unix": unix.SOCK_STREAM, "unixpacket": unix.SOCK_SEQPACKET, "unixgram": unix.SOCK_DGRAM}[network]
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) }) // a second time does no harm, since the tests of this package run one by one
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	return fd
}

// obtain listens on a Unix socket of any kind.
func obtain(cfg *listener.Config, network, path string) (origin listener.Origin, c interface{ Close() error }, err error) {
	if network == "unixgram" {
		conn, err := cfg.ListenPacket(context.Background(), network, path)
		if err != nil {
			return listener.Origin{}, nil, err
		}
		return conn.Origin(), conn, nil
	}
	ln, err := cfg.Listen(context.Background(), network, path)
	if err != nil {
		return listener.Origin{}, nil, err
	}
	return ln.Origin(), ln, nil
}

func TestUnixStale(t *testing.T) {
	for name, s := range everyStrategy() {
		for _, network := range []string{"unix", "unixpacket", "unixgram"} {
			path := anyAddress(t, network)
			fd := bindUnix(t, network, path)
			require.NoError(t, unix.Close(fd)) // and the file stays
			require.ErrorIs(t, bindError(t, network, path), syscall.EADDRINUSE)

			logger, log := newJournal(slog.LevelInfo)
			state := t.TempDir()
			origin, c, err := obtain(&listener.Config{Strategy: s, Logger: logger, StateDir: state}, network, path)
			require.NoError(t, err, "%s, %s", name, network)
			require.Equal(t, listener.Origin{Kind: listener.Bound, Requested: path, Address: path}, origin)
			require.Len(t, log.entries(t, slog.LevelInfo), 2)
			require.Equal(t, path, log.entries(t, slog.LevelInfo)[0].Path)
			require.Len(t, records(t, state), 1)
			require.NoError(t, c.Close())
			require.NoFileExists(t, path)
			require.Empty(t, filesIn(t, state))
		}
	}
}

// Also without a state directory.
func TestUnixStaleWithoutState(t *testing.T) {
	path := anyAddress(t, "unix")
	require.NoError(t, unix.Close(bindUnix(t, "unix", path)))
	ln := listen(t, &listener.Config{StateDir: unusable(t)}, "unix", path)
	exchange(t, ln)
}

func TestUnixKilled(t *testing.T) {
	path, state := anyAddress(t, "unix"), t.TempDir()
	killed := play(t, role{Do: "config", Network: "unix", Address: path, StateDir: state})
	require.Equal(t, path, killed.ready(t))
	require.NoError(t, killed.Process.Kill())
	require.Equal(t, syscall.SIGKILL, killed.signalled(t))
	require.FileExists(t, path)
	require.Len(t, filesIn(t, state), 1)

	next := play(t, role{Do: "config", Network: "unix", Address: path, StateDir: state})
	require.Equal(t, path, next.ready(t))
	require.Equal(t, strconv.Itoa(next.pid()), answers(t, "unix", path))
	recs := records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, next.pid(), recs[0].PID)
}

// Whatever lives is left alone: each of these fails, and the same file is there afterwards.
func TestUnixNeverReplaced(t *testing.T) {
	for name, hold := range map[string]func(t *testing.T, path string) (network string){
		"serving": func(t *testing.T, path string) string {
			child := play(t, role{Do: "plain", Network: "unix", Address: path})
			require.Equal(t, path, child.ready(t))
			return "unix"
		},
		"serving, in this process": func(t *testing.T, path string) string { listenPlain(t, "unix", path); return "unix" },
		"not accepting":            func(t *testing.T, path string) string { listenPlain(t, "unixpacket", path); return "unixpacket" },
		"datagrams": func(t *testing.T, path string) string {
			conn, err := net.ListenPacket("unixgram", path)
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
			return "unixgram"
		},
		"bound, not listening":            func(t *testing.T, path string) string { bindUnix(t, "unix", path); return "unix" },
		"bound, not listening, seqpacket": func(t *testing.T, path string) string { bindUnix(t, "unixpacket", path); return "unixpacket" },
		"full queue": func(t *testing.T, path string) string {
			require.NoError(t, unix.Listen(bindUnix(t, "unix", path), 0))
			for { // until there is no more room
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				require.NoError(t, err)
				t.Cleanup(func() { unix.Close(fd) })
				if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
					require.ErrorIs(t, err, unix.EAGAIN)
					return "unix"
				}
			}
		},
		"a stream, in place of datagrams": func(t *testing.T, path string) string { listenPlain(t, "unix", path); return "unixgram" },
		"datagrams, in place of a stream": func(t *testing.T, path string) string {
			conn, err := net.ListenPacket("unixgram", path)
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
			return "unix"
		},
		"a regular file": func(t *testing.T, path string) string {
			require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
			return "unix"
		},
		"a directory": func(t *testing.T, path string) string { require.NoError(t, os.Mkdir(path, 0o700)); return "unix" },
		"a FIFO": func(t *testing.T, path string) string {
			require.NoError(t, unix.Mkfifo(path, 0o600))
			return "unixgram"
		},
		"a dangling symlink": func(t *testing.T, path string) string { require.NoError(t, os.Symlink("nowhere", path)); return "unix" },
		"a symlink to a live socket": func(t *testing.T, path string) string {
			listenPlain(t, "unix", path+"2")
			require.NoError(t, os.Symlink(path+"2", path))
			return "unix"
		},
		"a symlink to a stale socket": func(t *testing.T, path string) string {
			require.NoError(t, unix.Close(bindUnix(t, "unix", path+"2")))
			require.NoError(t, os.Symlink(path+"2", path))
			return "unix"
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := anyAddress(t, "unix")
			network := hold(t, path)
			before, err := os.Lstat(path)
			require.NoError(t, err)
			all := everyStrategy()
			delete(all, "wait")
			if strings.HasPrefix(name, "a ") && name != "a regular file" {
				delete(all, "development") // where nobody is, it tries again for a second
			}
			for which, s := range all {
				state := t.TempDir()
				_, _, err := obtain(&listener.Config{Strategy: s, StateDir: state}, network, path)
				require.ErrorIs(t, err, syscall.EADDRINUSE, which)
				require.IsType(t, (*net.OpError)(nil), err)
				require.NotContains(t, err.Error(), "\n")
				now, err := os.Lstat(path)
				require.NoError(t, err, which)
				require.True(t, os.SameFile(before, now), which)
				require.Empty(t, filesIn(t, state), "%s: the lock was given back", which)
			}
			if strings.HasPrefix(name, "serving") {
				conn, err := net.Dial(network, path)
				require.NoError(t, err)
				require.NoError(t, conn.Close())
			}
		})
	}
}

// The one who is asked knows the path by another name.
func TestUnixOtherName(t *testing.T) {
	dir := shortDir(t)
	listenPlain(t, "unix", filepath.Join(dir, "s"))
	t.Chdir(dir)
	for _, name := range []string{"s", "./s", "../" + filepath.Base(dir) + "/s", dir + "//s"} {
		err := fails(t, &listener.Config{Strategy: strategy.Development()}, context.Background(), "unix", name)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.ErrorContains(t, err, "pid "+strconv.Itoa(os.Getpid()), name)
	}
	conn, err := net.Dial("unix", "s")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// Twenty starts at once on one stale path: one serves, can be reached, and is known; the others say so.
func TestUnixRace(t *testing.T) {
	const starters = 20
	path, state := anyAddress(t, "unix"), t.TempDir()
	for _, reload := range []string{state, state} {
		killed := play(t, role{Do: "config", Network: "unix", Address: path, StateDir: reload})
		require.Equal(t, path, killed.ready(t))
		require.NoError(t, killed.Process.Kill())
		require.Equal(t, syscall.SIGKILL, killed.signalled(t))

		b := newBarrier(t)
		var all []*process
		for range starters {
			all = append(all, play(t, role{Do: "config", Network: "unix", Address: path, StateDir: state, Barrier: b.path}))
		}
		b.wait(t, starters)
		b.release()
		var serving []*process
		for _, p := range all {
			line, _ := p.line(t)
			if line == "ready "+path {
				serving = append(serving, p)
				continue
			}
			require.Contains(t, line, "failed ")
			require.Contains(t, line, "address already in use")
		}
		require.Len(t, serving, 1)
		require.Equal(t, strconv.Itoa(serving[0].pid()), answers(t, "unix", path))
		require.NoError(t, serving[0].Process.Signal(syscall.SIGTERM))
		require.NoError(t, serving[0].exit(t))
		require.NoFileExists(t, path)
		for _, p := range all {
			_ = p.exit(t)
		}
	}
}

// Whoever replaced the file has it.
func TestUnixSuccessor(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		path := anyAddress(t, network)
		cfg := &listener.Config{StateDir: t.TempDir()}
		_, first, err := obtain(cfg, network, path)
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		_, second, err := obtain(&listener.Config{StateDir: t.TempDir()}, network, path)
		require.NoError(t, err)
		before, err := os.Lstat(path)
		require.NoError(t, err)
		require.NoError(t, first.Close())
		now, err := os.Lstat(path)
		require.NoError(t, err, "Close does not remove the socket of a successor")
		require.True(t, os.SameFile(before, now))
		conn, err := net.Dial(network, path)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		require.NoError(t, second.Close())
		require.NoFileExists(t, path)
	}
}

// A socket that came from elsewhere has a file that is not ours to remove.
func TestUnixOfSource(t *testing.T) {
	path := anyAddress(t, "unix")
	plain := listenPlain(t, "unix", path)
	file, err := plain.(*net.UnixListener).File()
	require.NoError(t, err)
	inherited, err := net.FileListener(file)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	source := &source{take: func(string, string, string) (net.Listener, error) { return inherited, nil }}
	ln := listen(t, &listener.Config{Sources: []listener.Source{source}}, "unix", path)
	require.NoError(t, ln.Close())
	conn, err := net.Dial("unix", path)
	require.NoError(t, err, "whoever passed it goes on")
	require.NoError(t, conn.Close())
}

func TestUnixAbstract(t *testing.T) {
	name := "@berth-test-" + strconv.Itoa(os.Getpid())
	state := t.TempDir()
	ln := listen(t, &listener.Config{StateDir: state}, "unix", name)
	require.Equal(t, name, ln.Addr().String())
	exchange(t, ln)
	recs := records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, name, recs[0].Address)
	for which, s := range everyStrategy() {
		if which == "wait" {
			continue
		}
		err := fails(t, &listener.Config{StateDir: state, Strategy: s}, context.Background(), "unix", name)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.ErrorContains(t, err, "pid "+strconv.Itoa(os.Getpid()))
	}
	exchange(t, ln)
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, state))
	ln = listen(t, &listener.Config{StateDir: state}, "unix", name)
	require.NoError(t, ln.Close())

	// Without a name, the kernel finds one.
	ln = listen(t, &listener.Config{StateDir: state}, "unix", "")
	require.True(t, strings.HasPrefix(ln.Addr().String(), "@"), ln.Addr().String())
	exchange(t, ln)
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, state))
}

// A relative path is of the directory in which it was bound, wherever the process goes.
func TestUnixRelative(t *testing.T) {
	first, second, state := shortDir(t), shortDir(t), t.TempDir()
	logger, log := newJournal(slog.LevelWarn)
	cfg := &listener.Config{StateDir: state, Logger: logger}
	t.Chdir(first)
	one := listen(t, cfg, "unix", "app.sock")
	t.Chdir(second)
	two := listen(t, cfg, "unix", "app.sock")
	require.Equal(t, []string{"app.sock"}, filesIn(t, first))
	require.Equal(t, []string{"app.sock"}, filesIn(t, second))
	require.Empty(t, log.entries(t, slog.LevelWarn), "the same name in another directory is another address")
	require.Len(t, records(t, state), 2)

	t.Chdir("/")
	require.NoError(t, one.Close())
	require.Empty(t, filesIn(t, first))
	require.Equal(t, []string{"app.sock"}, filesIn(t, second))
	require.NoError(t, two.Close())
	require.Empty(t, filesIn(t, second))
	require.Empty(t, filesIn(t, state))

	// A stale one is found, though a live one elsewhere has the same name.
	t.Chdir(second)
	two = listen(t, cfg, "unix", "app.sock")
	t.Chdir(first)
	require.NoError(t, unix.Close(bindUnix(t, "unix", "app.sock")))
	one = listen(t, cfg, "unix", "app.sock")
	exchange(t, one)
	require.NoError(t, one.Close())
	t.Chdir(second)
	exchange(t, two)
}

// What is no socket has no holder that could leave: nobody waits for it, and the text says what it is.
func TestUnixPathThatIsNoSocketIsNamed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	folder := filepath.Join(dir, "folder")
	require.NoError(t, os.Mkdir(folder, 0o700))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink("nowhere", link))
	for path, what := range map[string]string{file: "a regular file", folder: "a directory", link: "a symbolic link"} {
		cfg := listener.Config{Strategy: strategy.Development(), StateDir: t.TempDir()}
		_, err := cfg.Listen(t.Context(), "unix", path)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.ErrorContains(t, err, path+" is "+what+": remove it or choose another path")
		var e *listener.Error
		require.ErrorAs(t, err, &e)
		require.Empty(t, e.History, "nothing to try, and nothing to wait for")
	}
	require.FileExists(t, file)
}

func TestPlainListenSaysThatASocketFileIsStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
	_, err = listener.Listen("unix", path)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, path+" is the file of a socket that nobody serves: remove it or choose another path")
}
