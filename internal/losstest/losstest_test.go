package losstest

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

func serve(t *testing.T, ln net.Listener) {
	t.Helper()
	config, err := ServerTLS()
	require.NoError(t, err)
	server := &http.Server{Handler: Handler(), TLSConfig: config}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}

// until lets a load work until it has got somewhere.
func until(t *testing.T, l *Load, enough func(Results) bool) Results {
	t.Helper()
	for deadline := time.Now().Add(patience); !enough(l.Results()); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "%v", l.Results())
	}
	return l.Stop()
}

// A server that nobody replaces loses nothing, whatever the clients do.
func TestNothingIsLost(t *testing.T) {
	plain, unix := listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", filepath.Join(t.TempDir(), "s"))
	config, err := ServerTLS()
	require.NoError(t, err)
	secure := tls.NewListener(listen(t, "tcp", "127.0.0.1:0"), config)
	for _, ln := range []net.Listener{plain, unix, secure} {
		serve(t, ln)
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	echoed := make(chan error, 1)
	go func() { echoed <- Echo(packets) }()

	tcp := plain.Addr().String()
	load := Start(
		Mix{Name: "keep-alive", Client: KeepAlive, Network: "tcp", Address: tcp, Clients: 3, Think: time.Millisecond},
		Mix{Name: "in a hurry", Client: KeepAlive, Network: "tcp", Address: tcp, Clients: 1},
		Mix{Name: "slow", Client: KeepAlive, Network: "tcp", Address: tcp, Clients: 2, Wait: 2 * time.Millisecond},
		Mix{Name: "new", Client: NewConnection, Network: "tcp", Address: tcp, Clients: 2, Think: time.Millisecond},
		Mix{Name: "upload", Client: Upload, Network: "tcp", Address: tcp, Clients: 2, Think: time.Millisecond},
		Mix{Name: "pipeline", Client: Pipeline, Network: "tcp", Address: tcp, Clients: 2, Think: time.Millisecond},
		Mix{Name: "hijack", Client: Hijack, Network: "tcp", Address: tcp, Clients: 2, Think: time.Millisecond},
		Mix{Name: "unix", Client: KeepAlive, Network: "unix", Address: unix.Addr().String(), Clients: 2, Think: time.Millisecond},
		Mix{Name: "tls", Client: KeepAlive, Network: "tcp", Address: secure.Addr().String(), TLS: true, Clients: 2, Think: time.Millisecond},
		Mix{Name: "http2", Client: HTTP2, Network: "tcp", Address: secure.Addr().String(), Clients: 2, Think: time.Millisecond},
		Mix{Name: "http2 slow", Client: HTTP2, Network: "tcp", Address: secure.Addr().String(), Clients: 1, Wait: time.Millisecond},
		Mix{Name: "udp", Client: Datagram, Network: "udp", Address: packets.LocalAddr().String(), Clients: 2, Think: time.Millisecond},
	)
	results := until(t, load, func(all Results) bool {
		for _, mix := range all {
			if mix.Answered < 20 {
				return false
			}
		}
		return true
	})
	require.Zero(t, results.Sum().Lost, "%v", results)
	for _, mix := range results {
		require.Zero(t, mix.Told, "%v", mix)
		require.Equal(t, map[int]int{os.Getpid(): mix.Answered}, mix.PIDs)
	}
	require.NoError(t, packets.SetReadDeadline(time.Now()))
	require.ErrorIs(t, <-echoed, os.ErrDeadlineExceeded)
	require.NoError(t, packets.Close())
}

// A script is a server that treats each connection alike, and as it should not.
func script(t *testing.T, treat func(net.Conn, *bufio.Reader)) (address string) {
	t.Helper()
	ln := listen(t, "tcp", "127.0.0.1:0")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			treat(conn, bufio.NewReader(conn))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-ended
	})
	return ln.Addr().String()
}

// request reads one.
func request(in *bufio.Reader) {
	if r, err := http.ReadRequest(in); err == nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
}

func answer(conn net.Conn, fields, body string) {
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 25\r\nServer-Pid: 7\r\n"+fields+"\r\n"+body)
}

