package reload

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A line is a server that is replaced by the next version on the same socket again and again, as upgrades do, in one
// process.
type line struct {
	socket  net.Listener // of the current version
	server  func() *http.Server
	wrap    func(net.Listener) net.Listener // around the socket; nil: nothing
	current *version
	ending  sync.WaitGroup
}

func (l *line) start() {
	ln := l.socket
	if l.wrap != nil {
		ln = l.wrap(ln)
	}
	l.current = startVersion(l.server(), ln)
}

// upgrade starts a version beside the current one, which ends meanwhile.
func (l *line) upgrade(t testing.TB) {
	t.Helper()
	file, err := l.socket.(interface{ File() (*os.File, error) }).File()
	require.NoError(t, err)
	defer file.Close()
	next, err := net.FileListener(file)
	require.NoError(t, err)
	if unix, ok := l.socket.(*net.UnixListener); ok {
		unix.SetUnlinkOnClose(false)
	}
	before := l.current
	l.socket = next
	l.start()
	l.ending.Go(func() { before.end(t) })
}

func (l *line) end(t testing.TB) {
	t.Helper()
	l.ending.Wait()
	l.current.end(t)
}

// load is what clients do until they are told to stop. Nothing is tried again: each failure is a request lost.
type load struct {
	dial    func() (net.Conn, error)
	stop    chan struct{}
	clients sync.WaitGroup
	asked   atomic.Int64
	lost    atomic.Int64
	first   atomic.Pointer[error]
}

func newLoad(addr net.Addr, config *tls.Config) *load {
	return &load{stop: make(chan struct{}), dial: func() (net.Conn, error) {
		conn, err := net.Dial(addr.Network(), addr.String())
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // no port stays in TIME_WAIT, where it would be in the way of other tests
		}
		if err == nil && config != nil {
			conn = tls.Client(conn, config)
		}
		return conn, err
	}}
}

func (l *load) losing(err error) {
	l.lost.Add(1)
	l.first.CompareAndSwap(nil, &err)
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// keepAlive sends requests on one connection until an answer says that it ends. It counts a connection that is closed
// without that, an answer that is not complete, and whatever else goes wrong.
func (l *load) keepAlive(request string, body string) {
	for !l.stopped() {
		conn, err := l.dial()
		if err != nil {
			l.losing(err)
			return
		}
		in := bufio.NewReader(conn)
		for ends := false; !ends && !l.stopped(); {
			l.asked.Add(1)
			if ends, err = ask(conn, in, request, body); err != nil {
				l.losing(err)
				break
			}
		}
		conn.Close()
	}
}

func ask(conn net.Conn, in *bufio.Reader, request, body string) (ends bool, err error) {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		return false, fmt.Errorf("write: %w", err)
	}
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return false, fmt.Errorf("no answer: %w", err)
	}
	got, err := io.ReadAll(response.Body)
	if err != nil || string(got) != body {
		return false, fmt.Errorf("half an answer: %d bytes, %w", len(got), err)
	}
	return response.Close, nil
}

func (l *load) check(t testing.TB) {
	t.Helper()
	close(l.stop)
	l.clients.Wait()
	t.Logf("%d requests, %d lost", l.asked.Load(), l.lost.Load())
	if err := l.first.Load(); err != nil {
		require.NoError(t, *err)
	}
}

var page = strings.Repeat("page ", 2000)

// loaded answers "/" at once, "/slow" in parts, and what is sent to it in full.
var loaded = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/slow":
		for part := range strings.SplitAfterSeq(page, strings.Repeat("page ", 500)) {
			_, _ = io.WriteString(w, part)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Millisecond)
		}
	case "/upload":
		if body, err := io.ReadAll(r.Body); err == nil {
			_, _ = w.Write(body)
		}
	default:
		_, _ = io.WriteString(w, page)
	}
})

