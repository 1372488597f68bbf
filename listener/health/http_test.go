package health_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

// patience bounds what should take milliseconds.
const patience = 30 * time.Second

var client = &http.Client{
	Timeout: patience,
	Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil {
				err = conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT
			}
			return conn, err
		},
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// serve is a service on a port of its own that shows itself.
func serve(t testing.TB, o health.Options, change ...func(*listener.Config, *http.Server)) (monitor *health.Monitor, url string) {
	t.Helper()
	if o.StateDir == "" {
		o.StateDir = t.TempDir()
	}
	monitor = health.Handler(o)
	t.Cleanup(func() { require.NoError(t, monitor.Close()) })
	server := &http.Server{Handler: monitor}
	cfg := listener.Config{Name: "web", StateDir: o.StateDir, OnEvent: monitor.Event}
	if o.Machine {
		cfg.OnEvent = nil
	}
	for _, c := range change {
		c(&cfg, server)
	}
	ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return monitor, "http://" + ln.Addr().String()
}

func portOf(t testing.TB, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(strings.TrimPrefix(address, "http://"))
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	return port
}

// freePort is a port that was free a moment ago, outside of the ephemeral range, and of what other packages' tests use.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 31500 + rand.IntN(1200)
		if ln, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			require.NoError(t, ln.Close())
			return port
		}
	}
	require.FailNow(t, "no free port")
	return 0
}

func only(port int) []strategy.Range {
	return []strategy.Range{{First: uint16(port), Last: uint16(port)}}
}

func everything(*http.Request) bool { return true }

// An answer is a response that has been compared with the description.
type answer struct {
	*http.Response
	body []byte
}

// into decodes the document.
func into[T any](t testing.TB, a answer) (document T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(a.body, &document), string(a.body))
	return document
}

// ask sends a request with header lines such as "Origin: https://a.example", and compares the answer with the description.
func ask(t testing.TB, method, url string, header ...string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			request.Host = value
			continue
		}
		request.Header.Add(name, value)
	}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	a := answer{response, body}
	require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
	require.Equal(t, "nosniff", a.Header.Get("X-Content-Type-Options"))
	if method == http.MethodGet {
		described.check(t, request.URL.EscapedPath(), a)
	}
	return a
}

func get(t testing.TB, url string, header ...string) answer {
	t.Helper()
	return ask(t, http.MethodGet, url, header...)
}

// A description is openapi.json.
type description struct {
	document any
	compiler *jsonschema.Compiler
}

const descriptionURL = "https://schema.test/openapi.json"

var described = func() *description {
	file, err := os.Open("openapi.json")
	if err != nil {
		panic(err)
	}
	defer file.Close()
	document, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		panic(err)
	}
	d := &description{document, jsonschema.NewCompiler()}
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource(descriptionURL, document); err != nil {
		panic(err)
	}
	return d
}()

// at is a part of the document, and its pointer once references are followed.
func (d *description) at(names ...string) (part any, pointer string, ok bool) {
	part = d.document
	for _, name := range names {
		object, _ := part.(map[string]any)
		if part, ok = object[name]; !ok {
			return nil, "", false
		}
		pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		if object, ok := part.(map[string]any); ok {
			if to, ok := object["$ref"].(string); ok && strings.HasPrefix(to, "#/components/responses/") {
				part, pointer, _ = d.at(strings.Split(strings.TrimPrefix(to, "#/"), "/")...)
			}
		}
	}
	return part, pointer, true
}

func (d *description) validate(t testing.TB, pointer string, text []byte) {
	t.Helper()
	schema, err := d.compiler.Compile(descriptionURL + "#" + pointer)
	require.NoError(t, err)
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err, string(text))
	require.NoError(t, schema.Validate(document), string(text))
}

// check compares an answer to GET with the description of the path.
func (d *description) check(t testing.TB, path string, a answer) {
	t.Helper()
	if path == "" {
		path = "/" // as clients send it
	}
	template := path
	if _, _, ok := d.at("paths", path); !ok {
		template = "/api/health/ports/{port}"
		if rest, ok := strings.CutPrefix(path, "/api/health/ports/"); !ok || rest == "" || strings.Contains(rest, "/") {
			require.Equal(t, http.StatusNotFound, a.StatusCode, path)
			template = "/api/health/ports/{port}" // whose 404 is that of every path
		}
	}
	kind, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
	_, pointer, ok := d.at("paths", template, "get", "responses", strconv.Itoa(a.StatusCode), "content", kind, "schema")
	require.True(t, ok, "%s: %d %s is not described", path, a.StatusCode, kind)
	if kind == "application/json" {
		d.validate(t, pointer, a.body)
	}
}

