package listener_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// attempts are the four ways to ask for an address, each with what package net says to the same.
func attempts(t testing.TB) map[string]func(network, address string) (got, want error) {
	t.Helper()
	cfg := &listener.Config{StateDir: t.TempDir()}
	ctx := context.Background()
	plain := func(network, address string) error { return closed(net.Listen(network, address)) }
	plainPacket := func(network, address string) error { return closed(net.ListenPacket(network, address)) }
	return map[string]func(network, address string) (got, want error){
		"Listen":       func(n, a string) (error, error) { return closed(listener.Listen(n, a)), plain(n, a) },
		"ListenPacket": func(n, a string) (error, error) { return closed(listener.ListenPacket(n, a)), plainPacket(n, a) },
		"Config.Listen": func(n, a string) (error, error) {
			return closed(cfg.Listen(ctx, n, a)), plain(n, a)
		},
		"Config.ListenPacket": func(n, a string) (error, error) {
			return closed(cfg.ListenPacket(ctx, n, a)), plainPacket(n, a)
		},
		"Config.ListenAll": func(n, a string) (error, error) {
			all, err := cfg.ListenAll(ctx, n, a)
			for _, ln := range all {
				ln.Close()
			}
			return err, plain(n, a)
		},
	}
}

// closed closes what it gets and keeps the error.
func closed[C interface{ Close() error }](c C, err error) error {
	if err == nil {
		err = c.Close()
	}
	return err
}

// Whoever handles the errors of package net handles these.
func TestMalformed(t *testing.T) {
	networks := []string{"", "tcp", "tcp4", "tcp6", "tcp5", "TCP", " tcp", "udp", "udp4", "udp6", "unix", "unixgram", "unixpacket", "ip", "ip4:nonsense", "sctp", "http", "../tcp"}
	addresses := []string{
		"nonsense", "127.0.0.1", "[::1]", "::1", "::1:80", "127.0.0.1:80:90", "[::1:80", "::1]:80", "[127.0.0.1:80",
		":99999", ":65536", ":-1", ":http-of-nobody", "127.0.0.1:0x50", ":\x00",
		"[::1]80", "[]:x",
	}
	for name, attempt := range attempts(t) {
		for _, network := range networks {
			for _, address := range addresses {
				if strings.HasPrefix(network, "unix") {
					continue // all of these are good paths
				}
				compare(t, attempt, name, network, address)
			}
		}
		// The family does not fit.
		compare(t, attempt, name, "tcp4", "[::1]:0")
		compare(t, attempt, name, "tcp6", "127.0.0.1:0")
		compare(t, attempt, name, "udp4", "[::1]:0")
		compare(t, attempt, name, "udp6", "127.0.0.1:0")
		compare(t, attempt, name, "unixfoo", "/nowhere/x")
	}
}

func compare(t *testing.T, attempt func(network, address string) (got, want error), name, network, address string) {
	t.Helper()
	got, want := attempt(network, address)
	what := fmt.Sprintf("%s(%q, %q)", name, network, address)
	require.Error(t, want, what)
	require.EqualError(t, got, want.Error(), what)
	require.Equal(t, kinds(want), kinds(got), what)
}

// kinds are the types of an error and all in it.
func kinds(err error) (all []string) {
	for ; err != nil; err = errors.Unwrap(err) {
		all = append(all, fmt.Sprintf("%T", err))
	}
	return all
}

// bindError is what package net says to the address now.
func bindError(t testing.TB, network, address string) error {
	t.Helper()
	var err error
	if strings.HasPrefix(network, "udp") || network == "unixgram" {
		err = closed(net.ListenPacket(network, address))
	} else {
		err = closed(net.Listen(network, address))
	}
	require.Error(t, err)
	return err
}

// checkInUse looks at the failure of a Listen on an address that is taken.
func checkInUse(t testing.TB, err error, network, address, requested string) *listener.Error {
	t.Helper()
	want := bindError(t, network, address)
	op, ok := err.(*net.OpError) //nolint:errorlint // it has to be outermost
	require.True(t, ok, "%T", err)
	require.Equal(t, "listen", op.Op)
	require.Equal(t, network, op.Net)
	require.Equal(t, want.(*net.OpError).Addr, op.Addr) //nolint:errorlint // it comes from net itself
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	var sys *os.SyscallError
	require.ErrorAs(t, err, &sys)
	require.Equal(t, "bind", sys.Syscall)

	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Same(t, e, op.Err)
	require.Equal(t, requested, e.Requested)
	require.NoError(t, e.Cause)
	require.False(t, e.Timeout())
	require.False(t, op.Timeout())

	text := err.Error()
	require.True(t, strings.HasPrefix(text, want.Error()+"; held by "), "%q begins with what package net says", text)
	require.NotContains(t, text, "\n")
	require.NotRegexp(t, `[.;: ]$`, text)
	return e
}

func TestInUseByThisProcess(t *testing.T) {
	for _, network := range supported(streams) {
		ln := listenPlain(t, network, anyAddress(t, network))
		_, err := listener.Listen(network, ln.Addr().String())
		e := checkInUse(t, err, network, ln.Addr().String(), ln.Addr().String())
		require.Equal(t, os.Getpid(), e.Diagnosis().Holders[0].PID)
		require.Contains(t, err.Error(), "close or share the first listener of this process")
		require.NotContains(t, err.Error(), "kill")
	}
}

