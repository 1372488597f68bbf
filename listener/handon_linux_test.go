package listener_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func init() { roles["all"] = role.playAll }

// playAll is ListenAll of several addresses, separated by spaces.
func (r role) playAll() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	all, err := cfg.ListenAll(context.Background(), r.Network, strings.Fields(r.Address)...)
	if err != nil {
		return err
	}
	for _, ln := range all {
		fmt.Println("took", ln.Origin().Kind, ln.Addr())
	}
	return r.serve(all[0])
}

// What a Keeper was given cannot be taken back, so it gets nothing of a Listen that fails.
func TestAKeeperGetsNothingOfWhatFails(t *testing.T) {
	var given []string
	keeps := keeper{&source{take: nothing}, func(_, _, address string, _ syscall.Conn) error {
		given = append(given, address)
		return nil
	}}
	held := listenPlain(t, "tcp", "127.0.0.1:0").Addr().String()
	cfg := &listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{keeps}}
	_, err := cfg.ListenAll(t.Context(), "tcp", "127.0.0.1:0", held)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.Empty(t, given)

	cfg.PortFile = filepath.Join(t.TempDir(), "missing", "port")
	_, err = cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.ErrorContains(t, err, "port file")
	_, err = cfg.ListenAll(t.Context(), "tcp", "127.0.0.1:0", "127.0.0.1:0")
	require.ErrorContains(t, err, "port file")
	require.Empty(t, given)

	cfg.PortFile = ""
	all, err := cfg.ListenAll(t.Context(), "tcp", "127.0.0.1:0", "127.0.0.2:0")
	require.NoError(t, err)
	require.Equal(t, []string{"127.0.0.1:0", "127.0.0.2:0"}, given)
	for _, ln := range all {
		require.NoError(t, ln.Close())
	}
}

// One name for several addresses tells none of them: the socket of the one is not the other's.
func TestListenAllMatchesPassedSocketsByAddress(t *testing.T) {
	for _, named := range []bool{false, true} {
		passed, other := freePort(t), freePort(t)
		r := role{Do: "all", Network: "tcp", Address: "127.0.0.1:" + other + " 127.0.0.1:" + passed, StateDir: t.TempDir(), Name: "web", Set: named}
		p := socketActivate(t, r, "-l", "127.0.0.1:"+passed, "--fdname=web")
		dialOnceListening(t, "127.0.0.1:"+passed)
		line, _ := p.line(t)
		require.Equal(t, "took bound 127.0.0.1:"+other, line)
		line, _ = p.line(t)
		require.Equal(t, "took activated 127.0.0.1:"+passed, line)
	}
}

func TestRelativeStateDirSurvivesChdir(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	cfg := listener.Config{StateDir: "state", PortFile: "port"}
	ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.Len(t, filesIn(t, filepath.Join(dir, "state")), 1)
	t.Chdir("/")
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, filepath.Join(dir, "state")))
	require.NoFileExists(t, filepath.Join(dir, "port"))
}

func TestAMiddlewareThatWrapsNothing(t *testing.T) {
	cfg := listener.Config{StateDir: t.TempDir(), Middleware: []listener.Middleware{func(net.Listener) net.Listener { return nil }}}
	ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.IsType(t, (*net.TCPListener)(nil), ln.Unwrap())
	require.NoError(t, ln.Close())
}

func TestSetUnlinkOnClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	cfg := listener.Config{StateDir: t.TempDir()}
	ln, err := cfg.Listen(t.Context(), "unix", path)
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
	require.FileExists(t, path)
	require.NoError(t, os.Remove(path))

	conn, err := cfg.ListenPacket(t.Context(), "unixgram", path)
	require.NoError(t, err)
	conn.SetUnlinkOnClose(false)
	conn.SetUnlinkOnClose(true)
	require.NoError(t, conn.Close())
	require.NoFileExists(t, path)
}

// A range may hold the port that was asked for, which may be free by then: that is no fallback.
func TestRebindToTheRequestedPort(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:"+freePort(t))
	port := uint16(held.Addr().(*net.TCPAddr).Port)
	cfg := listener.Config{StateDir: t.TempDir(), Strategy: strategy.Func(func(strategy.Failure) strategy.Action {
		_ = held.Close()
		return strategy.Rebind{Ports: []strategy.Range{{First: port, Last: port}}}
	})}
	ln, err := cfg.Listen(t.Context(), "tcp", held.Addr().String())
	require.NoError(t, err)
	defer ln.Close()
	require.Equal(t, listener.Bound, ln.Origin().Kind)
	require.Equal(t, held.Addr().String(), ln.Origin().Address)
}

func TestErrorIsTemporaryAsNetsIs(t *testing.T) {
	require.True(t, (&listener.Error{Err: os.NewSyscallError("socket", syscall.EMFILE)}).Temporary())
	require.False(t, (&listener.Error{Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}).Temporary())
	require.False(t, (&listener.Error{}).Temporary())
}

// In another network namespace, as in a container that shares the directory, a socket is not in the table of this one. One
// that is bound and does not listen yet refuses connections, too.
func TestAJustBoundSocketOfAnotherNamespaceIsNotStale(t *testing.T) {
	needRoot(t)
	unshare, python := needCommand(t, "unshare"), needCommand(t, "python3")
	path := filepath.Join(t.TempDir(), "s")
	p := start(t, exec.Command(unshare, "--net", python, "-uc", `
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
print("bound")
time.sleep(0.02)
s.listen()
while True:
    c = s.accept()[0]
    try: c.sendall(b"alive\n")
    except BrokenPipeError: pass # of who only asked whether anybody is there
    c.close()
`, path))
	line, _ := p.line(t)
	require.Equal(t, "bound", line)
	cfg := listener.Config{StateDir: t.TempDir(), Strategy: strategy.Development()}
	_, err := cfg.Listen(t.Context(), "unix", path)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.Equal(t, "alive", answers(t, "unix", path))
}