// What the tests look at of the documents.
type (
	system struct {
		Ranges   []string
		Complete bool
		Details  bool
		Summary  struct {
			Total, Free, Tracked, Locked, Errors int
			InUse                                int `json:"in_use"`
		}
		Ports []port
	}
	port struct {
		Network, State, Service  string
		Until                    *time.Time
		Port                     int
		Healthy, Own, Complete   bool
		Holders                  []process
		Records, Recommendations []string
	}
	process struct {
		PID                                int
		Command, Address, State, User, Dir string
		Reserved                           bool
		Service                            string
		Until                              *time.Time
		Executable                         *string
		Args                               []string
	}
	socket struct {
		Name, Network, Requested, Address, Origin string
		Port                                      int
		Open                                      bool
		Since                                     *time.Time
		Decisions                                 []string
		InTheWay                                  []process `json:"in_the_way"`
	}
	upgrade struct {
		Event, Error string
		Took         float64 `json:"took_seconds"`
	}
	service struct {
		Name, State string
		PID         int
		Ready       bool
		Sockets     []socket
		Connections *int
		Upgrades    []upgrade
	}
	ports struct {
		Healthy  bool
		Problems []string
		Service  *service
		System   system
	}
	probe struct {
		OK       bool
		State    string
		Problems []string
	}
	failure struct{ Error string }
)

func TestEveryPathAnswersAsDescribed(t *testing.T) {
	stranger := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), "")
	datagrams := holding(t, "udp", fmt.Sprint("127.0.0.1:", freePort(t)), "")
	_, url := serve(t, health.Options{Name: "web", Details: everything, Ranges: only(portOf(t, stranger.address))})
	own, theirs := portOf(t, url), portOf(t, stranger.address)

	all := into[ports](t, get(t, url+"/api/health/ports"))
	require.True(t, all.Healthy)
	require.Equal(t, os.Getpid(), all.Service.PID)
	require.Equal(t, "web", all.Service.Name)
	require.Equal(t, "serving", all.Service.State)
	require.True(t, all.Service.Ready)
	require.Len(t, all.Service.Sockets, 1)
	require.Equal(t, "bound", all.Service.Sockets[0].Origin)
	require.Equal(t, "127.0.0.1:0", all.Service.Sockets[0].Requested)
	require.Equal(t, own, all.Service.Sockets[0].Port)
	require.NotNil(t, all.Service.Sockets[0].Since)
	require.Empty(t, all.Service.Sockets[0].Decisions)
	require.Nil(t, all.Service.Connections)
	require.Equal(t, 2, all.System.Summary.Total, "the range, and its own port")
	require.Equal(t, all, into[ports](t, get(t, url+"/")), "the root, to who does not want HTML")
	require.Equal(t, all, into[ports](t, get(t, url)))

	summary := into[system](t, get(t, url+"/api/health/ports/system"))
	require.Equal(t, all.System, summary)
	asked := into[system](t, get(t, fmt.Sprintf("%s/api/health/ports/system?ranges=%d,%d-%d", url, theirs, theirs, theirs+1)))
	require.Equal(t, []string{fmt.Sprintf("%d-%d", theirs, theirs+1)}, asked.Ranges)
	require.Equal(t, 2, asked.Summary.Total)
	require.Equal(t, theirs, asked.Ports[0].Port)
	require.Equal(t, "in use", asked.Ports[0].State)
	require.Equal(t, stranger.pid, asked.Ports[0].Holders[0].PID)

	a := get(t, fmt.Sprint(url, "/api/health/ports/", own))
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.True(t, into[port](t, a).Own)
	a = get(t, fmt.Sprint(url, "/api/health/ports/", theirs))
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.False(t, into[port](t, a).Own)
	require.Contains(t, into[port](t, a).Recommendations[0], "kill "+strconv.Itoa(stranger.pid))
	a = get(t, fmt.Sprint(url, "/api/health/ports/", freePort(t)))
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.Equal(t, "available", into[port](t, a).State)
	a = get(t, fmt.Sprint(url, "/api/health/ports/", portOf(t, datagrams.address), "?network=udp"))
	require.Equal(t, "in use", into[port](t, a).State)
	require.Equal(t, "udp", into[port](t, a).Network)

	a = get(t, url+"/api/health/openapi.json")
	content, err := os.ReadFile("openapi.json")
	require.NoError(t, err)
	require.Equal(t, content, a.body)
	require.Equal(t, probe{true, "serving", []string{}}, into[probe](t, get(t, url+"/livez")))
	require.Equal(t, probe{true, "serving", []string{}}, into[probe](t, get(t, url+"/readyz")))

	a = get(t, url+"/", "Accept: text/html,application/xhtml+xml,*/*;q=0.8")
	require.Equal(t, "text/html; charset=utf-8", a.Header.Get("Content-Type"))
	require.Contains(t, string(a.body), "<html")
	require.Contains(t, a.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
	require.NotContains(t, a.Header.Get("Content-Security-Policy"), "unsafe")
}

// The description itself: every path of it is answered, and what it says of nothing else.
func TestDescription(t *testing.T) {
	monitor := health.Handler(health.Options{})
	defer monitor.Close()
	paths, _, _ := described.at("paths")
	for path := range paths.(map[string]any) {
		w := httptest.NewRecorder()
		monitor.ServeHTTP(w, httptest.NewRequest(http.MethodHead, strings.Replace(path, "{port}", "80", 1), nil))
		require.NotEqual(t, http.StatusNotFound, w.Code, path)
	}
	schemas, _, _ := described.at("components", "schemas")
	for name := range schemas.(map[string]any) {
		_, err := described.compiler.Compile(descriptionURL + "#/components/schemas/" + name)
		require.NoError(t, err)
	}
	version, _, _ := described.at("openapi")
	require.Equal(t, "3.1.0", version)
}

