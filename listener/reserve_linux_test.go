package listener_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

func init() {
	roles["reserve"] = role.playReserve
	roles["reserve churn"] = role.playReserveChurn
}

// playReserve reserves the address and says so, then lives until its end. What it does
// before is in Child.
func (r role) playReserve() error {
	if slices.Contains(r.Child, "without flock") {
		if err := forbidFlock(); err != nil {
			return err
		}
	}
	cfg, err := r.config()
	if err != nil {
		return err
	}
	reservation, err := cfg.Reserve(context.Background(), r.Network, strings.Fields(r.Address)...)
	if err != nil {
		return err
	}
	if slices.Contains(r.Child, "for an hour") {
		err = reservation.Extend(time.Hour)
	}
	if slices.Contains(r.Child, "listens") {
		_, err = reservation.Listen()
	}
	if slices.Contains(r.Child, "releases") {
		err = reservation.Release(context.Background(), time.Hour)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready", reservation.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil // without a Close: the end of the process has to do
}

// forbidFlock has flock(2) fail in this process from now on, as it does on file systems that know no locks.
func forbidFlock() error {
	const allow, fail = 0x7fff0000, 0x00050000 | uint32(unix.ENOTSUP) // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_FLOCK, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: fail},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const setModeFilter, allThreads = 1, 1
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, no := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, allThreads, uintptr(unsafe.Pointer(&filter))); no != 0 {
		return no
	}
	return nil
}

// The socket is as package net would have made it.
func TestReservedNetSettings(t *testing.T) {
	for _, c := range []struct {
		net   net.ListenConfig
		alive int
		idle  int
	}{
		{net.ListenConfig{}, 1, 15},
		{net.ListenConfig{KeepAlive: -1}, 0, 0},
		{net.ListenConfig{KeepAlive: 77 * time.Second}, 1, 77},
		{net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 99 * time.Second}}, 1, 99},
	} {
		ln, err := reserve(t, &listener.Config{Net: c.net}, "tcp", "127.0.0.1:0").Listen()
		require.NoError(t, err)
		defer ln.Close()
		_, server := connect(t, ln)
		conn, ok := server.(*net.TCPConn)
		require.True(t, ok, "nothing is wrapped")
		require.Equal(t, c.alive, option(t, conn, unix.SOL_SOCKET, unix.SO_KEEPALIVE))
		if c.alive > 0 {
			require.Equal(t, c.idle, option(t, conn, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE))
		}
		_, ok = listener.As[*net.TCPListener](ln)
		require.True(t, ok)
	}
	options := []struct {
		name         string
		level, value int
	}{
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR}, {"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT},
		{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL}, {"SO_ACCEPTCONN", unix.SOL_SOCKET, unix.SO_ACCEPTCONN},
		{"SO_BROADCAST", unix.SOL_SOCKET, unix.SO_BROADCAST}, {"SO_DOMAIN", unix.SOL_SOCKET, unix.SO_DOMAIN},
	}
	for _, mptcp := range []bool{false, true} {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
			var cfg listener.Config
			cfg.Net.SetMultipathTCP(mptcp)
			got, err := reserve(t, &cfg, "tcp", address).Listen()
			require.NoError(t, err)
			want := listen(t, &cfg, "tcp", address)
			gotConn, err := reserve(t, &cfg, "udp", address).ListenPacket()
			require.NoError(t, err)
			wantConn, err := cfg.ListenPacket(t.Context(), "udp", address)
			require.NoError(t, err)
			for _, o := range options {
				require.Equal(t, option(t, want, o.level, o.value), option(t, got, o.level, o.value), "%s of %s", o.name, address)
				require.Equal(t, option(t, wantConn, o.level, o.value), option(t, gotConn, o.level, o.value), "%s of %s", o.name, address)
			}
			if address != "127.0.0.1:0" {
				require.Equal(t, option(t, want, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY), option(t, got, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY))
			}
			require.Equal(t, backlog(t, want), backlog(t, got))
			require.NoError(t, errors.Join(got.Close(), want.Close(), gotConn.Close(), wantConn.Close()))
		}
	}
}

