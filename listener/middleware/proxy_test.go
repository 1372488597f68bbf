package middleware_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// header2 is a header of version 2, with or without TLVs.
func header2(t testing.TB, tlvs ...proxyproto.TLV) []byte {
	t.Helper()
	header := proxyproto.HeaderProxyFromAddrs(2, proxiedClient, proxiedServer)
	require.NoError(t, header.SetTLVs(tlvs))
	b, err := header.Format()
	require.NoError(t, err)
	return b
}

// The beginning of a connection, what comes of it, and what is left to read.
func TestProxyHeaders(t *testing.T) {
	const client, server = "192.0.2.1:4711", "192.0.2.2:443"
	local := []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
	huge := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"), make([]byte, 1000)...)
	tlv := proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte("example.org")}
	for _, test := range []struct {
		name     string
		sent     []byte
		proxy    middleware.Proxy
		remote   string // "": that of the socket
		rest     string
		header   bool
		refused  string // what the refusal says
		untrusts bool   // the source is not in Trusted
	}{
		{name: "v1", sent: []byte("PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\nhello"), remote: client, rest: "hello", header: true},
		{name: "v1, IPv6", sent: []byte("PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\nhello"), remote: "[2001:db8::1]:4711", rest: "hello", header: true},
		{name: "v1, unknown", sent: []byte("PROXY UNKNOWN whatever\r\nhello"), rest: "hello", header: true},
		{name: "v2", sent: append(header2(t), "hello"...), remote: client, rest: "hello", header: true},
		{name: "v2, TLV", sent: append(header2(t, tlv), "hello"...), remote: client, rest: "hello", header: true},
		{name: "v2, local", sent: append(local, "hello"...), rest: "hello", header: true},
		{name: "v2, then what looks like another", sent: append(header2(t), "PROXY UNKNOWN\r\n"...), remote: client, rest: "PROXY UNKNOWN\r\n", header: true},
		{name: "nothing behind", sent: header2(t), remote: client, header: true},

		{name: "none", sent: []byte("GET / HTTP/1.1\r\n\r\n"), refused: "no PROXY header"},
		{name: "nothing", sent: nil, refused: "no PROXY header"},
		{name: "optional, none", proxy: middleware.Proxy{Optional: true}, sent: []byte("POST / HTTP/1.1\r\n\r\n"), rest: "POST / HTTP/1.1\r\n\r\n"},
		{name: "optional, very short", proxy: middleware.Proxy{Optional: true}, sent: []byte("PR"), rest: "PR"},
		{name: "optional, nothing", proxy: middleware.Proxy{Optional: true}},
		{name: "optional, one", proxy: middleware.Proxy{Optional: true}, sent: append(header2(t), "hello"...), remote: client, rest: "hello", header: true},
		{name: "optional, a bad one", proxy: middleware.Proxy{Optional: true}, sent: []byte("PROXY TCP4 nonsense\r\n"), refused: "proxyproto"},
		{name: "half of one", sent: header2(t)[:20], refused: "within the PROXY header"},
		{name: "half of an old one", sent: []byte("PROXY TCP4 192.0"), refused: "within the PROXY header"},
		{name: "v1, too long", sent: []byte("PROXY UNKNOWN " + strings.Repeat("x", 200)), refused: "too long"},
		{name: "v1, without CR", sent: []byte("PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\n"), refused: "proxyproto"},
		{name: "v2, huge", sent: huge, refused: "too long"},
		{name: "v2, longer than allowed", proxy: middleware.Proxy{MaxHeader: 28}, sent: header2(t, tlv), refused: "too long"},
		{name: "v2, as long as allowed", proxy: middleware.Proxy{MaxHeader: 28}, sent: append(header2(t), "hello"...), remote: client, rest: "hello", header: true},
		{name: "v2, longer than proxyproto's own bound", proxy: middleware.Proxy{MaxHeader: 65551}, sent: header2(t, proxyproto.TLV{Type: 0xe0, Value: make([]byte, 5000)}), refused: "proxyproto"},
		{name: "garbage", sent: []byte("\r\n\r\n\x00\r\nQUIT\n\xff\xff\x00\x0c............"), refused: "proxyproto"},

		{name: "untrusted", untrusts: true, sent: header2(t), refused: "not a trusted"},
		{name: "untrusted, passed", untrusts: true, proxy: middleware.Proxy{PassUntrusted: true}, sent: []byte("PROXY UNKNOWN\r\nhello"), rest: "PROXY UNKNOWN\r\nhello"},
		{name: "untrusted, passed, silent", untrusts: true, proxy: middleware.Proxy{PassUntrusted: true}},
	} {
		// Sockets can be looked into; of other connections bytes have to be taken and given back.
		for kind, inner := range map[string]wrapper{
			"socket": func(ln net.Listener) net.Listener { return ln },
			"opaque": func(ln net.Listener) net.Listener { return otherListener{ln} },
		} {
			t.Run(test.name+"/"+kind, func(t *testing.T) {
				told := make(chan *middleware.Refusal, 1)
				if !test.untrusts {
					test.proxy.Trusted = loopback
				}
				ln := listen(t, "tcp", middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap, test.proxy.Wrap, inner)
				from := accepting(t, ln)
				client := dial(t, ln).(*net.TCPConn)
				_, _ = client.Write(test.sent)
				_ = client.CloseWrite() // unless it is refused already
				if test.refused != "" {
					why := hear(t, told)
					require.Equal(t, middleware.ReasonProxyHeader, why.Reason)
					require.ErrorContains(t, why, test.refused)
					refused(t, client)
					return
				}
				conn := next(t, from)
				remote, local := test.remote, server
				if remote == "" {
					remote, local = client.LocalAddr().String(), client.RemoteAddr().String()
				}
				require.Equal(t, remote, conn.RemoteAddr().String())
				if netip.MustParseAddrPort(remote).Addr().Is4() {
					require.Equal(t, local, conn.LocalAddr().String())
				}
				header, ok := middleware.ProxyHeader(conn)
				require.Equal(t, test.header, ok)
				if strings.HasSuffix(test.name, "TLV") {
					tlvs, err := header.TLVs()
					require.NoError(t, err)
					require.Equal(t, []proxyproto.TLV{tlv}, tlvs)
				}
				rest, err := io.ReadAll(conn)
				require.NoError(t, err)
				require.Equal(t, test.rest, string(rest))
			})
		}
	}
}