func TestWhatCannotBeAnswered(t *testing.T) {
	_, url := serve(t, health.Options{})
	long := strings.Repeat("x", 100_000)
	for _, test := range []struct {
		path   string
		status int
		says   string
	}{
		{"/api/health/ports/abc", 400, `"abc" is not a port: use a number from 1 to 65535`},
		{"/api/health/ports/0", 400, "is not a port"},
		{"/api/health/ports/65536", 400, "is not a port"},
		{"/api/health/ports/99999999999999999999", 400, "is not a port"},
		{"/api/health/ports/080", 400, "leading zeros"},
		{"/api/health/ports/-1", 400, "is not a port"},
		{"/api/health/ports/+80", 400, "is not a port"},
		{"/api/health/ports/%2B80", 400, "is not a port"},
		{"/api/health/ports/8080.0", 400, "is not a port"},
		{"/api/health/ports/0x50", 400, "is not a port"},
		{"/api/health/ports/%38%30", 400, "is not a port"},
		{"/api/health/ports/80%2F80", 400, "is not a port"},
		{"/api/health/ports/%00", 400, "is not a port"},
		{"/api/health/ports/%ff", 400, "is not a port"},
		{"/api/health/ports/%0a", 400, "is not a port"},
		{"/api/health/ports/" + long, 400, "x..."},
		{"/api/health/ports/80?network=sctp", 400, `network "sctp" is not known: use tcp or udp`},
		{"/api/health/ports/80?network=", 400, "is not known"},
		{"/api/health/ports/80?network=" + long, 400, "x..."},
		{"/api/health/ports/80?%zz", 400, "the query cannot be read"},
		{"/api/health/ports/80?status=503", 400, `status "503" cannot be asked for: use 200`},
		{"/api/health/ports?status=", 400, "cannot be asked for"},
		{"/api/health/ports/abc?status=200", 400, "is not a port"},
		{"/api/health/ports?ranges=abc&status=200", 400, "port range"},
		{"/nothing?status=200", 404, "no such path"},
		{"/api/health/ports?ranges=", 400, "port range"},
		{"/api/health/ports?ranges=abc", 400, "port range"},
		{"/api/health/ports?ranges=10-3", 400, "write 3-10"},
		{"/api/health/ports?ranges=0", 400, "there is no port 0"},
		{"/api/health/ports?ranges=1-4096", 200, ""},
		{"/api/health/ports?ranges=1-4096&ranges=5000", 400, "4097 ports are too many"},
		{"/api/health/ports?ranges=1-65535", 400, "65535 ports are too many"},
		{"/api/health/ports?ranges=" + strings.Repeat("1,", 600) + "1", 400, "longer than 1024 bytes"},
		{"/api/health/ports/system?ranges=http", 400, "port range"},
		{"/api/health/ports/system?network=tcp4", 400, "is not known"},
		{"/?ranges=x", 400, "port range"},
		{"/api/health/ports/", 404, "no such path: /api/health/ports/"},
		{"/api/health/ports/80/", 404, "no such path"},
		{"/api/health/ports/80/80", 404, "no such path"},
		{"/api/health/ports/system/", 404, "no such path"},
		{"/api%2Fhealth%2Fports", 404, "no such path"},
		{"//api/health/ports", 404, "no such path"},
		{"/api/health/../health/ports", 404, "no such path"},
		{"/API/HEALTH/PORTS", 404, "no such path"},
		{"/livez/", 404, "no such path"},
		{"/favicon.ico", 404, "see api/health/openapi.json"},
		{"/" + long, 404, "x..."},
	} {
		name := test.path[:min(len(test.path), 60)]
		a := get(t, url+test.path)
		require.Equal(t, test.status, a.StatusCode, name)
		if test.status != http.StatusOK {
			require.Contains(t, into[failure](t, a).Error, test.says, name)
			require.Less(t, len(a.body), 512, name)
		}
	}
}

func TestHeadIsGetWithoutTheBody(t *testing.T) {
	_, url := serve(t, health.Options{})
	for _, path := range []string{"/", "/api/health/ports/80", "/api/health/ports/abc", "/api/health/openapi.json", "/livez", "/readyz", "/nothing"} {
		with, without := get(t, url+path), ask(t, http.MethodHead, url+path)
		require.Equal(t, with.StatusCode, without.StatusCode, path)
		require.Empty(t, without.body, path)
		require.NotEmpty(t, with.body, path)
		require.Equal(t, with.Header.Get("Content-Type"), without.Header.Get("Content-Type"), path)
	}
	a := ask(t, http.MethodHead, url+"/api/health/events")
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.Equal(t, "text/event-stream", a.Header.Get("Content-Type"))
}