// backlog is how many connections can wait for a listener.
func backlog(t testing.TB, c syscall.Conn) (most uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if assert.NoError(t, err) {
			most = info.Sacked // of a listener: sk_max_ack_backlog
		}
	}))
	return most
}

// A client that connects all the time is refused before Listen and served after, and nothing else.
func TestNoGapBetweenReserveAndListen(t *testing.T) {
	for range 20 {
		r := reserve(t, &listener.Config{}, "tcp", "127.0.0.1:0")
		var clients sync.WaitGroup
		for range 2 {
			clients.Go(func() {
				refused, served := 0, 0
				for begin := time.Now(); served < 20 && time.Since(begin) < deadline; {
					conn, err := net.Dial("tcp", r.Addr().String())
					if errors.Is(err, syscall.ECONNREFUSED) && served == 0 {
						refused++
						continue
					}
					if err == nil {
						_, err = io.ReadAll(conn)
						conn.Close()
					}
					if err != nil {
						t.Errorf("after %d were refused and %d served: %v", refused, served, err)
						return
					}
					served++
				}
			})
		}
		time.Sleep(time.Duration(rand.Int64N(int64(time.Millisecond))))
		ln, err := r.Listen()
		require.NoError(t, err)
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
		clients.Wait()
		require.NoError(t, ln.Close())
	}
}

// A machine may lack one of the two loopbacks. The other is reserved, and the log says so.
func TestReserveLocalhostWithoutIPv6(t *testing.T) {
	needRoot(t)
	needCommand(t, "ip")
	p := play(t, role{Do: "reserve", Network: "tcp+udp", Address: "localhost:0", StateDir: t.TempDir(), Log: true}, func(cmd *exec.Cmd) {
		cmd.Args = []string{"sh", "-c", `ip link set lo up && echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && exec "$0"`, cmd.Path}
		cmd.Path = "/bin/sh"
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	})
	require.Regexp(t, `^127\.0\.0\.1:`, p.ready(t))
	require.Eventually(t, func() bool { return strings.Count(p.stderr.String(), "does not have ::1") == 2 }, deadline, time.Millisecond)
}

// What remains of the connections of an earlier listener keeps nobody from reserving its address.
func TestReserveOverRemains(t *testing.T) {
	for _, network := range []string{"tcp", "tcp+udp"} {
		address := leaveRemains(t)
		r := reserve(t, &listener.Config{}, network, address)
		require.Equal(t, address, r.Addr().String())
		requireTaken(t, r.Addr())
		requireRefused(t, r.Addr())
		ln, err := r.Listen()
		require.NoError(t, err)
		exchange(t, ln)
		require.NoError(t, ln.Close())
	}
	// Of several, those without remains come first: they cost less, and give MPTCP.
	address := netip.MustParseAddrPort(leaveRemains(t))
	free := freePort(t)
	r := reserve(t, &listener.Config{}, "tcp", fmt.Sprintf("127.0.0.1:%d,%s", address.Port(), free))
	require.Equal(t, "127.0.0.1:"+free, r.Addr().String())
}

