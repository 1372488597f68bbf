package inspect_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/testneed"
	"github.com/berth-go/berth/listener/inspect"
)

// bind binds without listening, and without SO_REUSEADDR.
func bind(t *testing.T) (port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	return name.(*syscall.SockaddrInet4).Port
}

func TestBoundWithoutListeningIsReserved(t *testing.T) {
	port := bind(t)
	report, err := inspect.Port(t.Context(), "tcp", port)
	require.NoError(t, err)
	require.Equal(t, inspect.Reserved, report.State)
	require.Equal(t, os.Getpid(), report.Holders[0].PID)
	require.Equal(t, "bound", report.Holders[0].State)
	require.Contains(t, report.Holders[0].Refusal, "this process itself")
}

func TestAnotherUsersHolder(t *testing.T) {
	testneed.That(t, os.Geteuid() == 0, "root, to become another user")
	const nobody = 65534
	asNobody := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Path = readableCopy(t)
		cmd.Dir = "/"
	}
	pid, at, _ := holder(t, "tcp", "127.0.0.1:0", "", asNobody)
	report, err := inspect.Port(t.Context(), "tcp", portOf(t, at))
	require.NoError(t, err)
	require.Equal(t, pid, report.Holders[0].PID)
	require.Equal(t, nobody, report.Holders[0].UID)
	require.Equal(t, "nobody", report.Holders[0].User)
	require.Contains(t, report.Holders[0].Refusal, "belongs to user nobody")
}

// readableCopy is this test binary where every user may execute it.
func readableCopy(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	content, err := os.ReadFile(exe)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("/tmp", "berth-inspect-*")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "inspect.test")
	require.NoError(t, os.WriteFile(path, content, 0o755))
	return path
}

func TestAHolderThatCannotBeSeenIsNamedByItsUser(t *testing.T) {
	// Seen from nobody: root's process is invisible, its socket is not.
	testneed.That(t, os.Geteuid() == 0, "root, to become another user")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	cmd := exec.Command(readableCopy(t), "-test.run=^TestReportForNobody$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "BERTH_INSPECT_PORT="+strconv.Itoa(portOf(t, ln.Addr().String())))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Contains(t, string(output), "pid=0 uid=0 user=root complete=false")
	require.Contains(t, string(output), "run as root to see the process; it belongs to user root")
}

// TestReportForNobody is the part of the test above that runs as another user.
func TestReportForNobody(t *testing.T) {
	text := os.Getenv("BERTH_INSPECT_PORT")
	if text == "" {
		return
	}
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	report, err := inspect.Port(t.Context(), "tcp", port)
	require.NoError(t, err)
	require.Equal(t, inspect.InUse, report.State)
	h := report.Holders[0]
	fmt.Printf("pid=%d uid=%d user=%s complete=%v\n%s\n", h.PID, h.UID, h.User, report.Complete, strings.Join(report.Recommendations, "\n"))
}

func TestNoDescriptorIsLeft(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	ask := func() {
		_, err := inspect.Port(t.Context(), "tcp", 1)
		require.NoError(t, err)
		_, err = inspect.System(t.Context(), inspect.Options{})
		require.NoError(t, err)
	}
	ask() // what is opened once stays open
	before := count()
	for range 20 {
		ask()
	}
	require.Equal(t, before, count())
}
