package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

// A dashboard is what of Grafana's model is looked at here.
type dashboard struct {
	SchemaVersion int
	UID, Title    string
	Annotations   struct{ List []struct{ Expr string } }
	Templating    struct {
		List []struct{ Name, Type, Definition string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ RefID, Expr string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(text, &d))
	return d
}

// queries are the expressions of the dashboard, by panel, with its variables filled in.
func (d dashboard) queries() map[string]string {
	fill := strings.NewReplacer("$job", ".*", "$instance", ".*", "$name", ".*", "$__rate_interval", "1m", "$__range", "1h")
	queries := map[string]string{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			queries[p.Title+" "+target.RefID] = fill.Replace(target.Expr)
		}
	}
	for i, a := range d.Annotations.List {
		if a.Expr != "" {
			queries[fmt.Sprint("annotation ", i)] = fill.Replace(a.Expr)
		}
	}
	return queries
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	require.GreaterOrEqual(t, d.SchemaVersion, 38) // Grafana 10; newer ones migrate it
	require.NotEmpty(t, d.UID)
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], "two panels have the id %d", p.ID)
		ids[p.ID] = true
		require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				require.Empty(t, cells[[2]int{x, y}], "%s lies over it", p.Title)
				cells[[2]int{x, y}] = p.Title
			}
		}
		require.Equal(t, p.Type == "row", len(p.Targets) == 0, p.Title)
	}
	for query := range maps.Values(d.queries()) {
		require.NotContains(t, query, "$")
	}
}

// The program runs, is used and upgraded. All that dashboard and alerts ask for is there then, by name and in a real
// Prometheus.
func TestMetrics(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0", "-max-per-ip", "2")
	web, admin := served(t, p)
	prometheus := startPrometheus(t, admin)
	use(t, web)
	prometheus.until(t, `sum(berth_connections_refused_total) == 1`)
	prometheus.until(t, `berth_connections_open{name="web"} == 0`)
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	served(t, p)
	prometheus.until(t, `berth_takeover_timestamp_seconds > 0`)
	use(t, web)
	prometheus.until(t, `sum(berth_connections_refused_total) == 1`) // the new version's

	scrape := exampletest.Get(t, admin+"/metrics")
	promtool(t, scrape, "check", "metrics")
	for _, line := range []string{
		`berth_connections_accepted_total{name="web",network="tcp"} 2`,
		`berth_connections_refused_total{name="web",network="tcp",reason="limit_per_ip"} 1`,
		`berth_listeners{name="web",network="tcp",origin="inherited"} 1`,
		`berth_listeners{name="admin",network="tcp",origin="inherited"} 1`,
		`berth_state{state="ready"} 1`,
		`berth_state{state="draining"} 0`,
	} {
		require.True(t, strings.Contains(scrape, line+"\n"), "%s is not in the scrape", line)
	}
	there := map[string]bool{}
	for _, sample := range regexp.MustCompile(`(?m)^[a-z_]+`).FindAllString(scrape, -1) {
		there[sample] = true
	}
	rules, err := os.ReadFile("alerts.yml")
	require.NoError(t, err)
	board, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	names := regexp.MustCompile(`\b(berth|process)_[a-z_]+`).FindAllString(string(board)+string(rules), -1)
	require.Greater(t, len(names), 40)
	for _, name := range names {
		require.True(t, there[name], "%s is not in the scrape", name)
	}

	// What a panel shows only when something is wrong gives nothing here; without its condition it must.
	condition := regexp.MustCompile(` (> 0|== 1)$`)
	for _, query := range readDashboard(t).queries() {
		prometheus.until(t, condition.ReplaceAllString(query, ""))
	}
	prometheus.until(t, `ALERTS{alertname="BerthConnectionsRefused", alertstate="pending"}`) // one in three
	prometheus.rulesAreWell(t)
}

// use has one connection refused, while two are open.
func use(t *testing.T, address string) {
	t.Helper()
	for range 3 {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(exampletest.Timeout)))
		_, err = conn.Write([]byte("GET / HTTP/1.1\r\nHost: server\r\n\r\n"))
		if err == nil {
			_, _ = conn.Read(make([]byte, 1)) // an answer, or its end
		}
	}
}

// A server is a Prometheus that scrapes the program.
type server struct{ address string }

func startPrometheus(t *testing.T, target string) server {
	t.Helper()
	exe := exampletest.Need(t, "prometheus")
	dir := t.TempDir()
	rules, err := filepath.Abs("alerts.yml")
	require.NoError(t, err)
	config := fmt.Sprintf(`global: {scrape_interval: 100ms, evaluation_interval: 100ms}
rule_files: [%q]
scrape_configs:
  - job_name: observability
    static_configs: [{targets: [%q]}]
`, rules, target)
	path := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(path, []byte(config), 0o600))
	address := exampletest.FreeAddress(t)
	p := exampletest.StartCommand(t, nil, exe, "--config.file="+path, "--storage.tsdb.path="+dir, "--web.listen-address="+address)
	p.Until(t, "Server is ready to receive web requests")
	return server{address}
}

// ask asks the API.
func (p server) ask(t *testing.T, path string, data any) {
	t.Helper()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	text := exampletest.Get(t, p.address+"/api/v1/"+path)
	require.NoError(t, json.Unmarshal([]byte(text), &answer), "%s", text)
	require.Equal(t, "success", answer.Status, answer.Error)
	require.NoError(t, json.Unmarshal(answer.Data, data))
}

func (p server) query(t *testing.T, query string) []json.RawMessage {
	t.Helper()
	var data struct{ Result []json.RawMessage }
	p.ask(t, "query?query="+url.QueryEscape(query), &data)
	return data.Result
}

// until waits until a query gives something.
func (p server) until(t *testing.T, query string) {
	t.Helper()
	for end := time.Now().Add(exampletest.Timeout); len(p.query(t, query)) == 0; {
		require.True(t, time.Now().Before(end), "%s gives nothing", query)
		time.Sleep(20 * time.Millisecond) // it tells nobody when it has scraped
	}
}

// rulesAreWell tells that the rules are evaluated, and that all is well but for the refusals.
func (p server) rulesAreWell(t *testing.T) {
	t.Helper()
	type rule struct{ Name, State, Health, LastError string }
	var data struct{ Groups []struct{ Rules []rule } }
	p.ask(t, "rules", &data)
	require.Len(t, data.Groups, 1)
	require.NotEmpty(t, data.Groups[0].Rules)
	for _, r := range data.Groups[0].Rules {
		require.Equal(t, "ok", r.Health, "%s: %s", r.Name, r.LastError)
		require.Equal(t, r.Name != "BerthConnectionsRefused", r.State == "inactive", r.Name)
	}
}
