package health

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// The documents, as openapi.json has them.

type errorJSON struct {
	Error string `json:"error"`
}

type probeJSON struct {
	OK       bool     `json:"ok"`
	State    phase    `json:"state"`
	Problems []string `json:"problems"`
}

type portsJSON struct {
	Healthy  bool         `json:"healthy"`
	Problems []string     `json:"problems"`
	Service  *serviceJSON `json:"service"`
	System   systemJSON   `json:"system"`
}

type serviceJSON struct {
	Name        string        `json:"name"`
	PID         int           `json:"pid"`
	Started     time.Time     `json:"started"`
	State       phase         `json:"state"`
	Ready       bool          `json:"ready"`
	Sockets     []socketJSON  `json:"sockets"`
	Connections *int          `json:"connections"`
	Upgrades    []upgradeJSON `json:"upgrades"`
}

type socketJSON struct {
	Name      string       `json:"name"`
	Network   string       `json:"network"`
	Requested string       `json:"requested"`
	Address   string       `json:"address"`
	Port      int          `json:"port"`
	Origin    string       `json:"origin"`
	Open      bool         `json:"open"`
	Since     *time.Time   `json:"since"`
	Decisions []string     `json:"decisions"`
	InTheWay  []holderJSON `json:"in_the_way"`
}

type upgradeJSON struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"`
	Took  float64   `json:"took_seconds"`
	Error string    `json:"error"`
}

type systemJSON struct {
	Network  string      `json:"network"`
	Ranges   []string    `json:"ranges"`
	Taken    time.Time   `json:"taken"`
	Complete bool        `json:"complete"`
	Details  bool        `json:"details"`
	Summary  summaryJSON `json:"summary"`
	Ports    []portJSON  `json:"ports"`
}

type summaryJSON struct {
	Total   int `json:"total"`
	Free    int `json:"free"`
	InUse   int `json:"in_use"`
	Tracked int `json:"tracked"`
	Locked  int `json:"locked"`
	Errors  int `json:"errors"`
}

type portJSON struct {
	Network         string       `json:"network"`
	Port            int          `json:"port"`
	State           string       `json:"state"`
	Healthy         bool         `json:"healthy"`
	Own             bool         `json:"own"`
	Service         string       `json:"service"`
	Until           *time.Time   `json:"until"`
	Complete        bool         `json:"complete"`
	Holders         []holderJSON `json:"holders"`
	Records         []string     `json:"records"`
	Recommendations []string     `json:"recommendations"`
}

type holderJSON struct {
	PID      int        `json:"pid"`
	Command  string     `json:"command"`
	Address  string     `json:"address"`
	State    string     `json:"state"`
	Reserved bool       `json:"reserved"`
	Service  string     `json:"service"`
	Until    *time.Time `json:"until"`
	*detailsJSON
}

type detailsJSON struct {
	UID        int        `json:"uid"`
	User       string     `json:"user"`
	Executable string     `json:"executable"`
	Dir        string     `json:"dir"`
	Args       []string   `json:"args"`
	Started    *time.Time `json:"started"`
	Unit       string     `json:"unit"`
	UserUnit   bool       `json:"user_unit"`
	Container  string     `json:"container"`
	Refusal    string     `json:"refusal"`
}

type helloJSON struct {
	PID      int     `json:"pid"`
	Interval float64 `json:"interval_seconds"`
}

type eventJSON struct {
	ID        string       `json:"id"`
	Time      time.Time    `json:"time"`
	Kind      string       `json:"kind"`
	Level     string       `json:"level"`
	Text      string       `json:"text"`
	Name      string       `json:"name"`
	Network   string       `json:"network"`
	Requested string       `json:"requested"`
	Address   string       `json:"address"`
	Port      int          `json:"port"`
	Origin    string       `json:"origin"`
	Holders   []holderJSON `json:"holders"`
	Took      float64      `json:"took_seconds"`
	Error     string       `json:"error"`
}

// A process chooses its own arguments, up to megabytes of them, and answers and events are to stay small.
const mostArgs, longestArg = 32, 512

func clipped(args []string) []string {
	shown := make([]string, min(len(args), mostArgs))
	for i := range shown {
		if shown[i] = args[i]; len(shown[i]) > longestArg {
			shown[i] = shown[i][:longestArg] + "..."
		}
	}
	return shown
}

func holderDocuments(holders []strategy.Holder, details bool) []holderJSON {
	documents := make([]holderJSON, len(holders))
	for i, h := range holders {
		documents[i] = holderJSON{
			PID: h.PID, Command: h.Command, Address: h.Address, State: h.State,
			Reserved: h.Reserved, Service: h.Service, Until: known(h.Until),
		}
		if !details {
			continue
		}
		documents[i].detailsJSON = &detailsJSON{
			UID: h.UID, User: h.User, Executable: h.Executable, Dir: h.Dir, Args: clipped(h.Args), Started: known(h.Started),
			Unit: h.Unit, UserUnit: h.UserUnit, Container: h.Container, Refusal: h.Refusal,
		}
	}
	return documents
}

