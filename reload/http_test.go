package reload

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// testTLS is a server's configuration with a certificate of its own, for HTTP/2 and HTTP/1.
var testTLS = func() func(testing.TB) *tls.Config {
	make := sync.OnceValues(func() (*tls.Config, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return nil, err
		}
		certificate := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		return &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}, nil
	})
	return func(t testing.TB) *tls.Config {
		t.Helper()
		config, err := make()
		require.NoError(t, err)
		return config.Clone()
	}
}()

// trusting is a client's configuration for testTLS.
func trusting(protocols ...string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: protocols}
}

func bindUnix(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

// A version is a server as Serve runs it, behind a gate.
type version struct {
	drainer
	*gate
	served <-chan error
}

func startVersion(s Server, ln net.Listener) *version {
	v := &version{drainer: drainerOf(s), gate: newGate(ln)}
	v.served = start(v.drainer, v.gate)
	return v
}

// retireFor is what Serve does when a successor is ready, up to the point where all have been told.
func (v *version) retireFor(ctx context.Context) error {
	holdAll(v.gate)
	v.retire()
	return v.spoken(ctx)
}

// end drains it to the end and requires that it had nothing left to do.
func (v *version) end(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, v.retireFor(ctx))
	require.NoError(t, v.shutdown(ctx))
	require.NoError(t, within(t, v.served))
	require.Zero(t, v.drainer.close())
}

func (v *version) http() *httpServer { return v.drainer.(*httpServer) }

// serve runs a server until the end of the test.
func serveHTTP(t testing.TB, server *http.Server, ln net.Listener) *version {
	t.Helper()
	v := startVersion(server, ln)
	t.Cleanup(func() {
		v.drainer.close()
		within(t, v.served)
	})
	<-v.http().stand.up
	return v
}

// A rawClient speaks HTTP/1 on one connection, and knows what was said on it.
type rawClient struct {
	t testing.TB
	net.Conn
	in *bufio.Reader
}

func newRawClient(t testing.TB, conn net.Conn) *rawClient {
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return &rawClient{t, conn, bufio.NewReader(conn)}
}

func (c *rawClient) send(text string) {
	c.t.Helper()
	_, err := io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n"))
	require.NoError(c.t, err)
}

// answer reads a response with its body.
func (c *rawClient) answer() (response *http.Response, body string) {
	c.t.Helper()
	response, err := http.ReadResponse(c.in, nil)
	require.NoError(c.t, err)
	all, err := io.ReadAll(response.Body)
	require.NoError(c.t, err)
	return response, string(all)
}

// get gives the body, and whether the answer said that the connection ends.
func (c *rawClient) get(path string) (body string, ends bool) {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\nHost: x\n\n")
	response, body := c.answer()
	require.Equal(c.t, http.StatusOK, response.StatusCode)
	return body, response.Close
}

// gone waits until the server has closed the connection.
func (c *rawClient) gone() {
	c.t.Helper()
	rest, err := io.ReadAll(c.in)
	require.NoError(c.t, err)
	require.Empty(c.t, rest)
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })

// running starts f and gives its result.
func running(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// never requires that the channel gives nothing, as things are.
func never[T any](t testing.TB, c <-chan T, what string) {
	t.Helper()
	select {
	case <-c:
		require.FailNow(t, what)
	default:
	}
}

func TestHTTPTellsEveryConnection(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, bind(t))
	idle := newRawClient(t, dial(t, v.Addr()))
	_, ends := idle.get("/")
	require.False(t, ends)
	silent := newRawClient(t, dial(t, v.Addr()))
	half := newRawClient(t, dial(t, v.Addr()))
	half.send("GET / HTTP/1.1\nHo")
	require.Eventually(t, func() bool { return v.http().http1.Load() == 3 }, patience, time.Millisecond)

	spoken := running(func() error { return v.retireFor(t.Context()) })
	require.Eventually(t, v.http().retired.Load, patience, time.Millisecond)
	half.send("st: x\n\n")
	response, _ := half.answer()
	require.True(t, response.Close)
	half.gone()
	_, ends = silent.get("/")
	require.True(t, ends)
	silent.gone()
	never(t, spoken, "while a connection has not spoken")
	_, ends = idle.get("/")
	require.True(t, ends)
	idle.gone()
	require.NoError(t, within(t, spoken))
	v.end(t)
}

