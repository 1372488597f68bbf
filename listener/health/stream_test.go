package health_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// A stream is that of the events, read.
type stream struct {
	t      testing.TB
	lines  *bufio.Scanner
	cancel context.CancelFunc
	hello  struct{ PID int }
}

// An event is one of a stream.
type event struct {
	raw, id                              string
	ID, Kind, Level, Text, Name, Network string
	Requested, Address, Origin, Error    string
	Port                                 int
	Holders                              []process
	Took                                 float64 `json:"took_seconds"`
}

func open(t testing.TB, url string, header ...string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	late := time.AfterFunc(patience, cancel)
	t.Cleanup(func() { late.Stop() })
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/health/events", nil)
	require.NoError(t, err)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		request.Header.Set(name, value)
	}
	response, err := client.Transport.RoundTrip(request)
	require.NoError(t, err)
	t.Cleanup(func() { response.Body.Close() })
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
	s := &stream{t: t, lines: bufio.NewScanner(response.Body), cancel: cancel}
	s.lines.Buffer(nil, 1<<20)
	name, _, data, ok := s.message()
	require.True(t, ok)
	require.Equal(t, "hello", name)
	described.validate(t, "/components/schemas/Hello", []byte(data))
	require.NoError(t, json.Unmarshal([]byte(data), &s.hello))
	return s
}

// message reads one, comments left out; it is not ok where the stream has ended.
func (s *stream) message() (name, id, data string, ok bool) {
	for s.lines.Scan() {
		field, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "id":
			id = value
		case "data":
			data = value
		case "":
			if data != "" {
				return name, id, data, true
			}
		}
	}
	return "", "", "", false
}

// next waits for an event, other than that a busy machine made a lock wait.
func (s *stream) next() event {
	s.t.Helper()
	for {
		if e := s.any(); e.Kind != "lock wait" || e.Level != "info" {
			return e
		}
	}
}

func (s *stream) any() event {
	s.t.Helper()
	name, id, data, ok := s.message()
	require.True(s.t, ok, "the stream has ended: %v", s.lines.Err())
	require.Empty(s.t, name)
	described.validate(s.t, "/components/schemas/Event", []byte(data))
	e := event{raw: data, id: id}
	require.NoError(s.t, json.Unmarshal([]byte(data), &e))
	require.Equal(s.t, id, e.ID)
	return e
}

// until waits for an event of a kind, and of a port where that is not 0.
func (s *stream) until(kind string, port int) event {
	s.t.Helper()
	for {
		if e := s.next(); e.Kind == kind && (port == 0 || port == e.Port) {
			return e
		}
	}
}

// ends wants no further event, and the end by the server.
func (s *stream) ends() {
	s.t.Helper()
	_, _, data, ok := s.message()
	require.False(s.t, ok, data)
	require.NoError(s.t, s.lines.Err())
}

// Real processes take and free ports, and crash.
func TestChangesAreTold(t *testing.T) {
	dir := t.TempDir()
	at := freePort(t)
	address := fmt.Sprint("127.0.0.1:", at)
	var log lines
	alerts := make(chan health.Event, 100)
	_, url := serve(t, health.Options{
		StateDir: dir, Ranges: only(at), Cache: time.Millisecond, Interval: 10 * time.Millisecond, Details: everything,
		Logger: slog.New(slog.NewTextHandler(&log, nil)), OnEvent: func(e health.Event) {
			if e.Kind != health.LockWait && e.Kind != health.Changed { // which a busy machine adds
				alerts <- e
			}
		},
	})
	s := open(t, url)
	require.Equal(t, os.Getpid(), s.hello.PID)
	require.Equal(t, "bound", s.next().Kind)

	h := holding(t, "tcp", address, "")
	e := s.until("taken", at)
	require.Equal(t, h.pid, e.Holders[0].PID)
	require.Equal(t, "info", e.Level)
	require.Equal(t, fmt.Sprintf("tcp port %d is in use, by health.test (pid %d)", at, h.pid), e.Text)
	h.release()
	e = s.until("freed", at)
	require.Equal(t, h.pid, e.Holders[0].PID, "who had it")

	h = holding(t, "tcp", address, dir)
	for e = s.next(); !strings.Contains(e.Text, "is healthy,"); e = s.next() { // a look may come between bind and record
		require.Contains(t, []string{"taken", "changed"}, e.Kind)
	}
	require.Equal(t, "held", e.Name)
	h.crash()
	e = s.until("holder gone", at)
	require.Equal(t, "warning", e.Level)
	require.Equal(t, fmt.Sprintf("health.test (pid %d) is gone from tcp port %d and left its record", h.pid, at), e.Text)
	h = holding(t, "udp", address, "")
	require.Equal(t, "udp", s.until("taken", at).Network)
	h.release()
	require.Equal(t, "udp", s.until("freed", at).Network)

	for _, kind := range []health.Kind{health.Bound, health.Taken, health.Freed, health.Taken} {
		require.Equal(t, kind, (<-alerts).Kind)
	}
	require.Contains(t, log.String(), "kind=taken network=tcp port="+strconv.Itoa(at))
	require.Contains(t, log.String(), `level=WARN msg="health.test`)
	require.NotContains(t, log.String(), "kind=bound", "package listener logs that")
}

