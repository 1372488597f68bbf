package reload_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/internal/reuseport"
	"github.com/berth-go/berth/listener"
)

func init() { roles["group"], roles["groups"] = playGroup, playGroups }

// playGroup serves losstest's clients on the members of a group, of TCP and of UDP where there are two addresses. GET /members
// tells how many connections each listener has accepted.
func playGroup(p *played) error {
	config := listener.Config{Sources: []listener.Source{p.upgrader}, StateDir: p.Config.StateDir, PortFile: p.Config.PortFile, Logger: p.log}
	addresses := strings.Fields(p.Version)
	ctx := context.Background()
	var members []*listener.Listener
	var conns []*listener.PacketConn
	var err error
	if p.Config.Group == 0 {
		var ln *listener.Listener
		ln, err = config.Listen(ctx, "tcp", addresses[0])
		members = append(members, ln)
	} else {
		members, err = config.ListenGroup(ctx, "tcp", addresses[0], p.Config.Group)
	}
	if err != nil {
		return err
	}
	if len(addresses) > 1 {
		config.PortFile = ""
		if conns, err = config.ListenPacketGroup(ctx, "udp", addresses[1], max(p.Config.Group, 1)); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("%d %s", len(members), members[0].Addr())
	if conns != nil {
		text += fmt.Sprintf(" %d %s", len(conns), conns[0].LocalAddr())
	}
	p.say("grouped %s", text)

	var queues []string
	for _, ln := range members {
		raw, err := ln.SyscallConn()
		if err != nil {
			return err
		}
		var stat syscall.Stat_t
		if err := raw.Control(func(fd uintptr) { _ = syscall.Fstat(int(fd), &stat) }); err != nil {
			return err
		}
		queues = append(queues, strconv.FormatUint(stat.Ino, 10))
	}
	p.say("queues %s", strings.Join(queues, " "))

	accepted := make([]atomic.Int64, len(members))
	counting := make([]net.Listener, len(members))
	for i, ln := range members {
		counting[i] = &counter{ln, &accepted[i]}
	}
	mux := http.NewServeMux()
	mux.Handle("/", losstest.Handler())
	mux.HandleFunc("/members", func(w http.ResponseWriter, _ *http.Request) {
		for i := range accepted {
			fmt.Fprintf(w, "%d ", accepted[i].Load())
		}
	})
	var echoes sync.WaitGroup
	for _, conn := range conns {
		echoes.Go(func() {
			if err := losstest.Echo(conn); !errors.Is(err, os.ErrDeadlineExceeded) {
				p.say("failed %v", err)
			}
		})
	}
	err = p.upgrader.Serve(ctx, &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}, counting...)
	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now())
	}
	echoes.Wait()
	for _, conn := range conns {
		_ = conn.Close()
	}
	p.say("ended %v", err)
	return err
}

// playGroups serves several groups with any port, of as many members as Version says, and a listener beside them.
func playGroups(p *played) error {
	config := listener.Config{Sources: []listener.Source{p.upgrader}, StateDir: p.Config.StateDir, Logger: p.log}
	var served []net.Listener
	var text []string
	for _, members := range strings.Fields(p.Version) {
		n, err := strconv.Atoi(members)
		if err != nil {
			return err
		}
		group, err := config.ListenGroup(context.Background(), "tcp", "127.0.0.1:0", n)
		if err != nil {
			return err
		}
		for _, ln := range group {
			served = append(served, ln)
		}
		text = append(text, group[0].Addr().String())
	}
	p.say("grouped %s", strings.Join(text, " "))
	err := p.upgrader.Serve(context.Background(), &http.Server{Handler: losstest.Handler()}, served...)
	p.say("ended %v", err)
	return err
}

// Groups that ask for any port stay apart, whatever their sizes.
func TestGroupsStayApart(t *testing.T) {
	r := role{Do: "groups", Version: "3 5 1", Config: listenConfig{StateDir: t.TempDir()}}
	l := begin(t, r)
	_, addresses := l.said("grouped")
	pid, _ := l.said("ready")
	for _, sizes := range []string{"5 2 1", "1 1 4", "3 5 1"} {
		r.Version = sizes
		l.next(r)
		signalTo(t, pid, syscall.SIGHUP)
		_, again := l.said("grouped")
		require.Equal(t, addresses, again)
		pid, _ = l.said("ready")
		for address := range strings.FieldsSeq(addresses) {
			for range 16 {
				require.Equal(t, strconv.Itoa(pid), ask(address, "/"))
			}
		}
		l.said("ended <nil>")
	}
}