// Somebody else who asks is told by whom, for what and until when.
func TestReservedByAnother(t *testing.T) {
	state := t.TempDir()
	for _, network := range []string{"tcp", "udp"} {
		p := play(t, role{Do: "reserve", Network: network, Address: "127.0.0.1:0", StateDir: state, Name: "shop", Child: []string{"for an hour"}})
		address := p.ready(t)
		_, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		cfg := &listener.Config{StateDir: state}
		errs := []error{notReserved(t, cfg, network, address)}
		if network == "tcp" {
			errs = append(errs, fails(t, cfg, t.Context(), network, address))
		} else {
			_, err := cfg.ListenPacket(t.Context(), network, address)
			errs = append(errs, err)
		}
		for _, err := range errs {
			require.Regexp(t, fmt.Sprintf(`; held by \S+ \(pid %d, .*, reserved for shop until \d\d:\d\d:\d\d\): kill %d`, p.pid(), p.pid()), err.Error())
			var e *listener.Error
			require.ErrorAs(t, err, &e)
			require.Len(t, e.Diagnosis().Holders, 1)
			h := e.Diagnosis().Holders[0]
			require.True(t, h.Reserved)
			require.Equal(t, []string{"shop", "bound"}, []string{h.Service, h.State})
			require.WithinDuration(t, time.Now().Add(time.Hour), h.Until, time.Minute)
		}
		number, err := strconv.Atoi(port)
		require.NoError(t, err)
		report, err := inspect.Options{StateDir: state}.Port(t.Context(), network, number)
		require.NoError(t, err)
		require.Equal(t, inspect.Reserved, report.State)
		require.Equal(t, "shop", report.Service)
		require.WithinDuration(t, time.Now().Add(time.Hour), report.Until, time.Minute)
		require.Empty(t, report.Records)

		// By the rules a later run may stop it, as it may stop one that listens.
		later := play(t, role{Do: "reserve", Network: network, Address: address, StateDir: state, Name: "shop", Strategy: "aggressive"})
		require.Equal(t, address, later.ready(t))
		require.Equal(t, syscall.SIGTERM, p.signalled(t))
	}
}

// Whatever a holder does when it is killed, nothing of it is in the way of the next.
func TestKilledHolder(t *testing.T) {
	for _, step := range []string{"", "for an hour", "listens", "releases"} {
		for _, network := range []string{"tcp", "tcp+udp"} {
			state, address := t.TempDir(), "127.0.0.1:"+freePort(t)
			p := play(t, role{Do: "reserve", Network: network, Address: address, StateDir: state, Name: "web", Child: []string{step}})
			p.ready(t)
			notReserved(t, &listener.Config{StateDir: state}, network, address)
			require.NoError(t, p.Process.Kill())
			require.Error(t, p.exit(t))
			logger, log := newJournal(slog.LevelWarn)
			r := reserve(t, &listener.Config{StateDir: state, Logger: logger}, network, address)
			requireTaken(t, r.Addr())
			require.Empty(t, log.entries(t, slog.LevelWarn))
			recs := records(t, state)
			require.Len(t, recs, len(r.Addrs()))
			require.Equal(t, os.Getpid(), recs[0].PID)
			require.NoError(t, r.Close())
			require.Empty(t, filesIn(t, state))
		}
	}
}

// playReserveChurn does all that can be done to a reservation until it is killed.
func (r role) playReserveChurn() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	fmt.Println("ready", r.Address)
	for i := 0; ; i++ {
		reservation, err := cfg.Reserve(context.Background(), r.Network, r.Address)
		if err != nil {
			return err
		}
		switch i % 4 {
		case 0:
			err = reservation.Extend(time.Hour)
		case 1:
			ln, listenErr := reservation.Listen()
			if err = listenErr; err == nil {
				err = ln.Close()
			}
		case 2:
			err = reservation.Release(context.Background(), time.Hour)
		case 3:
			file, fileErr := reservation.File()
			if err = fileErr; err == nil {
				err = file.Close()
			}
		}
		if err = errors.Join(err, reservation.Close()); err != nil {
			return err
		}
	}
}

