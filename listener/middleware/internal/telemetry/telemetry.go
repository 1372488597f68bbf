// Package telemetry makes numbers of what middleware, listener and reload tell, for the packages prom and otel: they know
// how their library takes a number, and this package which number when.
package telemetry

import (
	"errors"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/middleware"
)

// An Instrument takes a number. It may be called by several goroutines at once.
type Instrument func(float64)

// A Recorder gives instruments their numbers. Its methods may be called by several goroutines at once.
type Recorder struct {
	new func(d *Desc, values ...string) Instrument

	mu          sync.Mutex
	connections map[series]*connections
	listening   map[series]bool // begun
	reloading   bool            // package reload has told something
	inherited   atomic.Bool
}

// series is the labels that connections and listeners have.
type series struct{ name, network string }

// New makes a Recorder that finds its instruments by a function. The counters that it asks for exist from then on, at zero,
// and are the same ones for the same values.
func New(instrument func(d *Desc, values ...string) Instrument) *Recorder {
	return &Recorder{new: instrument, connections: map[series]*connections{}, listening: map[series]bool{}}
}

// transport leaves few networks: what a program asks for may be anything.
func transport(network string) string {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return "tcp"
	case "udp", "udp4", "udp6":
		return "udp"
	case "unix", "unixgram", "unixpacket":
		return "unix"
	}
	return "other"
}

func result(err error) string {
	if err != nil {
		return "failure"
	}
	return "success"
}

// connections are the instruments of the connections of one name and network.
type connections struct {
	accepted, open, duration Instrument
	errors                   map[error]Instrument
	otherErrors              Instrument

	mu      sync.Mutex // held to add a reason
	refused atomic.Pointer[map[middleware.Reason]Instrument]
	refuse  func(reason string) Instrument
}

// maxReasons bounds what hooks can make of reasons of their own. Further ones count as "other".
const maxReasons = 64

// known are the reasons that stand in the metrics from the beginning, so that the first refusal is an increase.
var known = []middleware.Reason{
	middleware.ReasonLimit, middleware.ReasonLimitPerIP, middleware.ReasonRate, middleware.ReasonRatePerIP, middleware.ReasonDenied,
	middleware.ReasonProxyHeader, middleware.ReasonTLS, middleware.ReasonMux, middleware.ReasonMuxTimeout, middleware.ReasonPending,
	middleware.ReasonDescriptors, middleware.ReasonPanic, middleware.ReasonHook, middleware.ReasonClosed,
}

// acceptFailures are the errors of accept that say something about the machine.
var acceptFailures = map[error]string{
	syscall.EMFILE: "EMFILE", syscall.ENFILE: "ENFILE", syscall.ENOBUFS: "ENOBUFS", syscall.ENOMEM: "ENOMEM", syscall.ECONNABORTED: "ECONNABORTED",
}

func (r *Recorder) connectionsOf(s series) *connections {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.connections[s]; c != nil {
		return c
	}
	c := &connections{
		accepted:    r.new(&accepted, s.name, s.network),
		open:        r.new(&open, s.name, s.network),
		duration:    r.new(&ConnectionDuration, s.name, s.network),
		errors:      map[error]Instrument{},
		otherErrors: r.new(&acceptErrors, s.name, s.network, "other"),
		refuse:      func(reason string) Instrument { return r.new(&refused, s.name, s.network, reason) },
	}
	for err, name := range acceptFailures {
		c.errors[err] = r.new(&acceptErrors, s.name, s.network, name)
	}
	reasons := map[middleware.Reason]Instrument{}
	for _, reason := range known {
		reasons[reason] = c.refuse(string(reason))
	}
	c.refused.Store(&reasons)
	r.connections[s] = c
	return c
}

// Connections is a middleware that counts the connections of a listener. Listeners of one name and network count together.
func (r *Recorder) Connections(name string) func(net.Listener) net.Listener {
	return func(ln net.Listener) net.Listener {
		c := r.connectionsOf(series{name, transport(ln.Addr().Network())})
		return middleware.Hook{
			Accepted: func(net.Conn) {
				c.accepted(1)
				c.open(1)
			},
			Closed: func(_ net.Conn, open time.Duration) {
				c.open(-1)
				c.duration(open.Seconds())
			},
			Refused: func(_ net.Conn, why *middleware.Refusal) { c.reason(why.Reason)(1) },
			Failed:  c.failed,
		}.Wrap(ln)
	}
}

