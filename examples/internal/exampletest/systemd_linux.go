package exampletest

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-go/berth/internal/systemdtest"
)

// Systemd starts a real systemd with unit files of an example, with all of their hardening that the manager of a user can
// do. The program in /usr/local/bin is the test binary there.
func Systemd(t testing.TB, program string, units map[string]string) *systemdtest.Manager {
	t.Helper()
	for name, text := range units {
		units[name] = strings.NewReplacer(
			"DynamicUser=yes\n", "", // for the system's manager alone
			// The test binary, and here the socket to notify, are in /tmp, which the service has to itself.
			"ExecStart=/usr/local/bin/"+program, "BindReadOnlyPaths=%t "+Executable(t)+":/tmp/"+program+"\nEnvironment="+strings.Join(Env, " ")+"\nExecStart=/tmp/"+program,
		).Replace(text)
	}
	m := systemdtest.Start(t, units)
	// What is hidden is covered by these, which pid 1 makes at boot; this manager is another.
	out, err := m.Command(t.Context(), "sh", "-c", "mkdir -p -m 0 /run/systemd/inaccessible/dir && cd /run/systemd/inaccessible && touch reg && mkfifo fifo && mknod chr c 0 0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return m
}

var listening = regexp.MustCompile(`listening on ([0-9.:]+)`)

// Address is where a unit listens.
func Address(t testing.TB, m *systemdtest.Manager, unit string) string {
	t.Helper()
	found := listening.FindStringSubmatch(m.UnitLog(unit))
	if found == nil {
		t.Fatalf("%s does not say where it listens", unit)
	}
	return found[1]
}

// AwaitOther waits until a property of a unit has another value, and gives that.
func AwaitOther(t testing.TB, m *systemdtest.Manager, unit, property, value string) string {
	t.Helper()
	for end := time.Now().Add(Timeout); time.Now().Before(end); {
		if now := m.Property(t, unit, property); now != value {
			return now
		}
	}
	t.Fatalf("%s of %s stays %q", property, unit, value)
	panic("unreachable")
}