// The same at any moment.
func TestReservationKilledAtAnyPoint(t *testing.T) {
	state, address := t.TempDir(), "127.0.0.1:"+freePort(t)
	left := 0
	for round := range 40 {
		p := play(t, role{Do: "reserve churn", Network: "tcp+udp", Address: address, StateDir: state})
		p.ready(t)
		time.Sleep(time.Duration(rand.Int64N(int64(3 * time.Millisecond))))
		require.NoError(t, p.Process.Kill())
		require.Error(t, p.exit(t))
		if line, more := p.line(t); more {
			require.FailNow(t, "it ended by itself", "round %d: %s", round, line)
		}
		left += len(filesIn(t, state))
		logger, log := newJournal(slog.LevelWarn)
		r := reserve(t, &listener.Config{StateDir: state, Logger: logger}, "tcp+udp", address)
		require.Empty(t, log.entries(t, slog.LevelWarn))
		require.Len(t, records(t, state), 2)
		require.NoError(t, r.Close())
		require.Empty(t, filesIn(t, state))
	}
	require.NotZero(t, left, "no round has hit anything")
}

// What was locked once stays so, and is freed, whatever becomes of the state directory.
func TestListenKeepsTheLockOfTheReservation(t *testing.T) {
	cfg := &listener.Config{StateDir: t.TempDir()}
	r := reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, os.Chmod(cfg.StateDir, 0o777))
	ln, err := r.Listen()
	require.NoError(t, err)
	require.NoError(t, os.Chmod(cfg.StateDir, 0o700))
	all := records(t, cfg.StateDir)
	require.Len(t, all, 1)
	require.Equal(t, registry.Listening, all[0].State)
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, cfg.StateDir))
}

// A state directory of no use is reported, and a port is nobody's twice for all that.
func TestReserveStateDirUnusable(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T) string
		why  string
		how  string // of the other process
	}{
		"full, no inode": {func(t *testing.T) string { return mountAt(t, "nr_inodes=1") }, "no space left on device", ""},
		"full, no block": {func(t *testing.T) string {
			path := mountAt(t, "size=4k")
			require.NoError(t, os.WriteFile(filepath.Join(path, "other"), make([]byte, 4096), 0o600))
			return path
		}, "no space left on device", ""},
		"read-only": {func(t *testing.T) string {
			path := mountAt(t, "size=1m")
			require.NoError(t, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			return path
		}, "read-only file system", ""},
		"without flock": {func(t *testing.T) string { return t.TempDir() }, "operation not supported", "without flock"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.make(t)
			p := play(t, role{Do: "reserve", Network: "tcp+udp", Address: "127.0.0.1:0", StateDir: path, Child: []string{c.how}, Log: true})
			address := p.ready(t)
			require.Eventually(t, func() bool { return strings.Count(p.stderr.String(), "level=WARN") == 2 }, deadline, time.Millisecond)
			require.Contains(t, p.stderr.String(), c.why)
			require.Contains(t, p.stderr.String(), "nobody can see whose it is")
			for _, network := range []string{"tcp", "udp"} {
				err := notReserved(t, &listener.Config{StateDir: path}, network, address)
				require.ErrorIs(t, err, syscall.EADDRINUSE)
				require.Contains(t, err.Error(), fmt.Sprintf("(pid %d, ", p.pid()))
			}
			require.NoError(t, p.Process.Kill())
			require.Error(t, p.exit(t))
			reserve(t, &listener.Config{StateDir: path}, "tcp+udp", address)
		})
	}
}

func TestReserveStateDirRemoved(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	logger, log := newJournal(slog.LevelWarn)
	cfg := &listener.Config{StateDir: state, Logger: logger}
	r := reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, os.RemoveAll(state))
	requireTaken(t, r.Addr())
	require.NoError(t, r.Extend(time.Hour))
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
	require.Contains(t, log.entries(t, slog.LevelWarn)[0].Error, "no such file or directory")
	require.ErrorIs(t, notReserved(t, cfg, "tcp", r.Addr().String()), syscall.EADDRINUSE)
	ln, err := r.Listen()
	require.NoError(t, err)
	exchange(t, ln)
	require.NoError(t, ln.Close())

	r = reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, os.RemoveAll(state))
	require.NoError(t, r.Release(t.Context(), time.Hour))
	requireFree(t, r.Addr())
	require.NoError(t, r.Close())
}

