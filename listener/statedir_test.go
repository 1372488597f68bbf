//go:build linux

package listener_test

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// mountAt mounts something at a new directory until the test ends.
func mountAt(t testing.TB, options string) string {
	t.Helper()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(path, 0o700))
	require.NoError(t, unix.Mount("tmpfs", path, "tmpfs", 0, "mode=700,"+options))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// A state directory of no use is reported, and never keeps a server from starting.
func TestStateDirUnusable(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T) string
		why  string
	}{
		"a file": {func(t *testing.T) string { return unusable(t) }, "is not a directory"},
		"a symbolic link": {func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "link")
			require.NoError(t, os.Symlink(t.TempDir(), path))
			return path
		}, "is a symbolic link"},
		"a dangling link": {func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "link")
			require.NoError(t, os.Symlink("nowhere", path))
			return path
		}, "is a symbolic link"},
		"writable for everybody": {func(t *testing.T) string {
			path := t.TempDir()
			require.NoError(t, os.Chmod(path, 0o777))
			return path
		}, "is writable for others"},
		"of somebody else": {func(t *testing.T) string {
			needRoot(t)
			path := t.TempDir()
			require.NoError(t, os.Chown(path, 12345, 12345))
			return path
		}, "belongs to another user"},
		"below a file": {func(t *testing.T) string { return filepath.Join(unusable(t), "state") }, "not a directory"},
		"read-only": {func(t *testing.T) string {
			path := mountAt(t, "size=1m")
			require.NoError(t, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			return path
		}, "read-only file system"},
		"below a read-only one": {func(t *testing.T) string {
			path := mountAt(t, "size=1m")
			require.NoError(t, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			return filepath.Join(path, "state")
		}, "read-only file system"},
		"full, no inode": {func(t *testing.T) string { return mountAt(t, "nr_inodes=1") }, "no space left on device"},
		"full, no block": {func(t *testing.T) string {
			path := mountAt(t, "size=4k")
			require.NoError(t, os.WriteFile(filepath.Join(path, "other"), make([]byte, 4096), 0o600))
			return path
		}, "no space left on device"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.make(t)
			before, _ := os.ReadDir(path)
			logger, log := newJournal(slog.LevelInfo)
			cfg := &listener.Config{StateDir: path, Logger: logger}
			ln := listen(t, cfg, "tcp", "127.0.0.1:0")
			exchange(t, ln)
			warn := log.entries(t, slog.LevelWarn)
			require.Len(t, warn, 1)
			require.Contains(t, warn[0].Error, c.why)
			require.Len(t, log.entries(t, slog.LevelInfo), 1)

			// Nor does it keep others from knowing who has the port, or from going elsewhere.
			err := fails(t, cfg, t.Context(), "tcp", ln.Addr().String())
			checkInUse(t, err, "tcp", ln.Addr().String(), ln.Addr().String())
			moved := listen(t, &listener.Config{StateDir: path, Strategy: strategy.Staging(strategy.Range{})}, "tcp", ln.Addr().String())
			require.Equal(t, listener.Fallback, moved.Origin().Kind)
			conn := listenPacket(t, &listener.Config{StateDir: path}, "udp", "127.0.0.1:0")

			require.NoError(t, ln.Close())
			require.NoError(t, moved.Close())
			require.NoError(t, conn.Close())
			after, _ := os.ReadDir(path)
			require.Equal(t, len(before), len(after))
		})
	}
}

func TestStateDirUnprivileged(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	require.NoError(t, os.Chmod(dir, 0o700)) // root's: what is below cannot even be looked at
	r := role{Do: "config", Network: "tcp", Address: "127.0.0.1:0", StateDir: filepath.Join(dir, "state"), Log: true}
	p := play(t, r, program(public(t)), as(nobody))
	address := p.ready(t)
	// It comes through another pipe than the line that says ready.
	log := p.logged(t, 1)
	require.Contains(t, log, "permission denied")
	require.Equal(t, 1, strings.Count(log, "level=WARN"))
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// What stands in place of the lock is reported, and no reason to fail either.
func TestLockUnusable(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path string) error
		why  string
	}{
		"FIFO":      {func(p string) error { return unix.Mkfifo(p, 0o600) }, "not a regular file"},
		"directory": {func(p string) error { return os.Mkdir(p, 0o700) }, "is a directory"},
		"symlink":   {func(p string) error { return os.Symlink("/dev/null", p) }, "too many levels of symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			state, port := t.TempDir(), freePort(t)
			path := filepath.Join(state, "tcp-127.0.0.1-"+port+".lock")
			require.NoError(t, c.make(path))
			logger, log := newJournal(slog.LevelInfo)
			ln := listen(t, &listener.Config{StateDir: state, Logger: logger}, "tcp", "127.0.0.1:"+port)
			warn := log.entries(t, slog.LevelWarn)
			require.Len(t, warn, 1)
			require.Contains(t, warn[0].Error, c.why)
			err := fails(t, &listener.Config{StateDir: state, Strategy: strategy.Aggressive{}}, t.Context(), "tcp", ln.Addr().String())
			require.ErrorIs(t, err, syscall.EADDRINUSE)
			require.NoError(t, ln.Close())
			require.Len(t, filesIn(t, state), 1)
		})
	}
}