func TestNothingCanBeChanged(t *testing.T) {
	_, url := serve(t, health.Options{})
	for _, path := range []string{"/", "/api/health/ports", "/api/health/ports/80", "/api/health/ports/system", "/api/health/events", "/api/health/openapi.json", "/livez", "/readyz"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodTrace, "BREW"} {
			a := ask(t, method, url+path)
			require.Equal(t, http.StatusMethodNotAllowed, a.StatusCode, "%s %s", method, path)
			require.Contains(t, a.Header.Get("Allow"), "GET, HEAD")
			described.validate(t, "/components/schemas/Error", a.body)
		}
	}
	require.Equal(t, http.StatusNotFound, ask(t, http.MethodPost, url+"/nothing").StatusCode)
	a := ask(t, http.MethodOptions, url+"/api/health/ports")
	require.Equal(t, http.StatusNoContent, a.StatusCode)
	require.Equal(t, "GET, HEAD, OPTIONS", a.Header.Get("Allow"))
	require.Equal(t, http.StatusMethodNotAllowed, ask(t, http.MethodOptions, url+"/livez").StatusCode)
}

func TestOrigins(t *testing.T) {
	const friend = "https://status.example.com"
	_, url := serve(t, health.Options{Origins: []string{friend}})
	for _, path := range []string{"/", "/api/health/ports", "/api/health/ports/80", "/api/health/openapi.json"} {
		a := get(t, url+path, "Origin: "+friend)
		require.Equal(t, friend, a.Header.Get("Access-Control-Allow-Origin"))
		require.Contains(t, a.Header.Values("Vary"), "Origin")
		require.Empty(t, a.Header.Get("Access-Control-Allow-Credentials"))
		a = get(t, url+path)
		require.Empty(t, a.Header.Get("Access-Control-Allow-Origin"))
		require.Contains(t, a.Header.Values("Vary"), "Origin")
		for _, stranger := range []string{
			"https://evil.example", "null", "http://status.example.com", friend + ".evil.example", friend + ":8443", strings.ToUpper(friend),
			"https://evil.example/" + friend, "", "http://127.0.0.1:1",
		} {
			a := get(t, url+path, "Origin: "+stranger)
			require.Equal(t, http.StatusForbidden, a.StatusCode, stranger)
			require.Empty(t, a.Header.Get("Access-Control-Allow-Origin"), stranger)
			require.Contains(t, a.Header.Values("Vary"), "Origin")
			require.Contains(t, into[failure](t, a).Error, "list it in Options.Origins")
		}
		require.Equal(t, http.StatusForbidden, get(t, url+path, "Origin: "+friend, "Origin: https://evil.example").StatusCode)
		a = get(t, url+path, "Origin: "+url)
		require.NotEqual(t, http.StatusForbidden, a.StatusCode, "its own page")
		require.Empty(t, a.Header.Get("Access-Control-Allow-Origin"))
	}
	a := ask(t, http.MethodOptions, url+"/api/health/events", "Origin: "+friend, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization")
	require.Equal(t, http.StatusNoContent, a.StatusCode)
	require.Equal(t, friend, a.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "GET, HEAD", a.Header.Get("Access-Control-Allow-Methods"))
	require.Contains(t, a.Header.Get("Access-Control-Allow-Headers"), "Authorization")
	a = ask(t, http.MethodOptions, url+"/api/health/events", "Origin: https://evil.example", "Access-Control-Request-Method: GET")
	require.Equal(t, http.StatusForbidden, a.StatusCode)
	require.Empty(t, a.Header.Get("Access-Control-Allow-Methods"))

	_, url = serve(t, health.Options{}) // nobody by default, not even an empty name
	require.Equal(t, http.StatusForbidden, get(t, url+"/api/health/ports", "Origin: "+friend).StatusCode)
	require.Empty(t, get(t, url+"/api/health/ports").Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, http.StatusOK, get(t, url+"/livez", "Origin: "+friend).StatusCode, "it tells nothing")
	require.Empty(t, get(t, url+"/livez", "Origin: "+friend).Header.Get("Access-Control-Allow-Origin"))
}

// A page of evil.example that has its name lead to 127.0.0.1 is of the same origin as what it asks.
func TestRebinding(t *testing.T) {
	_, url := serve(t, health.Options{Hosts: []string{"Ports.Example.com"}})
	for _, host := range []string{
		"localhost", "localhost:8080", "LOCALHOST", "localhost.", "app.localhost:1", "127.0.0.1", "127.0.0.1:1", "[::1]:1", "[::1]", "192.0.2.1:80",
		"ports.example.com", "ports.example.com:443", "ports.example.com.",
	} {
		require.Equal(t, http.StatusOK, get(t, url+"/api/health/ports", "Host: "+host).StatusCode, host)
	}
	for _, host := range []string{"evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", "ports.example.com.evil.example"} {
		a := get(t, url+"/api/health/ports", "Host: "+host, "Origin: http://"+host)
		require.Equal(t, http.StatusForbidden, a.StatusCode, host)
		require.Contains(t, into[failure](t, a).Error, "list the name in Options.Hosts")
		require.Equal(t, http.StatusForbidden, get(t, url+"/", "Host: "+host, "Accept: text/html").StatusCode, host)
		require.Equal(t, http.StatusForbidden, get(t, url+"/api/health/events", "Host: "+host).StatusCode, host)
		require.Equal(t, http.StatusOK, get(t, url+"/readyz", "Host: "+host).StatusCode, "it tells nothing")
	}
	_, url = serve(t, health.Options{Hosts: []string{"*"}})
	require.Equal(t, http.StatusOK, get(t, url+"/api/health/ports", "Host: behind.a.proxy.example").StatusCode)

	// Elsewhere every name is good.
	monitor := health.Handler(health.Options{Machine: true})
	defer monitor.Close()
	request := httptest.NewRequest(http.MethodGet, "http://ports.example.org/api/health/ports/80", nil)
	local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}
	w := httptest.NewRecorder()
	monitor.ServeHTTP(w, request.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, local)))
	require.NotEqual(t, http.StatusForbidden, w.Code)
}

