//go:build linux

package systemdtest_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/systemdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Nothing is left of two managers: process, cgroup, mount, file.
func TestStart(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	var processes []*proc.Handle
	var dirs, cgroups []string
	ok := t.Run("run", func(t *testing.T) {
		for range 2 {
			m := systemdtest.Start(t, map[string]string{
				// It does not want to end, and its child is in a session of its own.
				"app.service": "[Service]\nExecStart=/bin/sh -c 'trap \"\" TERM; echo hello from %n; setsid sleep 300 & wait; wait'\n",
			})
			m.Systemctl(t, "start", "app.service")
			require.Equal(t, "active", m.Property(t, "app.service", "ActiveState"))
			m.Add(t, map[string]string{"job.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo $XDG_RUNTIME_DIR'\n"})
			m.Systemctl(t, "start", "job.service")
			require.Equal(t, m.Runtime()+"\n", m.UnitLog("job.service"))
			m.AwaitLog(t, "Finished job.service")
			_, err := m.Try("start", "missing.service")
			require.ErrorContains(t, err, "not found")
			pid, err := strconv.Atoi(m.Property(t, "app.service", "MainPID"))
			require.NoError(t, err)
			require.True(t, m.Alive())
			for _, pid := range []int{m.PID(), pid} {
				h, err := proc.Open(pid)
				require.NoError(t, err)
				processes = append(processes, h)
			}
			dirs = append(dirs, filepath.Dir(m.Runtime()))
			text, err := os.ReadFile("/proc/" + strconv.Itoa(m.PID()) + "/cgroup")
			require.NoError(t, err)
			_, path, found := strings.Cut(string(text), "/berth-systemd-")
			require.True(t, found, "%s", text)
			name, _, _ := strings.Cut(path, "/")
			cgroups = append(cgroups, "berth-systemd-"+name)
		}
		require.NotEqual(t, dirs[0], dirs[1])
	})
	if !ok || len(processes) == 0 {
		return // failed, or skipped
	}
	for _, h := range processes {
		require.False(t, h.Alive(), h.PID())
		require.NoError(t, h.Close())
	}
	for _, dir := range dirs {
		require.NoDirExists(t, dir)
	}
	require.NoError(t, filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		require.NotContains(t, cgroups, filepath.Base(path))
		return nil
	}))
	after, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	require.Equal(t, string(mounts), string(after))
}