// The lock is a courtesy: somebody has it without the address. Of a stale record nothing is left.
func TestLockHeldByOther(t *testing.T) {
	state, port := t.TempDir(), freePort(t)
	dir, err := registry.Open(state)
	require.NoError(t, err)
	lock, err := dir.Lock("tcp", "127.0.0.1:"+port)
	require.NoError(t, err)
	logger, log := newJournal(slog.LevelInfo)
	cfg := &listener.Config{StateDir: state, Logger: logger}
	ln := listen(t, cfg, "tcp", "127.0.0.1:"+port)
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
	require.Contains(t, log.entries(t, slog.LevelWarn)[0].Error, registry.ErrHeld.Error())
	require.NoError(t, ln.Close())
	require.Len(t, filesIn(t, state), 1, "it is not ours to remove")
	require.NoError(t, lock.Release())

	for _, text := range []string{"garbage", "", `{"version":7}`, `{"version":1,"pid":1,"address":"127.0.0.1:1"}`} {
		require.NoError(t, os.WriteFile(filepath.Join(state, "tcp-127.0.0.1-"+port+".lock"), []byte(text), 0o600))
		ln = listen(t, cfg, "tcp", "127.0.0.1:"+port)
		recs := records(t, state)
		require.Len(t, recs, 1)
		require.Equal(t, os.Getpid(), recs[0].PID)
		require.NoError(t, ln.Close())
		require.Empty(t, filesIn(t, state))
	}
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
}

func TestStateDirRemovedWhileOpen(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	cfg := &listener.Config{StateDir: state}
	ln := listen(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, os.RemoveAll(state))
	second := listen(t, cfg, "tcp", "127.0.0.1:0")
	require.Len(t, records(t, state), 1, "it is made again")
	exchange(t, ln)
	require.NoError(t, ln.Close())
	require.NoError(t, second.Close())
	require.Empty(t, filesIn(t, state))
}

// IPv4 and IPv6 wildcards of one port coexist, and so do their locks.
func TestLockOfBothFamilies(t *testing.T) {
	port := freePort(t)
	logger, log := newJournal(slog.LevelInfo)
	cfg := &listener.Config{StateDir: t.TempDir(), Logger: logger}
	listen(t, cfg, "tcp4", ":"+port)
	listen(t, cfg, "tcp6", ":"+port)
	require.Empty(t, log.entries(t, slog.LevelWarn))
}

func TestPermissionDenied(t *testing.T) {
	needRoot(t)
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	require.NoError(t, err)
	dir := shortDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	r := role{Do: "config", Network: "unix", Address: filepath.Join(dir, "s"), StateDir: filepath.Join(dir, "state")}
	said := play(t, r, program(public(t)), as(nobody)).failed(t)
	require.Contains(t, said, "bind: permission denied: the directory of the socket does not let this user write")

	if string(text) == "0\n" { // as in a container: every port is for everybody
		t.Log("no port is privileged here")
		return
	}
	for _, s := range []string{"production", "staging", "development"} {
		r = role{Do: "config", Network: "tcp", Address: "127.0.0.1:80", Strategy: s, StateDir: filepath.Join(dir, "state")}
		said = play(t, r, program(public(t)), as(nobody)).failed(t)
		require.Contains(t, said, "listen tcp 127.0.0.1:80: bind: permission denied: ports below 1024 need root", "and none of them moves on")
		require.NotContains(t, said, "held by")
	}
}
