package middleware_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// secured is TLS with a certificate in memory.
func secured(t testing.TB) *middleware.TLS {
	t.Helper()
	secure, err := middleware.NewTLS(middleware.TLSConfig{Config: &tls.Config{Certificates: []tls.Certificate{certificateFor(t, "localhost")}}})
	require.NoError(t, err)
	return secure
}

// A logged collects what is logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), message)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// files writes a certificate for the names.
func files(t testing.TB, dir string, names ...string) middleware.CertificateFiles {
	t.Helper()
	f := middleware.CertificateFiles{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	certificate, key := pemFor(t, names...)
	require.NoError(t, os.WriteFile(f.Certificate, certificate, 0o600))
	require.NoError(t, os.WriteFile(f.Key, key, 0o600))
	return f
}

// shown is the serial number of the certificate that a client sees who asks for a name.
func shown(t testing.TB, ln net.Listener, name string, sessions tls.ClientSessionCache) (serial int64, resumed bool) {
	t.Helper()
	socket := dial(t, ln)
	client := tls.Client(socket, &tls.Config{ServerName: name, InsecureSkipVerify: true, ClientSessionCache: sessions})
	require.NoError(t, client.SetDeadline(time.Now().Add(deadline)))
	require.NoError(t, client.Handshake())
	b := make([]byte, 5) // the server's greeting, and before it the ticket
	_, err := io.ReadFull(client, b)
	require.NoError(t, err)
	state := client.ConnectionState()
	reset(socket)
	return state.PeerCertificates[0].SerialNumber.Int64(), state.DidResume
}

// greet says hello to everybody.
func greet(t testing.TB, ln net.Listener) {
	from := accepting(t, ln)
	go func() {
		for a := range from {
			if a.conn != nil {
				go func() {
					_, _ = io.WriteString(a.conn, "hello")
					_, _ = io.Copy(io.Discard, a.conn)
					a.conn.Close()
				}()
			}
		}
	}()
}

func TestTLSReload(t *testing.T) {
	dir := t.TempDir()
	f := files(t, dir, "localhost")
	var log logged
	secure, err := middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{f}, Check: time.Nanosecond, Logger: log.logger()})
	require.NoError(t, err)
	ln := listen(t, "tcp", secure.Wrap)
	greet(t, ln)
	sessions := tls.NewLRUClientSessionCache(10)
	first, resumed := shown(t, ln, "localhost", sessions)
	require.False(t, resumed)
	_, resumed = shown(t, ln, "localhost", sessions)
	require.True(t, resumed)

	// One file after another: in between they do not belong together.
	certificate, key := pemFor(t, "localhost")
	require.NoError(t, os.WriteFile(f.Certificate, certificate, 0o600))
	for range 3 {
		serial, _ := shown(t, ln, "localhost", nil)
		require.Equal(t, first, serial)
	}
	require.Equal(t, 1, log.count("the old one stays"))
	require.NoError(t, os.WriteFile(f.Key, key, 0o600))
	second, _ := shown(t, ln, "localhost", nil)
	require.NotEqual(t, first, second)
	require.Equal(t, 1, log.count("a new certificate is in use"))

	// Tickets from before still hold.
	_, resumed = shown(t, ln, "localhost", sessions)
	require.True(t, resumed)

	// Half a file, garbage, nothing: said once each, and once when it is as before.
	for _, content := range [][]byte{certificate[:len(certificate)/2], []byte("garbage"), nil} {
		require.NoError(t, os.WriteFile(f.Certificate, content, 0o600))
		serial, _ := shown(t, ln, "localhost", nil)
		require.Equal(t, second, serial)
	}
	require.NoError(t, os.Remove(f.Certificate))
	serial, _ := shown(t, ln, "localhost", nil)
	require.Equal(t, second, serial)
	require.Zero(t, log.count("again the one in use"))
	require.NoError(t, os.WriteFile(f.Certificate, certificate, 0o600))
	serial, _ = shown(t, ln, "localhost", nil)
	require.Equal(t, second, serial)
	require.Equal(t, 1, log.count("again the one in use"))
	require.Equal(t, 1, log.count("a new certificate is in use"))
}

// What the times of files do not show is seen nevertheless: a file that was written twice in a moment, and one that has been
// away.
func TestTLSReloadUnseen(t *testing.T) {
	f := files(t, t.TempDir(), "localhost")
	written := time.Now()
	write := func(at time.Time) {
		certificate, key := pemFor(t, "localhost")
		for name, content := range map[string][]byte{f.Certificate: certificate, f.Key: key} {
			content = append(content, bytes.Repeat([]byte("\n"), 4096-len(content))...)
			require.NoError(t, os.WriteFile(name, content, 0o600))
			require.NoError(t, os.Chtimes(name, at, at))
		}
	}
	write(written)
	var log logged
	secure, err := middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{f}, Check: time.Nanosecond, Logger: log.logger()})
	require.NoError(t, err)
	ln := listen(t, "tcp", secure.Wrap)
	greet(t, ln)
	first, _ := shown(t, ln, "localhost", nil)
	write(written)
	second, _ := shown(t, ln, "localhost", nil)
	require.NotEqual(t, first, second)

	write(written.Add(-time.Hour))
	third, _ := shown(t, ln, "localhost", nil)
	require.NoError(t, os.Rename(f.Key, f.Key+"~"))
	for range 2 {
		again, _ := shown(t, ln, "localhost", nil)
		require.Equal(t, third, again)
	}
	require.Equal(t, 1, log.count("the old one stays"))
	require.NoError(t, os.Rename(f.Key+"~", f.Key))
	shown(t, ln, "localhost", nil)
	require.Equal(t, 1, log.count("again the one in use"))
}

