//go:build unix

package reload_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
)

func init() { roles["pending"] = playPending }

// playPending serves losstest's clients behind middleware that accepts by itself: TLS on the first listener, with a PROXY
// header before it on the second. GET /pending tells how many connections the first has accepted and not handed out.
func playPending(p *played) error {
	config, err := losstest.ServerTLS()
	if err != nil {
		return err
	}
	secure, err := middleware.NewTLS(middleware.TLSConfig{Config: config})
	if err != nil {
		return err
	}
	var handshakes interface{ Pending() int }
	wrap := func(ln net.Listener) net.Listener {
		ln = secure.Wrap(ln)
		if handshakes == nil {
			handshakes = ln.(interface{ Pending() int })
		}
		return ln
	}
	proxy := middleware.Proxy{Trusted: middleware.NewPrefixes(netip.MustParsePrefix("127.0.0.0/8"))}
	limit := &middleware.Limit{Max: 6} // fewer than there are clients
	var served []net.Listener
	var addresses []string
	for i, middlewares := range [][]listener.Middleware{{wrap}, {limit.Wrap, wrap, proxy.Wrap}} {
		c := listener.Config{
			Name: strconv.Itoa(i), Sources: []listener.Source{p.upgrader}, StateDir: p.Config.StateDir, Logger: p.log, Middleware: middlewares,
		}
		ln, err := c.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		served = append(served, ln)
		addresses = append(addresses, ln.Addr().String())
	}
	mux := http.NewServeMux()
	mux.Handle("/", losstest.Handler())
	mux.HandleFunc("/pending", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, handshakes.Pending()) })
	p.say("serves %s", strings.Join(addresses, " "))
	err = p.upgrader.Serve(context.Background(), &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}, served...)
	p.say("ended %v", err)
	return err
}

// beginPending starts the first version, and gives its addresses.
func beginPending(t *testing.T) (s *succession, addresses []string) {
	t.Helper()
	s = &succession{line: begin(t, role{Do: "pending", Config: listenConfig{StateDir: t.TempDir()}})}
	_, all := s.said("serves")
	s.newest, _ = s.said("ready")
	addresses = strings.Fields(all)
	require.Len(t, addresses, 2)
	return s, addresses
}

var insecure = &tls.Config{InsecureSkipVerify: true}

// Whoever has connected to the old version and not said anything yet is answered by it.
func TestPendingIsHandedOut(t *testing.T) {
	s, of := beginPending(t)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: insecure}}
	pending := func() string {
		answer, err := client.Get("https://" + of[0] + "/pending")
		require.NoError(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return string(text)
	}
	old := s.newest
	silent := dial(t, of[0])
	require.Eventually(t, func() bool { return pending() == "1" }, patience, time.Millisecond)

	signalTo(t, old, syscall.SIGHUP)
	s.newest, _ = s.said("ready")
	require.Equal(t, "0", pending(), "of the new version")
	secure := tls.Client(silent, insecure)
	require.NoError(t, secure.SetDeadline(time.Now().Add(patience)))
	_, err := io.WriteString(secure, "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(secure)
	require.NoError(t, err)
	require.Contains(t, string(answer), fmt.Sprintf(": %d\r\n", old))
	s.ended([]int{old})
}

// Upgrades under load lose nothing, although there are always some that a middleware has accepted and the server does not know.
func TestPendingIsNotLost(t *testing.T) {
	s, of := beginPending(t)
	slow := hesitate(t, of[1])
	mix := func(name string, client losstest.Client, address string, clients int) losstest.Mix {
		return losstest.Mix{Name: name, Client: client, Network: "tcp", Address: address, TLS: true, Clients: clients, Think: think}
	}
	load := losstest.Start(
		mix("keep-alive", losstest.KeepAlive, of[0], 4),
		mix("a connection for each request", losstest.NewConnection, of[0], 4),
		mix("HTTP/2", losstest.HTTP2, of[0], 2),
		mix("behind a proxy", losstest.KeepAlive, slow, 4),
		mix("behind a proxy, a connection for each request", losstest.NewConnection, slow, 12),
	)
	s.upgrade(15, false)
	s.upgrade(5, true)
	results := load.Stop()
	t.Logf("%v", results)
	require.Zero(t, results.Sum().Lost)
	for _, mix := range results {
		require.Greater(t, len(mix.PIDs), 10, mix.Name)
	}
}

// hesitate is a proxy that takes its time for the PROXY header. It listens until the end of the test.
func hesitate(t *testing.T, to string) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { passOn(client.(*net.TCPConn), to) })
		}
	})
	return ln.Addr().String()
}

// passOn connects both, after a header in two pieces.
func passOn(client *net.TCPConn, to string) {
	defer client.Close()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	_ = server.SetLinger(0) // as losstest's clients do
	header, err := proxyproto.HeaderProxyFromAddrs(2, client.RemoteAddr(), client.LocalAddr()).Format()
	if err != nil {
		return
	}
	for _, piece := range [][]byte{header[:7], header[7:]} {
		time.Sleep(think / 6) // what it is about
		if _, err := server.Write(piece); err != nil {
			return
		}
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
	})
	_, err = io.Copy(client, server)
	if errors.Is(err, syscall.ECONNRESET) {
		_ = client.SetLinger(0)
	}
	client.Close()
	up.Wait()
}
