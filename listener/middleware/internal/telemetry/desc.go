package telemetry

import "strings"

// A Kind is what an instrument does with the numbers that it is given.
type Kind uint8

// The kinds. A Counter and an UpDown add them, a Gauge keeps the last, a Histogram sorts them into Buckets.
const (
	Counter Kind = iota
	UpDown
	Gauge
	Histogram
)

// A Desc describes a metric.
type Desc struct {
	Name    string // by the conventions of OpenTelemetry
	Help    string
	Unit    string // as in UCUM: "s", or what is counted in braces
	Kind    Kind
	Labels  []string
	Buckets []float64 // of a Histogram
}

// PrometheusName is what OpenTelemetry's rules for exporters make of the name, so that one dashboard serves both ways.
func (d *Desc) PrometheusName() string {
	name := strings.ReplaceAll(d.Name, ".", "_")
	if d.Unit == "s" {
		name += "_seconds"
	}
	if d.Kind == Counter {
		name += "_total"
	}
	return name
}

var (
	// long is how long connections are open.
	long = []float64{0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400}
	// short is how long starts and stops take.
	short = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
)

// The metrics.
var (
	accepted = Desc{Name: "berth.connections.accepted", Unit: "{connection}", Kind: Counter, Labels: []string{"name", "network"},
		Help: "Connections that were handed to the server."}
	refused = Desc{Name: "berth.connections.refused", Unit: "{connection}", Kind: Counter, Labels: []string{"name", "network", "reason"},
		Help: "Connections that were closed instead of being handed to the server."}
	open = Desc{Name: "berth.connections.open", Unit: "{connection}", Kind: UpDown, Labels: []string{"name", "network"},
		Help: "Connections that were handed to the server and are not closed."}
	// ConnectionDuration has buckets that can be chosen.
	ConnectionDuration = Desc{Name: "berth.connection.duration", Unit: "s", Kind: Histogram, Labels: []string{"name", "network"}, Buckets: long,
		Help: "How long connections were open, counted when they are closed."}
	acceptErrors = Desc{Name: "berth.accept.errors", Unit: "{error}", Kind: Counter, Labels: []string{"name", "network", "error"},
		Help: "Errors of the system's accept."}

	listeners = Desc{Name: "berth.listeners", Unit: "{listener}", Kind: UpDown, Labels: []string{"name", "network", "origin"},
		Help: "Listeners that are open, by how they came by their address."}
	obtained = Desc{Name: "berth.listen.obtained", Unit: "{listener}", Kind: Counter, Labels: []string{"name", "network", "origin"},
		Help: "Listeners that were obtained, by how they came by their address: a fallback is another port than the one asked for."}
	conflicts = Desc{Name: "berth.listen.conflicts", Unit: "{conflict}", Kind: Counter, Labels: []string{"name", "network"},
		Help: "Calls that found their address taken."}
	reclaims = Desc{Name: "berth.listen.reclaims", Unit: "{reclaim}", Kind: Counter, Labels: []string{"name", "network", "result"},
		Help: "Attempts to stop those who held an address."}
	failures = Desc{Name: "berth.listen.failures", Unit: "{failure}", Kind: Counter, Labels: []string{"name", "network"},
		Help: "Calls that obtained no listener."}
	listenDuration = Desc{Name: "berth.listen.duration", Unit: "s", Kind: Histogram, Labels: []string{"name", "network"}, Buckets: short,
		Help: "How long it took to obtain a listener."}
	lockWait = Desc{Name: "berth.listen.lock.wait.duration", Unit: "s", Kind: Histogram, Labels: []string{"name", "network", "result"}, Buckets: short,
		Help: "How long the lock of an address had to be waited for, where it had to."}

	upgrades = Desc{Name: "berth.upgrades", Unit: "{upgrade}", Kind: Counter, Labels: []string{"result"},
		Help: "Upgrades that this process asked for. After one that succeeded its successor is the one to ask."}
	upgradeDuration = Desc{Name: "berth.upgrade.duration", Unit: "s", Kind: Histogram, Labels: []string{"result"}, Buckets: short,
		Help: "How long upgrades took, from the start of the new version until it led or failed."}
	resumed = Desc{Name: "berth.upgrades.resumed", Unit: "{upgrade}", Kind: Counter,
		Help: "Upgrades whose new version ended while this process drained, so that it serves again."}
	takeover = Desc{Name: "berth.takeover.timestamp", Unit: "s", Kind: Gauge,
		Help: "When this process took over from the version before, in Unix time; 0 if it did not."}
	state = Desc{Name: "berth.state", Kind: Gauge, Labels: []string{"state"},
		Help: "1 for the state that the process is in, 0 for the others."}
	drainDuration = Desc{Name: "berth.drain.duration", Unit: "s", Kind: Histogram, Labels: []string{"result"}, Buckets: short,
		Help: "How long the process took to finish what it had begun, before it ended."}
)

// Descs are all metrics.
var Descs = []*Desc{
	&accepted, &refused, &open, &ConnectionDuration, &acceptErrors,
	&listeners, &obtained, &conflicts, &reclaims, &failures, &listenDuration, &lockWait,
	&upgrades, &upgradeDuration, &resumed, &takeover, &state, &drainDuration,
}
