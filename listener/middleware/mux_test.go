package middleware_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func TestMatchers(t *testing.T) {
	hello := "\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03"
	for _, test := range []struct {
		sent string
		want string // the first that matches, in this order
	}{
		{hello, "tls"}, {"\x16\x03\x03\x00\x80\x01", "tls"}, {"\x16\x03\x01\x01\x00\x02", ""}, {"\x16\x02\x01\x01\x00\x01", ""}, {"\x17\x03\x03\x00\x10\x01", ""},
		{preface, "http2"}, {"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", ""},
		{"GET / HTTP/1.1\r\n", "http1"}, {"GET /", "http1"}, {"PROPFIND /x HTTP/1.1\r\n", "http1"}, {"purge /x", "http1"}, {"M-SEARCH * HTTP/1.1\r\n", "http1"},
		{"OPTIONS * HTTP/1.1\r\n", "http1"}, {"CONNECT example.org:443 HTTP/1.0\r\n", "http1"}, {"GET http://example.org/ HTTP/1.1\r\n", "http1"},
		{"OPTIONS * RTSP/1.0\r\n", ""}, {"DESCRIBE rtsp://example.org/ RTSP/1.0\r\n", ""}, {"INVITE sip:a@example.org SIP/2.0\r\n", ""},
		{"EHLO example.org\r\n", ""}, {"USER me\r\n", ""}, {"GET\r\n", ""}, {" GET / HTTP/1.1", ""}, {"GET  / HTTP/1.1\r\n", ""}, {"G\xc3\x84T / HTTP/1.1", ""},
		{strings.Repeat("X", 64) + " /", "http1"}, {strings.Repeat("X", 65) + " /", ""},
		{"SSH-2.0-OpenSSH_9.2\r\n", "ssh"}, {"SSH/", ""}, {"\x00\x01\x02", ""},
	} {
		matchers := []struct {
			name  string
			match middleware.Matcher
		}{{"tls", middleware.MatchTLS}, {"http2", middleware.MatchHTTP2}, {"http1", middleware.MatchHTTP1}, {"ssh", middleware.MatchPrefix("SSH-2.0-", "SSH-1.99-")}}
		got := ""
		for _, m := range matchers {
			if m.match([]byte(test.sent)) == middleware.Match {
				got = m.name
				break
			}
		}
		require.Equal(t, test.want, got, "%q", test.sent)
	}
}

// modelHTTP1 is MatchHTTP1 told otherwise: what a request line is, and whether what is there can become one.
func modelHTTP1(sent string) middleware.Verdict {
	token := "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	method := len(sent) - len(strings.TrimLeft(sent, token))
	switch {
	case method > 64:
		return middleware.NoMatch
	case method == len(sent):
		return middleware.NeedMore
	case method == 0 || sent[method] != ' ':
		return middleware.NoMatch
	}
	target := sent[method+1:]
	switch {
	case target == "":
		return middleware.NeedMore
	case strings.HasPrefix(target, "/"):
		return middleware.Match
	}
	end := strings.IndexAny(target, " \n")
	switch {
	case end < 0:
		return middleware.NeedMore
	case end == 0 || target[end] == '\n':
		return middleware.NoMatch
	}
	version := target[end+1:]
	switch {
	case strings.HasPrefix(version, "HTTP/1."):
		return middleware.Match
	case strings.HasPrefix("HTTP/1.", version):
		return middleware.NeedMore
	}
	return middleware.NoMatch
}

