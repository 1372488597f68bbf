package reload

import (
	"context"
	"log"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"
)

// Handler is a [Server] that accepts connections and calls handle with each, in a goroutine of its own. handle gets what
// the listener's Accept gave, such as a [*net.TCPConn]. When it returns, the connection is closed. A panic in it is logged
// and ends that connection only.
//
// Shutdown closes the listeners and waits until every handle has returned, or ctx has ended. It does not tell them to:
// those that go on until the client leaves take the time that they are given. [Serve] then closes their connections.
func Handler(handle func(net.Conn)) Server {
	return &handlerServer{
		handle: handle, listeners: make(map[*net.Listener]struct{}), conns: make(map[*net.Conn]struct{}),
		stopped: make(chan struct{}), userEnded: make(chan struct{}),
	}
}

type handlerServer struct {
	handle func(net.Conn)

	mu        sync.Mutex
	listeners map[*net.Listener]struct{} // each until its Serve has returned
	conns     map[*net.Conn]struct{}     // each until its handle has returned
	quiet     chan struct{}              // not nil: somebody waits for both to be empty
	stopped   chan struct{}              // closed by the first shutdown
	userEnded chan struct{}              // closed when that was the user's
}

// Serve accepts until Shutdown is called, after which it gives [http.ErrServerClosed], or Accept fails.
func (s *handlerServer) Serve(ln net.Listener) error {
	defer ln.Close()
	s.mu.Lock()
	if s.isStopped() {
		s.mu.Unlock()
		return http.ErrServerClosed
	}
	s.listeners[&ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, &ln)
		s.checkLocked()
	}()

	var pause time.Duration
	for {
		conn, err := ln.Accept()
		if err == nil {
			pause = 0
			s.mu.Lock()
			s.conns[&conn] = struct{}{}
			s.mu.Unlock()
			go s.run(&conn)
			continue
		}
		if s.isStopped() {
			return http.ErrServerClosed
		}
		if temporary, ok := err.(interface{ Temporary() bool }); !ok || !temporary.Temporary() {
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second) // too many open files, as a rule
		log.Printf("reload: accept: %v; retrying in %v", err, pause)
		select {
		case <-time.After(pause):
		case <-s.stopped:
			return http.ErrServerClosed
		}
	}
}

func (s *handlerServer) run(conn *net.Conn) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("reload: panic serving %v: %v\n%s", (*conn).RemoteAddr(), p, debug.Stack())
		}
		_ = (*conn).Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
		s.checkLocked()
	}()
	s.handle(*conn)
}

func (s *handlerServer) checkLocked() {
	if s.quiet != nil && len(s.listeners)+len(s.conns) == 0 {
		close(s.quiet)
		s.quiet = nil
	}
}

func (s *handlerServer) isStopped() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

// Shutdown is described at [Handler].
func (s *handlerServer) Shutdown(ctx context.Context) error {
	s.stop(true)
	return s.wait(ctx)
}

// stop ends the accepting.
func (s *handlerServer) stop(byUser bool) {
	s.mu.Lock()
	if !s.isStopped() {
		close(s.stopped)
		if byUser {
			close(s.userEnded)
		}
	}
	var listeners []net.Listener
	for ln := range s.listeners {
		listeners = append(listeners, *ln)
	}
	s.mu.Unlock()
	for _, ln := range listeners {
		_ = ln.Close()
	}
}

func (s *handlerServer) wait(ctx context.Context) error {
	s.mu.Lock()
	if len(s.listeners)+len(s.conns) == 0 {
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
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *handlerServer) serve(ln net.Listener) error {
	err := s.Serve(ln)
	if endedByShutdown(err) && s.isStopped() {
		return nil
	}
	return err
}

func (s *handlerServer) retire() {}
func (s *handlerServer) resume() {}

// spoken has nothing to wait for: what the connections speak is not known, so shutdown waits for them all.
func (s *handlerServer) spoken(context.Context) error { return nil }

func (s *handlerServer) shutdown(ctx context.Context) error {
	s.stop(false)
	return s.wait(ctx)
}

func (s *handlerServer) close() int {
	s.stop(false)
	s.mu.Lock()
	var open []net.Conn
	for conn := range s.conns {
		open = append(open, *conn)
	}
	s.mu.Unlock()
	for _, conn := range open {
		_ = conn.Close()
	}
	return len(open)
}

func (s *handlerServer) ended() <-chan struct{} { return s.userEnded }
