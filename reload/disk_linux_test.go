package reload_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/testneed"
)

// A disk that is full when the new version would write its PID file: the old one goes on, and its file still names it.
func TestDiskFullForPIDFile(t *testing.T) {
	testneed.That(t, os.Geteuid() == 0, "root, to mount a file system")
	h := newHouse(t)
	full := filepath.Join(filepath.Dir(h.state), "full")
	require.NoError(t, os.Mkdir(full, 0o700))
	mount(t, full)
	r := h.role()
	r.Reload.PIDFile = filepath.Join(full, "pid")
	h.pid = r.Reload.PIDFile
	l := begin(t, r)
	_, addresses := l.said("listens")
	address, _, _ := strings.Cut(addresses, " ")
	first, _ := l.said("ready")
	h.owner(t, first, address)
	fill(t, filepath.Join(full, "ballast"))
	signalTo(t, first, syscall.SIGHUP)
	l.logged("no space left on device")
	l.logged("no upgrade")
	h.owner(t, first, address)

	require.NoError(t, os.Remove(filepath.Join(full, "ballast")))
	signalTo(t, first, syscall.SIGHUP)
	second, _ := l.said("ready")
	l.said("ended <nil>")
	h.owner(t, second, address)
	signalTo(t, second, syscall.SIGTERM)
	l.said("ended <nil>")
	entries, err := os.ReadDir(full)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func mount(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"))
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fill writes until nothing more fits.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	require.NoError(t, err)
	defer file.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = file.Write(block)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}