// Each way to lose is seen as what it is.
func TestLosses(t *testing.T) {
	require.Len(t, greeting, 25)
	reset := func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }
	for name, test := range map[string]struct {
		client Client
		treat  func(net.Conn, *bufio.Reader)
		reason string
	}{
		"closed at once":       {KeepAlive, func(net.Conn, *bufio.Reader) {}, "had not said"},
		"reset at once":        {KeepAlive, func(conn net.Conn, _ *bufio.Reader) { reset(conn) }, "reset by peer"},
		"closed, new":          {NewConnection, func(_ net.Conn, in *bufio.Reader) { request(in) }, "answer: unexpected EOF"},
		"no answer":            {KeepAlive, func(_ net.Conn, in *bufio.Reader) { request(in) }, "answer: unexpected EOF"},
		"half an answer":       {KeepAlive, func(conn net.Conn, in *bufio.Reader) { request(in); answer(conn, "", greeting[:7]) }, "answer: unexpected EOF"},
		"another answer":       {KeepAlive, func(conn net.Conn, in *bufio.Reader) { request(in); answer(conn, "", strings.ToUpper(greeting)) }, "not asked for"},
		"closed when idle":     {KeepAlive, func(conn net.Conn, in *bufio.Reader) { request(in); answer(conn, "", greeting) }, "had not said"},
		"closed during a line": {Pipeline, func(conn net.Conn, in *bufio.Reader) { request(in); answer(conn, "", greeting) }, "answer"},
		"not an upload":        {Upload, func(conn net.Conn, in *bufio.Reader) { request(in); answer(conn, "", greeting) }, "not asked for"},
		"closed in an upload":  {Upload, func(conn net.Conn, in *bufio.Reader) { _, _ = http.ReadRequest(in) }, "upload"},
		"hijacked, then closed": {Hijack, func(conn net.Conn, in *bufio.Reader) {
			request(in)
			_, _ = io.WriteString(conn, "HTTP/1.1 101 x\r\n\r\n")
		}, "upgraded connection"},
		"not hijacked": {Hijack, func(conn net.Conn, in *bufio.Reader) { request(in); answer(conn, "", greeting) }, "upgrade: 200 OK"},
		"unavailable": {KeepAlive, func(conn net.Conn, in *bufio.Reader) {
			request(in)
			_, _ = io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
		}, "status 503"},
		"answers unasked": {KeepAlive, func(conn net.Conn, in *bufio.Reader) { answer(conn, "", greeting); request(in) }, "without being asked"},
	} {
		t.Run(name, func(t *testing.T) {
			load := Start(Mix{Client: test.client, Network: "tcp", Address: script(t, test.treat), Clients: 1, Think: 10 * time.Millisecond})
			results := until(t, load, func(all Results) bool { return all[0].Lost >= 5 })
			reasons := strings.Join(results[0].Reasons, "\n")
			require.Contains(t, reasons, test.reason)
			require.Equal(t, strings.Contains(reasons, "idle: "), results[0].Closed > 0)
		})
	}
	t.Run("refused", func(t *testing.T) {
		ln := listen(t, "tcp", "127.0.0.1:0")
		ln.Close()
		load := Start(Mix{Client: KeepAlive, Network: "tcp", Address: ln.Addr().String(), Clients: 1})
		results := until(t, load, func(all Results) bool { return all[0].Lost >= 5 })
		require.Contains(t, results[0].Reasons[0], "dial: ")
		require.Zero(t, results.Sum().Answered)
	})
	t.Run("no answer to a datagram", func(t *testing.T) {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		load := Start(Mix{Client: Datagram, Network: "udp", Address: conn.LocalAddr().String(), Clients: 1})
		results := until(t, load, func(all Results) bool { return all[0].Lost >= 5 })
		require.Contains(t, results[0].Reasons[0], "datagram: ")
	})
	t.Run("no handshake", func(t *testing.T) {
		load := Start(Mix{Client: HTTP2, Network: "tcp", Address: script(t, func(net.Conn, *bufio.Reader) {}), Clients: 1})
		results := until(t, load, func(all Results) bool { return all[0].Lost >= 5 })
		require.Contains(t, results[0].Reasons[0], "handshake: ")
	})
}

