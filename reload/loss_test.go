//go:build unix

package reload_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudflare/tableflip"
	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/losstest"
)

func init() {
	roles["loss"] = playLoss
	foreign["tableflip"] = func(r role) error { return playTableflip(r, false) }
	foreign["tableflip, Shutdown"] = func(r role) error { return playTableflip(r, true) }
}

// playLoss serves what losstest's clients ask for, on every listener and packet socket; on those named "tls" in TLS.
func playLoss(p *played) error {
	config, err := losstest.ServerTLS()
	if err != nil {
		return err
	}
	listeners := make([]net.Listener, len(p.listeners))
	for i, ln := range p.listeners {
		listeners[i] = ln
		if p.Listen[i].Name == "tls" {
			listeners[i] = tls.NewListener(ln, config)
		}
	}
	var echoes sync.WaitGroup
	for _, conn := range p.packets {
		echoes.Go(func() {
			if err := losstest.Echo(conn); !errors.Is(err, os.ErrDeadlineExceeded) {
				p.say("failed %v", err)
			}
		})
	}
	server := &http.Server{Handler: losstest.Handler(), TLSConfig: config}
	err = p.upgrader.Serve(context.Background(), server, listeners...)
	for _, conn := range p.packets {
		_ = conn.SetReadDeadline(time.Now()) // a datagram that has been read is answered first
	}
	echoes.Wait()
	p.say("ended %v", err)
	return err
}

// playTableflip is the program of tableflip's README, or that of its http_example_test.go, which calls Shutdown. It listens
// on what comes first.
func playTableflip(r role, shutdown bool) error {
	upg, err := tableflip.New(tableflip.Options{})
	if err != nil {
		return err
	}
	defer upg.Stop()
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGHUP)
	go func() {
		_ = upg.WaitForParent(context.Background()) // else what comes too early is refused
		for range sig {
			if err := upg.Upgrade(); err != nil {
				fmt.Fprintln(os.Stderr, "upgrade:", err)
			}
		}
	}()
	ln, err := upg.Listen(r.Listen[0].Network, r.Listen[0].Address)
	if err != nil {
		return err
	}
	defer ln.Close()
	fmt.Println(os.Getpid(), "listens", ln.Addr())
	server := &http.Server{Handler: losstest.Handler()}
	go func() { _ = server.Serve(ln) }()
	if err := upg.Ready(); err != nil {
		return err
	}
	fmt.Println(os.Getpid(), "ready")
	<-upg.Exit()
	if shutdown {
		_ = server.Shutdown(context.Background())
	}
	fmt.Println(os.Getpid(), "ended <nil>")
	return nil
}

// A succession is a line whose versions are replaced again and again.
type succession struct {
	*line
	newest int
}

// beginSuccession starts the first version, and gives the addresses that it has.
func beginSuccession(t testing.TB, r role) (s *succession, addresses []string) {
	t.Helper()
	s = &succession{line: begin(t, r)}
	_, all := s.said("listens")
	s.newest, _ = s.said("ready")
	return s, strings.Fields(all)
}

// upgrade has the newest version replaced, n times. In a row means that each new version is asked as soon as it is ready,
// while the one before it drains.
func (s *succession) upgrade(n int, inARow bool) {
	s.t.Helper()
	var old []int
	for range n {
		old = append(old, s.newest)
		signalTo(s.t, s.newest, syscall.SIGHUP)
		s.newest, _ = s.said("ready")
		if runtime.GOOS == "linux" {
			require.LessOrEqual(s.t, len(s.running()), 2)
		}
		if !inARow {
			old = s.ended(old)
		}
	}
	s.ended(old)
}

// ended waits for the end of versions, in their order.
func (s *succession) ended(old []int) (none []int) {
	s.t.Helper()
	for _, pid := range old {
		ended, _ := s.said("ended <nil>")
		require.Equal(s.t, pid, ended)
	}
	return nil
}