func TestHTTPIdleUntilTheCeiling(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, bind(t))
	idle := newRawClient(t, dial(t, v.Addr()))
	idle.get("/")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, v.retireFor(ctx), context.DeadlineExceeded)
	require.NoError(t, v.shutdown(t.Context()), "idle ones are closed by it")
	idle.gone()
	require.Zero(t, v.drainer.close())
}

func TestHTTPClosesWhatIsLeft(t *testing.T) {
	noLeak(t)
	begun, release := make(chan struct{}), make(chan struct{})
	v := serveHTTP(t, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(begun)
		<-release
	})}, bind(t))
	client := newRawClient(t, dial(t, v.Addr()))
	client.send("GET / HTTP/1.1\nHost: x\n\n")
	within(t, begun)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, v.shutdown(ctx), context.Canceled)
	require.Equal(t, 1, v.drainer.close())
	client.gone()
	close(release)
}

// An answer that is on its way is finished, and so is an upload.
func TestHTTPInFlight(t *testing.T) {
	noLeak(t)
	begun, release := make(chan struct{}, 2), make(chan struct{})
	v := serveHTTP(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "first ")
			_ = http.NewResponseController(w).Flush()
		}
		begun <- struct{}{}
		body, err := io.ReadAll(r.Body)
		if err == nil && r.Method == http.MethodGet {
			<-release
			_, _ = io.WriteString(w, "second")
		}
		_, _ = w.Write(body)
	})}, bind(t))
	download, upload := newRawClient(t, dial(t, v.Addr())), newRawClient(t, dial(t, v.Addr()))
	download.send("GET / HTTP/1.1\nHost: x\n\n")
	within(t, begun)
	upload.send("POST / HTTP/1.1\nHost: x\nContent-Length: 8\n\nfour")
	within(t, begun)

	spoken := running(func() error { return v.retireFor(t.Context()) })
	require.Eventually(t, v.http().retired.Load, patience, time.Millisecond)
	upload.send("more")
	response, body := upload.answer()
	require.Equal(t, "fourmore", body)
	require.False(t, response.Close, "the next request is told")
	close(release)
	_, body = download.answer()
	require.Equal(t, "first second", body)
	never(t, spoken, "while connections have not been told")
	for _, client := range []*rawClient{download, upload} {
		_, ends := client.get("/")
		require.True(t, ends)
		<-begun
		client.gone()
	}
	require.NoError(t, within(t, spoken))
	v.end(t)
}

// A client that sends several requests at once must send those again which come after an answer that ends the connection
// (RFC 9112, 9.3.2 and 9.6). Until then each is answered, and none is half done: what has no answer had no effect.
func TestHTTPPipelined(t *testing.T) {
	noLeak(t)
	var handled atomic.Int32
	v := serveHTTP(t, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { handled.Add(1) })}, bind(t))
	client := newRawClient(t, dial(t, v.Addr()))
	client.send(strings.Repeat("POST / HTTP/1.1\nHost: x\nContent-Length: 0\n\n", 50))
	answers := int32(0)
	var spoken <-chan error
	for {
		response, _ := client.answer()
		if answers++; answers == 1 {
			spoken = running(func() error { return v.retireFor(t.Context()) })
		}
		if response.Close {
			break
		}
		if answers == 50 {
			client.get("/")
			answers++
			break
		}
	}
	client.gone()
	require.NoError(t, within(t, spoken))
	require.Equal(t, answers, handled.Load())
	v.end(t)
}

func TestHTTPResume(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, bind(t))
	for range 2 {
		early := newRawClient(t, dial(t, v.Addr()))
		early.get("/")
		spoken := running(func() error { return v.retireFor(t.Context()) })
		require.Eventually(t, v.http().retired.Load, patience, time.Millisecond)
		_, ends := early.get("/")
		require.True(t, ends)
		require.NoError(t, within(t, spoken))

		waiting := newRawClient(t, dial(t, v.Addr())) // with nobody to accept it
		v.release()
		v.resume()
		for range 3 {
			_, ends = waiting.get("/")
			require.False(t, ends)
		}
		waiting.Close()
	}
	v.end(t)
}