// A verdict never changes with what follows, and the fast matcher agrees with the model at every length.
func FuzzMatchers(f *testing.F) {
	for _, seed := range []string{preface, "GET / HTTP/1.1\r\n", "CONNECT a:1 HTTP/1.0\r\n", "EHLO a\r\n", "\x16\x03\x01\x01\x00\x01", "SSH-2.0-x", "X * H\n", "A \n HTTP/1.0"} {
		f.Add(seed)
	}
	matchers := map[string]middleware.Matcher{
		"TLS": middleware.MatchTLS, "HTTP2": middleware.MatchHTTP2, "HTTP1": middleware.MatchHTTP1, "prefix": middleware.MatchPrefix("SSH-2.0-", "SSH-1.99-", "S"),
	}
	f.Fuzz(func(t *testing.T, sent string) {
		for name, match := range matchers {
			decided := middleware.NeedMore
			for n := 1; n <= len(sent); n++ {
				verdict := match([]byte(sent[:n]))
				if decided != middleware.NeedMore {
					require.Equal(t, decided, verdict, "%s: %q", name, sent[:n])
				}
				decided = verdict
				if name == "HTTP1" {
					require.Equal(t, modelHTTP1(sent[:n]), verdict, "%q", sent[:n])
				}
			}
		}
		if match := middleware.MatchPrefix("SSH-2.0-", "S"); len(sent) > 0 {
			require.Equal(t, sent[0] == 'S', match([]byte(sent)) == middleware.Match)
		}
	})
}

// A division is a Mux with its listeners, whose connections come by their names.
type division struct {
	*middleware.Mux
	members map[string]net.Listener
	main    net.Listener
	got     chan arrived
}

type arrived struct {
	at   string
	conn net.Conn
}

// next waits for the next connection.
func (d *division) next(t testing.TB) arrived {
	t.Helper()
	select {
	case a := <-d.got:
		return a
	case <-time.After(deadline):
		require.FailNow(t, "nothing is accepted")
		return arrived{}
	}
}

func divide(t testing.TB, mux *middleware.Mux, silent bool, inner ...wrapper) *division {
	t.Helper()
	d := &division{Mux: mux, got: make(chan arrived), members: map[string]net.Listener{}}
	d.members["tls"] = mux.Match(middleware.MatchTLS)
	d.members["http2"] = mux.Match(middleware.MatchHTTP2)
	d.members["http1"] = mux.Match(middleware.MatchHTTP1)
	d.members["prefix"] = mux.Match(middleware.MatchPrefix("SSH-"))
	if silent {
		d.members["silent"] = mux.Silent()
	}
	d.main = listen(t, "tcp", append([]wrapper{mux.Wrap}, inner...)...)
	return d
}

// run accepts everywhere.
func (d *division) run(t testing.TB) {
	for name, ln := range d.members {
		d.accept(t, name, ln)
	}
	d.accept(t, "else", d.main)
}

func (d *division) accept(t testing.TB, name string, ln net.Listener) {
	from := accepting(t, ln)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for a := range from {
			if a.err != nil {
				continue
			}
			select {
			case d.got <- arrived{name, a.conn}:
			case <-done:
				a.conn.Close()
			}
		}
	}()
}

func TestMux(t *testing.T) {
	for kind, inner := range map[string][]wrapper{
		"socket": nil, "hooks": all(),
		"opaque": {func(ln net.Listener) net.Listener { return otherListener{ln} }},
	} {
		t.Run(kind, func(t *testing.T) {
			d := divide(t, &middleware.Mux{MaxBytes: 100}, false, inner...)
			d.run(t)
			for _, test := range []struct {
				sent, at string
				end      bool
			}{
				{"\x16\x03\x01\x01\x00\x01\x00", "tls", false},
				{preface + "more", "http2", false},
				{"GET / HTTP/1.1\r\n\r\n", "http1", false},
				{"SSH-2.0-x\r\n", "prefix", false},
				{"EHLO there\r\n", "else", false},
				{"SS", "else", true},                               // undecided, and nothing more comes
				{"GET " + strings.Repeat("x", 200), "else", false}, // undecided at MaxBytes
				{"", "else", true},
			} {
				client := dial(t, d.main).(*net.TCPConn)
				_, err := io.WriteString(client, test.sent)
				require.NoError(t, err)
				if test.end {
					require.NoError(t, client.CloseWrite())
				}
				got := d.next(t)
				require.Equal(t, test.at, got.at, "%q", test.sent)
				if kind == "socket" {
					require.IsType(t, (*net.TCPConn)(nil), got.conn)
				}
				b := make([]byte, len(test.sent))
				_, err = io.ReadFull(got.conn, b)
				require.NoError(t, err)
				require.Equal(t, test.sent, string(b))
				got.conn.Close()
			}
		})
	}
}