// known is a time, nil where that is zero.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// list is a slice that JSON shows as a list, also where it is empty.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// portOf is the port of an address as the kernel reports it, 0 where it has none. The host may be missing.
func portOf(address string) int {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		return 0 // the path of a Unix socket
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return int(port)
}

// holdsItself tells whether this process is among the holders of a port.
func holdsItself(r inspect.Report) bool {
	return slices.ContainsFunc(r.Holders, func(h strategy.Holder) bool { return h.PID == os.Getpid() })
}

// isComplete tells whether whoever has a port is among its holders. The report speaks of all ports of the machine.
func isComplete(r inspect.Report) bool {
	if len(r.Holders) == 0 {
		return sockets.Exhaustive(r.Network)
	}
	return r.Complete || !slices.ContainsFunc(r.Holders, func(h strategy.Holder) bool { return h.PID == 0 })
}

// A view is what somebody may see.
type view struct {
	details bool
	own     map[int]bool // ports of the service, of the network in question
}

func (v view) port(r inspect.Report) portJSON {
	document := portJSON{
		Network: r.Network, Port: r.Port, State: string(r.State), Own: v.own[r.Port], Service: r.Service, Until: known(r.Until),
		Complete: isComplete(r), Holders: holderDocuments(r.Holders, v.details), Records: []string{}, Recommendations: []string{},
	}
	document.Healthy = r.State == inspect.Healthy || document.Own && holdsItself(r)
	switch {
	case v.details:
		document.Records = list(r.Records)
		if !document.Healthy { // what it takes to get the port from a healthy service is no recommendation
			document.Recommendations = list(r.Recommendations)
		}
	default:
		for range r.Records { // which name the state directory, and who wrote them
			document.Records = append(document.Records, "a record of this port is stale, damaged or of a future version")
		}
	}
	return document
}

// system is a look at some ranges.
func (v view) system(network string, ranges []strategy.Range, at *look) systemJSON {
	document := systemJSON{
		Network: network, Ranges: []string{}, Taken: at.taken, Complete: sockets.Exhaustive(network), Details: v.details,
		Ports: []portJSON{},
	}
	for _, r := range ranges {
		document.Ranges = append(document.Ranges, r.String())
	}
	document.Summary.Total = count(ranges)
	for _, r := range at.ports {
		if !contains(ranges, r.Port) {
			continue
		}
		document.Ports = append(document.Ports, v.port(r))
		document.Complete = document.Complete && isComplete(r)
		document.Summary.Errors += len(r.Records)
		switch r.State {
		case inspect.Available:
		case inspect.Locked:
			document.Summary.Locked++
		case inspect.Healthy:
			document.Summary.Tracked++
			document.Summary.InUse++
		default:
			document.Summary.InUse++
		}
	}
	document.Summary.Free = document.Summary.Total - document.Summary.InUse - document.Summary.Locked
	return document
}

// one is the look at one port.
func (l *look) one(network string, port int) inspect.Report {
	i, found := slices.BinarySearchFunc(l.ports, port, func(r inspect.Report, port int) int { return r.Port - port })
	if !found {
		return inspect.Report{Network: network, Port: port, State: inspect.Available}
	}
	return l.ports[i]
}

// normal is the ranges in order, without what overlaps, and without port 0.
func normal(ranges []strategy.Range) []strategy.Range {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b strategy.Range) int { return int(a.First) - int(b.First) })
	var merged []strategy.Range
	for _, r := range sorted {
		r.First = max(r.First, 1)
		if r.First > r.Last {
			continue
		}
		if last := len(merged) - 1; last >= 0 && int(r.First) <= int(merged[last].Last)+1 {
			merged[last].Last = max(merged[last].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// count is how many ports normal ranges have.
func count(ranges []strategy.Range) (ports int) {
	for _, r := range ranges {
		ports += int(r.Last) - int(r.First) + 1
	}
	return ports
}

func contains(ranges []strategy.Range, port int) bool {
	return slices.ContainsFunc(ranges, func(r strategy.Range) bool { return int(r.First) <= port && port <= int(r.Last) })
}

// stateOfRecords are what is wrong with the ports of a machine: a recorded service that is gone, a lock without a socket or an end.
func stateOfRecords(document systemJSON) []string {
	problems := []string{}
	for _, p := range document.Ports {
		name := p.Network + " port " + strconv.Itoa(p.Port)
		if p.Service != "" {
			name += " of " + p.Service
		}
		switch {
		case p.State == string(inspect.Locked) && p.Until == nil: // else it is kept for who is about to bind it
			problems = append(problems, name+" is locked by a process that does not have it")
		case len(p.Records) > 0:
			problems = append(problems, name+" has a record that is stale, damaged or of a future version")
		}
	}
	return problems
}
