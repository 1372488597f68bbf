package middleware_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// benchmarkConnections measures a connection from dialling to the first answer and its end.
func benchmarkConnections(b *testing.B, ln net.Listener, e examining) {
	e.echo(b, ln)
	b.ReportAllocs()
	answer := make([]byte, 4)
	for b.Loop() {
		socket, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(b, err)
		client := e.begin(socket)
		_, err = io.WriteString(client, "ping")
		require.NoError(b, err)
		_, err = io.ReadFull(client, answer)
		require.NoError(b, err)
		reset(socket)
	}
}

// Beside go-proxyproto's own listener, and net without any header.
func BenchmarkProxy(b *testing.B) {
	e := examinings()["Proxy"]
	b.Run("by=berth", func(b *testing.B) { benchmarkConnections(b, listen(b, "tcp", e.wrap(b, bounds{})), e) })
	b.Run("by=proxyproto", func(b *testing.B) {
		benchmarkConnections(b, &proxyproto.Listener{Listener: listen(b, "tcp")}, e)
	})
	b.Run("by=bare", func(b *testing.B) {
		benchmarkConnections(b, listen(b, "tcp"), examining{begin: func(conn net.Conn) net.Conn { return conn }})
	})
}

// Beside crypto/tls's own listener.
func BenchmarkTLS(b *testing.B) {
	e := examinings()["TLS"]
	b.Run("by=berth", func(b *testing.B) { benchmarkConnections(b, listen(b, "tcp", e.wrap(b, bounds{})), e) })
	b.Run("by=crypto-tls", func(b *testing.B) {
		config := &tls.Config{Certificates: []tls.Certificate{certificateFor(b, "localhost")}}
		benchmarkConnections(b, tls.NewListener(listen(b, "tcp"), config), e)
	})
}

// Beside net alone. (cmux is in the module benchmarks.)
func BenchmarkMux(b *testing.B) {
	e := examinings()["Mux"]
	b.Run("by=berth", func(b *testing.B) { benchmarkConnections(b, listen(b, "tcp", e.wrap(b, bounds{})), e) })
	b.Run("by=bare", func(b *testing.B) { benchmarkConnections(b, listen(b, "tcp"), e) })
}

// What of it is the decision.
func BenchmarkMatch(b *testing.B) {
	for name, sent := range map[string]string{
		"what=HTTP1": "GET /index.html HTTP/1.1\r\nHost: example.org\r\n\r\n", "what=HTTP2": preface, "what=TLS": "\x16\x03\x01\x01\x00\x01\x00\x00",
		"what=else": "EHLO example.org\r\n",
	} {
		b.Run(name, func(b *testing.B) {
			received := []byte(sent)
			b.ReportAllocs()
			for b.Loop() {
				for _, match := range []middleware.Matcher{middleware.MatchTLS, middleware.MatchHTTP2, middleware.MatchHTTP1} {
					if match(received) == middleware.Match {
						break
					}
				}
			}
		})
	}
}