type counter struct {
	*listener.Listener
	accepted *atomic.Int64
}

func (c *counter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.accepted.Add(1)
	}
	return conn, err
}

// a group is the role of n members at the addresses; 0 is one listener, of Config.Listen.
func group(n int, state string, addresses ...string) role {
	return role{Do: "group", Version: strings.Join(addresses, " "), Config: listenConfig{StateDir: state, Group: n}}
}

// ask is a request on a connection of its own; "" where it fails.
func ask(address, path string) string {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + path)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return ""
	}
	if path != "/" {
		return string(text)
	}
	return strconv.Itoa(losstest.PIDOf(answer.Header))
}

// Versions with as many listeners, with more and with fewer, and with one that is no group, lose nothing, and leave nothing
// behind.
func TestGroupsAreHandedOnWhole(t *testing.T) {
	state := t.TempDir()
	s := &succession{line: begin(t, group(4, state, "127.0.0.1:0", "127.0.0.1:0"))}
	_, text := s.said("grouped")
	fields := strings.Fields(text)
	require.Len(t, fields, 4)
	require.Equal(t, []string{"4", "4"}, []string{fields[0], fields[2]})
	address, datagrams := fields[1], fields[3]
	s.newest, _ = s.said("ready")

	load := losstest.Start(append(web(address),
		losstest.Mix{Name: "UDP", Client: losstest.Datagram, Network: "udp", Address: datagrams, Clients: 3, Think: think})...)
	upgrades := 0
	to := func(members, times int) {
		t.Helper()
		s.next(group(members, state, "127.0.0.1:0", "127.0.0.1:0"))
		for range times {
			s.upgrade(1, false)
			_, text := s.said("grouped")
			n := strconv.Itoa(max(members, 1))
			require.Equal(t, strings.Join([]string{n, address, n, datagrams}, " "), text)
			upgrades++
		}
	}
	to(4, 20)
	for range 2 {
		for _, members := range []int{1, 4, 8, 2, 1, 8, 0, 3} {
			to(members, 1)
		}
	}
	results := load.Stop()
	t.Logf("%d upgrades, %d requests:\n%v", upgrades, results.Sum().Answered, results)
	for _, mix := range results {
		if mix.Name != "UDP" { // what is on its way to a socket that goes is lost
			require.Zero(t, mix.Lost, mix)
		}
		require.Greater(t, len(mix.PIDs), upgrades/2, mix.Name)
	}

	to(8, 2)
	early, err := losstest.AtRest(s.newest, 0)
	require.NoError(t, err)
	to(8, 4)
	late, err := losstest.AtRest(s.newest, len(early.Descriptors))
	require.NoError(t, err)
	require.LessOrEqual(t, len(late.Descriptors), len(early.Descriptors), "from %q to %q", early.Descriptors, late.Descriptors)

	signalTo(t, s.newest, syscall.SIGTERM)
	s.ended([]int{s.newest})
	left, err := filepath.Glob(filepath.Join(state, "*.lock"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// What waits with the listeners that a new version does not ask for is accepted by those that it has: also by a single one.
func TestWhatWaitsWithTheSurplusIsAccepted(t *testing.T) {
	const clients = 64
	for _, members := range []int{2, 1, 0} {
		t.Run(strconv.Itoa(members), func(t *testing.T) {
			state := t.TempDir()
			l := begin(t, group(8, state, "127.0.0.1:0"))
			_, text := l.said("grouped")
			_, address, _ := strings.Cut(text, " ")
			old, _ := l.said("ready")
			next := group(members, state, "127.0.0.1:0")
			next.At = "wait leads" // the old one has stepped back, and this one has not said yet whom the kernel is to deal to
			l.next(next)
			signalTo(t, old, syscall.SIGHUP)
			l.said("grouped")
			pid, _ := l.said("at leads")
			answers := make(chan string, clients)
			for range clients {
				go func() { answers <- ask(address, "/") }()
			}
			for range clients {
				require.Equal(t, strconv.Itoa(pid), <-answers)
			}
			signalTo(t, pid, syscall.SIGUSR2)
			l.said("ready")
			for range clients {
				require.Equal(t, strconv.Itoa(pid), ask(address, "/"))
			}
		})
	}
}

// The kernel knows sockets by their order alone, so that is kept.
func TestGroupsKeepTheirOrder(t *testing.T) {
	state := t.TempDir()
	l := begin(t, group(4, state, "127.0.0.1:0"))
	_, text := l.said("queues")
	known := strings.Fields(text)
	pid, _ := l.said("ready")
	for _, members := range []int{4, 8, 0, 5, 8} {
		l.next(group(members, state, "127.0.0.1:0"))
		signalTo(t, pid, syscall.SIGHUP)
		_, text := l.said("queues")
		queues := strings.Fields(text)
		require.Len(t, queues, max(members, 1))
		both := min(len(queues), len(known))
		require.Equal(t, known[:both], queues[:both])
		if len(queues) > len(known) {
			known = queues
		}
		pid, _ = l.said("ready")
		l.said("ended <nil>")
	}
}

// A version that fails before it leads has taken nothing away: what has come meanwhile waits with the old one's.
func TestAGroupThatWouldGrowFails(t *testing.T) {
	for _, members := range []int{0, 1, 2} {
		t.Run(strconv.Itoa(members), func(t *testing.T) {
			state := t.TempDir()
			l := begin(t, group(members, state, "127.0.0.1:0"))
			_, text := l.said("grouped")
			_, address, _ := strings.Cut(text, " ")
			old, _ := l.said("ready")
			for _, at := range []string{"stop said ready", "kill said ready", "kill leads"} {
				next := group(8, state, "127.0.0.1:0")
				next.At = at
				l.next(next)
				signalTo(t, old, syscall.SIGHUP)
				l.said("grouped 8 " + address)
				pid, _ := l.said("at")
				if at == "stop said ready" {
					const clients = 64
					answers := make(chan string, clients)
					for range clients {
						go func() { answers <- ask(address, "/") }()
					}
					signalTo(t, pid, syscall.SIGKILL)
					for range clients {
						require.Equal(t, strconv.Itoa(old), <-answers)
					}
				}
				dies(t, pid)
				for range 32 {
					require.Equal(t, strconv.Itoa(old), ask(address, "/"))
				}
			}
		})
	}
}

// All members of a group get some, in each version; who joins uninvited gets none.
func TestEachMemberGetsSome(t *testing.T) {
	const connections, members = 1000, 4
	state := t.TempDir()
	address := "127.0.0.1:" + strconv.Itoa(freePort(t))
	l := begin(t, group(members, state, address))
	pid, _ := l.said("ready")
	stranger := net.ListenConfig{Control: reuseport.Control}
	for range 2 {
		uninvited, err := stranger.Listen(t.Context(), "tcp", address)
		require.NoError(t, err, "of the same user: the kernel lets it in")
		for range connections {
			require.Equal(t, strconv.Itoa(pid), ask(address, "/"))
		}
		counts := strings.Fields(ask(address, "/members"))
		require.Len(t, counts, members)
		for _, count := range counts {
			n, err := strconv.Atoi(count)
			require.NoError(t, err)
			require.Greater(t, n, connections/members/2, counts)
		}
		require.NoError(t, uninvited.Close())
		signalTo(t, pid, syscall.SIGHUP)
		pid, _ = l.said("ready")
		l.said("ended <nil>")
	}
	signalTo(t, pid, syscall.SIGKILL)
	dies(t, pid)
	ln, err := net.Listen("tcp", address)
	require.NoError(t, err, "nothing is left of a version that was killed")
	require.NoError(t, ln.Close())
}

// A supervisor has all members too, and what waits with them when a version has crashed.
func TestASupervisorKeepsGroups(t *testing.T) {
	const clients, members = 32, 4
	r := group(members, t.TempDir(), "127.0.0.1:0")
	r.Supervise, r.Pause = true, time.Millisecond
	l := begin(t, r)
	_, text := l.said("grouped")
	_, address, _ := strings.Cut(text, " ")
	first, _ := l.said("ready")
	fewer := group(2, r.Config.StateDir, "127.0.0.1:0")
	fewer.Supervise, fewer.Pause = true, time.Millisecond
	fewer.At = "wait leads"
	l.next(fewer)
	signalTo(t, first, syscall.SIGKILL)
	dies(t, first)
	answers := make(chan string, clients)
	for range clients {
		go func() { answers <- ask(address, "/") }()
	}
	l.said("grouped 2 " + address)
	second, _ := l.said("at leads")
	signalTo(t, second, syscall.SIGUSR2)
	for range clients {
		require.Equal(t, strconv.Itoa(second), <-answers)
	}
	l.next(r)
	signalTo(t, second, syscall.SIGHUP)
	l.said("grouped 4 " + address)
	third, _ := l.said("ready")
	for third == second {
		third, _ = l.said("ready")
	}
	signalTo(t, l.cmd.Process.Pid, syscall.SIGTERM)
	require.NoError(t, l.cmd.Wait())
}
