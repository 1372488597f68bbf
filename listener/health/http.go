package health

import (
	"context"
	_ "embed" // for the description
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-go/berth/listener/health/page"
	"github.com/berth-go/berth/strategy"
)

//go:embed openapi.json
var description []byte

const (
	// mostAsked bounds the ports, and so the answer, of one question.
	mostAsked = 4096
	// mostText bounds the text of the ranges of one question.
	mostText = 1024
)

// ServeHTTP answers GET and HEAD, and the preflights of Options.Origins; see the package.
func (m *Monitor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")

	// As it came, so that an encoded slash is none.
	path := r.URL.EscapedPath()
	answer := m.route(path)
	probe := path == "/livez" || path == "/readyz"
	if !probe {
		// What a browser reads is for the people before it, and for the pages that the owner knows.
		header.Set("Vary", "Origin")
		if why := m.foreign(r); why != "" {
			m.fail(w, http.StatusForbidden, why)
			return
		}
		if origin := r.Header.Get("Origin"); slices.Contains(m.options.Origins, origin) {
			header.Set("Access-Control-Allow-Origin", origin)
		}
	}
	switch {
	case answer == nil:
		m.fail(w, http.StatusNotFound, "no such path: "+clip(path)+": see api/health/openapi.json")
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		answer(w, r)
	case r.Method == http.MethodOptions && !probe:
		header.Set("Allow", "GET, HEAD, OPTIONS")
		if header.Get("Access-Control-Allow-Origin") != "" {
			header.Set("Access-Control-Allow-Methods", "GET, HEAD")
			header.Set("Access-Control-Allow-Headers", "Authorization, Last-Event-ID")
			header.Set("Access-Control-Max-Age", "600")
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		allowed := "GET, HEAD, OPTIONS"
		if probe {
			allowed = "GET, HEAD"
		}
		header.Set("Allow", allowed)
		m.fail(w, http.StatusMethodNotAllowed, "nothing can be changed here: use GET")
	}
}

// route is who answers on a path, nil nobody.
func (m *Monitor) route(path string) http.HandlerFunc {
	switch path {
	case "/", "": // mounted without a slash at its end; the page finds the rest by its own address
		return m.serveRoot
	case "/livez":
		return m.serveLive
	case "/readyz":
		return m.serveReady
	case "/api/health/ports":
		return m.servePorts
	case "/api/health/ports/system":
		return m.serveSystem
	case "/api/health/events":
		return m.stream
	case "/api/health/openapi.json":
		return m.serveDescription
	}
	if port, ok := strings.CutPrefix(path, "/api/health/ports/"); ok && port != "" && !strings.Contains(port, "/") {
		return func(w http.ResponseWriter, r *http.Request) { m.servePort(w, r, port) }
	}
	return nil
}

// foreign says why a browser's request does not come from where it may; "" is that it may.
func (m *Monitor) foreign(r *http.Request) string {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if at, ok := local.(*net.TCPAddr); ok && at.IP.IsLoopback() && !m.isNamed(r.Host) {
		return "the name " + clip(r.Host) + " is not known here: ask for localhost, or list the name in Options.Hosts"
	}
	switch origins := r.Header.Values("Origin"); {
	case len(origins) == 0:
		return ""
	case len(origins) == 1 && slices.Contains(m.options.Origins, origins[0]):
		return ""
	case len(origins) == 1 && sameHost(origins[0], r.Host):
		return ""
	}
	return "this origin may not ask: list it in Options.Origins"
}

// isNamed tells whether a request for this host is meant for a loopback address. A page of evil.example can have its name lead
// to 127.0.0.1, but not the request say anything other than evil.example.
func (m *Monitor) isNamed(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(m.options.Hosts, func(name string) bool { return name == "*" || strings.EqualFold(name, host) })
}

// sameHost tells whether an origin is of the host that was asked. Its scheme says nothing: TLS may end before this process.
func sameHost(origin, host string) bool {
	at, err := url.Parse(origin)
	return err == nil && at.Host != "" && strings.EqualFold(at.Host, host)
}

func (m *Monitor) details(r *http.Request) bool {
	return m.options.Details != nil && m.options.Details(r)
}

func (m *Monitor) serveRoot(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Accept")
	if !strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/html") {
		m.servePorts(w, r)
		return
	}
	w.Header().Set("Content-Security-Policy", page.Policy)
	write(w, http.StatusOK, "text/html; charset=utf-8", page.HTML)
}

func (m *Monitor) serveDescription(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, "application/json", description)
}

func (m *Monitor) serveLive(w http.ResponseWriter, _ *http.Request) {
	current, _ := m.service.state()
	m.write(w, http.StatusOK, probeJSON{OK: true, State: current, Problems: []string{}})
}

func (m *Monitor) serveReady(w http.ResponseWriter, r *http.Request) {
	problems, unready := m.problems()
	document := probeJSON{Problems: append(unready, problems...)}
	document.State, _ = m.service.state()
	document.OK = len(document.Problems) == 0
	if document.State.over() && r.ProtoMajor == 1 {
		// Whoever asks again is to come by a new connection, on which perhaps a new version answers.
		w.Header().Set("Connection", "close")
	}
	document.Problems = list(document.Problems)
	m.write(w, verdict(document.OK), document)
}