// What a look sees of a process that ends depends on the moment. Whoever reads the events is told one story.
func TestLooksBetweenTheStepsOfAnEnd(t *testing.T) {
	const at = 3000
	report := func(state inspect.State, pid, records int) []inspect.Report {
		r := inspect.Report{Network: "tcp", Port: at, State: state, Records: make([]string, records)}
		if pid >= 0 {
			r.Holders = []strategy.Holder{{PID: pid, Command: "web"}}
		}
		return []inspect.Report{r}
	}
	for _, test := range []struct {
		name  string
		looks [][]inspect.Report
		told  []string
	}{
		{"another process", [][]inspect.Report{report("in use", 7, 0), report("in use", 8, 0), report("in use", 8, 0)},
			[]string{"info changed: tcp port 3000 is in use, by web (pid 8); it was in use, by web (pid 7)"}},
		{"a crash", [][]inspect.Report{report("healthy", 7, 0), report("available", -1, 1)},
			[]string{"warning holder gone: web (pid 7) is gone from tcp port 3000 and left its record"}},
		{"a crash, of which the lock goes last", [][]inspect.Report{report("healthy", 7, 0), report("locked", -1, 0), report("available", -1, 1)},
			[]string{"info changed: tcp port 3000 is locked; it was healthy, by web (pid 7)", "warning holder gone: web (pid 7) is gone from tcp port 3000 and left its record"}},
		{"a crash, of which the socket goes last", [][]inspect.Report{report("healthy", 7, 0), report("in use", 0, 1), nil, report("in use", 9, 0)},
			[]string{"info changed: tcp port 3000 is in use, by a process that cannot be seen; it was healthy, by web (pid 7)",
				"info freed: tcp port 3000 is free; web (pid 7) had it", "info taken: tcp port 3000 is in use, by web (pid 9)"}},
		{"the same, and the record stays", [][]inspect.Report{report("healthy", 7, 0), report("in use", 0, 1), report("available", -1, 1)},
			[]string{"info changed: tcp port 3000 is in use, by a process that cannot be seen; it was healthy, by web (pid 7)",
				"warning holder gone: web (pid 7) is gone from tcp port 3000 and left its record"}},
		{"a crash, of which the record was seen when it was half written", [][]inspect.Report{nil, report("in use", 7, 1), report("healthy", 7, 0), report("available", -1, 1)},
			[]string{"info taken: tcp port 3000 is in use, by web (pid 7)", "info changed: tcp port 3000 is healthy, by web (pid 7); it was in use, by web (pid 7)",
				"warning holder gone: web (pid 7) is gone from tcp port 3000 and left its record"}},
		{"a stranger on a port with the record of somebody before", [][]inspect.Report{report("available", -1, 1), report("in use", 7, 1), report("available", -1, 1)},
			[]string{"info taken: tcp port 3000 is in use, by web (pid 7)", "info freed: tcp port 3000 is free; web (pid 7) had it"}},
		{"the same, from the start", [][]inspect.Report{report("in use", 7, 1), report("available", -1, 1)},
			[]string{"info freed: tcp port 3000 is free; web (pid 7) had it"}},
		{"this process", [][]inspect.Report{nil, report("healthy", os.Getpid(), 0), nil, report("reserved", 7, 0)},
			[]string{"info taken: tcp port 3000 is reserved, by web (pid 7)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			next := make(chan []inspect.Report)
			monitor, url := serve(t, health.Options{Machine: true, Interval: time.Millisecond, Cache: time.Nanosecond})
			monitor.SetInspect(func(ctx context.Context, o inspect.Options) (inspect.Summary, error) {
				if o.Network == "udp" {
					return inspect.Summary{}, nil
				}
				select {
				case reports := <-next:
					return inspect.Summary{Ports: reports}, nil
				case <-ctx.Done():
					return inspect.Summary{}, ctx.Err()
				}
			})
			s := open(t, url)
			for _, look := range test.looks {
				next <- look
			}
			next <- test.looks[len(test.looks)-1] // when it is taken, the one before has been compared
			monitor.Upgrade("upgrading", 0, nil)
			var told []string
			for e := s.next(); e.Kind != "upgrading"; e = s.next() {
				told = append(told, e.Level+" "+e.Kind+": "+e.Text)
			}
			require.Equal(t, test.told, told)
		})
	}
}

