package reload

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// A Server is what [Serve] runs. [*http.Server] has both methods; [Handler] makes one of a function; a few lines adapt
// others, such as those of grpc.
//
// Serve accepts connections until Shutdown is called and returns then, with nil or [http.ErrServerClosed] or
// [net.ErrClosed]. Shutdown stops accepting and waits until what is in flight has ended, or ctx. A Server that has a method
// Close() error or Stop() too is told by it to end what Shutdown has left.
//
// Of an [*http.Server] all settings, hooks and callbacks count, and its Shutdown and Close end [Serve]. Its own fields stay
// as they are. Two things differ: SetKeepAlivesEnabled has to be called before, and a Shutdown that the program calls
// itself returns at once, so the program waits for Serve. A type around an http.Server is no http.Server: its idle
// connections are closed, not told to end. For TLS, give [Serve] a listener of [crypto/tls.NewListener], whose configuration
// says "h2" in NextProtos for HTTP/2.
type Server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

// A drainer is a Server as [Serve] drives it.
type drainer interface {
	// serve accepts until shutdown or failure. It is nil when shutdown or close ended it, or the user himself.
	serve(ln net.Listener) error
	// retire says that a successor is ready: from now on every answer says that the connection ends.
	retire()
	// resume takes retire back: the successor died.
	resume()
	// spoken waits until no connection is left that would have to be closed without notice. When ctx ends first, it gives
	// its error.
	spoken(ctx context.Context) error
	// shutdown stops accepting and finishes what is in flight, hijacked connections included. When ctx ends first, it gives
	// its error.
	shutdown(ctx context.Context) error
	// close ends what is left, and says how many connections that were.
	close() (open int)
	// ended is closed when the user has shut the server down himself.
	ended() <-chan struct{}
}

func drainerOf(s Server) drainer {
	switch s := s.(type) {
	case *http.Server:
		return newHTTPServer(s)
	case *handlerServer:
		return s
	default:
		return &plainServer{Server: s, over: make(chan struct{})}
	}
}

// endedByShutdown tells whether Serve ended as it does after a shutdown.
func endedByShutdown(err error) bool {
	return err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed)
}

// A plainServer is a Server of which no more is known than its two methods. Its connections cannot be told anything.
type plainServer struct {
	Server

	mu       sync.Mutex
	stopping bool
	isOver   bool
	over     chan struct{}
}

func (p *plainServer) serve(ln net.Listener) error {
	err := p.Serve(ln)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !endedByShutdown(err) {
		return err
	}
	if !p.stopping && !p.isOver {
		p.isOver = true
		close(p.over)
	}
	return nil
}

func (p *plainServer) retire()                {}
func (p *plainServer) resume()                {}
func (p *plainServer) ended() <-chan struct{} { return p.over }

// settling is the time that a server gets to take up what it accepted last. grpc.Server closes a connection whose goroutine
// finds it stopped before it has begun, and the client loses a call by that. Nothing tells when they all have begun.
const settling = 100 * time.Millisecond

func (p *plainServer) spoken(ctx context.Context) error {
	select {
	case <-time.After(settling):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *plainServer) shutdown(ctx context.Context) error {
	p.stop()
	return p.Shutdown(ctx)
}

// close cannot say how many connections it ends.
func (p *plainServer) close() int {
	p.stop()
	switch s := p.Server.(type) {
	case interface{ Close() error }:
		_ = s.Close()
	case interface{ Stop() }:
		s.Stop()
	}
	return 0
}

func (p *plainServer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopping = true
}
