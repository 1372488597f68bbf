package reload

import (
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

// An httpServer drains an http.Server. The connections are served by another one, with the same settings and wrapped
// hooks, so the user's own stays as it is. His runs beside it with a listener on which nothing ever comes, so that his
// Shutdown and Close are noticed.
//
// http.Server.Shutdown alone loses requests: it closes idle connections at once, and drops a request that is read after it
// began. So it is called last, when every HTTP/1 connection has been told that it ends and has ended. HTTP/2 has a frame
// for that (GOAWAY), and loses nothing in Shutdown.
//
// A request that is in flight when the successor is ready gets its answer as ever, and the next on its connection is told.
// Its header may be written already; and where it is not, only another ResponseWriter around net/http's could still change
// it. Such a wrapper would cost every request an allocation, and hide the unexported method by which
// http.MaxBytesReader has the connection closed.
type httpServer struct {
	user *http.Server // as it came
	own  *http.Server // serves

	retired atomic.Bool
	http1   atomic.Int64 // connections that speak HTTP/1, or have not said yet what they speak
	others  atomic.Int64 // connections that speak HTTP/2, or what else the user has put into TLSNextProto
	hijacks hijacks
	empty   atomic.Bool // Shutdown of own has ended all; their goroutines may still be about to count them out

	stand  *standIn
	broken error // of the settings; what Serve would fail with

	mu       sync.Mutex
	stopping bool           // shutdown or close was called
	told     bool           // spoken has seen the last HTTP/1 connection go
	running  []runningServe // listeners
	quiet    chan struct{}  // not nil: somebody waits for http1 to be 0
}

// A runningServe is one call of serve.
type runningServe struct {
	ln   net.Listener
	done chan struct{} // closed when it has returned
}

func newHTTPServer(user *http.Server) *httpServer {
	s := &httpServer{user: user, own: new(http.Server)}
	s.stand = newStandIn(user)

	from, to := reflect.ValueOf(user).Elem(), reflect.ValueOf(s.own).Elem()
	for _, field := range reflect.VisibleFields(from.Type()) {
		if field.IsExported() {
			to.FieldByIndex(field.Index).Set(from.FieldByIndex(field.Index))
		}
	}
	// The one setting that has no exported field: SetKeepAlivesEnabled.
	if off := from.FieldByName("disableKeepAlives"); off.IsValid() && !off.IsZero() {
		s.own.SetKeepAlivesEnabled(false)
	}
	s.own.TLSConfig = user.TLSConfig.Clone()
	s.own.TLSNextProto = maps.Clone(user.TLSNextProto)

	// A listener that is closed already: Serve adds HTTP/2 to TLSNextProto, and returns.
	s.own.BaseContext = nil
	if err := s.own.Serve(closedListener{}); !endedByShutdown(err) {
		s.broken = err
	}
	for name, serve := range s.own.TLSNextProto {
		if serve != nil { // net/http takes nil for not there
			s.own.TLSNextProto[name] = s.countOther(serve)
		}
	}

	s.own.Handler = s
	s.own.DisableGeneralOptionsHandler = true // ServeHTTP answers OPTIONS *
	s.own.ConnState = s.connState
	s.own.ConnContext = s.connContext
	s.own.BaseContext = user.BaseContext
	return s
}

// ServeHTTP is the handler of all requests. What the user's server has is looked up each time, as net/http does.
func (s *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.retired.Load() {
		// An answer that switches protocols has a Connection header of its own, to which httputil.ReverseProxy adds. Where
		// switching is refused, the next request is told. Many send "h2c" always, and net/http never switches to it.
		if upgrade := r.Header.Get("Upgrade"); upgrade == "" || strings.EqualFold(upgrade, "h2c") {
			w.Header().Set("Connection", "close") // HTTP/2: GOAWAY
		}
	}
	if r.ProtoMajor == 1 {
		defer s.hijacks.returned(r)
	}
	switch handler := s.user.Handler; {
	case r.RequestURI == "*" && r.Method == http.MethodOptions && !s.user.DisableGeneralOptionsHandler:
		answerOptions(w, r)
	case handler == nil:
		http.DefaultServeMux.ServeHTTP(w, r)
	default:
		handler.ServeHTTP(w, r)
	}
}

// answerOptions is what net/http answers to OPTIONS *.
func answerOptions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "0")
	if r.ContentLength != 0 {
		// As much as net/http reads, lest the client finds the connection closed before it has read the answer.
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	}
}

