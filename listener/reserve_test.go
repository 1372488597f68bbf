//go:build unix

package listener_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// reserve obtains a reservation that is closed when the test ends.
func reserve(t testing.TB, cfg *listener.Config, network string, addresses ...string) *listener.Reservation {
	t.Helper()
	ensureStateDir(t, cfg)
	r, err := cfg.Reserve(context.Background(), network, addresses...)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// notReserved obtains the error of a Reserve that must not succeed.
func notReserved(t testing.TB, cfg *listener.Config, network string, addresses ...string) error {
	t.Helper()
	ensureStateDir(t, cfg)
	r, err := cfg.Reserve(context.Background(), network, addresses...)
	if err == nil {
		r.Close()
	}
	require.Error(t, err)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	require.Equal(t, "reserve", op.Op)
	return err
}

// reservedBySelf checks an error that says that this process has the address.
func reservedBySelf(t testing.TB, err error, network, address string) *listener.Error {
	t.Helper()
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	require.Equal(t, []string{network, address}, []string{op.Net, op.Addr.String()})
	var e *listener.Error
	require.ErrorAs(t, err, &e)
	require.Len(t, e.Diagnosis().Holders, 1)
	require.Equal(t, os.Getpid(), e.Diagnosis().Holders[0].PID)
	return e
}

func requireRefused(t testing.TB, addr net.Addr) {
	t.Helper()
	_, err := net.DialTimeout("tcp", addr.String(), deadline)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// requireFree checks that anybody can have the address.
func requireFree(t testing.TB, addr net.Addr) {
	t.Helper()
	if _, ok := addr.(*net.UDPAddr); ok {
		conn, err := net.ListenPacket("udp", addr.String())
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		return
	}
	ln, err := net.Listen("tcp", addr.String())
	require.NoError(t, err)
	require.NoError(t, ln.Close())
}

func requireTaken(t testing.TB, addr net.Addr) {
	t.Helper()
	var err error
	if _, ok := addr.(*net.UDPAddr); ok {
		_, err = net.ListenPacket("udp", addr.String())
	} else {
		_, err = net.Listen("tcp", addr.String())
	}
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}

// requireEnded checks what is left of a reservation: nothing.
func requireEnded(t testing.TB, r *listener.Reservation, cause error) {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(deadline):
		require.FailNow(t, "the reservation does not end")
	}
	require.ErrorIs(t, r.Err(), cause)
	for call, f := range map[string]func() error{
		"listen":         func() error { _, err := r.Listen(); return err },
		"listen all":     func() error { _, err := r.ListenAll(); return err },
		"listen packet":  func() error { _, err := r.ListenPacket(); return err },
		"listen packets": func() error { _, err := r.ListenPacketAll(); return err },
		"file":           func() error { _, err := r.File(); return err },
		"extend":         func() error { return r.Extend(time.Hour) },
		"release":        func() error { return r.Release(context.Background(), time.Hour) },
		"command":        func() error { return r.Command(context.Background(), "true").Start() },
	} {
		err := f()
		require.ErrorIs(t, err, net.ErrClosed, call)
		require.ErrorIs(t, err, cause, call)
		require.NotContains(t, err.Error(), "\n")
		var op *net.OpError
		require.ErrorAs(t, err, &op)
	}
	require.NoError(t, r.Close())
}

func TestReserve(t *testing.T) {
	state := t.TempDir()
	logger, log := newJournal(slog.LevelInfo)
	cfg := &listener.Config{StateDir: state, Name: "web", Logger: logger}
	r := reserve(t, cfg, "tcp", "127.0.0.1:0")
	requireRefused(t, r.Addr())
	requireTaken(t, r.Addr())
	require.Equal(t, []net.Addr{r.Addr()}, r.Addrs())
	require.Equal(t, listener.Bound, r.Origin().Kind)
	require.NoError(t, r.Err())
	require.Zero(t, r.Until())

	recs := records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, registry.Reserved, recs[0].State)
	require.Equal(t, []string{"web", r.Addr().String(), "bound", "127.0.0.1:0"}, []string{recs[0].Name, recs[0].Address, recs[0].Origin, recs[0].Requested})
	require.Equal(t, os.Getpid(), recs[0].PID)
	require.Zero(t, recs[0].Until)
	reservedInode := recs[0].Inode

	ln, err := r.Listen()
	require.NoError(t, err)
	defer ln.Close()
	require.Equal(t, r.Addr(), ln.Addr())
	exchange(t, ln)
	inner, ok := listener.As[*net.TCPListener](ln)
	require.True(t, ok)
	if reservedInode != 0 {
		require.Equal(t, reservedInode, sockets.InodeOf(inner), "the same socket")
	}
	recs = records(t, state)
	require.Len(t, recs, 1)
	require.Equal(t, registry.Listening, recs[0].State)
	require.Equal(t, sockets.InodeOf(inner), recs[0].Inode)
	require.Equal(t, listener.Bound, ln.Origin().Kind)
	require.Equal(t, "127.0.0.1:0", ln.Origin().Requested)

	requireEnded(t, r, net.ErrClosed)
	exchange(t, ln) // which Close has nothing to do with
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, state))
	info := log.entries(t, slog.LevelInfo)
	require.Len(t, info, 2)
	require.Equal(t, []string{"reserved " + r.Addr().String(), "listening on " + r.Addr().String()}, []string{info[0].Msg, info[1].Msg})
	require.Empty(t, log.entries(t, slog.LevelWarn))
}