// What the server has said is no loss.
func TestTold(t *testing.T) {
	const bye = "Connection: close\r\n"
	for name, test := range map[string]struct {
		client Client
		told   bool
	}{"keep-alive": {KeepAlive, false}, "new": {NewConnection, false}, "pipeline": {Pipeline, true}} {
		t.Run(name, func(t *testing.T) {
			address := script(t, func(conn net.Conn, in *bufio.Reader) {
				request(in)
				answer(conn, bye, greeting)
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, in) // else the requests that nobody read would reset it
			})
			load := Start(Mix{Client: test.client, Network: "tcp", Address: address, Clients: 1, Think: time.Millisecond})
			results := until(t, load, func(all Results) bool { return all[0].Answered >= 5 })
			require.Zero(t, results.Sum().Lost, "%v", results)
			require.Equal(t, map[int]int{7: results[0].Answered}, results[0].PIDs)
			if test.told {
				require.Equal(t, 2*results[0].Answered, results[0].Told)
			} else {
				require.Zero(t, results[0].Told)
			}
		})
	}
}

// A GOAWAY tells the streams above the one that it names, and those alone.
func TestGoAway(t *testing.T) {
	for name, test := range map[string]struct {
		code   http2.ErrCode
		last   uint32
		treat  func(*http2.Framer)
		lost   int // of the four requests of a connection
		reason string
	}{
		"all told":      {last: 0},
		"two told":      {last: 3, lost: 2, reason: "answer: "},
		"none told":     {last: 7, lost: 4, reason: "answer: "},
		"with an error": {code: http2.ErrCodeInternal, lost: 4, reason: "GOAWAY: INTERNAL_ERROR"},
		"refused after it": {last: 7, treat: func(f *http2.Framer) {
			for id := uint32(1); id <= 7; id += 2 {
				_ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			}
		}},
		"cancelled after it": {last: 1, lost: 1, reason: "RST_STREAM: CANCEL", treat: func(f *http2.Framer) {
			_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := ServerTLS()
			require.NoError(t, err)
			address := script(t, func(raw net.Conn, _ *bufio.Reader) {
				conn := tls.Server(raw, config)
				_, _ = io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
				frames := http2.NewFramer(conn, conn)
				_ = frames.WriteSettings()
				for ended := 0; ended < 4; { // as many requests as a client sends at once
					frame, err := frames.ReadFrame()
					if err != nil {
						return
					}
					switch f := frame.(type) {
					case *http2.HeadersFrame:
						if f.StreamEnded() {
							ended++
						}
					case *http2.DataFrame:
						if f.StreamEnded() {
							ended++
						}
					}
				}
				_ = frames.WriteGoAway(test.last, test.code, nil)
				if test.treat != nil {
					test.treat(frames)
				}
				_ = conn.CloseWrite()
				_, _ = io.Copy(io.Discard, raw)
			})
			load := Start(Mix{Client: HTTP2, Network: "tcp", Address: address, Clients: 1})
			results := until(t, load, func(all Results) bool { return all[0].Lost+all[0].Told >= 12 })
			whole := results[0].Told + results[0].Lost
			require.Zero(t, whole%4, "%v", results)
			require.Equal(t, whole/4*test.lost, results[0].Lost, "%v", results)
			if test.reason != "" {
				require.Contains(t, results[0].Reasons[0], test.reason)
			}
		})
	}
	t.Run("without one", func(t *testing.T) {
		config, err := ServerTLS()
		require.NoError(t, err)
		address := script(t, func(raw net.Conn, _ *bufio.Reader) {
			conn := tls.Server(raw, config)
			_, _ = io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
			_ = conn.Close()
		})
		load := Start(Mix{Client: HTTP2, Network: "tcp", Address: address, Clients: 1, Think: 20 * time.Millisecond})
		results := until(t, load, func(all Results) bool { return all[0].Lost >= 5 })
		require.Zero(t, results[0].Told)
	})
}