// A name is resolved, and both are in the error: what was asked for and what was tried.
func TestInUseByName(t *testing.T) {
	ln := listenPlain(t, "tcp4", "127.0.0.1:0")
	requested := net.JoinHostPort("localhost", strconv.Itoa(portOf(t, ln.Addr())))
	_, err := listener.Listen("tcp4", requested)
	e := checkInUse(t, err, "tcp4", requested, requested)
	require.Equal(t, os.Getpid(), e.Diagnosis().Holders[0].PID)
	require.True(t, strings.HasPrefix(err.Error(), "listen tcp4 "+ln.Addr().String()+": "), err.Error())
}

// Who is asked last is who holds it, and what was said stays.
func TestErrorIsLazy(t *testing.T) {
	for name, listen := range map[string]func(address string) error{
		"Listen": func(address string) error { return closed(listener.Listen("tcp", address)) },
		"Config.Listen": func(address string) error {
			return closed((&listener.Config{StateDir: t.TempDir()}).Listen(context.Background(), "tcp", address))
		},
		"a fallback that failed": func(address string) error {
			_, port, err := net.SplitHostPort(address)
			require.NoError(t, err)
			ranges, err := strategy.ParseRanges(port)
			require.NoError(t, err)
			return closed((&listener.Config{StateDir: t.TempDir(), Strategy: strategy.Staging(ranges...)}).Listen(context.Background(), "tcp", address))
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := play(t, role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0"})
			address := first.ready(t)
			untouched, err := listen(address), listen(address)

			// Comparing costs nothing, so it looks at nothing.
			require.ErrorIs(t, err, syscall.EADDRINUSE)
			require.NotErrorIs(t, err, context.Canceled)
			var e *listener.Error
			require.ErrorAs(t, err, &e)

			require.NoError(t, first.Process.Kill())
			require.Equal(t, syscall.SIGKILL, first.signalled(t))
			second := play(t, role{Do: "plain", Network: "tcp", Address: address})
			require.Equal(t, address, second.ready(t))

			require.Contains(t, err.Error(), fmt.Sprintf("pid %d", second.pid()))
			require.NotContains(t, err.Error(), fmt.Sprintf("pid %d", first.pid()))
			require.Equal(t, second.pid(), e.Diagnosis().Holders[0].PID)
			text := err.Error()

			require.NoError(t, second.Process.Kill())
			require.Equal(t, syscall.SIGKILL, second.signalled(t))
			require.Equal(t, second.pid(), e.Diagnosis().Holders[0].PID, "once")
			require.Equal(t, text, err.Error())
			require.Contains(t, untouched.Error(), "; held by nobody any more: ")
		})
	}
}

func TestAddressNotAvailable(t *testing.T) {
	const address = "192.0.2.77:0" // TEST-NET-1 is nobody's
	for name, attempt := range attempts(t) {
		network := "tcp"
		if strings.Contains(name, "Packet") {
			network = "udp"
		}
		got, want := attempt(network, address)
		require.ErrorIs(t, want, syscall.EADDRNOTAVAIL)
		require.ErrorIs(t, got, syscall.EADDRNOTAVAIL)
		require.NotErrorIs(t, got, syscall.EADDRINUSE)
		require.True(t, strings.HasPrefix(got.Error(), want.Error()+": "), got.Error())
		require.NotContains(t, got.Error(), "held by")
		var e *listener.Error
		require.ErrorAs(t, got, &e)
		require.Contains(t, e.Advice(), "no interface of this machine has that address")
	}
}

func TestMissingDirectory(t *testing.T) {
	path := shortDir(t) + "/not/there"
	_, err := listener.Listen("unix", path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "create it")
	require.True(t, strings.HasPrefix(err.Error(), bindError(t, "unix", path).Error()))
}

func TestLongPath(t *testing.T) {
	path := shortDir(t) + "/" + strings.Repeat("x", 200)
	for _, err := range []error{
		closed(listener.Listen("unix", path)), closed(listener.ListenPacket("unixgram", path)),
		fails(t, &listener.Config{Strategy: strategy.Development()}, context.Background(), "unix", path),
	} {
		require.ErrorIs(t, err, syscall.EINVAL)
		require.IsType(t, (*net.OpError)(nil), err)
	}
	require.Equal(t, bindError(t, "unix", path).Error(), closed(listener.Listen("unix", path)).Error())
}

// The fields are exported, so somebody may make one.
func TestErrorOfCaller(t *testing.T) {
	cause := errors.New("cause")
	for _, c := range []struct {
		err  listener.Error
		text string
	}{
		{listener.Error{}, ""},
		{listener.Error{Cause: cause}, "cause"},
		{listener.Error{Err: os.ErrInvalid}, "invalid argument"},
		{listener.Error{Err: os.ErrInvalid, Cause: cause}, "invalid argument; cause"},
	} {
		require.Equal(t, c.text, c.err.Error())
		require.Zero(t, c.err.Diagnosis())
		require.Empty(t, c.err.Advice())
		for _, wrapped := range c.err.Unwrap() {
			require.Error(t, wrapped, "never nil")
		}
	}
	e := &listener.Error{Err: os.ErrInvalid, Cause: cause}
	require.ErrorIs(t, e, os.ErrInvalid)
	require.ErrorIs(t, e, cause)
	require.False(t, e.Timeout())
	require.True(t, (&listener.Error{Cause: context.DeadlineExceeded}).Timeout())
	require.True(t, (&listener.Error{Cause: fmt.Errorf("run x: %w", os.ErrDeadlineExceeded)}).Timeout())
	require.False(t, (&listener.Error{Cause: context.Canceled}).Timeout())
}
