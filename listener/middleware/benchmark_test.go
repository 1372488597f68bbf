package middleware_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/netutil"

	"github.com/berth-go/berth/listener/middleware"
)

// contenders are bare net, the best-known wrapper for one of the jobs, and all middlewares that leave the bytes alone.
func contenders() []struct {
	by    string
	stack []wrapper
} {
	return []struct {
		by    string
		stack []wrapper
	}{
		{"by=bare", nil},
		{"by=netutil", []wrapper{func(ln net.Listener) net.Listener { return netutil.LimitListener(ln, 1000) }}},
		{"by=berth", all()},
	}
}

// One connection: dial, accept, close. The allocations of bare net are the client's and its own.
func BenchmarkAccept(b *testing.B) {
	for _, c := range contenders() {
		b.Run(c.by, func(b *testing.B) {
			ln := listen(b, "tcp", c.stack...)
			address := ln.Addr().String()
			b.ReportAllocs()
			for b.Loop() {
				client, err := net.Dial("tcp", address)
				if err != nil {
					b.Fatal(err)
				}
				server, err := ln.Accept()
				if err != nil {
					b.Fatal(err)
				}
				server.Close()
				reset(client)
			}
		})
	}
}

// A file of 100 MB, from the page cache to a client that throws it away, on Linux in the kernel, so that what the server
// does is what takes the time.
func BenchmarkSendfile(b *testing.B) {
	const size = 100 << 20
	path := filepath.Join(b.TempDir(), "file")
	require.NoError(b, os.WriteFile(path, make([]byte, size), 0o600))
	file, err := os.Open(path)
	require.NoError(b, err)
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(b, err)
	defer null.Close()
	for _, c := range contenders() {
		b.Run(c.by, func(b *testing.B) {
			client, server := connect(b, listen(b, "tcp", c.stack...))
			received := make(chan struct{})
			go func() {
				defer close(received)
				_, _ = io.Copy(null, client)
			}()
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := file.Seek(0, io.SeekStart); err != nil {
					b.Fatal(err)
				}
				// As net/http does it: package os has no part in it.
				if n, err := io.CopyN(server, file, size); n != size {
					b.Fatal(err)
				}
			}
			server.Close()
			<-received
		})
	}
}

// One byte there and back: what reads and writes cost.
func BenchmarkRoundTrip(b *testing.B) {
	for _, c := range contenders() {
		b.Run(c.by, func(b *testing.B) {
			client, server := connect(b, listen(b, "tcp", c.stack...))
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				_, _ = io.Copy(struct{ io.Writer }{server}, struct{ io.Reader }{server})
			}()
			p := make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := client.Read(p); err != nil {
					b.Fatal(err)
				}
			}
			reset(client)
			<-answered
		})
	}
}

// Connections that are open, with one more coming and going: nothing grows with their number.
func BenchmarkOpen(b *testing.B) {
	for _, open := range []int{0, 5000} {
		for _, c := range contenders() {
			if c.by == "by=netutil" {
				continue
			}
			b.Run(fmt.Sprintf("open=%d/%s", open, c.by), func(b *testing.B) {
				stack := c.stack
				if stack != nil {
					stack = []wrapper{new(middleware.Track).Wrap, (&middleware.Limit{Max: 1e6}).Wrap, (&middleware.LimitPerIP{Max: 1e6}).Wrap, middleware.Deadline{Idle: time.Hour}.Wrap}
				}
				ln := listen(b, "tcp", stack...)
				for range open {
					connect(b, ln)
				}
				b.ReportAllocs()
				for b.Loop() {
					client, err := net.Dial("tcp", ln.Addr().String())
					if err != nil {
						b.Fatal(err)
					}
					server, err := ln.Accept()
					if err != nil {
						b.Fatal(err)
					}
					server.Close()
					reset(client)
				}
			})
		}
	}
}