// A connection that was accepted before the gate was held is waited for, also while net/http has not yet seen it.
func TestHTTPAcceptedButNotKnown(t *testing.T) {
	noLeak(t)
	came, release := make(chan struct{}), make(chan struct{})
	v := serveHTTP(t, &http.Server{Handler: hello, ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
		close(came)
		<-release
		return ctx
	}}, bind(t))
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	client := newRawClient(t, dial(t, v.Addr()))
	within(t, came)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, v.retireFor(ctx), context.DeadlineExceeded)
	spoken := running(func() error { return v.retireFor(t.Context()) })
	open()
	_, ends := client.get("/")
	require.True(t, ends)
	require.NoError(t, within(t, spoken))
	v.end(t)
}

// A stop tells those who ask while net/http does not yet know that it stops.
func TestHTTPTellsWhileItStops(t *testing.T) {
	noLeak(t)
	came, release := make(chan struct{}, 1), make(chan struct{})
	hold := false
	v := serveHTTP(t, &http.Server{Handler: hello, ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
		if hold {
			came <- struct{}{}
			<-release
		}
		hold = true
		return ctx
	}}, bind(t))
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	client := newRawClient(t, dial(t, v.Addr()))
	_, ends := client.get("/")
	require.False(t, ends)
	dial(t, v.Addr()).Close()
	within(t, came)
	done := running(func() error { return v.shutdown(t.Context()) })
	require.Eventually(t, v.http().retired.Load, patience, time.Millisecond)
	_, ends = client.get("/")
	require.True(t, ends)
	open()
	require.NoError(t, within(t, done))
}

// What a drain that was taken back has found is forgotten: idle connections are closed by a later stop, not waited for.
func TestHTTPStopAfterResume(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, bind(t))
	require.NoError(t, v.retireFor(t.Context()))
	v.release()
	v.resume()
	idle := newRawClient(t, dial(t, v.Addr()))
	_, ends := idle.get("/")
	require.False(t, ends)
	require.NoError(t, within(t, running(func() error { return v.shutdown(t.Context()) })))
	idle.gone()
}

// A listener whose Accept cannot be interrupted may hand out one more connection when all others have been told.
func TestHTTPStraggler(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, opaque{bind(t)})
	v.inAccept(t)
	require.NoError(t, v.retireFor(t.Context()))
	client := newRawClient(t, dial(t, v.Addr()))
	require.Eventually(t, func() bool { return v.http().http1.Load() == 1 }, patience, time.Millisecond)
	done := running(func() error { return v.shutdown(t.Context()) })
	require.NoError(t, within(t, v.http().running[0].doneErr()))
	_, ends := client.get("/")
	require.True(t, ends)
	client.gone()
	require.NoError(t, within(t, done))
}

func (r runningServe) doneErr() <-chan error {
	return running(func() error { <-r.done; return nil })
}

func TestHTTPProtocolDetails(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})}, bind(t))
	for _, retired := range []bool{false, true} {
		if retired {
			v.retire()
		}
		connection := map[bool]string{false: "keep-alive", true: "close"}[retired]

		old := newRawClient(t, dial(t, v.Addr()))
		old.send("GET / HTTP/1.0\nConnection: keep-alive\n\n")
		response, _ := old.answer()
		require.Equal(t, connection, response.Header.Get("Connection"))
		old.Close()

		expecting := newRawClient(t, dial(t, v.Addr()))
		expecting.send("POST / HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 4\n\n")
		response, _ = expecting.answer()
		require.Equal(t, http.StatusContinue, response.StatusCode)
		require.NotContains(t, response.Header, "Connection")
		expecting.send("body")
		response, body := expecting.answer()
		require.Equal(t, "body", body)
		require.Equal(t, retired, response.Close)
		expecting.Close()

		odd := newRawClient(t, dial(t, v.Addr()))
		odd.send("POST / HTTP/1.1\nHost: x\nExpect: more\nContent-Length: 4\n\n")
		response, _ = odd.answer()
		require.Equal(t, http.StatusExpectationFailed, response.StatusCode)
		require.True(t, response.Close)
		odd.Close()

		options := newRawClient(t, dial(t, v.Addr()))
		options.send("OPTIONS * HTTP/1.1\nHost: x\nContent-Length: 4\n\nbody")
		response, body = options.answer()
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Empty(t, body)
		require.Equal(t, retired, response.Close)
		options.Close()
	}
	v.end(t)
}