// lines is a log that is written by others meanwhile.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// What listeners and upgrades do is told in order, also to those who come later, or again.
func TestEventsOfTheService(t *testing.T) {
	stranger := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), "")
	monitor, url := serve(t, health.Options{Interval: time.Hour, Details: everything})
	s := open(t, url)
	e := s.next()
	require.Equal(t, "bound", e.Kind)
	require.Equal(t, "bound", e.Origin)
	require.Equal(t, portOf(t, url), e.Port)
	require.Equal(t, "web", e.Name)

	asking := strategy.Func(func(f strategy.Failure) strategy.Action {
		f.Diagnose() // then who was avoided is known
		return nil
	})
	cfg := listener.Config{StateDir: t.TempDir(), OnEvent: monitor.Event, Strategy: strategy.Chain(asking, strategy.Staging(strategy.Range{First: 31500, Last: 32700}))}
	ln, err := cfg.Listen(t.Context(), "tcp", stranger.address)
	require.NoError(t, err)
	e = s.next()
	require.Equal(t, "conflict", e.Kind)
	require.Equal(t, "warning", e.Level)
	require.Equal(t, stranger.address, e.Address)
	require.Equal(t, "bind: address already in use", e.Error)
	require.Equal(t, fmt.Sprintf("tcp %s is taken by health.test (pid %d)", stranger.address, stranger.pid), e.Text)
	require.Equal(t, stranger.pid, e.Holders[0].PID)
	e = s.until("fallback", 0)
	require.Equal(t, "tcp "+stranger.address+" was taken: "+ln.Addr().String()+" is served instead", e.Text)
	require.Equal(t, stranger.pid, e.Holders[0].PID, "who was avoided")
	require.Equal(t, "fallback", e.Origin)
	require.NoError(t, ln.Close())
	require.Equal(t, "released", s.next().Kind)

	cfg.Strategy = strategy.Production()
	_, err = cfg.Listen(t.Context(), "tcp", stranger.address)
	require.Error(t, err)
	require.Equal(t, "conflict", s.next().Kind)
	e = s.next()
	require.Equal(t, "failed", e.Kind)
	require.Equal(t, "error", e.Level)
	require.Equal(t, err.Error(), e.Error)

	// A stale run of the same program, which holds the port under a record of this directory.
	stale := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), cfg.StateDir)
	cfg.Strategy = strategy.Func(func(f strategy.Failure) strategy.Action {
		if len(f.History) > 0 {
			return nil
		}
		return strategy.Reclaim{Allow: func(h strategy.Holder) bool { return h.PID == stale.pid }}
	})
	if ln, err = cfg.Listen(t.Context(), "tcp", stale.address); err == nil {
		ln.Close()
	}
	e = s.until("reclaim", 0)
	require.Equal(t, "warning", e.Level)

	monitor.Upgrade("upgrading", 0, nil)
	monitor.Upgrade("upgrade failed", 2*time.Second, fmt.Errorf("exit status 7"))
	s.until("upgrading", 0)
	e = s.next()
	require.Equal(t, "upgrade failed", e.Kind)
	require.Equal(t, "exit status 7", e.Error)
	require.EqualValues(t, 2, e.Took)

	again := open(t, url, "Last-Event-ID: "+e.id)
	monitor.Upgrade("upgrading", 0, nil)
	first := again.next()
	require.Equal(t, "upgrading", first.Kind, "not what it has seen")
	require.Equal(t, first.id, s.next().id)
	for _, id := range []string{"other-1", "-", "", "x", first.id + "0", strings.Replace(first.id, "-", "-9", 1)} {
		require.Equal(t, "bound", open(t, url, "Last-Event-ID: "+id).next().Kind, id)
	}
}

