package middleware_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// A witness is a file that counts what the program reads from it. Package net finds the descriptor by SyscallConn and lets
// the kernel send, past Read. So when the content has arrived and little of it was read here, sendfile has sent it.
type witness struct {
	*os.File
	read atomic.Int64
}

func (w *witness) Read(p []byte) (int, error) {
	n, err := w.File.Read(p)
	w.read.Add(int64(n))
	return n, err
}

// WriteTo is not that of the file, which would go past Read in other ways.
func (w *witness) WriteTo(to io.Writer) (int64, error) {
	if from, ok := to.(io.ReaderFrom); ok {
		return from.ReadFrom(w)
	}
	return io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{w})
}

var content = bytes.Repeat([]byte("berth gives a server its port. "), 1<<15) // 1 MB

func newWitness(t *testing.T) *witness {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	file, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	return &witness{File: file}
}

// Files are sent by the kernel, through whatever stack.
func TestSendfile(t *testing.T) {
	size := int64(len(content))
	for name, stack := range stacks() {
		for by, send := range map[string]func(conn net.Conn, w *witness) (int64, error){
			"Copy":     func(conn net.Conn, w *witness) (int64, error) { return io.Copy(conn, w) },
			"CopyN":    func(conn net.Conn, w *witness) (int64, error) { return io.CopyN(conn, w, size) },
			"ReadFrom": func(conn net.Conn, w *witness) (int64, error) { return conn.(io.ReaderFrom).ReadFrom(w) },
		} {
			if name == "other" {
				continue
			}
			t.Run(name+"/"+by, func(t *testing.T) {
				client, server := connect(t, listen(t, "tcp", stack...))
				w := newWitness(t)
				sent := make(chan error, 1)
				go func() {
					n, err := send(server, w)
					if err == nil && n != size {
						err = io.ErrShortWrite
					}
					server.Close()
					sent <- err
				}()
				got := make([]byte, size)
				_, err := io.ReadFull(client, got)
				require.NoError(t, err)
				require.NoError(t, <-sent)
				require.True(t, bytes.Equal(content, got))
				require.Zero(t, w.read.Load(), "bytes that came through the program")
			})
		}
	}
}

// The witness tells when sendfile is lost, as by a wrapper that hides ReadFrom.
func TestWitness(t *testing.T) {
	hiding := func(ln net.Listener) net.Listener { return otherListener{ln} }
	client, server := connect(t, listen(t, "tcp", hiding))
	w := newWitness(t)
	go func() { _, _ = io.Copy(server, w); server.Close() }()
	_, err := io.Copy(io.Discard, client)
	require.NoError(t, err)
	require.EqualValues(t, len(content), w.read.Load())
}

// net/http finds the way, too.
func TestSendfileHTTP(t *testing.T) {
	w := newWitness(t)
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/plain")
		http.ServeContent(rw, r, "", time.Time{}, w)
	})}
	ln := listen(t, "tcp", all()...)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + ln.Addr().String())
	require.NoError(t, err)
	got, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	response.Body.Close()
	require.True(t, bytes.Equal(content, got))
	require.LessOrEqual(t, w.read.Load(), int64(512), "net/http itself sends the first 512 bytes")
	require.NoError(t, server.Close())
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}

// splicing tells whether a goroutine is in the middle of a copy by splice: package net stays in one call for all of it.
func splicing() bool {
	stacks := make([]byte, 1<<20)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("\ninternal/poll.Splice("))
}

// A proxy moves bytes from connection to connection in the kernel.
func TestSplice(t *testing.T) {
	tracked := func() []wrapper { return []wrapper{new(middleware.Track).Wrap, (&middleware.Limit{Max: 10}).Wrap} }
	for _, test := range []struct {
		name         string
		from, to     string
		inner, outer []wrapper
		way          func(to, from net.Conn) (int64, error)
		through      bool // the bytes go through the program
	}{
		{"bare", "tcp", "tcp", nil, nil, nil, false},
		{"tcp to tcp", "tcp", "tcp", all(), all(), nil, false},
		{"tcp to bare", "tcp", "tcp", all(), nil, nil, false},
		{"bare to tcp", "tcp", "tcp", nil, all(), nil, false},
		{"limited", "tcp", "tcp", all(), all(), func(to, from net.Conn) (int64, error) { return io.CopyN(to, from, 1<<40) }, false},
		{"tcp to unix", "tcp", "unix", all(), tracked(), nil, false},
		{"tcp to bare unix", "tcp", "unix", all(), nil, nil, false},
		{"unix to tcp", "unix", "tcp", tracked(), all(), nil, false},
		{"unix to tcp, limited", "unix", "tcp", tracked(), all(), func(to, from net.Conn) (int64, error) { return io.CopyN(to, from, 1<<40) }, false},
		// What the documentation says that goes through the program.
		{"unix to bare", "unix", "tcp", tracked(), nil, nil, true},
		{"unix with deadline", "unix", "tcp", all(), all(), nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, from := connect(t, listen(t, test.from, test.inner...))
			behind, to := connect(t, listen(t, test.to, test.outer...))
			way := test.way
			if way == nil {
				way = func(to, from net.Conn) (int64, error) { return io.Copy(to, from) }
			}
			require.False(t, splicing())
			ended := make(chan int64, 1)
			go func() {
				n, _ := way(to, from)
				to.Close()
				ended <- n
			}()
			const text = "a word, and then silence"
			_, err := io.WriteString(client, text)
			require.NoError(t, err)
			got := make([]byte, len(text))
			_, err = io.ReadFull(behind, got)
			require.NoError(t, err)
			require.Equal(t, text, string(got))
			require.Equal(t, !test.through, splicing())
			require.NoError(t, client.(interface{ CloseWrite() error }).CloseWrite())
			require.EqualValues(t, len(text), <-ended)
		})
	}
}

// A limited copy takes what it is to take, and says so.
func TestLimitedReadFrom(t *testing.T) {
	client, from := connect(t, listen(t, "tcp", all()...))
	behind, to := connect(t, listen(t, "tcp", all()...))
	_, err := io.WriteString(client, "berth and more")
	require.NoError(t, err)
	limited := &io.LimitedReader{R: from, N: 5}
	n, err := to.(io.ReaderFrom).ReadFrom(limited)
	require.NoError(t, err)
	require.EqualValues(t, 5, n)
	require.Zero(t, limited.N)
	n, err = to.(io.ReaderFrom).ReadFrom(limited)
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, client.(interface{ CloseWrite() error }).CloseWrite())
	limited.N = 100
	n, err = to.(io.ReaderFrom).ReadFrom(limited)
	require.NoError(t, err)
	require.EqualValues(t, 9, n)
	require.EqualValues(t, 91, limited.N)
	require.NoError(t, to.Close())
	got, err := io.ReadAll(behind)
	require.NoError(t, err)
	require.Equal(t, "berth and more", string(got))
}