func TestDrainLosesNothing(t *testing.T) {
	for name, test := range map[string]struct {
		bind   func(testing.TB) net.Listener
		wrap   func(net.Listener) net.Listener
		config *tls.Config
	}{
		"tcp":  {bind: func(t testing.TB) net.Listener { return bind(t) }},
		"unix": {bind: bindUnix},
		"tls": {
			bind:   func(t testing.TB) net.Listener { return bind(t) },
			wrap:   func(ln net.Listener) net.Listener { return tls.NewListener(ln, testTLS(t)) },
			config: trusting("http/1.1"),
		},
		// Its Accept cannot be interrupted.
		"opaque": {
			bind: func(t testing.TB) net.Listener { return bind(t) },
			wrap: func(ln net.Listener) net.Listener { return opaque{ln} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			l := &line{socket: test.bind(t), wrap: test.wrap, server: func() *http.Server { return &http.Server{Handler: loaded} }}
			l.start()
			clients := newLoad(l.socket.Addr(), test.config)
			upload := strings.Repeat("up", 50_000)
			for range 6 {
				clients.clients.Go(func() { clients.keepAlive("GET / HTTP/1.1\r\nHost: x\r\n\r\n", page) })
			}
			clients.clients.Go(func() {
				clients.keepAlive("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", page)
			})
			clients.clients.Go(func() { clients.keepAlive("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", page) })
			clients.clients.Go(func() {
				clients.keepAlive(fmt.Sprintf("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(upload), upload), upload)
			})
			for round := range 30 {
				// Some versions are replaced at once, some after a while.
				for until := clients.asked.Load() + int64(round%3)*20; clients.asked.Load() < until; {
					time.Sleep(100 * time.Microsecond)
				}
				l.upgrade(t)
			}
			clients.check(t)
			l.end(t)
		})
	}
}

func TestDrainLosesNothingHTTP2(t *testing.T) {
	for name, test := range map[string]struct {
		wrap      func(net.Listener) net.Listener
		transport func() *http.Transport
		scheme    string
	}{
		"tls": {
			func(ln net.Listener) net.Listener { return tls.NewListener(ln, testTLS(t)) },
			func() *http.Transport { return &http.Transport{TLSClientConfig: trusting(), ForceAttemptHTTP2: true} }, "https://",
		},
		"cleartext": {nil, cleartextHTTP2, "http://"},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			l := &line{socket: bind(t), wrap: test.wrap, server: func() *http.Server {
				server := &http.Server{Handler: loaded, Protocols: new(http.Protocols)}
				server.Protocols.SetHTTP1(true)
				server.Protocols.SetHTTP2(true)
				server.Protocols.SetUnencryptedHTTP2(true)
				return server
			}}
			l.start()
			clients := newLoad(l.socket.Addr(), nil)
			base := test.scheme + l.socket.Addr().String()
			client := func(method, path, body string) {
				transport := test.transport()
				defer transport.CloseIdleConnections()
				c := &http.Client{Transport: transport, Timeout: patience}
				for !clients.stopped() {
					clients.asked.Add(1)
					request, err := http.NewRequest(method, base+path, strings.NewReader(body))
					if err == nil {
						err = fetch(c, request)
					}
					if err != nil {
						clients.losing(err)
					}
				}
			}
			for range 3 {
				clients.clients.Go(func() { client(http.MethodGet, "/", "") })
			}
			clients.clients.Go(func() { client(http.MethodGet, "/slow", "") })
			clients.clients.Go(func() { client(http.MethodPost, "/upload", page) })
			for range 5 {
				for until := clients.asked.Load() + 50; clients.asked.Load() < until; {
					time.Sleep(100 * time.Microsecond)
				}
				l.upgrade(t)
			}
			clients.check(t)
			l.end(t)
		})
	}
}

// fetch requires the page over HTTP/2.
func fetch(c *http.Client, request *http.Request) error {
	response, err := c.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && (response.ProtoMajor != 2 || string(body) != page) {
		err = fmt.Errorf("%s with %d bytes", response.Proto, len(body))
	}
	return err
}

// BenchmarkHTTP shows what draining costs while nothing drains, beside a bare server and one that wraps each response.
func BenchmarkHTTP(b *testing.B) {
	for _, test := range []struct {
		name  string
		start func(testing.TB, *http.Server, net.Listener)
	}{
		{"server=bare", func(b testing.TB, server *http.Server, ln net.Listener) {
			served := running(func() error { return server.Serve(ln) })
			b.Cleanup(func() {
				server.Close()
				within(b, served)
			})
		}},
		{"server=drained", func(b testing.TB, server *http.Server, ln net.Listener) { serveHTTP(b, server, ln) }},
		{"server=wrapped-response", func(b testing.TB, server *http.Server, ln net.Listener) {
			inner := server.Handler
			server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				inner.ServeHTTP(&wrappedResponse{w, w.(responseMethods)}, r)
			})
			serveHTTP(b, server, ln)
		}},
	} {
		b.Run(test.name+"/requests=one-connection", func(b *testing.B) {
			ln := bind(b)
			test.start(b, &http.Server{Handler: hello}, ln)
			conn := dial(b, ln.Addr())
			require.NoError(b, conn.SetDeadline(time.Time{}))
			in := bufio.NewReader(conn)
			request := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(request); err != nil {
					b.Fatal(err)
				}
				for {
					text, err := in.ReadSlice('\n')
					if err != nil {
						b.Fatal(err)
					}
					if len(bytes.TrimSpace(text)) == 0 {
						break
					}
				}
				if _, err := in.Discard(len("hello")); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(test.name+"/requests=new-connections", func(b *testing.B) {
			ln := bind(b)
			test.start(b, &http.Server{Handler: hello}, ln)
			request := []byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			b.ReportAllocs()
			for b.Loop() {
				conn, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := conn.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, conn); err != nil {
					b.Fatal(err)
				}
				conn.Close()
			}
		})
	}
}

// wrappedResponse is the wrapper that httpServer does without: it could end the connection in answers already begun.
type wrappedResponse struct {
	http.ResponseWriter
	responseMethods
}

type responseMethods interface {
	io.ReaderFrom
	io.StringWriter
	http.Flusher
	FlushError() error
}

func (w *wrappedResponse) Unwrap() http.ResponseWriter { return w.ResponseWriter }