func TestReservationClose(t *testing.T) {
	for _, network := range []string{"tcp", "udp", "tcp+udp", "tcp4+tcp6", "tcp6", "udp4"} {
		cfg := &listener.Config{StateDir: t.TempDir()}
		r := reserve(t, cfg, network)
		require.Len(t, records(t, cfg.StateDir), len(r.Addrs()))
		for _, addr := range r.Addrs() {
			requireTaken(t, addr)
		}
		require.NoError(t, r.Close())
		requireEnded(t, r, net.ErrClosed)
		require.Empty(t, filesIn(t, cfg.StateDir))
		for _, addr := range r.Addrs() {
			requireFree(t, addr)
		}
	}
}

// Several sockets have one port.
func TestReserveSeveral(t *testing.T) {
	for _, c := range []struct {
		network, address string
		want             []string // network and host
	}{
		{"tcp+udp", "127.0.0.1", []string{"tcp 127.0.0.1", "udp 127.0.0.1"}},
		{"udp+tcp", "127.0.0.1", []string{"udp 127.0.0.1", "tcp 127.0.0.1"}},
		{"tcp", "localhost", []string{"tcp 127.0.0.1", "tcp ::1"}},
		{"tcp", "LOCALHOST", []string{"tcp 127.0.0.1", "tcp ::1"}},
		{"tcp4", "localhost", []string{"tcp 127.0.0.1"}},
		{"tcp6", "localhost", []string{"tcp ::1"}},
		{"tcp+udp", "localhost", []string{"tcp 127.0.0.1", "tcp ::1", "udp 127.0.0.1", "udp ::1"}},
		{"tcp4+tcp6", "", []string{"tcp 0.0.0.0", "tcp ::"}},
		{"tcp4+tcp6+udp4+udp6", "", []string{"tcp 0.0.0.0", "tcp ::", "udp 0.0.0.0", "udp ::"}},
		{"tcp", "", []string{"tcp ::"}},
		{"tcp", "0.0.0.0", []string{"tcp ::"}},
		{"tcp", "::ffff:127.0.0.1", []string{"tcp 127.0.0.1"}},
		{"udp", "::1", []string{"udp ::1"}},
	} {
		cfg := &listener.Config{StateDir: t.TempDir()}
		r := reserve(t, cfg, c.network, net.JoinHostPort(c.address, "0"))
		var got []string
		for _, addr := range r.Addrs() {
			host, port, err := net.SplitHostPort(addr.String())
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(portOf(t, r.Addr())), port)
			got = append(got, addr.Network()+" "+host)
			requireTaken(t, addr)
		}
		require.Equal(t, c.want, got, "%s %s", c.network, c.address)

		var listeners []*listener.Listener
		var conns []*listener.PacketConn
		var err error
		if strings.Contains(c.network, "tcp") {
			listeners, err = r.ListenAll()
			require.NoError(t, err)
		}
		if strings.Contains(c.network, "udp") {
			conns, err = r.ListenPacketAll()
			require.NoError(t, err)
		}
		require.Len(t, r.Addrs(), len(listeners)+len(conns))
		requireEnded(t, r, net.ErrClosed)
		require.Len(t, records(t, cfg.StateDir), len(got))
		for _, ln := range listeners {
			exchange(t, ln)
			require.NoError(t, ln.Close())
		}
		for _, conn := range conns {
			_, err := conn.WriteTo([]byte("self"), conn.LocalAddr())
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		}
		require.Empty(t, filesIn(t, cfg.StateDir))
	}
}