func (s *httpServer) connState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.http1.Add(1)
	case http.StateHijacked:
		s.hijacks.add(conn)
		s.leave()
	case http.StateClosed:
		s.leave()
	}
	if hook := s.user.ConnState; hook != nil {
		hook(conn, state)
	}
}

// leave says that an HTTP/1 connection is none any more.
func (s *httpServer) leave() {
	if s.http1.Add(-1) > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet != nil && s.http1.Load() == 0 {
		close(s.quiet)
		s.quiet = nil
	}
}

// countOther wraps what serves the connections of a protocol in TLSNextProto: HTTP/2, also the unencrypted one.
func (s *httpServer) countOther(serve func(*http.Server, *tls.Conn, http.Handler)) func(*http.Server, *tls.Conn, http.Handler) {
	return func(_ *http.Server, conn *tls.Conn, handler http.Handler) {
		if s.retired.Load() {
			// It may come too late to hear of Shutdown, so it counts until its first answer has ended it.
			serve(s.user, conn, handler)
			return
		}
		s.others.Add(1)
		s.leave()
		defer func() { // net/http reports it closed after this
			s.http1.Add(1)
			s.others.Add(-1)
		}()
		serve(s.user, conn, handler) // which the handler finds under http.ServerContextKey
	}
}

func (s *httpServer) connContext(ctx context.Context, conn net.Conn) context.Context {
	ctx = &connContext{ctx, s.user, conn}
	if hook := s.user.ConnContext; hook != nil {
		ctx = hook(ctx, conn)
	}
	return ctx
}

// A connContext is the context of a connection: the server in it is the user's.
type connContext struct {
	context.Context
	server *http.Server
	conn   net.Conn
}

type connKey struct{}

func (c *connContext) Value(key any) any {
	switch key {
	case http.ServerContextKey:
		return c.server
	case connKey{}:
		return c.conn
	}
	return c.Context.Value(key)
}

func (s *httpServer) serve(ln net.Listener) error {
	if s.broken != nil {
		return s.broken
	}
	run := runningServe{ln, make(chan struct{})}
	defer close(run.done)
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		return nil
	}
	s.running = append(s.running, run)
	s.mu.Unlock()

	if err := s.stand.start(ln); err != nil {
		return err
	}
	select {
	case <-s.stand.ended: // before it began
		return nil
	default:
	}
	err := s.own.Serve(ln)
	s.mu.Lock()
	defer s.mu.Unlock()
	if endedByShutdown(err) && (s.stopping || s.retired.Load()) {
		return nil
	}
	return err
}

func (s *httpServer) retire() { s.retired.Store(true) }