// What was released is kept from those who cooperate, until somebody has it.
func TestRelease(t *testing.T) {
	first := freeRun(t, 2)
	address, next := local(first), local(first+1)
	state := t.TempDir()
	cfg := &listener.Config{StateDir: state, Name: "shop"}
	r := reserve(t, cfg, "tcp", address)
	require.NoError(t, r.Extend(time.Minute))
	require.NoError(t, r.Release(t.Context(), time.Hour))
	require.NoError(t, r.Err(), "it is still kept")
	require.WithinDuration(t, time.Now().Add(time.Hour), r.Until(), time.Minute)
	_, err := r.Listen()
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, r.Extend(time.Hour), net.ErrClosed)
	require.ErrorIs(t, r.Release(t.Context(), time.Hour), net.ErrClosed)

	recs := records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, registry.Released, recs[0].State)
	report, err := inspect.Options{StateDir: state}.Port(t.Context(), "tcp", first)
	require.NoError(t, err)
	require.Equal(t, inspect.Locked, report.State)
	require.Equal(t, "shop", report.Service)
	require.Contains(t, report.Recommendations[0], "keeps it for a program that is about to bind it")

	other := &listener.Config{StateDir: state}
	for _, a := range []string{address, fmt.Sprintf(":%d", first)} {
		err = notReserved(t, other, "tcp", a)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.Contains(t, err.Error(), fmt.Sprintf(`bind: the port is kept by pid %d for "shop" until `, os.Getpid()))
		require.NotContains(t, err.Error(), "held by")
	}
	moved := reserve(t, other, "tcp", address, next)
	require.Equal(t, next, moved.Addr().String())
	require.NoError(t, moved.Close())
	held := listenPlain(t, "tcp", next)
	fallback := &listener.Config{StateDir: state, Strategy: strategy.Staging(ports(first, first), strategy.Range{})}
	ln := listen(t, fallback, "tcp", held.Addr().String())
	require.NotEqual(t, address, ln.Addr().String())
	require.NoError(t, ln.Close())
	reserve(t, other, "udp", address) // another address

	p := play(t, role{Do: "plain", Network: "tcp", Address: address})
	p.ready(t)
	requireEnded(t, r, net.ErrClosed)
	require.NotErrorIs(t, r.Err(), context.DeadlineExceeded)
	require.Equal(t, strconv.Itoa(p.pid()), answers(t, "tcp", address))
}

// Those who keep off do so without a bind that looks as if somebody had the port now.
func TestReleaseIsNotEndedByThoseWhoKeepOff(t *testing.T) {
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	for name, c := range map[string]struct {
		network, address string
		keepOff          func(cfg *listener.Config, address string) error
	}{
		"reserve udp": {"udp", "127.0.0.1:0", func(cfg *listener.Config, address string) error {
			return closed(cfg.Reserve(t.Context(), "udp", address))
		}},
		"reserve over remains": {"tcp", leaveRemains(t), func(cfg *listener.Config, address string) error {
			return closed(cfg.Reserve(t.Context(), "tcp", address))
		}},
		"fall back": {"tcp", "127.0.0.1:0", func(cfg *listener.Config, address string) error {
			port := netip.MustParseAddrPort(address).Port()
			cfg.Strategy = strategy.Staging(strategy.Range{First: port, Last: port})
			return closed(cfg.Listen(t.Context(), "tcp", held.Addr().String()))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			r := reserve(t, &listener.Config{StateDir: state}, c.network, c.address)
			require.NoError(t, r.Release(t.Context(), time.Hour))
			for begin := time.Now(); time.Since(begin) < 100*time.Millisecond; { // some of the looks of who keeps it
				require.ErrorIs(t, c.keepOff(&listener.Config{StateDir: state}, r.Addr().String()), syscall.EADDRINUSE)
			}
			require.NoError(t, r.Err())
		})
	}
}

