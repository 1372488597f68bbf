package health

import (
	"cmp"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// A phase is one of the life of a process.
type phase string

const (
	phaseStarting phase = "starting"
	phaseServing  phase = "serving"
	phaseDraining phase = "draining"
	phaseStopping phase = "stopping"
	phaseStopped  phase = "stopped"
)

// over tells whether new connections should go elsewhere.
func (p phase) over() bool { return p == phaseDraining || p == phaseStopping || p == phaseStopped }

// mostUpgrades are remembered.
const mostUpgrades = 32

// A service is what this process is known to serve.
type service struct {
	mu       sync.Mutex
	phase    phase
	turned   chan struct{} // closed when the phase is over; another one where it is taken back
	sockets  []socket
	upgrades []upgrade
}

// A socket is one of the service.
type socket struct {
	name, network, requested, address string
	origin                            listener.Origin
	since                             time.Time
	conn                              syscall.Conn // nil: known by its events
}

// An upgrade is what became of the process.
type upgrade struct {
	time  time.Time
	event string
	took  time.Duration
	err   error
}

func (s *service) init(o Options) {
	s.phase, s.turned = phaseServing, make(chan struct{})
	if o.Reload {
		s.phase = phaseStarting
	}
	for _, conn := range o.Sockets {
		s.sockets = append(s.sockets, socketOf(conn))
	}
}

// socketOf asks a socket about itself.
func socketOf(conn syscall.Conn) socket {
	found := socket{conn: conn}
	var addr net.Addr
	switch conn := conn.(type) {
	case interface{ Addr() net.Addr }:
		addr = conn.Addr()
	case interface{ LocalAddr() net.Addr }:
		addr = conn.LocalAddr()
	}
	if addr != nil {
		found.network, found.address = addr.Network(), addr.String()
	}
	if from, ok := conn.(interface{ Origin() listener.Origin }); ok {
		found.origin = from.Origin()
		found.requested = found.origin.Requested
	}
	return found
}

// isOpen tells whether the socket has not been closed.
func (s socket) isOpen() bool {
	if s.conn == nil {
		return true // an event would have told
	}
	raw, err := s.conn.SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// obtained and released follow what a listener.Config tells.
func (s *service) obtained(e listener.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets = append(s.sockets, socket{
		name: e.Name, network: e.Network, requested: e.Requested, address: e.Address, origin: e.Origin, since: e.Time,
	})
}

// released tells whether it was there: a reservation may end that never served.
func (s *service) released(e listener.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.sockets, func(known socket) bool {
		return known.conn == nil && known.network == e.Network && known.address == e.Address
	})
	if i >= 0 { // several listeners may have one address; one of them is gone
		s.sockets = slices.Delete(s.sockets, i, i+1)
	}
	return i >= 0
}

// became follows what package reload tells: the constants reload.Event*.
func (s *service) became(u upgrade) {
	s.mu.Lock()
	if len(s.upgrades) == mostUpgrades {
		s.upgrades = slices.Delete(s.upgrades, 0, 1)
	}
	s.upgrades = append(s.upgrades, u)
	s.mu.Unlock()
	switch u.event {
	case "ready", "resumed":
		s.enter(phaseServing)
	case "draining":
		s.enter(phaseDraining)
	case "stopping":
		s.enter(phaseStopping)
	case "stopped":
		s.enter(phaseStopped)
	}
}

// enter is final where the phase is phaseStopped.
func (s *service) enter(next phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == phaseStopped {
		return
	}
	was := s.phase.over()
	s.phase = next
	switch {
	case next.over() && !was:
		close(s.turned)
	case !next.over() && was:
		s.turned = make(chan struct{})
	}
}

// state is the phase, and what is closed when it is over.
func (s *service) state() (phase, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase, s.turned
}

func (s *service) has() []socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sockets)
}

// problems are why the service is not healthy, and unready why new connections should not come, besides.
func (m *Monitor) problems() (problems, unready []string) {
	current, _ := m.service.state()
	if current != phaseServing {
		unready = append(unready, "the process is "+string(current))
	}
	if m.options.Machine {
		return nil, unready
	}
	has := m.service.has()
	if len(has) == 0 {
		problems = append(problems, "the service has no socket, as far as is known: set Options.Sockets, or OnEvent of the listener.Config")
	}
	for _, s := range has {
		if !s.isOpen() {
			problems = append(problems, s.network+" "+s.address+" is closed")
		}
	}
	return problems, unready
}

// Ready is nil where new connections should come here, and an error that says why not otherwise: what /readyz tells, for
// programs that have other conditions beside it.
func (m *Monitor) Ready() error {
	problems, unready := m.problems()
	if all := append(unready, problems...); len(all) > 0 {
		return &notReady{all}
	}
	return nil
}

type notReady struct{ problems []string }

func (e *notReady) Error() string { return "not ready: " + strings.Join(e.problems, "; ") }

// ports are those of the service's sockets in a network, which is "tcp" or "udp".
func (m *Monitor) ports(network string) map[int]bool {
	ports := map[int]bool{}
	for _, s := range m.service.has() {
		if port := portOf(s.address); port != 0 && registry.Kind(s.network) == network {
			ports[port] = true
		}
	}
	return ports
}

// serviceDocument is nil where only a machine is shown.
func (m *Monitor) serviceDocument(details bool) *serviceJSON {
	if m.options.Machine {
		return nil
	}
	document := &serviceJSON{
		Name: m.options.Name, PID: os.Getpid(), Started: m.started, Ready: m.Ready() == nil,
		Sockets: []socketJSON{}, Upgrades: []upgradeJSON{},
	}
	document.State, _ = m.service.state()
	if m.options.Connections != nil {
		open := m.options.Connections.Open()
		document.Connections = &open
	}
	for _, s := range m.service.has() {
		document.Sockets = append(document.Sockets, socketJSON{
			Name: cmp.Or(s.name, m.options.Name), Network: s.network, Requested: s.requested, Address: s.address, Port: portOf(s.address),
			Origin: s.origin.Kind.String(), Open: s.isOpen(), Since: known(s.since),
			Decisions: decisions(s.origin.History), InTheWay: holderDocuments(s.origin.InTheWay, details),
		})
	}
	m.service.mu.Lock()
	defer m.service.mu.Unlock()
	for _, u := range m.service.upgrades {
		document.Upgrades = append(document.Upgrades, upgradeJSON{u.time, u.event, u.took.Seconds(), errorText(u.err, details)})
	}
	return document
}

func decisions(history []strategy.Action) []string {
	texts := make([]string, len(history))
	for i, action := range history {
		texts[i] = action.String()
	}
	return texts
}