func TestMountedAnywhere(t *testing.T) {
	monitor := health.Handler(health.Options{Machine: true, StateDir: t.TempDir()})
	defer monitor.Close()
	mux := http.NewServeMux()
	mux.Handle("/ops/", http.StripPrefix("/ops", monitor))
	mux.Handle("GET /bare", http.StripPrefix("/bare", monitor))
	mux.Handle("/readyz", monitor)
	server := httptest.NewServer(mux)
	defer server.Close()
	for path, status := range map[string]int{
		"/ops/": 200, "/ops/api/health/ports": 200, "/ops/api/health/ports/system": 200, "/ops/api/health/ports/abc": 400, "/ops/api/health/ports/80%2F80": 400,
		"/ops/livez": 200, "/ops/nothing": 404, "/bare": 200, "/readyz": 200,
	} {
		response, err := client.Get(server.URL + path)
		require.NoError(t, err)
		response.Body.Close()
		require.Equal(t, status, response.StatusCode, path)
	}
}

// What a process is told by, to whom nobody has allowed more.
func TestNoDetailsWithoutPermission(t *testing.T) {
	const secret = "hunter2-do-not-tell"
	dir := t.TempDir()
	stranger := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), "", "SECRET="+secret)
	crashed := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), dir)
	crashed.crash()
	damaged := freePort(t)
	require.NoError(t, os.WriteFile(fmt.Sprintf("%s/tcp-127.0.0.1-%d.lock", dir, damaged), []byte("garbage"), 0o600))
	exe, err := os.Executable()
	require.NoError(t, err)
	workDir, err := os.Getwd()
	require.NoError(t, err)

	o := health.Options{
		StateDir: dir, Ranges: []strategy.Range{{First: 31500, Last: 32700}}, Interval: time.Hour,
		Details: func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer operator" },
	}
	monitor, url := serve(t, o)
	// Errors and events speak of processes too.
	cfg := listener.Config{StateDir: dir, OnEvent: monitor.Event}
	_, err = cfg.Listen(t.Context(), "tcp", stranger.address)
	require.Error(t, err)
	require.Contains(t, err.Error(), workDir)
	monitor.Upgrade("upgrade failed", time.Second, fmt.Errorf("%s: exit status 7: panic in %s", exe, workDir))

	bodies := func(header ...string) string {
		all := string(get(t, url+"/api/health/ports", header...).body) + string(get(t, url+"/api/health/ports/system", header...).body)
		for _, h := range []int{portOf(t, stranger.address), portOf(t, crashed.address), damaged} {
			all += string(get(t, fmt.Sprint(url, "/api/health/ports/", h), header...).body)
		}
		s := open(t, url, header...)
		for range 4 { // bound, conflict, failed, upgrade failed
			all += s.next().raw
		}
		return all
	}
	for _, header := range [][]string{nil, {"Authorization: Bearer guest"}} {
		public := bodies(header...)
		require.Contains(t, public, strconv.Itoa(stranger.pid))
		require.Contains(t, public, "health.test")
		for _, private := range []string{secret, exe, workDir, dir, "-test.", `"user"`, `"uid"`, `"args"`, "kill ", ".lock", "root"} {
			require.NotContains(t, public, private)
		}
		require.Contains(t, public, "a record of this port is stale, damaged or of a future version")
		require.Contains(t, public, "address already in use")
		require.Contains(t, public, "the log of the service says why")
		require.Contains(t, public, `"details":false`)
	}
	full := bodies("Authorization: Bearer operator")
	for _, told := range []string{exe, workDir, dir, `"args":["`, "kill " + strconv.Itoa(stranger.pid), "is stale: pid", "exit status 7", "held by health.test"} {
		require.Contains(t, full, told)
	}
	require.NotContains(t, full, secret, "the environment is nobody's business")
}

// However many ask, and whatever for, the machine is looked at once in a period.
func TestRequestsShareALook(t *testing.T) {
	var looks atomic.Int32
	monitor := health.Handler(health.Options{Cache: time.Hour, StateDir: t.TempDir()})
	defer monitor.Close()
	monitor.SetInspect(func(ctx context.Context, o inspect.Options) (inspect.Summary, error) {
		looks.Add(1)
		return inspect.System(ctx, o)
	})
	const clients, each = 20, 500
	var group sync.WaitGroup
	for n := range clients {
		group.Go(func() {
			for i := range each {
				path := "/api/health/ports/" + strconv.Itoa(1+n*each+i)
				switch i % 3 {
				case 1:
					path = fmt.Sprintf("/api/health/ports?ranges=%d-%d", n+1, 100+i)
				case 2:
					path = "/api/health/ports/system"
				}
				w := httptest.NewRecorder()
				monitor.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				if w.Code != http.StatusOK && w.Code != http.StatusServiceUnavailable {
					t.Error(w.Code, path)
				}
			}
		})
	}
	group.Wait()
	require.EqualValues(t, 1, looks.Load())
}