// Whether a port is kept is told by the lock, and by no clock: that of the wall may have been set meanwhile.
func TestReleaseWhateverTheClockSays(t *testing.T) {
	cfg := &listener.Config{StateDir: t.TempDir()}
	setUntil := func(until time.Time) (address string) {
		paths, err := filepath.Glob(filepath.Join(cfg.StateDir, "*.lock"))
		require.NoError(t, err)
		require.Len(t, paths, 1)
		path := paths[0]
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		var rec registry.Record
		require.NoError(t, json.Unmarshal(text, &rec))
		rec.Until = until
		text, err = json.Marshal(rec)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, text, 0o600)) // the same file, so it stays locked
		return rec.Address
	}
	r := reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, r.Release(t.Context(), time.Hour))
	require.ErrorIs(t, notReserved(t, cfg, "tcp", setUntil(time.Now().Add(-24*time.Hour))), syscall.EADDRINUSE)
	require.NoError(t, r.Close())

	p := play(t, role{Do: "reserve", Network: "tcp", Address: "127.0.0.1:" + freePort(t), StateDir: cfg.StateDir, Child: []string{"releases"}})
	p.ready(t)
	address := setUntil(time.Now().Add(24 * time.Hour))
	notReserved(t, cfg, "tcp", address)
	kill(t, p)
	reserve(t, cfg, "tcp", address)
}

// Where nothing can say that something is released, its record still does.
func TestReleaseWithoutAMark(t *testing.T) {
	cfg := &listener.Config{StateDir: t.TempDir()}
	r := reserve(t, cfg, "tcp", "127.0.0.1:"+freePort(t))
	require.NoError(t, os.Mkdir(filepath.Join(cfg.StateDir, "released"), 0o700))
	require.NoError(t, r.Release(t.Context(), time.Hour))
	require.ErrorIs(t, notReserved(t, cfg, "tcp", r.Addr().String()), syscall.EADDRINUSE)
}

// Whoever takes it and cooperates has the lock and the record at once.
func TestReleaseToAConfig(t *testing.T) {
	for range 20 {
		state := t.TempDir()
		r := reserve(t, &listener.Config{StateDir: state}, "tcp", "127.0.0.1:0")
		require.NoError(t, r.Release(t.Context(), time.Hour))
		logger, log := newJournal(slog.LevelWarn)
		ln := listen(t, &listener.Config{StateDir: state, Logger: logger}, "tcp", r.Addr().String())
		requireEnded(t, r, net.ErrClosed)
		require.Empty(t, log.entries(t, slog.LevelWarn))
		require.Equal(t, registry.Listening, records(t, state)[0].State)
		require.NoError(t, ln.Close())
	}
}

func TestReleaseEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end   func(r *listener.Reservation, cancel func()) error
		cause error
	}{
		"closed":    {func(r *listener.Reservation, _ func()) error { return r.Close() }, net.ErrClosed},
		"cancelled": {func(_ *listener.Reservation, cancel func()) error { cancel(); return nil }, context.Canceled},
		"its time":  {func(*listener.Reservation, func()) error { return nil }, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			r := reserve(t, &listener.Config{StateDir: state}, "tcp+udp", "127.0.0.1:0")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			grace := time.Hour
			if name == "its time" {
				grace = 20 * time.Millisecond
			}
			require.NoError(t, r.Release(ctx, grace))
			for _, addr := range r.Addrs() {
				requireFree(t, addr)
			}
			require.NoError(t, c.end(r, cancel))
			requireEnded(t, r, c.cause)
			require.Empty(t, filesIn(t, state))
		})
	}
}

