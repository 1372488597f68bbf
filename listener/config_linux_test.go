package listener_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// option reads a number that the kernel keeps for a socket.
func option(t testing.TB, c syscall.Conn, level, name int) int {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	var value int
	var optErr error
	require.NoError(t, raw.Control(func(fd uintptr) { value, optErr = unix.GetsockoptInt(int(fd), level, name) }))
	require.NoError(t, optErr)
	return value
}

// What Config.Net says of keep-alive and of MPTCP holds for every listener, also one that moved.
func TestNetSettings(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	for _, c := range []struct {
		cfg   listener.Config
		alive int
		idle  int
	}{
		{listener.Config{}, 1, 15},
		{listener.Config{Net: net.ListenConfig{KeepAlive: -1}}, 0, 0},
		{listener.Config{Net: net.ListenConfig{KeepAlive: 77 * time.Second}}, 1, 77},
		{listener.Config{Net: net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 99 * time.Second}}}, 1, 99},
	} {
		cfg := c.cfg
		cfg.Strategy = strategy.Staging(strategy.Range{})
		for _, address := range []string{"127.0.0.1:0", held.Addr().String()} {
			_, server := connect(t, listen(t, &cfg, "tcp", address))
			require.Equal(t, c.alive, option(t, server.(*net.TCPConn), unix.SOL_SOCKET, unix.SO_KEEPALIVE))
			if c.alive > 0 {
				require.Equal(t, c.idle, option(t, server.(*net.TCPConn), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE))
			}
		}
	}
	for _, mptcp := range []bool{true, false} {
		var cfg listener.Config
		cfg.Net.SetMultipathTCP(mptcp)
		want := unix.IPPROTO_TCP
		if text, err := os.ReadFile("/proc/sys/net/mptcp/enabled"); mptcp && err == nil && string(text) == "1\n" {
			want = unix.IPPROTO_MPTCP
		}
		require.Equal(t, want, option(t, listen(t, &cfg, "tcp", "127.0.0.1:0"), unix.SOL_SOCKET, unix.SO_PROTOCOL))
	}
}

// A Control that sets an option, which is what most are for.
func TestControlSetsOption(t *testing.T) {
	cfg := &listener.Config{}
	cfg.Net.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		if ctlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}
	first := listen(t, cfg, "tcp", "127.0.0.1:0")
	require.Equal(t, 1, option(t, first, unix.SOL_SOCKET, unix.SO_REUSEPORT))
	second := listen(t, cfg, "tcp", first.Addr().String())
	require.Equal(t, first.Addr().String(), second.Addr().String())
	require.Equal(t, listener.Bound, second.Origin().Kind)
	require.NoError(t, second.Close())
	exchange(t, first)
}

// A socket that is bound and does not listen is found, where the kernel tells of it.
func TestInUseByBound(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := unix.Getsockname(fd)
	require.NoError(t, err)
	address := local(name.(*unix.SockaddrInet4).Port)
	_, err = listener.Listen("tcp", address)
	e := checkInUse(t, err, "tcp", address, address)
	if len(e.Diagnosis().Holders) == 0 { // before Linux 6.8
		require.False(t, e.Diagnosis().Complete, "invisible is not free")
		return
	}
	require.Equal(t, "bound", e.Diagnosis().Holders[0].State)
	require.Equal(t, os.Getpid(), e.Diagnosis().Holders[0].PID)
}

// With no descriptor left, no port would do: the error says so, and nobody moves.
func TestOutOfDescriptors(t *testing.T) {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	fd, err := unix.FcntlInt(uintptr(unix.Stdin), unix.F_DUPFD_CLOEXEC, 0) // the lowest that is free
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	limit := before
	limit.Cur = uint64(fd)
	cfg := &listener.Config{Strategy: strategy.Staging(strategy.Range{}), StateDir: t.TempDir()}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	_, err = cfg.Listen(context.Background(), "tcp", held.Addr().String())
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	require.ErrorIs(t, err, syscall.EMFILE)
	require.ErrorContains(t, err, "ulimit -n")
	require.NotErrorIs(t, err, syscall.EADDRINUSE)
	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Empty(t, e.History)
}

func TestInUse(t *testing.T) {
	command := commandOf(t)
	for _, network := range append(supported(streams), supported(packets)...) {
		t.Run(network, func(t *testing.T) {
			state := t.TempDir()
			var holder *process
			var address string
			packet := strings.HasPrefix(network, "udp") || network == "unixgram"
			if packet {
				holder, _ = claim(t, role{Do: "packet", Network: network, Address: anyAddress(t, network), StateDir: state})
			} else {
				holder, _ = claim(t, role{Network: network, Address: anyAddress(t, network), StateDir: state})
			}
			address = holderAddress(t, holder, state)

			cfg := &listener.Config{StateDir: state}
			var errs []error
			if packet {
				errs = append(errs, closed(listener.ListenPacket(network, address)), closed(cfg.ListenPacket(context.Background(), network, address)))
			} else {
				errs = append(errs, closed(listener.Listen(network, address)), closed(cfg.Listen(context.Background(), network, address)))
				_, err := cfg.ListenAll(context.Background(), network, address)
				errs = append(errs, err)
			}
			for _, err := range errs {
				e := checkInUse(t, err, network, address, address)
				require.Empty(t, e.History)
				d := e.Diagnosis()
				require.True(t, d.Complete)
				require.Len(t, d.Holders, 1)
				require.Equal(t, holder.pid(), d.Holders[0].PID)
				require.Equal(t, command, d.Holders[0].Command)
				require.Equal(t, address, d.Holders[0].Address)
				me, userErr := user.Current()
				require.NoError(t, userErr)
				require.Equal(t, me.Username, d.Holders[0].User)
				for _, want := range []string{command, fmt.Sprintf("(pid %d, ", holder.pid()), "user " + me.Username, fmt.Sprintf(": kill %d or choose another ", holder.pid())} {
					require.Contains(t, err.Error(), want)
				}
				require.True(t, strings.HasSuffix(err.Error(), ": "+e.Advice()))
				require.Equal(t, d, e.Diagnosis())
			}
		})
	}
}

// holderAddress is the address in the record of a process, which is the only one there of its pid.
func holderAddress(t testing.TB, holder *process, state string) string {
	t.Helper()
	for _, rec := range records(t, state) {
		if rec.PID == holder.pid() {
			return rec.Address
		}
	}
	require.FailNow(t, "no record")
	return ""
}

// commandOf is the short name of this process, as the system knows it.
func commandOf(t testing.TB) string {
	t.Helper()
	ln := listenPlain(t, "tcp", "127.0.0.1:0")
	_, err := listener.Listen("tcp", ln.Addr().String())
	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Len(t, e.Diagnosis().Holders, 1)
	command := e.Diagnosis().Holders[0].Command
	require.NotEmpty(t, command)
	return command
}

func TestOriginReclaimed(t *testing.T) {
	stale := play(t, role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0"})
	address := stale.ready(t)
	_, origin := claim(t, role{Network: "tcp", Address: address, Strategy: "development", StateDir: t.TempDir()})
	require.Equal(t, listener.Reclaimed, origin.Kind)
	require.Equal(t, address, origin.Requested)
	require.Equal(t, address, origin.Address)
	require.Len(t, origin.InTheWay, 1)
	require.Equal(t, stale.pid(), origin.InTheWay[0].PID)
	require.NoError(t, stale.exit(t))
}