// An answer by which the protocol changes keeps its own Connection header; one by which it does not ends the connection the
// next time.
func TestHTTPUpgradeHeader(t *testing.T) {
	noLeak(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "spdy/3.1" {
			_, _ = io.WriteString(w, "no")
			return
		}
		w.Header().Set("Upgrade", "spdy/3.1")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, "bye")
			conn.Close()
		}
	}))
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	proxy.Transport = transport
	v := serveHTTP(t, &http.Server{Handler: proxy}, bind(t))
	v.retire()

	client := newRawClient(t, dial(t, v.Addr()))
	client.send("GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: unknown\n\n")
	response, _ := client.answer()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.False(t, response.Close)
	client.send("GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: spdy/3.1\n\n")
	response, err = http.ReadResponse(client.in, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, response.StatusCode)
	require.Equal(t, []string{"Upgrade"}, response.Header["Connection"])
	rest, err := io.ReadAll(client.in)
	require.NoError(t, err)
	require.Equal(t, "bye", string(rest))
	client.Close() // the proxy waits for both ends

	client = newRawClient(t, dial(t, v.Addr()))
	client.send("GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: h2c\n\n")
	response, _ = client.answer()
	require.True(t, response.Close)
	v.end(t)
}

// The handler gets what net/http gives it: nothing wraps the response or the connection, so sendfile, flushing, hijacking
// and whatever net/http has between its own parts stay.
func TestHTTPWrapsNothing(t *testing.T) {
	noLeak(t)
	types := make(chan string, 1)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, ok := w.(io.ReaderFrom)
			require.True(t, ok)
			_, _ = fmt.Fprintf(w, "%T", w)
		}),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			types <- fmt.Sprintf("%T", conn)
			return ctx
		},
	}
	v := serveHTTP(t, server, bind(t))
	for range 2 { // the second is retired
		client := newRawClient(t, dial(t, v.Addr()))
		body, _ := client.get("/")
		require.Equal(t, "*http.response", body)
		require.Equal(t, "*net.TCPConn", within(t, types))
		client.Close()
		v.retire()
	}
	v.end(t)
}

func TestHTTPContexts(t *testing.T) {
	noLeak(t)
	type key string
	ln := bind(t)
	var bases atomic.Int32
	server := &http.Server{
		BaseContext: func(ln net.Listener) context.Context {
			bases.Add(1)
			return context.WithValue(context.Background(), key("base"), ln.Addr().String())
		},
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, key("server"), ctx.Value(http.ServerContextKey))
		},
	}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, r.Context().Value(http.ServerContextKey) == server, r.Context().Value(key("server")) == server,
			r.Context().Value(http.LocalAddrContextKey), " ", r.Context().Value(key("base")))
	})
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	v := serveHTTP(t, server, ln)
	want := fmt.Sprintf("true true %v %v", ln.Addr(), ln.Addr())
	body, _ := newRawClient(t, dial(t, v.Addr())).get("/")
	require.Equal(t, want, body)
	require.Equal(t, int32(2), bases.Load(), "for the server that works, and for the user's own")

	transport := cleartextHTTP2()
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("http://" + v.Addr().String())
	require.NoError(t, err)
	require.Equal(t, 2, response.ProtoMajor)
	all, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, want, string(all))
}

func TestHTTPWithoutKeepAlive(t *testing.T) {
	noLeak(t)
	server := &http.Server{Handler: hello}
	server.SetKeepAlivesEnabled(false)
	v := serveHTTP(t, server, bind(t))
	_, ends := newRawClient(t, dial(t, v.Addr())).get("/")
	require.True(t, ends)
}

func TestHTTPDefaultMux(t *testing.T) {
	noLeak(t)
	pattern := "/" + strconv.FormatInt(time.Now().UnixNano(), 36)
	http.DefaultServeMux.Handle(pattern, hello)
	v := serveHTTP(t, new(http.Server), bind(t))
	body, _ := newRawClient(t, dial(t, v.Addr())).get(pattern)
	require.Equal(t, "hello", body)
}