// However the header comes apart on its way, nothing of what follows is lost or read twice.
func TestProxyHeaderInPieces(t *testing.T) {
	for name, header := range map[string][]byte{"v1": []byte("PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n"), "v2": header2(t)} {
		for kind, inner := range map[string]wrapper{
			"socket": func(ln net.Listener) net.Listener { return ln },
			"opaque": func(ln net.Listener) net.Listener { return otherListener{ln} },
		} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				ln := listen(t, "tcp", middleware.Proxy{Trusted: loopback}.Wrap, inner)
				from := accepting(t, ln)
				sent := append(bytes.Clone(header), "hello"...)
				for cut := 1; cut < len(sent); cut++ {
					client := dial(t, ln)
					_, err := client.Write(sent[:cut])
					require.NoError(t, err)
					if cut < len(header) {
						eventually(t, func() bool { return pendingOf(ln) == 1 }, "it waits for the rest")
					}
					_, err = client.Write(sent[cut:])
					require.NoError(t, err)
					conn := next(t, from)
					require.Equal(t, proxiedClient.String(), conn.RemoteAddr().String())
					b := make([]byte, 5)
					_, err = io.ReadFull(conn, b)
					require.NoError(t, err)
					require.Equal(t, "hello", string(b))
				}
			})
		}
	}
}

// Whoever may open the socket file is trusted, if it is said so.
func TestProxyUnix(t *testing.T) {
	told := make(chan *middleware.Refusal, 1)
	hook := middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap
	ln := listen(t, "unix", hook, middleware.Proxy{Trusted: loopback}.Wrap)
	accepting(t, ln)
	withHeader(dial(t, ln))
	require.ErrorContains(t, hear(t, told), "not a trusted")

	ln = listen(t, "unix", middleware.Proxy{TrustUnix: true}.Wrap)
	withHeader(dial(t, ln))
	conn := accept(t, ln)
	require.Equal(t, proxiedClient.String(), conn.RemoteAddr().String())
	require.Implements(t, (*interface{ CloseWrite() error })(nil), conn)
}