// A child takes the sockets over by the protocol of systemd, whatever it is.
func TestReservationCommand(t *testing.T) {
	_, err := activation.FromEnv() // it reads once, and not what comes now
	require.NoError(t, err)
	t.Setenv("LISTEN_FDS", "7")
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	for _, name := range []string{"shop", "", "a:b"} {
		r := reserve(t, &listener.Config{Name: name}, "tcp+udp", "127.0.0.1:0")
		cmd := r.Command(t.Context(), "sh", "-c", `echo $LISTEN_FDS $LISTEN_FDNAMES $PORT $NOTIFY_SOCKET $0 $1; test $$ = $LISTEN_PID && ls -l /proc/$$/fd`, "an argument", "another; one")
		out, err := cmd.Output()
		require.NoError(t, err)
		first, descriptors, _ := strings.Cut(string(out), "\n")
		want := name
		if name != "shop" {
			want = "unknown"
		}
		require.Equal(t, fmt.Sprintf("2 %s:%s %d an argument another; one", want, want, portOf(t, r.Addr())), first)
		require.Equal(t, 2, strings.Count(descriptors, "socket:["))
		require.Regexp(t, `\b3 -> socket:`, descriptors)
		require.NoError(t, r.Err(), "it is still reserved")
		require.NoError(t, r.Close())
	}
}

func TestReservationCommandServes(t *testing.T) {
	state := t.TempDir()
	r := reserve(t, &listener.Config{Name: "web", StateDir: state}, "tcp", "127.0.0.1:0")
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := r.Command(context.Background(), exe)
	// It waits for its turn, and the connection waits for it.
	conn, err := net.Dial("tcp", r.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	child := role{Do: "take", Network: "tcp", Address: "127.0.0.1:0", Name: "web", StateDir: state, Log: true}
	cmd.Env = append(cmd.Env, roleVariable+"="+encodeRole(t, child), "GORACE=atexit_sleep_ms=0")
	p := start(t, cmd)
	require.NoError(t, r.Close())
	line, _ := p.line(t)
	require.Equal(t, "took "+listener.Activated.String()+" "+r.Addr().String(), line)
	p.ready(t)
	text, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintln(p.pid()), string(text))
	require.Equal(t, p.pid(), records(t, state)[0].PID, "the child has lock and record")
	require.NotContains(t, p.stderr.String(), "level=WARN")
}

func TestReservationCommandNotFound(t *testing.T) {
	r := reserve(t, &listener.Config{}, "tcp", "127.0.0.1:0")
	require.ErrorContains(t, r.Command(t.Context(), "no-such-program").Start(), "executable file not found")
	requireRefused(t, r.Addr())
}

// A file goes to a child too, and the reservation can become a listener all the same.
func TestReservationFile(t *testing.T) {
	r := reserve(t, &listener.Config{}, "tcp+udp", "127.0.0.1:0")
	file, err := r.File()
	require.NoError(t, err)
	child, err := net.FileListener(file)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	exchange(t, child)
	ln, err := r.Listen()
	require.NoError(t, err)
	require.NoError(t, child.Close())
	exchange(t, ln)
	require.NoError(t, ln.Close())

	file, err = r.File() // of the socket that is left
	require.NoError(t, err)
	conn, err := net.FilePacketConn(file)
	require.NoError(t, err)
	require.Equal(t, r.Addrs()[1], conn.LocalAddr())
	require.NoError(t, errors.Join(file.Close(), conn.Close()))
}