// What the user has set stays; net/http's own Serve adds HTTP/2 to TLSNextProto, here as without us.
func TestHTTPServerStaysTheUsers(t *testing.T) {
	noLeak(t)
	states := make(chan http.ConnState, 10)
	other := func(*http.Server, *tls.Conn, http.Handler) {}
	full := func() *http.Server {
		return &http.Server{
			Addr: "x", Handler: hello, DisableGeneralOptionsHandler: true, TLSConfig: testTLS(t),
			ReadTimeout: time.Second, ReadHeaderTimeout: time.Minute, WriteTimeout: time.Hour, IdleTimeout: 2 * time.Hour,
			MaxHeaderBytes: 12345,
			TLSNextProto:   map[string]func(*http.Server, *tls.Conn, http.Handler){"nil": nil, "x": other},
			ConnState:      func(_ net.Conn, state http.ConnState) { states <- state },
			ErrorLog:       log.Default(),
			BaseContext:    func(net.Listener) context.Context { return context.Background() },
			ConnContext:    func(ctx context.Context, _ net.Conn) context.Context { return ctx },
			HTTP2:          new(http.HTTP2Config), Protocols: new(http.Protocols),
		}
	}
	server := full()
	server.Protocols.SetHTTP1(true)
	before := exported(server)
	for name, value := range before {
		require.NotZero(t, value, "%s is to be set above", name)
	}
	config := server.TLSConfig.Clone()
	v := serveHTTP(t, server, bind(t))
	require.Equal(t, 12345, v.http().own.MaxHeaderBytes)
	require.NotSame(t, server.TLSConfig, v.http().own.TLSConfig)
	require.Nil(t, v.http().own.TLSNextProto["nil"])
	newRawClient(t, dial(t, v.Addr())).get("/")
	for _, want := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle} {
		require.Equal(t, want, within(t, states))
	}
	v.drainer.close()
	within(t, v.served)
	require.Equal(t, before, exported(server))
	require.Equal(t, config.NextProtos, server.TLSConfig.NextProtos)
	require.Len(t, server.TLSNextProto, 2)
	require.Equal(t, reflect.ValueOf(other).Pointer(), reflect.ValueOf(server.TLSNextProto["x"]).Pointer())

	ours, bare := new(http.Server), new(http.Server)
	v = serveHTTP(t, ours, bind(t))
	v.drainer.close()
	require.Error(t, bare.Serve(closedListener{}))
	require.Equal(t, len(bare.TLSNextProto), len(ours.TLSNextProto))
	require.Equal(t, bare.TLSConfig == nil, ours.TLSConfig == nil)
	require.NoError(t, ours.Shutdown(t.Context()))
}

// exported gives the fields of a server, those that cannot be compared as what they point to.
func exported(server *http.Server) map[string]any {
	fields := make(map[string]any)
	v := reflect.ValueOf(server).Elem()
	for _, field := range reflect.VisibleFields(v.Type()) {
		if !field.IsExported() {
			continue
		}
		switch value := v.FieldByIndex(field.Index); value.Kind() {
		case reflect.Func, reflect.Map, reflect.Pointer:
			fields[field.Name] = value.Pointer()
		case reflect.Interface:
			fields[field.Name] = value.Elem().Pointer()
		default:
			fields[field.Name] = value.Interface()
		}
	}
	return fields
}

func TestHTTPShutdownByTheUser(t *testing.T) {
	noLeak(t)
	begun, release := make(chan struct{}), make(chan struct{})
	var called atomic.Int32
	callback := make(chan struct{}, 2)
	server := &http.Server{}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		require.NoError(t, server.Shutdown(context.Background())) // also from a handler
		close(begun)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	server.RegisterOnShutdown(func() {
		called.Add(1)
		callback <- struct{}{}
	})
	v := serveHTTP(t, server, bind(t))
	client := newRawClient(t, dial(t, v.Addr()))
	never(t, v.ended(), "before it has")
	client.send("GET / HTTP/1.1\nHost: x\n\n")
	within(t, begun)
	within(t, v.ended())
	began := make(chan struct{})
	v.http().own.RegisterOnShutdown(func() { close(began) })
	done := running(func() error { return v.shutdown(t.Context()) }) // as Serve does when it has ended
	require.NoError(t, within(t, v.served))
	within(t, began)
	close(release)
	response, body := client.answer()
	require.Equal(t, "done", body)
	require.True(t, response.Close)
	require.NoError(t, within(t, done))
	within(t, callback)
	require.Equal(t, int32(1), called.Load())
	require.NoError(t, drainerOf(server).serve(bind(t)), "after its end")
}