func verdict(healthy bool) int {
	if healthy {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

func (m *Monitor) servePorts(w http.ResponseWriter, r *http.Request) {
	system, ok := m.system(w, r)
	if !ok {
		return
	}
	document := portsJSON{Service: m.serviceDocument(system.Details), System: system}
	if m.options.Machine {
		document.Problems = stateOfRecords(system)
	} else {
		problems, _ := m.problems()
		document.Problems = list(problems)
	}
	document.Healthy = len(document.Problems) == 0
	m.judge(w, r, document.Healthy, document)
}

// judge answers with a verdict, in the status too unless the request wants 200 whatever it is: browsers write every other
// one into the console as an error.
func (m *Monitor) judge(w http.ResponseWriter, r *http.Request, healthy bool, document any) {
	m.write(w, verdict(healthy || r.URL.Query().Has("status")), document)
}

func (m *Monitor) serveSystem(w http.ResponseWriter, r *http.Request) {
	if system, ok := m.system(w, r); ok {
		m.write(w, http.StatusOK, system)
	}
}

// system is the answer on the ranges of a request. Where it is not ok, the request is answered.
func (m *Monitor) system(w http.ResponseWriter, r *http.Request) (document systemJSON, ok bool) {
	query, network, ok := m.query(w, r)
	if !ok {
		return systemJSON{}, false
	}
	ranges := m.shown(network)
	if texts, ok := query["ranges"]; ok {
		var err error
		if ranges, err = parseRanges(strings.Join(texts, ",")); err != nil {
			m.fail(w, http.StatusBadRequest, err.Error())
			return systemJSON{}, false
		}
	}
	at, err := m.lookers[network].look(r.Context())
	if err != nil {
		m.blind(w, err)
		return systemJSON{}, false
	}
	return view{m.details(r), m.ports(network)}.system(network, ranges, at), true
}

func parseRanges(text string) ([]strategy.Range, error) {
	if len(text) > mostText {
		return nil, fmt.Errorf("the ranges are longer than %d bytes: ask for fewer at once", mostText)
	}
	ranges, err := strategy.ParseRanges(text)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "strategy: "))
	}
	if slices.ContainsFunc(ranges, func(r strategy.Range) bool { return r.First == 0 }) {
		return nil, errors.New(`port range "0": there is no port 0 to look at: use 1 to 65535`)
	}
	ranges = normal(ranges)
	if ports := count(ranges); ports > mostAsked {
		return nil, fmt.Errorf("%d ports are too many for one answer: ask for at most %d", ports, mostAsked)
	}
	return ranges, nil
}

// query are the parameters of a request, which are good, and its network. Where it is not ok, the request is answered.
func (m *Monitor) query(w http.ResponseWriter, r *http.Request) (query url.Values, network string, ok bool) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		m.fail(w, http.StatusBadRequest, "the query cannot be read: write for example ?ranges=3000-3010,8080")
		return nil, "", false
	}
	network = networks[0]
	if query.Has("network") {
		network = query.Get("network")
	}
	if !slices.Contains(networks[:], network) {
		m.fail(w, http.StatusBadRequest, "network "+strconv.Quote(clip(network))+" is not known: use tcp or udp")
		return nil, "", false
	}
	if query.Has("status") && query.Get("status") != "200" {
		m.fail(w, http.StatusBadRequest, "status "+strconv.Quote(clip(query.Get("status")))+" cannot be asked for: use 200, or leave it out")
		return nil, "", false
	}
	return query, network, true
}

func (m *Monitor) servePort(w http.ResponseWriter, r *http.Request, text string) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || text[0] == '0' || text[0] == '+' {
		m.fail(w, http.StatusBadRequest, strconv.Quote(clip(text))+" is not a port: use a number from 1 to 65535, in digits without leading zeros")
		return
	}
	_, network, ok := m.query(w, r)
	if !ok {
		return
	}
	at, err := m.lookers[network].look(r.Context())
	if err != nil {
		m.blind(w, err)
		return
	}
	document := view{m.details(r), m.ports(network)}.port(at.one(network, int(port)))
	m.judge(w, r, document.Healthy, document)
}

// blind answers where the machine could not be looked at.
func (m *Monitor) blind(w http.ResponseWriter, err error) {
	text := "the ports of the machine cannot be looked at: the log of the service says why"
	switch {
	case errors.Is(err, net.ErrClosed):
		text = "the handler is closed"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		text = "the request ended before the machine was looked at"
	case errors.Is(err, errLate):
		text = err.Error()
	}
	w.Header().Set("Retry-After", "1")
	m.fail(w, http.StatusServiceUnavailable, text)
}

func (m *Monitor) fail(w http.ResponseWriter, status int, text string) {
	m.write(w, status, errorJSON{text})
}

func (m *Monitor) write(w http.ResponseWriter, status int, document any) {
	text, err := json.Marshal(document)
	if err != nil {
		panic(err) // strings, numbers and times
	}
	write(w, status, "application/json", append(text, '\n'))
}

func write(w http.ResponseWriter, status int, kind string, content []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(status)
	_, _ = w.Write(content) // a client that has gone needs none
}

// clip is what of a request's text is worth repeating.
func clip(text string) string {
	const most = 64
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}