// An upgrade hands on what became of a reservation, and the next version finds it by the same words.
func TestReservationAcrossAnUpgrade(t *testing.T) {
	first := freeRun(t, 3)
	address := fmt.Sprintf("127.0.0.1:%d-%d", first, first+2)
	k := newKinIn(t)
	state := t.TempDir()
	cfg := &listener.Config{Name: "web", StateDir: state, Sources: []listener.Source{k}}
	held := listenPlain(t, "tcp", local(first))
	ln, err := reserve(t, cfg, "tcp", address).Listen()
	require.NoError(t, err)
	require.Equal(t, local(first+1), ln.Addr().String())
	require.NoError(t, held.Close())

	child := k.heir(t)
	childConfig := &listener.Config{Name: "web", StateDir: state, Sources: []listener.Source{child}}
	r := reserve(t, childConfig, "tcp", address)
	require.Equal(t, ln.Addr(), r.Addr())
	require.Equal(t, listener.Inherited, r.Origin().Kind)
	require.Equal(t, registry.Listening, records(t, state)[0].State)
	inherited, err := r.Listen()
	require.NoError(t, err)
	k.charged.Store(false)
	child.charge()
	require.NoError(t, ln.Close())
	exchange(t, inherited)
	require.Len(t, records(t, state), 1, "the parent has left it")
	require.NoError(t, inherited.Close())
	require.Empty(t, filesIn(t, state))
}

// A reservation may end while a command that it is passed to is being started: the command gets it, or nothing.
func TestReservationEndsAtStart(t *testing.T) {
	cfg := &listener.Config{StateDir: t.TempDir()}
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		var printed strings.Builder
		cmd := r.Command(context.Background(), "readlink", "/proc/self/fd/3")
		cmd.Stdout = &printed
		go cancel()
		require.NoError(t, cmd.Run())
		require.Regexp(t, `^(socket:\[\d+\]|/dev/null)\n$`, printed.String())
		<-r.Done()
		again, err := cfg.Reserve(t.Context(), "tcp", r.Addr().String())
		require.NoError(t, err)
		require.NoError(t, again.Close())
	}
}

// A command that is started again and again gets the same descriptor each time, also after somebody has closed it.
func TestReservationCommandAgain(t *testing.T) {
	r := reserve(t, &listener.Config{}, "tcp+udp", "127.0.0.1:0")
	var counts []int
	for i := range 20 {
		cmd := r.Command(t.Context(), "readlink", "/proc/self/fd/3", "/proc/self/fd/4")
		out, err := cmd.Output()
		require.NoError(t, err)
		require.Regexp(t, `^socket:\[\d+\]\nsocket:\[\d+\]\n$`, string(out))
		if i == 10 {
			require.NoError(t, cmd.ExtraFiles[1].Close())
		}
		all, err := descriptors()
		require.NoError(t, err)
		sockets := 0
		for _, file := range all {
			if strings.Contains(string(out), file+"\n") {
				sockets++
			}
		}
		counts = append(counts, sockets)
	}
	require.Equal(t, 4, slices.Max(counts), "those reserved, and one more of each: %v", counts)
}

func TestReserveLeaksNothing(t *testing.T) {
	state := t.TempDir()
	cfg := &listener.Config{StateDir: state}
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	cycle := func() {
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			r, err := cfg.Reserve(ctx, "tcp+udp", "localhost:0")
			require.NoError(t, err)
			cmd := r.Command(t.Context(), "true")
			require.NoError(t, cmd.Err)
			ln, err := r.Listen()
			require.NoError(t, err)
			require.NoError(t, ln.Close())
			conn, err := r.ListenPacket()
			require.NoError(t, err)
			require.NoError(t, conn.Close())
			require.NoError(t, r.Release(t.Context(), time.Hour))
			cancel()
			<-r.Done()
			require.NoError(t, r.Close())
			notReserved(t, cfg, "tcp+udp", held.Addr().String())
			notReserved(t, cfg, "udp+tcp", held.Addr().String())
			r, err = cfg.Reserve(t.Context(), "tcp", leaveRemains(t))
			require.NoError(t, err)
			require.NoError(t, r.Close())
		}
	}
	cycle()
	before, err := descriptors()
	require.NoError(t, err)
	cycle()
	// The garbage collector closes what other tests left, and the numbers of what was passed to commands.
	require.Eventually(t, func() bool {
		runtime.GC()
		after, err := descriptors()
		require.NoError(t, err)
		return len(after) <= len(before)
	}, deadline, time.Millisecond)
	require.Empty(t, filesIn(t, state))
}