// A trusted source that waits for the server to speak is one without a header.
func TestProxyOptionalSilent(t *testing.T) {
	ln := listen(t, "tcp", middleware.Proxy{Trusted: loopback, Optional: true, Timeout: 20 * time.Millisecond}.Wrap)
	client := dial(t, ln)
	conn := accept(t, ln)
	require.IsType(t, (*net.TCPConn)(nil), conn)
	go io.WriteString(client, "hello") // no deadline is left
	b := make([]byte, 5)
	_, err := io.ReadFull(conn, b)
	require.NoError(t, err)
}

// The reading of the header leaves no deadline (go-proxyproto #75).
func TestProxyLeavesNoDeadline(t *testing.T) {
	const timeout = 50 * time.Millisecond
	ln := listen(t, "tcp", middleware.Proxy{Trusted: loopback, Timeout: timeout}.Wrap)
	from := accepting(t, ln)
	client := dial(t, ln)
	silent := dial(t, ln) // keeps the timer of the listener going
	withHeader(client)
	conn := next(t, from)
	refused(t, silent)
	go io.WriteString(client, "hello")
	b := make([]byte, 5)
	_, err := io.ReadFull(conn, b)
	require.NoError(t, err)
}

// Middlewares further out see the client, those further in the proxy.
func TestProxyOrder(t *testing.T) {
	var outer, inner middleware.LimitPerIP
	outer.Max, inner.Max = 1, 10
	told := make(chan *middleware.Refusal, 1)
	hook := middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap
	ln := listen(t, "tcp", hook, outer.Wrap, middleware.Proxy{Trusted: loopback}.Wrap, inner.Wrap)
	from := accepting(t, ln)
	client := netip.MustParseAddr("192.0.2.1")
	self := netip.MustParseAddr("127.0.0.1")

	withHeader(dial(t, ln))
	conn := next(t, from)
	require.Equal(t, 1, outer.Open(client))
	require.Zero(t, outer.Open(self))
	require.Equal(t, 1, inner.Open(self))

	again := dial(t, ln)
	withHeader(again)
	require.Equal(t, middleware.ReasonLimitPerIP, hear(t, told).Reason)
	refused(t, again)
	require.NoError(t, conn.Close())
	require.Zero(t, outer.Open(client))
	require.Zero(t, inner.Open(self))
}

// What servers look for on a connection is there, and reads and writes go to the socket.
func TestProxyMethods(t *testing.T) {
	for name, stack := range map[string][]wrapper{
		"alone":      {middleware.Proxy{Trusted: loopback}.Wrap},
		"with hooks": append(append(all(), middleware.Proxy{Trusted: loopback}.Wrap), all()...),
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t, "tcp", stack...)
			client := dial(t, ln)
			withHeader(client)
			_, err := io.WriteString(client, "hello")
			require.NoError(t, err)
			conn := accept(t, ln)
			require.Implements(t, (*io.ReaderFrom)(nil), conn)
			require.Implements(t, (*io.WriterTo)(nil), conn)
			require.Implements(t, (*syscall.Conn)(nil), conn)
			require.Implements(t, (*interface{ SetLinger(int) error })(nil), conn)

			// Nothing but the header was read: a duplicate of the socket has the rest.
			file, err := conn.(interface{ File() (*os.File, error) }).File()
			require.NoError(t, err)
			defer file.Close()
			b := make([]byte, 5)
			_, err = io.ReadFull(file, b)
			require.NoError(t, err)
			require.Equal(t, "hello", string(b))

			require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
			rest, err := io.ReadAll(client)
			require.NoError(t, err)
			require.Empty(t, rest)
		})
	}
}

// net/http behind a proxy: HTTP/1, and HTTP/2 through TLS that begins behind the header.
func TestProxyHTTP(t *testing.T) {
	for name, protocol := range map[string]string{"plain": "HTTP/1.1", "TLS": "HTTP/2.0"} {
		t.Run(name, func(t *testing.T) {
			stack := []wrapper{middleware.Proxy{Trusted: loopback}.Wrap}
			if name == "TLS" {
				stack = append([]wrapper{secured(t).Wrap}, stack...)
			}
			ln := listen(t, "tcp", stack...)
			server := &http.Server{
				ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
					_, ok := middleware.ProxyHeader(conn)
					return context.WithValue(ctx, proxied{}, ok)
				},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Context().Value(proxied{}) != true {
						http.Error(w, "no header", http.StatusTeapot)
					}
					_, _ = io.WriteString(w, r.RemoteAddr+" "+r.Proto)
				}),
			}
			serve(t, server, ln)
			client := httpClient(t, func(conn net.Conn) net.Conn { return withHeader(conn) })
			require.Equal(t, proxiedClient.String()+" "+protocol, get(t, client, name == "TLS", ln))
		})
	}
}