func (c *connections) reason(reason middleware.Reason) Instrument {
	if i, ok := (*c.refused.Load())[reason]; ok {
		return i
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	reasons := *c.refused.Load()
	if i, ok := reasons[reason]; ok {
		return i
	}
	if len(reasons) >= maxReasons {
		reason = "other"
		if i, ok := reasons[reason]; ok {
			return i
		}
	}
	reasons = maps.Clone(reasons)
	reasons[reason] = c.refuse(string(reason))
	c.refused.Store(&reasons)
	return reasons[reason]
}

func (c *connections) failed(err error) {
	for known, i := range c.errors {
		if errors.Is(err, known) {
			i(1)
			return
		}
	}
	c.otherErrors(1)
}

// begin has the metrics of listeners stand there from the first event on, so that the first of each is an increase.
func (r *Recorder) begin(s series) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listening[s] {
		return
	}
	r.listening[s] = true
	for _, d := range []*Desc{&conflicts, &failures, &listenDuration} {
		r.new(d, s.name, s.network)
	}
	for _, result := range results {
		r.new(&reclaims, s.name, s.network, result)
		r.new(&lockWait, s.name, s.network, result)
	}
	for kind := listener.Bound; kind <= listener.Inherited; kind++ {
		r.new(&obtained, s.name, s.network, kind.String())
		r.new(&listeners, s.name, s.network, kind.String())
	}
}

var results = []string{result(nil), result(errors.ErrUnsupported)}

// Event is for listener.Config.OnEvent.
func (r *Recorder) Event(e listener.Event) {
	s := series{e.Name, transport(e.Network)}
	r.begin(s)
	switch e.Kind {
	case listener.Conflict:
		r.new(&conflicts, s.name, s.network)(1)
	case listener.Reclaim:
		r.new(&reclaims, s.name, s.network, result(e.Err))(1)
	case listener.LockWait:
		r.new(&lockWait, s.name, s.network, result(e.Err))(e.Elapsed.Seconds())
	case listener.Obtained:
		r.new(&listenDuration, s.name, s.network)(e.Elapsed.Seconds())
		r.new(&obtained, s.name, s.network, e.Origin.Kind.String())(1)
		r.new(&listeners, s.name, s.network, e.Origin.Kind.String())(1)
		if e.Origin.Kind == listener.Inherited {
			r.inherited.Store(true)
		}
	case listener.Failed:
		r.new(&failures, s.name, s.network)(1)
	case listener.Released:
		r.new(&listeners, s.name, s.network, e.Origin.Kind.String())(-1)
	}
}

// states are those of a process, by the event after which it is in one.
var states = map[string]string{
	"ready":          "ready",
	"upgrading":      "upgrading",
	"upgraded":       "draining",
	"upgrade failed": "ready",
	"draining":       "draining",
	"resumed":        "ready",
	"stopping":       "stopping",
	"stopped":        "stopped",
}

// Upgrade is for reload.Config.OnEvent.
func (r *Recorder) Upgrade(event string, took time.Duration, err error) {
	now, ok := states[event]
	if !ok {
		return // of a later version of reload
	}
	r.mu.Lock() // one event after the other, so that one state is left
	defer r.mu.Unlock()
	if !r.reloading {
		r.reloading = true
		for _, result := range results {
			r.new(&upgrades, result)
			r.new(&upgradeDuration, result)
			r.new(&drainDuration, result)
		}
		r.new(&resumed)
		since := 0.0
		if event == "ready" && r.inherited.Load() {
			since = float64(time.Now().UnixMilli()) / 1000
		}
		r.new(&takeover)(since) // once, so that it counts as one change
	}
	r.new(&state, now)(1)
	for _, name := range states {
		if name != now {
			r.new(&state, name)(0)
		}
	}
	switch event {
	case "upgraded", "upgrade failed":
		r.new(&upgrades, result(err))(1)
		r.new(&upgradeDuration, result(err))(took.Seconds())
	case "resumed":
		r.new(&resumed)(1)
	case "stopped":
		r.new(&drainDuration, result(err))(took.Seconds())
	}
}