// Listen takes the first that is left, and the others stay reserved.
func TestListenOneOfSeveral(t *testing.T) {
	cfg := &listener.Config{StateDir: t.TempDir(), PortFile: filepath.Join(t.TempDir(), "port")}
	r := reserve(t, cfg, "tcp+udp", "localhost:0")
	addrs := r.Addrs()
	require.Len(t, addrs, 4)
	first, err := r.Listen()
	require.NoError(t, err)
	require.Equal(t, addrs[0], first.Addr())
	requireRefused(t, addrs[1])
	for _, addr := range addrs[1:] {
		requireTaken(t, addr)
	}
	require.NoError(t, r.Err())
	conn, err := r.ListenPacket()
	require.NoError(t, err)
	require.Equal(t, addrs[2], conn.LocalAddr())
	second, err := r.Listen()
	require.NoError(t, err)
	require.Equal(t, addrs[1], second.Addr())
	_, err = r.Listen()
	require.ErrorIs(t, err, net.ErrClosed, "no TCP address is left")
	require.NoError(t, r.Err(), "and one for UDP is")
	requireTaken(t, addrs[3])
	require.NoError(t, r.Close())
	requireFree(t, addrs[3])
	exchange(t, first)
	exchange(t, second)
	require.NoError(t, errors.Join(first.Close(), second.Close(), conn.Close()))
	require.Empty(t, filesIn(t, cfg.StateDir))
	require.NoFileExists(t, cfg.PortFile)
}

func TestReservationPortFile(t *testing.T) {
	cfg := &listener.Config{PortFile: filepath.Join(t.TempDir(), "port")}
	r := reserve(t, cfg, "tcp", "localhost:0")
	require.NoFileExists(t, cfg.PortFile, "nobody serves it yet")
	all, err := r.ListenAll()
	require.NoError(t, err)
	text, err := os.ReadFile(cfg.PortFile)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%v\n%v\n", all[0].Addr(), all[1].Addr()), string(text))
	require.NoError(t, all[0].Close())
	require.FileExists(t, cfg.PortFile)
	require.NoError(t, all[1].Close())
	require.NoFileExists(t, cfg.PortFile)

	cfg.PortFile = filepath.Join(t.TempDir(), "missing", "port")
	r = reserve(t, cfg, "tcp", "localhost:0")
	_, err = r.ListenAll()
	require.ErrorContains(t, err, "port file")
	requireEnded(t, r, net.ErrClosed)
	for _, addr := range r.Addrs() {
		requireFree(t, addr)
	}
}