func TestHTTPCloseByTheUser(t *testing.T) {
	noLeak(t)
	server := new(http.Server)
	closed := make(chan struct{})
	server.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = server.Close()
		<-r.Context().Done() // its own connection too
		close(closed)
	})
	v := serveHTTP(t, server, bind(t))
	client := newRawClient(t, dial(t, v.Addr()))
	client.send("GET / HTTP/1.1\nHost: x\n\n")
	within(t, v.ended())
	require.NoError(t, v.shutdown(t.Context()))
	within(t, closed)
	client.gone()
	require.NoError(t, within(t, v.served))
}

func TestHTTPRunsCallbacks(t *testing.T) {
	noLeak(t)
	server := new(http.Server)
	called := make(chan struct{}, 2)
	server.RegisterOnShutdown(func() { called <- struct{}{} })
	v := serveHTTP(t, server, bind(t))
	v.end(t)
	within(t, called)
	require.Empty(t, called)
	never(t, v.ended(), "the user has not")
}

func TestHTTPSettingsThatFail(t *testing.T) {
	noLeak(t)
	server := &http.Server{TLSConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA},
	}}
	want := new(http.Server)
	want.TLSConfig = server.TLSConfig.Clone()
	d := drainerOf(server)
	require.EqualError(t, d.serve(bind(t)), want.Serve(closedListener{}).Error())
	require.Zero(t, d.close())
	d = drainerOf(new(http.Server))
	require.ErrorContains(t, d.serve(failing{bind(t), failed("of the listener")}), "of the listener")
	require.Zero(t, d.close())
}

// failed is for failing: one error.
func failed(text string) chan error {
	errs := make(chan error, 1)
	errs <- errors.New(text)
	return errs
}

func hijacker(t testing.TB, then func(net.Conn)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		require.NoError(t, err)
		_, err = conn.Write([]byte("!")) // net/http may have read what the client sends before
		require.NoError(t, err)
		then(conn)
	})
}

// plainConn hides the socket.
type plainConn struct{ hidden struct{ net.Conn } }

func (c plainConn) Read(p []byte) (int, error)         { return c.hidden.Read(p) }
func (c plainConn) Write(p []byte) (int, error)        { return c.hidden.Write(p) }
func (c plainConn) Close() error                       { return c.hidden.Close() }
func (c plainConn) LocalAddr() net.Addr                { return c.hidden.LocalAddr() }
func (c plainConn) RemoteAddr() net.Addr               { return c.hidden.RemoteAddr() }
func (c plainConn) SetDeadline(t time.Time) error      { return c.hidden.SetDeadline(t) }
func (c plainConn) SetReadDeadline(t time.Time) error  { return c.hidden.SetReadDeadline(t) }
func (c plainConn) SetWriteDeadline(t time.Time) error { return c.hidden.SetWriteDeadline(t) }

type wrappingListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l wrappingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(conn), nil
}

func TestHTTPHijacked(t *testing.T) {
	for name, test := range map[string]struct {
		wrap func(net.Listener) net.Listener
		tls  bool
	}{
		"tcp":  {wrap: func(ln net.Listener) net.Listener { return ln }},
		"unix": {wrap: func(net.Listener) net.Listener { return bindUnix(t) }},
		"tls":  {wrap: func(ln net.Listener) net.Listener { return tls.NewListener(ln, testTLS(t)) }, tls: true},
		"wrapped": {wrap: func(ln net.Listener) net.Listener {
			return wrappingListener{ln, func(conn net.Conn) net.Conn { return &struct{ net.Conn }{conn} }}
		}},
		"hidden": {wrap: func(ln net.Listener) net.Listener {
			return wrappingListener{ln, func(conn net.Conn) net.Conn { return &plainConn{struct{ net.Conn }{conn}} }}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			v := serveHTTP(t, &http.Server{Handler: hijacker(t, func(conn net.Conn) {
				echo(conn)
				conn.Close()
			})}, test.wrap(bind(t)))
			client := func() net.Conn {
				conn := dial(t, v.Addr())
				if test.tls {
					conn = tls.Client(conn, trusting("http/1.1"))
				}
				_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				require.NoError(t, err)
				_, err = io.ReadFull(conn, make([]byte, 1))
				require.NoError(t, err)
				exchange(t, conn)
				return conn
			}
			first, second := client(), client()
			require.NoError(t, v.retireFor(t.Context()), "it has no HTTP/1 connections")
			ctx, cancel := context.WithCancel(t.Context())
			done := running(func() error { return v.shutdown(ctx) })
			require.NoError(t, within(t, v.served))
			require.NoError(t, first.Close())
			exchange(t, second)
			never(t, done, "with a hijacked connection")
			cancel()
			require.ErrorIs(t, within(t, done), context.Canceled)
			require.Eventually(t, func() bool {
				v.http().hijacks.mu.Lock()
				defer v.http().hijacks.mu.Unlock()
				v.http().hijacks.pruneLocked()
				return len(v.http().hijacks.conns) == 1
			}, patience, time.Millisecond)
			require.Equal(t, 1, v.drainer.close())
			closed(t, second)
		})
	}
}

