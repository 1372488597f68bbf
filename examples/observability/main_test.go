package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/reload"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// served waits until the program serves, and gives where.
func served(t *testing.T, p *exampletest.Process) (web, admin string) {
	t.Helper()
	line := p.Until(t, "serving on")
	found := regexp.MustCompile(`serving on ([0-9.:]+), ([0-9.:]+) pid=`).FindStringSubmatch(line)
	require.NotNil(t, found, line)
	return found[1], found[2]
}

func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command(exampletest.Need(t, "promtool"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestRules(t *testing.T) {
	promtool(t, "", "check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
	promtool(t, "", "test", "rules", "alerts_test.yml")
}

// A webhook keeps what is posted to it.
func webhook(t *testing.T) (url string, posted <-chan alert) {
	received := make(chan alert, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || err != nil {
			t.Errorf("%s with %s: %v", r.Method, r.Header, err)
		}
		var one alert
		if err := json.Unmarshal(body, &one); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		received <- one
	}))
	t.Cleanup(server.Close)
	return server.URL + "/secret", received
}

func next(t *testing.T, posted <-chan alert) alert {
	t.Helper()
	select {
	case one := <-posted:
		return one
	case <-time.After(exampletest.Timeout):
		t.Fatal("no alert")
		panic("unreachable")
	}
}

// program starts the program with a webhook.
func program(t *testing.T, args ...string) (*exampletest.Process, <-chan alert) {
	url, posted := webhook(t)
	env := append(slices.Clone(exampletest.Env), "ALERT_WEBHOOK="+url)
	return exampletest.StartCommand(t, env, append([]string{exampletest.Executable(t)}, args...)...), posted
}

func TestAlertsAboutThePort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	p, posted := program(t, "-addr", taken.Addr().String(), "-admin", "127.0.0.1:0")
	web, admin := served(t, p)
	require.NotEqual(t, taken.Addr().String(), web)

	conflict := next(t, posted)
	require.Equal(t, "conflict", conflict.Kind)
	require.Equal(t, p.Process.Pid, conflict.PID)
	require.Contains(t, conflict.Text, "tcp "+taken.Addr().String()+" is taken by ")
	require.Contains(t, conflict.Text, "(pid "+strconv.Itoa(os.Getpid())+")")
	fallback := next(t, posted)
	require.Equal(t, "fallback", fallback.Kind)
	require.Equal(t, "tcp "+taken.Addr().String()+" was taken: "+web+" is served instead", fallback.Text)
	require.Contains(t, exampletest.Get(t, admin+"/metrics"), `berth_listeners{name="web",network="tcp",origin="fallback"} 1`)
	require.Contains(t, exampletest.Get(t, web+"/metrics"), "which is fallback", "metrics are private")
}

// The page is where the metrics are, and tells of both listeners.
func TestPage(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0")
	web, admin := served(t, p)
	require.Eventually(t, func() bool { // it follows at once on the line in the log
		response, err := http.Get("http://" + admin + "/readyz")
		require.NoError(t, err)
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, exampletest.Timeout, 10*time.Millisecond)
	http.DefaultClient.CloseIdleConnections()
	answer := exampletest.Get(t, admin+"/api/health/ports")
	for _, address := range []string{web, admin} {
		require.Contains(t, answer, `"address":"`+address+`"`)
	}
	require.Contains(t, exampletest.Get(t, web+"/readyz"), "which is bound", "it is private")
}

// What the program ends by is posted before it ends.
func TestAlertAboutTheEnd(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	p, posted := program(t, "-addr", "127.0.0.1:0", "-admin", taken.Addr().String())
	require.Equal(t, 1, p.Exit(t))
	require.Equal(t, "conflict", (<-posted).Kind)
	failed := <-posted
	require.Equal(t, "failed", failed.Kind)
	require.Equal(t, "admin", failed.Service)
	require.Contains(t, failed.Text, "tcp "+taken.Addr().String()+" is not served: it could not be obtained: listen tcp "+taken.Addr().String())
}

func TestAlertsAboutUpgrades(t *testing.T) {
	url, posted := webhook(t)
	a := startAlerts(url, exampletest.Timeout)
	monitor := health.Handler(health.Options{OnEvent: a.event})
	defer monitor.Close()
	for _, event := range []string{reload.EventReady, reload.EventUpgrading, reload.EventUpgradeFailed, reload.EventUpgraded, reload.EventDraining, reload.EventResumed} {
		monitor.Upgrade(event, 0, io.ErrUnexpectedEOF)
	}
	a.close()
	require.Len(t, posted, 2)
	require.Equal(t, "no upgrade: this version goes on: unexpected EOF", (<-posted).Text)
	require.Equal(t, "the new version has ended: this one serves again: unexpected EOF", (<-posted).Text)
	a.alert(alert{}) // after the end it goes nowhere
	require.Empty(t, posted)
}

// A webhook that hangs holds up neither the program nor its end, and its URL is not told.
func TestHangingWebhook(t *testing.T) {
	asked, over := make(chan struct{}, 1000), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-over
	}))
	defer server.Close()
	defer close(over)
	var log strings.Builder
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)

	a := startAlerts(server.URL+"/secret", 100*time.Millisecond)
	a.mu.Lock()
	for range cap(a.queue) {
		a.queue <- alert{Text: "one of many"}
	}
	a.mu.Unlock()
	<-asked
	a.close() // each may take 100 ms, and all of them too
	require.Less(t, len(asked), cap(a.queue)-1)
	require.Contains(t, log.String(), "an alert could not be posted")
	require.NotContains(t, log.String(), "secret")
}

func TestTooManyAlerts(t *testing.T) {
	a := &alerts{queue: make(chan alert, 1)} // nobody posts
	a.event(health.Event{Level: slog.LevelWarn})
	a.event(health.Event{Level: slog.LevelWarn})
	require.Len(t, a.queue, 1)
}

func TestNoWebhook(t *testing.T) {
	a := startAlerts("", time.Second)
	require.Nil(t, a)
	a.event(health.Event{Level: slog.LevelWarn})
	a.close()
}