// A stream ends when the service drains or stops, after the last word, and its connection with it.
func TestStreamsEndWithTheService(t *testing.T) {
	monitor, url := serve(t, health.Options{Interval: time.Hour})
	s := open(t, url)
	s.until("bound", 0)
	monitor.Upgrade("draining", 0, nil)
	require.Equal(t, "draining", s.next().Kind)
	s.ends()
	a := get(t, url+"/api/health/events")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.Equal(t, "2", a.Header.Get("Retry-After"))
	require.Contains(t, into[failure](t, a).Error, "the process is draining: ask again")
	monitor.Upgrade("resumed", 0, nil)
	s = open(t, url)
	s.until("resumed", 0)
	require.NoError(t, monitor.Close())
	s.ends()
	require.Equal(t, http.StatusServiceUnavailable, get(t, url+"/api/health/events").StatusCode)
	monitor.Upgrade("resumed", 0, nil)
	require.Equal(t, http.StatusServiceUnavailable, get(t, url+"/api/health/events").StatusCode)
}

// Shutdown does not wait for streams for ever.
func TestShutdown(t *testing.T) {
	monitor := health.Handler(health.Options{Machine: true, StateDir: t.TempDir()})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: monitor}
	server.RegisterOnShutdown(func() { monitor.Close() })
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	s := open(t, "http://"+ln.Addr().String())
	require.NoError(t, server.Shutdown(t.Context()))
	s.ends()
	require.ErrorIs(t, <-done, http.ErrServerClosed)
}

// The timeouts of a server are for requests and answers, not for streams.
func TestServerTimeouts(t *testing.T) {
	const timeout = 100 * time.Millisecond
	monitor, url := serve(t, health.Options{Interval: time.Hour}, func(_ *listener.Config, s *http.Server) {
		s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = timeout, timeout, timeout
	})
	monitor.SetTimes(timeout/10, patience)
	s := open(t, url)
	s.until("bound", 0)
	beats := 0
	for begin := time.Now(); beats < 5 || time.Since(begin) < 3*timeout; {
		require.True(t, s.lines.Scan(), s.lines.Err())
		if s.lines.Text() == ":" {
			beats++
		}
	}
	monitor.Upgrade("upgrading", 0, nil)
	require.Equal(t, "upgrading", s.next().Kind)
}

func TestStreamsAreBounded(t *testing.T) {
	monitor, url := serve(t, health.Options{Interval: time.Hour, Streams: 2})
	first, second := open(t, url), open(t, url)
	a := get(t, url+"/api/health/events")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.NotEmpty(t, a.Header.Get("Retry-After"))
	require.Contains(t, into[failure](t, a).Error, "2 streams are open")
	require.Equal(t, http.StatusOK, get(t, url+"/api/health/ports").StatusCode, "the rest goes on")
	first.cancel()
	require.Eventually(t, func() bool { // the server has to notice
		return get(t, url+"/api/health/openapi.json").StatusCode == 200 && tryOpen(t, url)
	}, patience, time.Millisecond)
	monitor.Upgrade("upgrading", 0, nil)
	second.until("upgrading", 0)
}

// tryOpen tells whether there is room for a stream, which it ends.
func tryOpen(t *testing.T, url string) bool {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/health/events", nil)
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// dialStream opens a stream that nobody reads, beyond the first bytes of it.
func dialStream(t testing.TB, url string, buffer int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
	if buffer > 0 {
		require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(buffer))
	}
	_, err = io.WriteString(conn, "GET /api/health/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	first := make([]byte, len("HTTP/1.1 200 OK"))
	_, err = io.ReadFull(conn, first)
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 200 OK", string(first))
	return conn
}

// A client that does not read is dropped, and neither the service nor another client waits for it.
func TestSlowClientIsDropped(t *testing.T) {
	gone := make(chan struct{})
	monitor, url := serve(t, health.Options{Interval: time.Hour}, func(_ *listener.Config, s *http.Server) {
		handler := s.Handler
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			slow := r.UserAgent() == "" // it is a bare connection
			handler.ServeHTTP(w, r)
			if slow {
				close(gone)
			}
		})
		s.ConnState = func(conn net.Conn, state http.ConnState) {
			if tcp, ok := conn.(*net.TCPConn); ok && state == http.StateNew {
				_ = tcp.SetWriteBuffer(4096)
			}
		}
	})
	monitor.SetTimes(time.Hour, 50*time.Millisecond)
	dialStream(t, url, 4096)
	s := open(t, url)
	s.until("bound", 0)
	told := 0
	for over := false; !over; {
		select {
		case <-gone:
			over = true
		default:
			monitor.Upgrade("upgrading", 0, nil)
			s.until("upgrading", 0) // the other one keeps up
			told++
			require.Less(t, told, 100_000)
		}
	}
	require.Greater(t, told, 1)
}