// The addresses are tried in their order, and so are the ports of each.
func TestReserveInOrder(t *testing.T) {
	first := freeRun(t, 4)
	cfg := &listener.Config{StateDir: t.TempDir(), Strategy: strategy.Production()}
	offers := []string{local(first), fmt.Sprintf("127.0.0.1:%d-%d", first+1, first+2), local(first + 3)}
	var all []*listener.Reservation
	for i := range 4 {
		r := reserve(t, cfg, "tcp", offers...)
		require.Equal(t, local(first+i), r.Addr().String())
		require.Equal(t, listener.Bound, r.Origin().Kind)
		all = append(all, r)
	}
	err := notReserved(t, cfg, "tcp", offers...)
	e := reservedBySelf(t, err, "tcp", local(first))
	require.Contains(t, e.Error(), "; held by ")
	require.Contains(t, e.Error(), ", reserved): ")

	require.NoError(t, all[2].Close())
	require.Equal(t, local(first+2), reserve(t, cfg, "tcp", offers...).Addr().String())
}

// A port is had in every place or in none, and what was bound on the way is free again.
func TestReserveAllPlacesOrNone(t *testing.T) {
	first := freeRun(t, 3)
	udp, err := net.ListenPacket("udp", local(first))
	require.NoError(t, err)
	defer udp.Close()
	v6, err := net.Listen("tcp", fmt.Sprintf("[::1]:%d", first+1))
	require.NoError(t, err)
	defer v6.Close()
	r := reserve(t, &listener.Config{}, "tcp+udp", fmt.Sprintf("localhost:%d-%d", first, first+2))
	require.Equal(t, first+2, portOf(t, r.Addr()))
	requireFree(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: first})
	requireFree(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: first + 1})

	err = notReserved(t, &listener.Config{}, "tcp+udp", local(first))
	reservedBySelf(t, err, "udp", local(first))
}