type proxied struct{}

// serve has a server serve until the end of the test.
func serve(t testing.TB, server *http.Server, ln net.Listener) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// httpClient is one whose connections begin in a way of their own.
func httpClient(t testing.TB, begin func(net.Conn) net.Conn) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			return begin(conn), nil
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: deadline}
}

func get(t testing.TB, client *http.Client, secure bool, ln net.Listener) string {
	t.Helper()
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	resp, err := client.Get(scheme + ln.Addr().String() + "/")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

// Through a real connection, whatever comes first: never a panic, and never a byte lost or read twice. What is a header is
// what proxyproto takes for one.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\nhello"), uint8(7), false)
	f.Add([]byte("PROXY UNKNOWN\r\n"), uint8(1), true)
	f.Add(append(header2(f, proxyproto.TLV{Type: 1, Value: []byte("h2")}), "hello"...), uint8(20), false)
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\xff\xff"), uint8(13), true)
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x04abcdGET /"), uint8(16), true)
	f.Add([]byte("POST / HTTP/1.1\r\n\r\n"), uint8(2), true)
	f.Fuzz(func(t *testing.T, sent []byte, cut uint8, opaque bool) {
		told := make(chan *middleware.Refusal, 1)
		hook := middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap
		ends := newPipes()
		var inner net.Listener = ends
		if opaque {
			inner = otherListener{ends}
		}
		ln := hook(middleware.Proxy{TrustUnix: true, Trusted: loopback, Optional: true}.Wrap(inner))
		defer ln.Close()
		results := make(chan accepted, 1)
		go func() {
			conn, err := ln.Accept()
			results <- accepted{conn, err}
		}()
		client := ends.dial(t)
		at := min(int(cut), len(sent))
		for _, part := range [][]byte{sent[:at], sent[at:]} {
			_, _ = client.Write(part) // unless it is refused already
		}
		_ = client.CloseWrite()

		rest := sent
		reader := bufio.NewReaderSize(bytes.NewReader(sent), 1<<17)
		header, want := proxyproto.Read(reader)
		if want == nil {
			rest, _ = io.ReadAll(reader)
		}
		select {
		case why := <-told:
			client.Close()
			require.NoError(t, ln.Close())
			<-results
			require.Error(t, want, "%v", why)
			require.NotErrorIs(t, want, proxyproto.ErrNoProxyProtocol, "%v", why)
		case got := <-results:
			require.NoError(t, got.err)
			defer got.conn.Close()
			if want != nil {
				require.ErrorIs(t, want, proxyproto.ErrNoProxyProtocol)
			}
			have, ok := middleware.ProxyHeader(got.conn)
			require.Equal(t, want == nil, ok)
			if ok {
				require.True(t, have.EqualsTo(header))
				if have.Command.IsProxy() {
					require.Equal(t, header.SourceAddr.String(), got.conn.RemoteAddr().String())
				}
			}
			b, err := io.ReadAll(got.conn)
			require.NoError(t, err)
			require.Equal(t, string(rest), string(b))
		}
	})
}

// pipes is a listener whose connections are pairs of sockets, so that a fuzzer leaves no port behind.
type pipes struct {
	*net.UnixListener
	dir string
}

func newPipes() *pipes {
	dir, err := os.MkdirTemp("", "berth")
	if err != nil {
		panic(err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		panic(err)
	}
	return &pipes{ln, dir}
}

func (p *pipes) dial(t testing.TB) *net.UnixConn {
	conn, err := net.DialUnix("unix", nil, p.Addr().(*net.UnixAddr))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (p *pipes) Close() error {
	err := p.UnixListener.Close()
	_ = os.RemoveAll(p.dir)
	return err
}
