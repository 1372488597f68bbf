package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/systemdtest"
)

// TestUnits runs the unit files in a real systemd, with all of their hardening that the manager of a user can do.
func TestUnits(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	address := freeAddress(t)
	unit := func(name string, replace ...string) string {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for i := 0; i < len(replace); i += 2 {
			require.Contains(t, string(text), replace[i])
		}
		return strings.NewReplacer(replace...).Replace(string(text))
	}
	m := systemdtest.Start(t, map[string]string{
		"activated.socket": unit("activated.socket", "ListenStream=8080", "ListenStream="+address),
		"activated.service": unit("activated.service",
			"DynamicUser=yes\n", "", // for the system's manager alone
			// The test binary, and here the socket to notify, are in /tmp, which the service has to itself.
			"ExecStart=/usr/local/bin/activated", "BindReadOnlyPaths=%t "+exe+":/tmp/activated\nEnvironment="+asProgram+"=1 GORACE=atexit_sleep_ms=0\nExecStart=/tmp/activated"),
	})
	// What is hidden is covered by these, which pid 1 makes at boot; this manager is another.
	out, err := m.Command(t.Context(), "sh", "-c", "mkdir -p -m 0 /run/systemd/inaccessible/dir && cd /run/systemd/inaccessible && touch reg && mkfifo fifo && mknod chr c 0 0").CombinedOutput()
	require.NoError(t, err, string(out))
	m.Systemctl(t, "start", "activated.socket")
	require.Equal(t, "inactive", m.Property(t, "activated.service", "ActiveState"))
	first := get(t, address)
	require.Contains(t, first, "which is activated\n")
	m.Await(t, "activated.service", "ActiveState", "active") // by then it said that it is ready

	// A request made while it is down waits for the next start.
	m.Systemctl(t, "stop", "activated.service")
	require.Equal(t, "success", m.Property(t, "activated.service", "Result"))
	second := get(t, address)
	require.Contains(t, second, "which is activated\n")
	require.NotEqual(t, first, second, "another process")
	m.Systemctl(t, "stop", "activated.socket", "activated.service")
	require.Equal(t, "success", m.Property(t, "activated.service", "Result"))
}