func TestReserveErrors(t *testing.T) {
	cfg := &listener.Config{}
	for _, c := range []struct{ network, address, want string }{
		{"tcp", "127.0.0.1", "missing port in address"},
		{"tcp", "127.0.0.1:5-3", "write 3-5"},
		{"tcp", "127.0.0.1:3000-70000", "use 1 to 65535"},
		{"tcp", "127.0.0.1:nosuchservice", "unknown port"},
		{"tcp", "127.0.0.1:0-5", "port 0"},
		{"tcp6", "127.0.0.1:0", "no suitable address"},
		{"tcp4+tcp6", "127.0.0.1:0", "no suitable address"},
		{"sctp", "127.0.0.1:0", "unknown network"},
		{"tcp+", "127.0.0.1:0", "unknown network"},
		{"tcp+tcp4", "127.0.0.1:0", "in each other's way"},
		{"tcp+tcp", "127.0.0.1:0", "in each other's way"},
		{"unix", "/tmp/x", "only ports"},
		{"udp", "224.0.0.1:0", "multicast"},
		{"tcp", "203.0.113.1:0", "no interface of this machine has that address"},
	} {
		err := notReserved(t, cfg, c.network, c.address)
		require.ErrorContains(t, err, c.want)
		require.NotErrorIs(t, err, syscall.EADDRINUSE)
	}
	require.ErrorIs(t, notReserved(t, cfg, "unix", "/tmp/x"), errors.ErrUnsupported)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := (&listener.Config{StateDir: t.TempDir()}).Reserve(ended, "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, context.Canceled)
}

// Where an address is not there at all, the next one is as good.
func TestReserveWithoutTheAddress(t *testing.T) {
	r := reserve(t, &listener.Config{}, "tcp", "203.0.113.1:0", "127.0.0.1:0")
	require.Equal(t, "127.0.0.1", r.Addr().(*net.TCPAddr).IP.String())
}

// The Strategy is asked about the first address, once all are taken.
func TestReserveStrategy(t *testing.T) {
	first := freeRun(t, 3)
	a, b := listenPlain(t, "tcp", local(first)), listenPlain(t, "tcp", local(first+1))
	s := &script{actions: []strategy.Action{strategy.Rebind{Ports: []strategy.Range{ports(first, first+2)}}}}
	logger, log := newJournal(slog.LevelWarn)
	r := reserve(t, &listener.Config{Strategy: s, Logger: logger}, "tcp", a.Addr().String(), b.Addr().String())
	require.Len(t, s.asked, 1)
	require.Equal(t, a.Addr().String(), s.asked[0].Address)
	require.Equal(t, local(first+2), r.Addr().String())
	require.Equal(t, listener.Fallback, r.Origin().Kind)
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
	require.Contains(t, log.entries(t, slog.LevelWarn)[0].Msg, fmt.Sprintf("port %d is in use", first))
	ln, err := r.Listen()
	require.NoError(t, err)
	defer ln.Close()
	require.Equal(t, listener.Fallback, ln.Origin().Kind)
	require.Equal(t, []strategy.Action{s.actions[0]}, ln.Origin().History)

	s = &script{actions: []strategy.Action{strategy.Run{Name: "free", Do: func(context.Context) error { return a.Close() }}}}
	r = reserve(t, &listener.Config{Strategy: s}, "tcp", a.Addr().String(), b.Addr().String())
	require.Equal(t, a.Addr().String(), r.Addr().String())
}

func TestReserveEvents(t *testing.T) {
	var heard events
	cfg := &listener.Config{OnEvent: heard.add, Name: "web"}
	r := reserve(t, cfg, "tcp", "127.0.0.1:0")
	ln, err := r.Listen()
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.NoError(t, r.Close())
	require.Equal(t, []listener.EventKind{listener.Reserved, listener.Obtained, listener.Released}, heard.kinds())
	require.Equal(t, r.Addr().String(), heard.of(t, listener.Reserved).Address)

	heard = events{}
	cfg.OnEvent = func(e listener.Event) { // which may ask
		heard.add(e)
		if r != nil {
			_, _, _ = r.Addr(), r.Err(), r.Until()
		}
	}
	r = nil
	r = reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, r.Close())
	require.Equal(t, []listener.EventKind{listener.Reserved, listener.Released}, heard.kinds())

	heard = events{}
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	notReserved(t, cfg, "tcp", held.Addr().String())
	require.Equal(t, []listener.EventKind{listener.Conflict, listener.Failed}, heard.kinds())
}

// A socket that exists already wins, and its lock and record are its owner's until Listen.
func TestReserveFromASource(t *testing.T) {
	first := freeRun(t, 2)
	inherited := listenPlain(t, "tcp", local(first))
	var asked []string
	var kept []string
	source := keeper{&source{take: func(name, network, address string) (net.Listener, error) {
		asked = append(asked, strings.Join([]string{name, network, address}, " "))
		if address != fmt.Sprintf("127.0.0.1:%d-%d", first, first+1) {
			return nothing(name, network, address)
		}
		return inherited, nil
	}, takePacket: func(_, network, address string) (net.PacketConn, error) {
		asked = append(asked, network+" "+address)
		return nil, fs.ErrNotExist
	}}, func(_, network, address string, _ syscall.Conn) error {
		kept = append(kept, network+" "+address)
		return nil
	}}
	cfg := &listener.Config{Name: "web", StateDir: t.TempDir(), Sources: []listener.Source{source}}
	// Whatever order a pool has put the ports into, it asks by the same words.
	r := reserve(t, cfg, "tcp", local(first+1), fmt.Sprintf("127.0.0.1:%d,%d", first+1, first))
	require.Equal(t, []string{
		"web tcp " + local(first+1),
		fmt.Sprintf("web tcp 127.0.0.1:%d-%d", first, first+1),
	}, asked)
	require.Equal(t, listener.Inherited, r.Origin().Kind)
	require.Equal(t, inherited.Addr(), r.Addr())
	require.Empty(t, filesIn(t, cfg.StateDir))
	ln, err := r.Listen()
	require.NoError(t, err)
	exchange(t, ln)
	require.Len(t, records(t, cfg.StateDir), 1)
	require.Empty(t, kept, "it has it already")
	require.NoError(t, ln.Close())

	asked = nil
	r = reserve(t, cfg, "tcp+udp4", "127.0.0.1:0")
	require.Equal(t, []string{"web tcp 127.0.0.1:0", "udp4 127.0.0.1:0"}, asked)
	ln, err = r.Listen()
	require.NoError(t, err)
	require.Equal(t, []string{"tcp 127.0.0.1:0"}, kept)
	require.NoError(t, ln.Close())
}