// Between two looks passes a period, of which the end of the first counts.
func TestLooksKeepADistance(t *testing.T) {
	const period = 20 * time.Millisecond
	type span struct{ begin, end time.Time }
	var mu sync.Mutex
	var looks []span
	monitor := health.Handler(health.Options{Cache: period, StateDir: t.TempDir()})
	defer monitor.Close()
	enough := make(chan struct{})
	monitor.SetInspect(func(context.Context, inspect.Options) (inspect.Summary, error) {
		begin := time.Now()
		mu.Lock()
		defer mu.Unlock()
		looks = append(looks, span{begin, time.Now()})
		if len(looks) == 5 {
			close(enough)
		}
		return inspect.Summary{}, nil
	})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				monitor.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/api/health/ports", nil))
			}
		})
	}
	group.Wait()
	mu.Lock()
	defer mu.Unlock()
	for i := 1; i < len(looks); i++ {
		require.GreaterOrEqual(t, looks[i].begin.Sub(looks[i-1].end), period)
	}
}

// A machine that is slow to tell holds up who asks, but nothing piles up, and who goes goes.
func TestSlowLook(t *testing.T) {
	var looks atomic.Int32
	looking, finish := make(chan struct{}), make(chan struct{})
	o := health.Options{Cache: time.Hour}
	monitor, url := serve(t, o)
	monitor.SetInspect(func(ctx context.Context, _ inspect.Options) (inspect.Summary, error) {
		if looks.Add(1) == 1 {
			close(looking)
		}
		select {
		case <-finish:
			return inspect.Summary{}, nil
		case <-ctx.Done():
			return inspect.Summary{}, ctx.Err()
		}
	})
	leaving, leave := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(leaving, http.MethodGet, url+"/api/health/ports", nil)
	require.NoError(t, err)
	left := make(chan error, 1)
	go func() {
		_, err := client.Do(request)
		left <- err
	}()
	<-looking
	leave()
	require.ErrorIs(t, <-left, context.Canceled)

	statuses := make(chan int)
	for i := range 50 {
		go func() {
			response, err := client.Get(fmt.Sprint(url, "/api/health/ports/", i+1))
			if err != nil {
				statuses <- 0
				return
			}
			response.Body.Close()
			statuses <- response.StatusCode
		}()
	}
	require.Equal(t, http.StatusOK, get(t, url+"/livez").StatusCode, "the probes do not look")
	require.Equal(t, http.StatusOK, get(t, url+"/readyz").StatusCode)
	close(finish)
	for range 50 {
		require.Equal(t, http.StatusServiceUnavailable, <-statuses) // available, so not healthy
	}
	require.EqualValues(t, 1, looks.Load())
}

