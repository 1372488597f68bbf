package listener_test

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
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/berth-go/berth/listener"
)

// passing is a middleware that changes nothing and shows what is inside.
func passing(inside net.Listener) net.Listener { return seeThrough{inside} }

// variants are the ways in which a listener reaches a server.
func variants() map[string][]listener.Middleware {
	return map[string][]listener.Middleware{"bare": nil, "wrapped": {passing, nil, passing}}
}

// Connections behave as package net's own: deadlines, concurrent use, closing.
func TestConn(t *testing.T) {
	for name, middleware := range variants() {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(name+"/"+network, func(t *testing.T) {
				ln := listen(t, &listener.Config{Middleware: middleware}, network, anyAddress(t, network))
				nettest.TestConn(t, func() (client, server net.Conn, stop func(), err error) {
					client, err = net.Dial(network, ln.Addr().String())
					if err != nil {
						return nil, nil, nil, err
					}
					server, err = ln.Accept()
					if err != nil {
						client.Close()
						return nil, nil, nil, err
					}
					return client, server, func() { client.Close(); server.Close() }, nil
				})
			})
		}
	}
}

// Nothing that io.Copy and servers look for is hidden: sendfile, splice, half close, the descriptor.
func TestBareConn(t *testing.T) {
	for name, middleware := range variants() {
		t.Run(name, func(t *testing.T) {
			ln := listen(t, &listener.Config{Middleware: middleware}, "tcp", "127.0.0.1:0")
			client, server := connect(t, ln)
			tcp, ok := server.(*net.TCPConn)
			require.True(t, ok)
			require.Implements(t, (*io.ReaderFrom)(nil), server)
			require.Implements(t, (*io.WriterTo)(nil), server)
			require.NoError(t, tcp.SetLinger(0))
			require.NoError(t, tcp.SetLinger(-1))
			require.NoError(t, tcp.SetNoDelay(true))
			require.NoError(t, tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute}))
			raw, err := tcp.SyscallConn()
			require.NoError(t, err)
			require.NoError(t, raw.Control(func(uintptr) {}))

			path := filepath.Join(t.TempDir(), "file")
			content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
			require.NoError(t, os.WriteFile(path, content, 0o600))
			file, err := os.Open(path)
			require.NoError(t, err)
			defer file.Close()
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(server, file)
				if err == nil {
					err = tcp.CloseWrite() // half: the answer still comes
				}
				sent <- err
			}()
			received, err := io.ReadAll(client)
			require.NoError(t, err)
			require.NoError(t, <-sent)
			require.True(t, bytes.Equal(content, received))
			_, err = io.WriteString(client, "thanks")
			require.NoError(t, err)
			require.NoError(t, client.(*net.TCPConn).CloseWrite())
			answer, err := io.ReadAll(server)
			require.NoError(t, err)
			require.Equal(t, "thanks", string(answer))
		})
	}
}

// serve runs a server until the test ends, and gives what Serve returned.
func serve(t testing.TB, server *http.Server, ln net.Listener) (served chan error) {
	t.Helper()
	served = make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() { server.Close() })
	return served
}

func TestHTTPServer(t *testing.T) {
	for name, middleware := range variants() {
		t.Run(name, func(t *testing.T) {
			ln := listen(t, &listener.Config{Middleware: middleware}, "tcp", "127.0.0.1:0")
			arrived, proceed := make(chan struct{}), make(chan struct{})
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				addr := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
				_, _ = io.WriteString(w, addr.String())
				if r.URL.Path == "/slow" {
					close(arrived)
					<-proceed
				}
			})}
			served := serve(t, server, ln)
			transport := &http.Transport{}
			client := &http.Client{Transport: transport}
			defer transport.CloseIdleConnections()
			get := func(path string) string {
				resp, err := client.Get("http://" + ln.Addr().String() + path)
				if err != nil {
					return err.Error()
				}
				defer resp.Body.Close()
				body, _ := io.ReadAll(resp.Body)
				return string(body)
			}
			require.Equal(t, ln.Addr().String(), get("/"))

			// Shutdown closes the listener at once and waits for the request.
			slow := make(chan string, 1)
			go func() { slow <- get("/slow") }()
			<-arrived
			shut := make(chan error, 1)
			go func() { shut <- server.Shutdown(context.Background()) }()
			require.ErrorIs(t, <-served, http.ErrServerClosed)
			_, err := ln.Accept()
			require.ErrorIs(t, err, net.ErrClosed)
			close(proceed)
			require.Equal(t, ln.Addr().String(), <-slow)
			require.NoError(t, <-shut)
			require.NoError(t, ln.Close(), "once more, as a deferred Close does")
			again, err := net.Listen("tcp", ln.Addr().String())
			require.NoError(t, err)
			require.NoError(t, again.Close())
		})
	}
}