// Byte by byte, and the order of the listeners counts: what an earlier one may still want no later one gets.
func TestMuxOrder(t *testing.T) {
	mux := &middleware.Mux{}
	long, short := mux.Match(middleware.MatchPrefix("abcd")), mux.Match(middleware.MatchPrefix("ab"))
	d := &division{main: listen(t, "tcp", mux.Wrap), members: map[string]net.Listener{"long": long, "short": short}, got: make(chan arrived)}
	d.run(t)
	for sent, at := range map[string]string{"abcd": "long", "abx": "short", "x": "else"} {
		client := dial(t, d.main)
		for _, b := range []byte(sent) {
			_, err := client.Write([]byte{b})
			require.NoError(t, err)
		}
		got := d.next(t)
		require.Equal(t, at, got.at)
		b := make([]byte, len(sent))
		_, err := io.ReadFull(got.conn, b)
		require.NoError(t, err)
		require.Equal(t, sent, string(b))
		got.conn.Close()
	}
}

// Where the server speaks first.
func TestMuxSilent(t *testing.T) {
	d := divide(t, &middleware.Mux{Timeout: 50 * time.Millisecond}, true)
	d.run(t)
	client := dial(t, d.main)
	got := d.next(t)
	require.Equal(t, "silent", got.at)
	defer got.conn.Close()
	_, err := io.WriteString(got.conn, "220 hello")
	require.NoError(t, err)
	b := make([]byte, 9)
	_, err = io.ReadFull(client, b)
	require.NoError(t, err)
	go io.WriteString(client, "EHLO")
	_, err = io.ReadFull(got.conn, b[:4]) // no deadline is left
	require.NoError(t, err)

	half := dial(t, d.main) // has said something
	_, err = io.WriteString(half, "SS")
	require.NoError(t, err)
	refused(t, half)
}

// One that is closed is closed alone; its clients are told so. The first one closes all.
func TestMuxClose(t *testing.T) {
	told := make(chan *middleware.Refusal, 10)
	d := divide(t, &middleware.Mux{}, false, middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap)
	require.NoError(t, d.members["prefix"].Close())
	_, err := d.members["prefix"].Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	d.accept(t, "http1", d.members["http1"])
	client := dial(t, d.main)
	_, err = io.WriteString(client, "SSH-2.0-x\r\n")
	require.NoError(t, err)
	refused(t, client)
	require.Equal(t, middleware.ReasonMux, hear(t, told).Reason)
	client = dial(t, d.main)
	_, err = io.WriteString(client, "GET /")
	require.NoError(t, err)
	d.next(t).conn.Close()

	waits := make(chan error)
	go func() { _, err := d.members["tls"].Accept(); waits <- err }()
	require.NoError(t, d.main.Close())
	require.ErrorIs(t, <-waits, net.ErrClosed)
	for _, ln := range d.members {
		_, err := ln.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		require.NoError(t, ln.Close())
	}
}

// A listener that nobody accepts from keeps so many and no more, and the others go on.
func TestMuxNobodyAccepts(t *testing.T) {
	told := make(chan *middleware.Refusal, 10)
	d := divide(t, &middleware.Mux{Queue: 2}, false, middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap)
	d.accept(t, "http1", d.members["http1"])
	for range 3 {
		_, err := io.WriteString(dial(t, d.main), "SSH-2.0-x\r\n")
		require.NoError(t, err)
	}
	require.Equal(t, middleware.ReasonMux, hear(t, told).Reason)
	_, err := io.WriteString(dial(t, d.main), "GET /")
	require.NoError(t, err)
	require.Equal(t, "http1", d.next(t).at)
	d.accept(t, "prefix", d.members["prefix"])
	for range 2 {
		require.Equal(t, "prefix", d.next(t).at)
	}
}