// A hijacked connection that outlives its handler is waited for all the same, and ends the wait by its end.
func TestHTTPHijackedBeyondItsHandler(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"tcp":      func(conn net.Conn) net.Conn { return conn },
		"tls":      func(conn net.Conn) net.Conn { return tls.Server(conn, testTLS(t)) },
		"embedded": func(conn net.Conn) net.Conn { return &struct{ net.Conn }{conn} },
		"unwrap":   func(conn net.Conn) net.Conn { return unwrappingConn{plainConn{struct{ net.Conn }{conn}}} },
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			conns := make(chan net.Conn, 1)
			handler := hijacker(t, func(conn net.Conn) { conns <- conn })
			v := serveHTTP(t, &http.Server{Handler: handler}, wrappingListener{bind(t), wrap})
			conn := dial(t, v.Addr())
			if name == "tls" {
				conn = tls.Client(conn, trusting())
			}
			newRawClient(t, conn).send("GET / HTTP/1.1\nHost: x\n\n")
			hijacked := within(t, conns)
			done := running(func() error { return v.shutdown(t.Context()) })
			require.NoError(t, within(t, v.served))
			select {
			case <-done:
				require.Fail(t, "with a hijacked connection")
			case <-time.After(10 * time.Millisecond): // it asks again and again
			}
			require.NoError(t, hijacked.Close())
			require.NoError(t, within(t, done))
			require.Zero(t, v.drainer.close())
		})
	}
}

type unwrappingConn struct{ plainConn }

func (u unwrappingConn) Unwrap() net.Conn { return u.hidden.Conn }

// Connections that were hijacked and closed are forgotten without a drain.
func TestHTTPForgetsHijacked(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hijacker(t, func(conn net.Conn) { conn.Close() })}, bind(t))
	for range 500 {
		client := newRawClient(t, dial(t, v.Addr()))
		client.send("GET / HTTP/1.1\nHost: x\n\n")
		_, err := client.in.Discard(1)
		require.NoError(t, err)
		client.gone()
		client.Close()
	}
	h := &v.http().hijacks
	h.mu.Lock()
	defer h.mu.Unlock()
	require.LessOrEqual(t, len(h.conns), 64)
}

func cleartextHTTP2() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: protocols}
}

// A frameClient speaks HTTP/2 with frames, so that it sees GOAWAY.
type frameClient struct {
	t testing.TB
	*http2.Framer
	conn net.Conn
}

func newFrameClient(t testing.TB, conn net.Conn) *frameClient {
	_, err := io.WriteString(conn, http2.ClientPreface)
	require.NoError(t, err)
	c := &frameClient{t, http2.NewFramer(conn, conn), conn}
	require.NoError(t, c.WriteSettings())
	c.until(http2.FrameSettings)
	require.NoError(t, c.WriteSettingsAck())
	return c
}

// until reads up to a frame of the kind.
func (c *frameClient) until(kind http2.FrameType) http2.Frame {
	c.t.Helper()
	for {
		frame, err := c.ReadFrame()
		require.NoError(c.t, err)
		if frame.Header().Type == kind {
			return frame
		}
	}
}

// request sends GET / on a stream, in static HPACK codes: GET, http, /, and an authority.
func (c *frameClient) request(stream uint32) {
	c.t.Helper()
	require.NoError(c.t, c.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: []byte{0x82, 0x86, 0x84, 0x41, 0x01, 'x'}, EndStream: true, EndHeaders: true,
	}))
}