// Who has fallen behind what is remembered is let go, and asks again.
func TestStreamThatIsOvertaken(t *testing.T) {
	monitor := health.Handler(health.Options{Machine: true, StateDir: t.TempDir(), Interval: time.Hour})
	defer monitor.Close()
	for range 3 * health.MostEvents {
		monitor.Upgrade("upgrading", 0, nil)
	}
	w := &reader{header: http.Header{}, wrote: make(chan string), next: make(chan struct{})}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/api/health/events", nil)
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		monitor.ServeHTTP(w, request)
	}()
	require.Contains(t, w.read(), "event: hello")
	for range health.MostEvents { // a fresh one begins with what there is
		require.Contains(t, w.read(), `"kind":"upgrading"`)
	}
	monitor.Upgrade("upgrade failed", 0, nil)
	require.Contains(t, <-w.wrote, `"kind":"upgrade failed"`)
	// While it writes this one, more happens than is remembered.
	for range health.MostEvents + 1 {
		monitor.Upgrade("upgrading", 0, nil)
	}
	w.next <- struct{}{}
	select {
	case <-ended:
	case <-w.wrote:
		require.Fail(t, "it goes on")
	}
}

// A reader is a client that reads when the test does.
type reader struct {
	header http.Header
	wrote  chan string
	next   chan struct{}
}

// read waits for a write, and lets the writer go on.
func (r *reader) read() string {
	text := <-r.wrote
	r.next <- struct{}{}
	return text
}

func (r *reader) Header() http.Header { return r.header }
func (r *reader) WriteHeader(int)     {}
func (r *reader) Flush()              {}
func (r *reader) Write(text []byte) (int, error) {
	r.wrote <- string(text)
	<-r.next
	return len(text), nil
}

// A thousand streams hear of an event, and take no more memory than is said.
func TestThousandStreams(t *testing.T) {
	const streams = 1000
	monitor, url := serve(t, health.Options{Interval: time.Hour})
	before := memory()
	conns := make([]net.Conn, streams)
	for i := range conns {
		conns[i] = dialStream(t, url, 0)
	}
	require.Equal(t, http.StatusServiceUnavailable, get(t, url+"/api/health/events").StatusCode)
	monitor.Upgrade("upgrading", 0, nil)
	buffer := make([]byte, 64<<10)
	for _, conn := range conns {
		for text := ""; !strings.Contains(text, `"kind":"upgrading"`); {
			n, err := conn.Read(buffer)
			require.NoError(t, err)
			text += string(buffer[:n])
		}
	}
	each := (memory() - before) / streams
	t.Logf("%d bytes a stream, both ends of its connection in this process", each)
	require.Less(t, each, int64(40<<10))
}

// memory is what this process has in use.
func memory() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapInuse + stats.StackInuse)
}

// Where nobody looks on, nobody looks.
func TestNobodyLooksWhileNobodyAsks(t *testing.T) {
	var looks atomic.Int32
	looked := make(chan struct{}, 1000)
	monitor, url := serve(t, health.Options{Interval: time.Millisecond, Cache: time.Nanosecond})
	monitor.SetInspect(func(context.Context, inspect.Options) (inspect.Summary, error) {
		looks.Add(1)
		select {
		case looked <- struct{}{}:
		default:
		}
		return inspect.Summary{}, nil
	})
	first := open(t, url)
	second := open(t, url)
	for range 10 {
		<-looked
	}
	first.cancel()
	second.cancel()
	require.Eventually(t, func() bool { return monitor.Watches() == 0 }, patience, time.Millisecond)
	monitor.Joined()
	count := looks.Load()
	for range 10 {
		require.Equal(t, http.StatusOK, get(t, url+"/livez").StatusCode)
	}
	require.Equal(t, count, looks.Load())
	open(t, url)
	for looks.Load() < count+4 { // with a stream it begins again
		<-looked
	}
}
