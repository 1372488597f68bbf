// Package health shows the state of the ports over HTTP: to load balancers and orchestrators as probes, to scripts as JSON, and
// to people as a page that follows what happens.
//
//	monitor := health.Handler(health.Options{Name: "web"})
//	defer monitor.Close()
//	cfg := listener.Config{OnEvent: monitor.Event}
//	ln, err := cfg.Listen(ctx, "tcp", ":8080")
//	...
//	mux.Handle("/health/", http.StripPrefix("/health", monitor)) // the page; below it the rest
//	mux.Handle("/readyz", monitor)
//
// Below where it is mounted are
//
//	/                           the page where Accept has text/html, else as the next
//	/api/health/ports           the service and the ports of its machine, with a verdict
//	/api/health/ports/{port}    one port, with a verdict
//	/api/health/ports/system    the ports of the machine, without one
//	/api/health/events          what happens, as server-sent events
//	/api/health/openapi.json    all this in the words of OpenAPI 3.1
//	/livez, /readyz             the probes
//
// A verdict is the status 200 or 503. That of a service is about its sockets: each of them is open. That of a port: this
// service serves it, or one that berth has a true record of does. That of a machine (see [Options].Machine): every record
// is true. With ?status=200 the verdict is in the answer alone. The probes look at no port; readiness follows a drain by
// [Monitor.Upgrade].
//
// # Who may see it
//
// Nothing can be changed by it. A process is told by pid and name; its user, arguments, directories and unit where Options.Details
// says so, and its environment never. Web pages of other origins read nothing unless Options.Origins names them, and a
// request that reaches a loopback address under a foreign name (DNS rebinding) gets 403. The two probes tell no more than yes or
// no, and answer to all. Who may ask at all is the program's to decide, by where it mounts the handler and what it wraps
// around it.
//
// # What it costs
//
// Nothing while nobody asks, unless Options.Watch or OnEvent is set. A look at the machine takes milliseconds; all requests share it for
// Options.Cache, whatever ports they are about. A stream of events takes a goroutine and no buffer of its own: the
// last 256 events are kept once, for all. A client that does not read is dropped.
package health

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// Options say what a handler shows, and to whom. The zero Options show a service whose listeners it hears of by
// [Monitor.Event], and the default ranges of its machine, without details.
type Options struct {
	// Name of the service, for people.
	Name string

	// Machine means that there is no service to show, only the machine that this process happens to run on.
	Machine bool

	// Sockets are listeners and packet connections of the service that [Monitor.Event] is not told of: a [*listener.Listener] or
	// [*listener.PacketConn], or one of package net. Each is looked at with every answer: one that was closed makes the
	// service unhealthy and not ready.
	Sockets []syscall.Conn

	// Reload means that package reload tells [Monitor.Upgrade] what becomes of the process: it is not ready before it
	// is told so. Without it the service is ready as soon as it has a socket.
	Reload bool

	// Connections counts the connections that are open now. Nil means that they are not counted.
	Connections interface{ Open() int }

	Ranges   []strategy.Range // ports of the machine to show; nil means 3000-3010, 8000-8010 and 9000-9010
	StateDir string           // of the records; "" means the per-user default

	// Details says whether who sent a request may see of every process on this machine the user, executable, working
	// directory, arguments, start, unit and container, and the advice and errors that speak of these. Nil means that
	// nobody may.
	Details func(*http.Request) bool

	// Origins are those of web pages on other servers that may read the answers: "https://status.example.com", exactly as
	// browsers send it. Nil means none.
	Origins []string

	// Hosts are the names under which the handler is asked for on a loopback address beside localhost and IP addresses, such
	// as the name that a reverse proxy on this machine passes on; without port. "*" is any, which gives every web page that a
	// browser on this machine shows a way to read the answers. On other addresses every name is good.
	Hosts []string

	// Cache is how long a look at the machine is good for. 0 means 1 s.
	Cache time.Duration
	// Watch looks for changes of the ports in Ranges, and of the service's, all the time. Otherwise that is done while a stream of
	// events is open, or where OnEvent is set.
	Watch bool
	// Interval is the time between two such looks. 0 means 2 s.
	Interval time.Duration
	// Streams is how many streams of events may be open at once. Each takes about 25 KiB in all, connection included. 0 means 1,000.
	Streams int

	// Logger gets the changes that are found on the machine's ports; what happens to the service is logged by who does it.
	// Nil discards.
	Logger *slog.Logger

	// OnEvent, if not nil, is called for every event: for alerts. It is called by the goroutine to which it happens, which goes
	// on when it returns, so it must be quick, and it may be called by several at once. It must not call the Monitor's
	// Close.
	OnEvent func(Event)
}

// A Monitor is the [http.Handler] that [Handler] makes. Its methods may be called from several goroutines.
type Monitor struct {
	options   Options
	ranges    []strategy.Range
	log       *slog.Logger
	lookers   map[string]*looker // by network
	started   time.Time
	heartbeat time.Duration // between two signs of life on a stream
	patience  time.Duration // with a client that does not read

	events  history
	service service

	mu      sync.Mutex
	closed  bool
	streams int
	watches int                // who wants to know of changes: streams, and who made the handler
	unwatch context.CancelFunc // not nil: a goroutine looks for them
	joined  sync.WaitGroup
}

var networks = [...]string{"tcp", "udp"}

// Handler makes a handler that can be mounted anywhere, in a mux of any kind; below a path with [http.StripPrefix]. Where
// Options.Watch or OnEvent is set it begins to look for changes. Call Close when it is no longer needed.
func Handler(o Options) *Monitor {
	if o.Cache <= 0 {
		o.Cache = time.Second
	}
	if o.Interval <= 0 {
		o.Interval = 2 * time.Second
	}
	if o.Streams <= 0 {
		o.Streams = 1000
	}
	m := &Monitor{
		options: o, ranges: o.Ranges, log: o.Logger, lookers: map[string]*looker{}, started: time.Now(),
		heartbeat: 15 * time.Second, patience: 10 * time.Second,
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.ranges == nil {
		m.ranges = []strategy.Range{{First: 3000, Last: 3010}, {First: 8000, Last: 8010}, {First: 9000, Last: 9010}}
	}
	for _, network := range networks {
		m.lookers[network] = newLooker(inspect.Options{Network: network, StateDir: o.StateDir}, o.Cache, m.log)
	}
	m.events.init(m.started)
	m.service.init(o)
	if o.Watch || o.OnEvent != nil {
		m.mu.Lock()
		m.watchMore()
		m.mu.Unlock()
	}
	return m
}

// Close ends the streams and the looks at the machine, and waits for the latter. From then on the service is not ready, and
// what would need a look gets 503. Register it with [http.Server.RegisterOnShutdown] where package reload does not tell
// [Monitor.Upgrade] of the end, since Shutdown waits for streams. The error is always nil.
func (m *Monitor) Close() error {
	m.mu.Lock()
	m.closed = true
	if m.unwatch != nil {
		m.unwatch()
		m.unwatch = nil
	}
	m.mu.Unlock()
	m.service.enter(phaseStopped)
	for _, l := range m.lookers {
		l.close()
	}
	m.joined.Wait()
	return nil
}