// Accepted from before there is anything to accept from, and asked for more than once.
func TestMuxBeforeWrap(t *testing.T) {
	mux := &middleware.Mux{Refuse: true}
	member := mux.Match(middleware.MatchHTTP1)
	require.Empty(t, member.Addr().(*net.TCPAddr).Port)
	from := accepting(t, member)
	main := listen(t, "tcp", mux.Wrap)
	require.Equal(t, main.Addr(), member.Addr())
	_, err := io.WriteString(dial(t, main), "GET /")
	require.NoError(t, err)
	next(t, from)
	require.Panics(t, func() { mux.Wrap(main) })
}

// One port for HTTP/1, HTTP/2 without TLS, as grpc uses it, and both with TLS.
func TestMuxHTTP(t *testing.T) {
	mux := &middleware.Mux{Refuse: true}
	secure, h2, h1 := mux.Match(middleware.MatchTLS), mux.Match(middleware.MatchHTTP2), mux.Match(middleware.MatchHTTP1)
	main := listen(t, "tcp", append(append(all(), mux.Wrap), all()...)...)
	var servers sync.WaitGroup
	t.Cleanup(servers.Wait)
	t.Cleanup(func() { main.Close() })
	for at, ln := range map[string]net.Listener{"tls": secured(t).Wrap(secure), "h2c": h2, "h1": h1} {
		server := &http.Server{
			Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, at+" "+r.Proto) }),
			Protocols: new(http.Protocols),
		}
		server.Protocols.SetHTTP1(at != "h2c")
		server.Protocols.SetHTTP2(true)
		server.Protocols.SetUnencryptedHTTP2(at == "h2c")
		servers.Go(func() { _ = server.Serve(ln) })
		t.Cleanup(func() { server.Close() })
	}
	for want, test := range map[string]struct {
		secure bool
		set    func(*http.Protocols)
	}{
		"h1 HTTP/1.1":  {false, func(p *http.Protocols) { p.SetHTTP1(true) }},
		"h2c HTTP/2.0": {false, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
		"tls HTTP/2.0": {true, func(p *http.Protocols) { p.SetHTTP2(true) }},
		"tls HTTP/1.1": {true, func(p *http.Protocols) { p.SetHTTP1(true) }},
	} {
		client := httpClient(t, func(conn net.Conn) net.Conn { return conn })
		protocols := new(http.Protocols)
		test.set(protocols)
		client.Transport.(*http.Transport).Protocols = protocols
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
		require.Equal(t, want, get(t, client, test.secure, main))
		client.CloseIdleConnections()
	}
}

// A matcher that panics refuses the connection where somebody recovers, and nothing else happens.
func TestMuxPanic(t *testing.T) {
	told := make(chan *middleware.Refusal, 1)
	mux := &middleware.Mux{}
	mux.Match(func(received []byte) middleware.Verdict {
		if received[0] == 'p' {
			panic("by a matcher")
		}
		return middleware.NoMatch
	})
	hook := middleware.Hook{Refused: func(_ net.Conn, why *middleware.Refusal) { told <- why }}.Wrap
	ln := listen(t, "tcp", hook, middleware.Recover{Logger: discard}.Wrap, mux.Wrap)
	from := accepting(t, ln)
	bad := dial(t, ln)
	_, err := io.WriteString(bad, "p")
	require.NoError(t, err)
	require.Equal(t, middleware.ReasonPanic, hear(t, told).Reason)
	refused(t, bad)
	_, err = io.WriteString(dial(t, ln), "x")
	require.NoError(t, err)
	next(t, from)
}