func TestLookThatFails(t *testing.T) {
	var log bytes.Buffer
	var looks atomic.Int32
	monitor, url := serve(t, health.Options{Cache: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	monitor.SetInspect(func(context.Context, inspect.Options) (inspect.Summary, error) {
		looks.Add(1)
		return inspect.Summary{}, errors.New("netlink: secret reason")
	})
	for _, path := range []string{"/api/health/ports", "/api/health/ports/system", "/api/health/ports/80", "/", "/?status=200"} {
		a := get(t, url+path)
		require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
		require.Equal(t, "1", a.Header.Get("Retry-After"))
		require.Contains(t, into[failure](t, a).Error, "cannot be looked at: the log of the service says why")
	}
	require.EqualValues(t, 1, looks.Load())
	require.Equal(t, 1, strings.Count(log.String(), "netlink: secret reason"))

	require.NoError(t, monitor.Close())
	require.Contains(t, into[failure](t, get(t, url+"/api/health/ports")).Error, "the handler is closed")
	require.Equal(t, http.StatusOK, get(t, url+"/livez").StatusCode)
	require.Equal(t, http.StatusServiceUnavailable, get(t, url+"/readyz").StatusCode)
	require.NoError(t, monitor.Close(), "again")
}

type counter int

func (c counter) Open() int { return int(c) }

// A service is what its listeners tell, and as healthy as they are.
func TestServiceSeesItself(t *testing.T) {
	stranger := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), "")
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer plain.Close()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer datagrams.Close()
	other, err := (&listener.Config{StateDir: t.TempDir()}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer other.Close()
	o := health.Options{
		Name: "api", Connections: counter(7), Details: everything, Cache: time.Nanosecond,
		Sockets: []syscall.Conn{plain.(*net.TCPListener), datagrams.(*net.UDPConn), other},
	}
	monitor, url := serve(t, o)
	cfg := listener.Config{
		Name: "admin", StateDir: t.TempDir(), Strategy: strategy.Staging(strategy.Range{First: 31500, Last: 32700}), OnEvent: monitor.Event,
	}
	fallback, err := cfg.Listen(t.Context(), "tcp", stranger.address)
	require.NoError(t, err)
	defer fallback.Close()

	all := into[ports](t, get(t, url+"/api/health/ports"))
	require.True(t, all.Healthy, all.Problems)
	require.Equal(t, 7, *all.Service.Connections)
	require.Len(t, all.Service.Sockets, 5)
	require.Equal(t, socket{
		Name: "api", Network: "tcp", Address: plain.Addr().String(), Origin: "unknown", Port: portOf(t, plain.Addr().String()), Open: true,
		Decisions: []string{}, InTheWay: []process{},
	}, all.Service.Sockets[0])
	require.Equal(t, "udp", all.Service.Sockets[1].Network)
	require.Equal(t, "bound", all.Service.Sockets[2].Origin)
	fell := all.Service.Sockets[4]
	require.Equal(t, "admin", fell.Name)
	require.Equal(t, "fallback", fell.Origin)
	require.Equal(t, stranger.address, fell.Requested)
	require.Equal(t, fallback.Addr().String(), fell.Address)
	require.Equal(t, []string{"rebind to 31500-32700"}, fell.Decisions)
	udp := into[system](t, get(t, url+"/api/health/ports/system?network=udp"))
	require.Contains(t, udp.Ranges, strconv.Itoa(portOf(t, datagrams.LocalAddr().String())))

	require.NoError(t, fallback.Close())
	require.Len(t, into[ports](t, get(t, url+"/api/health/ports")).Service.Sockets, 4, "it was told")
	require.NoError(t, monitor.Ready())
	require.NoError(t, plain.Close())
	a := get(t, url+"/api/health/ports")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	all = into[ports](t, a)
	require.False(t, all.Healthy)
	require.Equal(t, []string{"tcp " + plain.Addr().String() + " is closed"}, all.Problems)
	require.False(t, all.Service.Sockets[0].Open)
	require.Equal(t, http.StatusServiceUnavailable, get(t, url+"/readyz").StatusCode)
	require.EqualError(t, monitor.Ready(), "not ready: tcp "+plain.Addr().String()+" is closed")
}

// Without a service, the records are what can be wrong.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	first := freePort(t)
	served := holding(t, "tcp", fmt.Sprint("127.0.0.1:", first), dir)
	stranger := holding(t, "tcp", fmt.Sprint("127.0.0.1:", freePort(t)), "")
	_, url := serve(t, health.Options{
		Machine: true, StateDir: dir, Ranges: []strategy.Range{only(first)[0], only(portOf(t, stranger.address))[0]}, Cache: time.Nanosecond,
	})
	a := get(t, url+"/api/health/ports")
	require.Equal(t, http.StatusOK, a.StatusCode, string(a.body))
	all := into[ports](t, a)
	require.Nil(t, all.Service)
	require.Equal(t, 2, all.System.Summary.InUse+all.System.Summary.Free)
	require.Equal(t, http.StatusOK, get(t, fmt.Sprint(url, "/api/health/ports/", first)).StatusCode)
	require.Equal(t, http.StatusOK, get(t, url+"/readyz").StatusCode)

	served.crash()
	a = get(t, url+"/api/health/ports")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.Equal(t, []string{fmt.Sprintf("tcp port %d has a record that is stale, damaged or of a future version", first)}, into[ports](t, a).Problems)
	require.Equal(t, http.StatusServiceUnavailable, get(t, fmt.Sprint(url, "/api/health/ports/", first)).StatusCode)
	require.Equal(t, http.StatusOK, get(t, url+"/api/health/ports/system").StatusCode, "it passes no verdict")

	// A page asks for the verdict alone.
	for _, path := range []string{"/", "/api/health/ports", fmt.Sprint("/api/health/ports/", first)} {
		a = get(t, url+path+"?status=200")
		require.Equal(t, http.StatusOK, a.StatusCode, path)
		require.Contains(t, string(a.body), `"healthy":false`, path)
	}
	require.Equal(t, http.StatusOK, get(t, url+"/readyz").StatusCode)
}

// A port is reserved, given to whoever binds it, and free: for whom and until when is told, and the machine is in order all the time.
func TestReservation(t *testing.T) {
	dir, at := t.TempDir(), freePort(t)
	monitor, url := serve(t, health.Options{Machine: true, StateDir: dir, Ranges: only(at), Cache: time.Nanosecond, Interval: time.Hour})
	cfg := listener.Config{Name: "shop", StateDir: dir, OnEvent: monitor.Event}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	reservation, err := cfg.Reserve(ctx, "tcp", fmt.Sprint("127.0.0.1:", at))
	require.NoError(t, err)
	defer reservation.Close()
	look := func() port {
		t.Helper()
		all := into[ports](t, get(t, url+"/api/health/ports"))
		require.True(t, all.Healthy, all.Problems)
		require.Len(t, all.System.Ports, 1)
		return all.System.Ports[0]
	}
	p := look()
	require.Equal(t, "reserved", p.State)
	require.Equal(t, "shop", p.Service)
	require.WithinDuration(t, reservation.Until(), *p.Until, 0)
	require.Len(t, p.Holders, 1)
	require.True(t, p.Holders[0].Reserved)
	require.Equal(t, "shop", p.Holders[0].Service)
	require.WithinDuration(t, reservation.Until(), *p.Holders[0].Until, 0)

	require.NoError(t, reservation.Release(ctx, 30*time.Minute))
	p = look()
	require.Equal(t, "locked", p.State)
	require.WithinDuration(t, reservation.Until(), *p.Until, 0)
	require.NoError(t, reservation.Close())

	s := open(t, url)
	e := s.next()
	require.Equal(t, "reserved", e.Kind)
	require.Equal(t, fmt.Sprintf("tcp 127.0.0.1:%d is reserved", at), e.Text)
	e = s.next()
	require.Equal(t, "released", e.Kind)
	require.Equal(t, fmt.Sprintf("tcp 127.0.0.1:%d is reserved no more", at), e.Text)
}