// As Kubernetes and certbot do: a link to a directory is exchanged.
func TestTLSReloadByLink(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"1", "2"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		files(t, filepath.Join(dir, version), "localhost")
	}
	link := filepath.Join(dir, "now")
	require.NoError(t, os.Symlink("1", link))
	secure, err := middleware.NewTLS(middleware.TLSConfig{
		Files: []middleware.CertificateFiles{{Certificate: filepath.Join(link, "cert.pem"), Key: filepath.Join(link, "key.pem")}},
		Check: time.Nanosecond,
	})
	require.NoError(t, err)
	ln := listen(t, "tcp", secure.Wrap)
	greet(t, ln)
	first, _ := shown(t, ln, "localhost", nil)
	require.NoError(t, os.Symlink("2", link+"~"))
	require.NoError(t, os.Rename(link+"~", link))
	second, _ := shown(t, ln, "localhost", nil)
	require.NotEqual(t, first, second)
}

// Between two looks the files do not matter, whoever comes.
func TestTLSLooksNowAndThen(t *testing.T) {
	f := files(t, t.TempDir(), "localhost")
	secure, err := middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{f}, Check: time.Hour})
	require.NoError(t, err)
	ln := listen(t, "tcp", secure.Wrap)
	greet(t, ln)
	first, _ := shown(t, ln, "localhost", nil)
	files(t, filepath.Dir(f.Key), "localhost")
	again, _ := shown(t, ln, "localhost", nil)
	require.Equal(t, first, again)
}

func TestTLSByName(t *testing.T) {
	first, second := files(t, t.TempDir(), "first.test"), files(t, t.TempDir(), "second.test", "*.second.test")
	inMemory := certificateFor(t, "third.test")
	config := &tls.Config{Certificates: []tls.Certificate{inMemory}, MinVersion: tls.VersionTLS13}
	before := config.Clone()
	secure, err := middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{first, second}, Config: config})
	require.NoError(t, err)
	require.Equal(t, before, config, "it is not changed")
	ln := listen(t, "tcp", secure.Wrap)
	greet(t, ln)
	serials := map[string]int64{}
	for _, name := range []string{"first.test", "second.test", "www.second.test", "third.test", "other.test", ""} {
		serials[name], _ = shown(t, ln, name, nil)
	}
	require.NotEqual(t, serials["first.test"], serials["second.test"])
	require.Equal(t, serials["second.test"], serials["www.second.test"])
	require.Equal(t, inMemory.Leaf.SerialNumber.Int64(), serials["third.test"])
	require.Equal(t, serials["first.test"], serials["other.test"])
	require.Equal(t, serials["first.test"], serials[""])
	_, err = tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	require.ErrorContains(t, err, "protocol version", "the user's settings hold")
}

// What is wrong at the start is said then, with the names of the files.
func TestTLSStart(t *testing.T) {
	_, err := middleware.NewTLS(middleware.TLSConfig{})
	require.ErrorContains(t, err, "there is no certificate")
	dir := t.TempDir()
	f := files(t, dir, "localhost")
	other := files(t, t.TempDir(), "localhost")
	_, err = middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{f, {Certificate: f.Certificate, Key: other.Key}}})
	require.ErrorContains(t, err, f.Certificate)
	require.ErrorContains(t, err, other.Key)
	_, err = middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{{Certificate: f.Certificate, Key: filepath.Join(dir, "none")}}})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// net/http speaks HTTP/2 and HTTP/1, with the handshake here or left to it, and with every other middleware around and inside.
func TestTLSHTTP(t *testing.T) {
	for name, lazy := range map[string]bool{"ready": false, "lazy": true} {
		for around, stack := range map[string]func(wrapper) []wrapper{
			"alone":      func(m wrapper) []wrapper { return []wrapper{m} },
			"with hooks": func(m wrapper) []wrapper { return append(append(all(), m), all()...) },
			"inside":     func(m wrapper) []wrapper { return append(all(), m) },
		} {
			t.Run(name+"/"+around, func(t *testing.T) {
				secure, err := middleware.NewTLS(middleware.TLSConfig{
					Config: &tls.Config{Certificates: []tls.Certificate{certificateFor(t, "localhost")}}, Lazy: lazy,
				})
				require.NoError(t, err)
				ln := listen(t, "tcp", stack(secure.Wrap)...)
				serve(t, &http.Server{
					Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }),
					ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
				}, ln)
				client := httpClient(t, func(conn net.Conn) net.Conn { return conn })
				require.Equal(t, "HTTP/2.0", get(t, client, true, ln))
				client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
				client.CloseIdleConnections()
				old := httpClient(t, func(conn net.Conn) net.Conn { return conn })
				old.Transport.(*http.Transport).Protocols = new(http.Protocols)
				old.Transport.(*http.Transport).Protocols.SetHTTP1(true)
				require.Equal(t, "HTTP/1.1", get(t, old, true, ln))
				require.Equal(t, "Client sent an HTTP request to an HTTPS server.\n", get(t, old, false, ln))
			})
		}
	}
}

// A failed handshake is told as such, and an observer that is further in counts the connection out.
func TestTLSFailure(t *testing.T) {
	told := make(chan *middleware.Refusal, 1)
	var track middleware.Track
	ln := listen(t, "tcp", middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap, secured(t).Wrap, track.Wrap)
	accepting(t, ln)
	client := dial(t, ln)
	_, err := io.WriteString(client, "nonsense\r\n")
	require.NoError(t, err)
	why := hear(t, told)
	require.Equal(t, middleware.ReasonTLS, why.Reason)
	require.ErrorAs(t, why, new(tls.RecordHeaderError))
	require.Zero(t, track.Open())
}