func TestHTTP2GoAway(t *testing.T) {
	for name, test := range map[string]struct {
		tls   bool
		setup func(testing.TB, *http.Server)
	}{
		"tls": {tls: true, setup: func(testing.TB, *http.Server) {}},
		"cleartext": {setup: func(_ testing.TB, server *http.Server) {
			server.Protocols = new(http.Protocols)
			server.Protocols.SetUnencryptedHTTP2(true)
			server.Protocols.SetHTTP1(true)
		}},
		"configured by the user": {tls: true, setup: func(t testing.TB, server *http.Server) {
			//nolint:staticcheck // deprecated, and still in many programs
			require.NoError(t, http2.ConfigureServer(server, nil))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			begun, release := make(chan struct{}, 1), make(chan struct{})
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				require.Equal(t, 2, r.ProtoMajor)
				begun <- struct{}{}
				<-release
				_, _ = io.WriteString(w, "done")
			})}
			test.setup(t, server)
			var ln net.Listener = bind(t)
			if test.tls {
				ln = tls.NewListener(ln, testTLS(t))
			}
			v := serveHTTP(t, server, ln)
			client := func() *frameClient {
				conn := dial(t, v.Addr())
				if test.tls {
					conn = tls.Client(conn, trusting("h2"))
				}
				return newFrameClient(t, conn)
			}
			idle, busy := client(), client()
			busy.request(1)
			within(t, begun)
			require.Equal(t, int64(2), v.http().others.Load())

			require.NoError(t, v.retireFor(t.Context()), "HTTP/2 is told by Shutdown")
			done := running(func() error { return v.shutdown(t.Context()) })
			for _, c := range []*frameClient{idle, busy} {
				require.Equal(t, http2.ErrCodeNo, c.until(http2.FrameGoAway).(*http2.GoAwayFrame).ErrCode)
			}
			never(t, done, "with a request in flight")
			close(release)
			require.Equal(t, "done", string(busy.until(http2.FrameData).(*http2.DataFrame).Data()))
			idle.conn.Close() // net/http would give them one more second
			busy.conn.Close()
			require.NoError(t, within(t, done))
			require.Zero(t, v.drainer.close())
		})
	}
}

// After retire the answer itself ends an HTTP/2 connection. That includes one that has come up only then, which might miss
// Shutdown.
func TestHTTP2AnswerEndsConnection(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, tls.NewListener(bind(t), testTLS(t)))
	early := newFrameClient(t, tls.Client(dial(t, v.Addr()), trusting("h2")))
	require.Zero(t, v.http().http1.Load())
	v.retire()
	late := newFrameClient(t, tls.Client(dial(t, v.Addr()), trusting("h2")))
	require.Equal(t, int64(1), v.http().http1.Load())
	for _, c := range []*frameClient{early, late} {
		c.request(1)
		c.until(http2.FrameGoAway)
		c.conn.Close()
	}
	v.end(t)
}

func TestHTTPDescriptorsAndGoroutinesStay(t *testing.T) {
	noLeak(t)
	v := serveHTTP(t, &http.Server{Handler: hello}, bind(t))
	for range 2000 {
		client := newRawClient(t, dial(t, v.Addr()))
		client.get("/")
		client.Close()
	}
	require.Eventually(t, func() bool { return v.http().http1.Load() == 0 }, patience, time.Millisecond)
	v.end(t)
}

// closing has what http.Server has not.
type stopping struct {
	Server
	stopped chan struct{}
}

func (s stopping) Stop() { close(s.stopped) }

type wrapped struct{ *http.Server }

func TestPlainServer(t *testing.T) {
	noLeak(t)
	text := new(bytes.Buffer)
	server := wrapped{&http.Server{Handler: hello, ErrorLog: log.New(text, "", 0)}}
	v := startVersion(server, bind(t))
	newRawClient(t, dial(t, v.Addr())).get("/")
	v.end(t)
	never(t, v.ended(), "the user has not")

	server = wrapped{&http.Server{Handler: hello}}
	v = startVersion(server, bind(t))
	client := newRawClient(t, dial(t, v.Addr()))
	client.get("/")
	require.Zero(t, v.drainer.close(), "by Close")
	require.NoError(t, within(t, v.served))
	client.gone()

	server = wrapped{&http.Server{Handler: hello}}
	v = startVersion(server, bind(t))
	newRawClient(t, dial(t, v.Addr())).get("/")
	require.NoError(t, server.Close())
	within(t, v.ended())
	require.NoError(t, within(t, v.served))

	stopped := make(chan struct{})
	drainerOf(stopping{server, stopped}).close()
	within(t, stopped)

	require.ErrorContains(t, drainerOf(wrapped{new(http.Server)}).serve(failing{bind(t), failed("of the listener")}), "of the listener")
}