// running is the versions that have not ended. The kernel is asked: it knows also those that have not said anything yet. The
// variable in their environment tells them from other programs.
func (s *succession) running() (pids []int) {
	s.t.Helper()
	all, err := os.ReadDir("/proc")
	require.NoError(s.t, err)
	for _, dir := range all {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", dir.Name(), "environ")) // empty once it has ended
		if slices.Contains(strings.Split(string(environ), "\x00"), roleVariable+"="+s.path) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// think is the longest pause of a client. The old version drains until each has spoken.
const think = 30 * time.Millisecond

// web is the clients that any HTTP server has.
func web(address string) []losstest.Mix {
	mix := func(name string, client losstest.Client, clients int, think, wait time.Duration) losstest.Mix {
		return losstest.Mix{Name: name, Client: client, Network: "tcp", Address: address, Clients: clients, Think: think, Wait: wait}
	}
	return []losstest.Mix{
		mix("keep-alive", losstest.KeepAlive, 50, think, 0),
		mix("a connection for each request", losstest.NewConnection, 8, think, 0),
		mix("uploads", losstest.Upload, 6, think/4, 0),
		mix("slow answers", losstest.KeepAlive, 6, think/4, 3*think/4),
		mix("pipelines", losstest.Pipeline, 3, think, 0),
		mix("hijacked", losstest.Hijack, 3, think/4, 0),
	}
}

// Two hundred upgrades, one after the other and in rows, under every kind of client at once, lose nothing and leave nothing
// behind. tableflip's own programs do the same work beside it.
func TestNothingIsLost(t *testing.T) {
	const upgrades, inRows, peerUpgrades = 160, 40, 10
	dir, err := os.MkdirTemp("", "berth") // short enough for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, of := beginSuccession(t, role{
		Do:     "loss",
		Listen: []request{{"", "tcp", "127.0.0.1:0"}, {"tls", "tcp", "127.0.0.1:0"}, {"", "unix", filepath.Join(dir, "s")}, {"", "udp", "127.0.0.1:0"}},
		Config: listenConfig{StateDir: t.TempDir()},
	})
	require.Len(t, of, 4)

	var early losstest.Footprint
	linux := runtime.GOOS == "linux"
	s.upgrade(3, false)
	if linux {
		early, err = losstest.AtRest(s.newest, 0)
		require.NoError(t, err)
	}

	begin := time.Now()
	load := losstest.Start(append(web(of[0]),
		losstest.Mix{Name: "TLS", Client: losstest.KeepAlive, Network: "tcp", Address: of[1], TLS: true, Clients: 4, Think: think},
		losstest.Mix{Name: "HTTP/2", Client: losstest.HTTP2, Network: "tcp", Address: of[1], Clients: 4, Think: think},
		losstest.Mix{Name: "HTTP/2, slow", Client: losstest.HTTP2, Network: "tcp", Address: of[1], Clients: 2, Think: think, Wait: think},
		losstest.Mix{Name: "Unix socket", Client: losstest.KeepAlive, Network: "unix", Address: of[2], Clients: 8, Think: think},
		losstest.Mix{Name: "Unix socket, uploads", Client: losstest.Upload, Network: "unix", Address: of[2], Clients: 3, Think: think / 4},
		losstest.Mix{Name: "UDP", Client: losstest.Datagram, Network: "udp", Address: of[3], Clients: 3, Think: think},
	)...)
	s.upgrade(upgrades, false)
	for range inRows / 5 {
		s.upgrade(5, true)
	}
	took := time.Since(begin)
	results := load.Stop()
	t.Logf("berth, %d upgrades in %v, %d requests:\n%v", upgrades+inRows, took.Round(time.Millisecond), results.Sum().Answered, results)
	require.Zero(t, results.Sum().Lost)
	for _, mix := range results {
		// Of those in a row, not every one has time for everybody. 0 would be the pid of nobody.
		require.Greater(t, len(mix.PIDs), upgrades, mix.Name)
		require.NotContains(t, mix.PIDs, 0, mix.Name)
	}

	s.upgrade(1, false)
	if linux {
		late, err := losstest.AtRest(s.newest, len(early.Descriptors))
		require.NoError(t, err)
		require.LessOrEqual(t, len(late.Descriptors), len(early.Descriptors), "from %q to %q", early.Descriptors, late.Descriptors)
		require.Equal(t, early.Environ, late.Environ)
		t.Logf("resident: %d KiB early, %d KiB late", early.Resident>>10, late.Resident>>10)
		require.Less(t, late.Resident, early.Resident+early.Resident/4)
	}
	signalTo(t, s.newest, syscall.SIGTERM)
	s.ended([]int{s.newest})
	require.NoError(t, s.cmd.Wait()) // the first version
	if linux {
		for deadline := time.Now().Add(patience); len(s.running()) > 0; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(deadline), "%v are left", s.running())
		}
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "the socket's file")

	for _, peer := range []string{"tableflip", "tableflip, Shutdown"} {
		s, of := beginSuccession(t, role{Do: peer, Listen: []request{{"", "tcp", "127.0.0.1:0"}}})
		load := losstest.Start(web(of[0])...)
		for range peerUpgrades {
			// Its clients are given the time to connect again, which those of a server that drains have taken by then.
			enough := load.Results().Sum().Answered + 200
			for deadline := time.Now().Add(patience); load.Results().Sum().Answered < enough; time.Sleep(time.Millisecond) {
				require.True(t, time.Now().Before(deadline), "%v", load.Results())
			}
			s.upgrade(1, false)
		}
		results := load.Stop()
		sum := results.Sum()
		t.Logf("%s, %d upgrades, in each %.1f requests lost and %.1f idle connections closed:\n%v", peer, peerUpgrades,
			float64(sum.Lost-sum.Closed)/peerUpgrades, float64(sum.Closed)/peerUpgrades, results)
	}
}