// selfSigned is a certificate for 127.0.0.1.
func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TLS as middleware, and TLS by the server itself with HTTP/2.
func TestTLS(t *testing.T) {
	certificate, pool := selfSigned(t)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })
	get := func(address string) string {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("https://" + address)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(body)
	}

	wrap := func(inside net.Listener) net.Listener { return tls.NewListener(inside, config) }
	ln := listen(t, &listener.Config{Middleware: []listener.Middleware{wrap}}, "tcp", "127.0.0.1:0")
	server := &http.Server{Handler: handler}
	served := serve(t, server, ln)
	require.Equal(t, "HTTP/1.1", get(ln.Addr().String()))
	require.NoError(t, server.Close())
	require.ErrorIs(t, <-served, http.ErrServerClosed)

	ln = listen(t, &listener.Config{}, "tcp", "127.0.0.1:0")
	server = &http.Server{Handler: handler, TLSConfig: config}
	served = make(chan error, 1)
	go func() { served <- server.ServeTLS(ln, "", "") }()
	require.Equal(t, "HTTP/2.0", get(ln.Addr().String()))
	require.NoError(t, server.Close())
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}

// stumbling fails some times before it accepts, as a process that is out of descriptors does.
type stumbling struct {
	net.Listener
	left atomic.Int64
}

func (s *stumbling) Accept() (net.Conn, error) {
	if s.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: s.Addr(), Err: os.NewSyscallError("accept", syscall.EMFILE)}
	}
	return s.Listener.Accept()
}

// net/http waits and tries again after a temporary error of Accept. It has to reach it as it is.
func TestTemporaryError(t *testing.T) {
	wrap := func(inside net.Listener) net.Listener {
		s := &stumbling{Listener: inside}
		s.left.Store(2)
		return s
	}
	ln := listen(t, &listener.Config{Middleware: []listener.Middleware{passing, wrap}}, "tcp", "127.0.0.1:0")
	logged := new(lockedBuffer)
	server := &http.Server{
		ErrorLog: log.New(logged, "", 0),
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "word") }),
	}
	served := serve(t, server, ln)
	resp, err := http.Get("http://" + ln.Addr().String())
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "word", string(body))
	require.NoError(t, server.Close())
	require.ErrorIs(t, <-served, http.ErrServerClosed)
	require.Equal(t, 2, strings.Count(logged.String(), "retrying in"), logged.String())
	http.DefaultClient.CloseIdleConnections()

	// A failed Listen is not temporary, so a loop like net/http's ends.
	_, err = listener.Listen("tcp", listenPlain(t, "tcp", "127.0.0.1:0").Addr().String())
	var temporary interface{ Temporary() bool }
	require.ErrorAs(t, err, &temporary)
	require.False(t, temporary.Temporary())
}

// fasthttp and grpc ask a listener for more than net.Listener has.
func TestWhatServersAskFor(t *testing.T) {
	ln := listen(t, &listener.Config{}, "tcp", "127.0.0.1:0")
	var asked net.Listener = ln
	for name, ok := range map[string]bool{
		"SyscallConn": implements[syscall.Conn](asked),
		"File":        implements[interface{ File() (*os.File, error) }](asked),
		"SetDeadline": implements[interface{ SetDeadline(time.Time) error }](asked),
		"Unwrap":      implements[interface{ Unwrap() net.Listener }](asked),
	} {
		require.True(t, ok, name)
	}
	// A prefork server passes the file to its children.
	file, err := ln.File()
	require.NoError(t, err)
	child, err := net.FileListener(file)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.NoError(t, ln.Close())
	exchange(t, child)
	require.NoError(t, child.Close())
}

func implements[T any](v any) bool { _, ok := v.(T); return ok }

// Two protocols on one port, as cmux does: the connection is handed on after a look at its first bytes.
func TestPeek(t *testing.T) {
	ln := listen(t, &listener.Config{}, "tcp", "127.0.0.1:0")
	client, server := connect(t, ln)
	_, err := io.WriteString(client, "GET / HTTP/1.1\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(server).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "GET / HTTP/1.1\r\n", line)
	require.NoError(t, server.SetReadDeadline(time.Unix(1, 0)))
	_, err = server.Read(make([]byte, 1))
	require.True(t, errors.Is(err, os.ErrDeadlineExceeded))
}