func (s *httpServer) resume() {
	s.retired.Store(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = false
}

func (s *httpServer) spoken(ctx context.Context) error {
	s.mu.Lock()
	running := s.running
	s.mu.Unlock()
	for _, run := range running {
		if g, ok := run.ln.(*gate); ok { // what it has handed out may not be counted yet
			select {
			case <-g.settled():
			case <-run.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for {
		s.mu.Lock()
		if s.http1.Load() == 0 {
			s.told = true
			s.mu.Unlock()
			return nil
		}
		if s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		quiet := s.quiet
		s.mu.Unlock()
		select {
		case <-quiet:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *httpServer) shutdown(ctx context.Context) error {
	s.retire() // if nobody has; what is answered up to Shutdown would not be told
	running, told := s.stop()
	for _, run := range running {
		_ = run.ln.Close()
	}
	for _, run := range running {
		select {
		case <-run.done:
		case <-ctx.Done():
		}
	}
	if told {
		// A listener whose Accept cannot be interrupted may have handed out one more since.
		_ = s.spoken(ctx)
	}
	switch ended, hard := s.stand.disown(); {
	case hard:
		return s.own.Close()
	case !ended:
		_ = s.user.Shutdown(ctx) // calls what is registered for it; connections it has none
	}
	if err := s.own.Shutdown(ctx); err != nil {
		return err
	}
	s.empty.Store(true)
	return s.hijacks.wait(ctx)
}

func (s *httpServer) close() int {
	s.stop()
	open := s.hijacks.close()
	if !s.empty.Load() {
		open += int(s.http1.Load() + s.others.Load())
	}
	_ = s.own.Close()
	s.stand.stop()
	return open
}

// stop says that what ends from now on was meant to.
func (s *httpServer) stop() (running []runningServe, told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	return s.running, s.told
}

func (s *httpServer) ended() <-chan struct{} { return s.stand.ended }

// closedListener is closed from the start.
type closedListener struct{}

func (closedListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closedListener) Close() error              { return nil }
func (closedListener) Addr() net.Addr            { return new(net.TCPAddr) }

// A standIn is the listener that the user's own server serves while another does the work. Nothing ever comes on it. The
// user's Shutdown or Close closes it.
type standIn struct {
	server *http.Server
	begin  sync.Once
	ln     net.Listener  // the one that it stands for
	up     chan struct{} // closed when the server accepts on it, and so knows it
	joined chan struct{} // closed when the server's Serve has returned
	err    error         // with which, then
	ended  chan struct{} // closed when the user has ended the server

	mu     sync.Mutex
	ours   bool          // whatever closes it from now on, it is not the user
	hard   bool          // the user has called Close
	closed chan struct{} // unless it is closed
}

func newStandIn(server *http.Server) *standIn {
	return &standIn{
		server: server, up: make(chan struct{}), joined: make(chan struct{}), ended: make(chan struct{}),
		closed: make(chan struct{}),
	}
}

// start has the server serve it, in place of ln. When it returns, the server's Shutdown and Close are noticed; or they have
// been called before, and ended is closed.
func (s *standIn) start(ln net.Listener) error {
	s.begin.Do(func() {
		s.ln = ln
		go s.serve()
	})
	select {
	case <-s.up:
		return nil
	case <-s.joined:
		if !endedByShutdown(s.err) {
			return s.err
		}
		return nil
	}
}

func (s *standIn) serve() {
	s.err = s.server.Serve(s)
	close(s.joined)
}

// stop ends it, and leaves the server as it is.
func (s *standIn) stop() {
	s.disown()
	_ = s.Close()
	s.begin.Do(func() { close(s.joined) })
	<-s.joined
}

// disown says that the user has had his chance to end the server. It tells whether he has, and how.
func (s *standIn) disown() (ended, hard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		ended = true
	default:
		s.ours = true
	}
	return ended, s.hard
}

func (s *standIn) Accept() (net.Conn, error) {
	close(s.up) // once: Serve returns on the error
	<-s.closed
	return nil, net.ErrClosed
}

func (s *standIn) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return nil
	default:
	}
	close(s.closed)
	if !s.ours {
		// Both methods close it, and nothing that they leave behind tells them apart.
		s.hard = calledBy("net/http.(*Server).Close")
		close(s.ended)
	}
	return nil
}

func (s *standIn) Addr() net.Addr { return s.ln.Addr() }

// Unwrap is the listener that it stands for, for the server's BaseContext.
func (s *standIn) Unwrap() net.Listener { return s.ln }

// calledBy tells whether a function is among the callers.
func calledBy(function string) bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		frame, more := frames.Next()
		if frame.Function == function {
			return true
		}
		if !more {
			return false
		}
	}
}