func TestReadiness(t *testing.T) {
	monitor, url := serve(t, health.Options{Reload: true})
	ready := func(status int, state string) {
		t.Helper()
		a := get(t, url+"/readyz")
		require.Equal(t, status, a.StatusCode)
		require.Equal(t, state, into[probe](t, a).State)
		require.Equal(t, status == http.StatusOK, monitor.Ready() == nil)
		over := state == "draining" || state == "stopping" || state == "stopped"
		w := httptest.NewRecorder()
		monitor.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		require.Equal(t, over, w.Header().Get("Connection") == "close", "who asks again comes by a new connection")
		require.Equal(t, probe{true, state, []string{}}, into[probe](t, get(t, url+"/livez")))
	}
	ready(503, "starting")
	monitor.Upgrade("ready", 0, nil)
	ready(200, "serving")
	monitor.Upgrade("upgrading", 0, nil)
	ready(200, "serving")
	monitor.Upgrade("upgrade failed", time.Second, errors.New("exit status 7"))
	ready(200, "serving")
	monitor.Upgrade("upgraded", time.Second, nil)
	ready(200, "serving")
	monitor.Upgrade("draining", 0, nil)
	ready(503, "draining")
	monitor.Upgrade("resumed", 0, errors.New("exit status 1"))
	ready(200, "serving")
	monitor.Upgrade("something new", 0, nil)
	ready(200, "serving")
	monitor.Upgrade("stopping", 0, nil)
	ready(503, "stopping")
	monitor.Upgrade("stopped", time.Second, nil)
	ready(503, "stopped")
	monitor.Upgrade("ready", 0, nil)
	ready(503, "stopped")

	upgrades := into[ports](t, get(t, url+"/api/health/ports")).Service.Upgrades
	require.Len(t, upgrades, 9)
	require.Equal(t, upgrade{"upgrade failed", "the log of the service says why", 1}, upgrades[2])
	for range 40 {
		monitor.Upgrade("upgrading", 0, nil)
	}
	require.Len(t, into[ports](t, get(t, url+"/api/health/ports")).Service.Upgrades, 32)

	// Nobody told of a socket.
	monitor = health.Handler(health.Options{})
	defer monitor.Close()
	require.ErrorContains(t, monitor.Ready(), "set Options.Sockets, or OnEvent of the listener.Config")
}

// Whatever a client sends gets an answer in JSON, or the page.
func FuzzRequest(f *testing.F) {
	for _, path := range []string{
		"/", "/livez", "/readyz", "/api/health/ports", "/api/health/ports/80", "/api/health/ports/080", "/api/health/ports/a%2Fb", "/api/health/ports?ranges=1-9,80&network=udp",
		"/api/health/ports/system?ranges=1-65535", "/api/health/events", "/api/health/openapi.json", "//", "*", "http://a/b", "/%", "/api/health/ports/%00?%",
	} {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST"} {
			f.Add([]byte(method + " " + path + " HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://localhost:1\r\nAccept: text/html\r\nLast-Event-ID: x-1\r\n\r\n"))
		}
	}
	monitor := health.Handler(health.Options{Cache: 1000 * time.Hour, Interval: 1000 * time.Hour, StateDir: f.TempDir(), Details: everything, Origins: []string{"https://a.example"}})
	f.Cleanup(func() { monitor.Close() })
	monitor.SetInspect(func(context.Context, inspect.Options) (inspect.Summary, error) {
		return inspect.Summary{Ports: []inspect.Report{{Network: "tcp", Port: 80, State: inspect.InUse, Holders: []strategy.Holder{{PID: 1, Command: "\xff<script>\u2028"}}}}}, nil
	})
	for _, network := range []string{"tcp", "udp"} { // from now on each look is there at once
		w := httptest.NewRecorder()
		monitor.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/health/ports?network="+network, nil))
	}
	monitor.Upgrade("ready", 0, nil)
	over, cancel := context.WithCancel(context.WithValue(context.Background(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	cancel() // a stream ends after what it has
	f.Fuzz(func(t *testing.T, text []byte) {
		request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		monitor.ServeHTTP(w, request.WithContext(over))
		switch w.Code {
		case 200, 204, 400, 403, 404, 405, 503:
		default:
			t.Fatal(w.Code)
		}
		switch kind := w.Header().Get("Content-Type"); kind {
		case "application/json":
			require.True(t, json.Valid(w.Body.Bytes()), w.Body.String())
		case "text/html; charset=utf-8", "text/event-stream":
			require.Equal(t, 200, w.Code)
		default:
			require.Equal(t, 204, w.Code, kind)
		}
		if w.Code >= 400 && w.Code != 503 {
			described.validate(t, "/components/schemas/Error", w.Body.Bytes())
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" {
			require.Equal(t, "https://a.example", request.Header.Get("Origin"))
		}
	})
}