// A source that hands on nothing knows no ranges.
func TestReserveRangeFromAPlainSource(t *testing.T) {
	first := freeRun(t, 2)
	cfg := &listener.Config{Sources: []listener.Source{&source{take: func(_, _, address string) (net.Listener, error) {
		require.Fail(t, "it is asked", address)
		return nil, nil
	}}}}
	reserve(t, cfg, "tcp", fmt.Sprintf("127.0.0.1:%d-%d", first, first+1))
}

// Control is called for each socket, not for each port.
func TestReserveControl(t *testing.T) {
	first := freeRun(t, 3)
	listenPlain(t, "tcp", local(first))
	var calls []string
	cfg := &listener.Config{}
	cfg.Net.Control = func(network, address string, c syscall.RawConn) error {
		calls = append(calls, network+" "+address)
		return c.Control(func(fd uintptr) { require.NotZero(t, fd) })
	}
	reserve(t, cfg, "tcp", fmt.Sprintf("127.0.0.1:%d-%d", first, first+2))
	require.Equal(t, []string{"tcp4 " + local(first)}, calls)
	calls = nil
	reserve(t, cfg, "tcp+udp", ":0")
	require.Equal(t, "tcp6 :0", calls[0])
	require.Regexp(t, `^udp6 :[1-9]\d*$`, calls[1])

	broken := errors.New("broken")
	cfg.Net.Control = func(string, string, syscall.RawConn) error { return broken }
	require.ErrorIs(t, notReserved(t, cfg, "tcp", ":0"), broken)
}

func TestReservationMiddleware(t *testing.T) {
	accepted := 0
	cfg := &listener.Config{Middleware: []listener.Middleware{func(ln net.Listener) net.Listener {
		return tracing{ln, func() { accepted++ }}
	}}}
	ln, err := reserve(t, cfg, "tcp", "127.0.0.1:0").Listen()
	require.NoError(t, err)
	defer ln.Close()
	exchange(t, ln)
	require.Equal(t, 1, accepted)
}

// A reservation ends with its context, and what has become a listener does not.
func TestReservationContext(t *testing.T) {
	state := t.TempDir()
	broken := errors.New("no need")
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := (&listener.Config{StateDir: state}).Reserve(ctx, "tcp+udp", "127.0.0.1:0")
	require.NoError(t, err)
	ln, err := r.Listen()
	require.NoError(t, err)
	defer ln.Close()
	cancel(broken)
	requireEnded(t, r, broken)
	requireFree(t, r.Addrs()[1])
	exchange(t, ln)
	require.Len(t, records(t, state), 1)
}

func TestReservationTime(t *testing.T) {
	state := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := &listener.Config{StateDir: state}
		begin := time.Now()
		within := func(d time.Duration) *listener.Reservation {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			return r
		}
		until := func() time.Time { return records(t, state)[0].Until }
		lasts := func(r *listener.Reservation, d time.Duration) {
			t.Helper()
			since := time.Now()
			<-r.Done()
			require.Equal(t, d, time.Since(since))
			requireEnded(t, r, context.DeadlineExceeded)
			require.Empty(t, filesIn(t, state))
		}

		r := within(time.Minute)
		require.Equal(t, begin.Add(time.Minute), r.Until())
		require.True(t, begin.Add(time.Minute).Equal(until()))
		lasts(r, time.Minute)

		r = within(time.Minute)
		time.Sleep(50 * time.Second)
		require.NoError(t, r.Extend(time.Minute))
		require.True(t, time.Now().Add(time.Minute).Equal(until()))
		require.Equal(t, time.Now().Add(time.Minute), r.Until())
		lasts(r, time.Minute)

		r = within(time.Hour)
		require.NoError(t, r.Extend(time.Second), "sooner")
		lasts(r, time.Second)

		r = within(time.Minute)
		for range 10 {
			require.NoError(t, r.Extend(30*time.Second))
			time.Sleep(29 * time.Second)
		}
		lasts(r, time.Second)

		r = within(time.Minute)
		require.NoError(t, r.Extend(0))
		require.Zero(t, r.Until())
		require.Zero(t, until())
		time.Sleep(1000 * time.Hour)
		require.NoError(t, r.Err())
		require.NoError(t, r.Extend(time.Hour))
		lasts(r, time.Hour)

		// The context's end by cancellation holds all the same.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, r.Extend(time.Hour))
		cancel()
		synctest.Wait()
		requireEnded(t, r, context.Canceled)
	})
}

// Nobody waits for what has ended.
func TestReservationEndsOnce(t *testing.T) {
	cfg := &listener.Config{StateDir: t.TempDir()}
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go cancel()
		ln, err := r.Listen()
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		} else {
			exchange(t, ln)
			require.NoError(t, ln.Close())
		}
		<-r.Done()
		require.NoError(t, r.Close())
		require.Empty(t, filesIn(t, cfg.StateDir))
	}
}

// Without locks and records a reservation holds as well.
func TestReserveWithoutState(t *testing.T) {
	logger, log := newJournal(slog.LevelWarn)
	cfg := &listener.Config{StateDir: unusable(t), Logger: logger}
	r := reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
	requireTaken(t, r.Addr())
	require.NoError(t, r.Extend(time.Hour))
	require.ErrorIs(t, notReserved(t, cfg, "tcp", r.Addr().String()), syscall.EADDRINUSE)
	ln, err := r.Listen()
	require.NoError(t, err)
	exchange(t, ln)
	require.NoError(t, ln.Close())
	r = reserve(t, cfg, "tcp", "127.0.0.1:0")
	require.NoError(t, r.Release(t.Context(), time.Hour))
	requireFree(t, r.Addr())
	require.NoError(t, r.Close())
}

func BenchmarkReserve(b *testing.B) {
	ctx := context.Background()
	plain := func(cfg *listener.Config) error { return closed(cfg.Listen(ctx, "tcp", "127.0.0.1:0")) }
	reserved := func(cfg *listener.Config) error {
		r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		return closed(r.Listen())
	}
	for _, c := range []struct {
		name, state string
		do          func(*listener.Config) error
	}{
		{"do=listen/state=none", os.DevNull, plain}, {"do=reserve/state=none", os.DevNull, reserved},
		{"do=listen/state=dir", b.TempDir(), plain}, {"do=reserve/state=dir", b.TempDir(), reserved},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			cfg := &listener.Config{StateDir: c.state}
			for b.Loop() {
				require.NoError(b, c.do(cfg))
			}
		})
	}
	b.Run("do=reserve/busy=100", func(b *testing.B) {
		first := freeRun(b, 101)
		for i := range 100 {
			listenPlain(b, "tcp", local(first+i))
		}
		address := fmt.Sprintf("127.0.0.1:%d-%d", first, first+100)
		cfg := &listener.Config{StateDir: os.DevNull}
		for b.Loop() {
			require.NoError(b, closed(cfg.Reserve(ctx, "tcp", address)))
		}
	})
}
