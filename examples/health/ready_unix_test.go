//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

// Probes hear of a stop while new connections are still answered, as many as the notice has room for.
func TestNotReadyBeforeAnybodyIsTurnedAway(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-notice", "1h")
	pid, address := p.Serving(t)
	becomesReady(t, address)
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	p.Until(t, "INFO stopping")
	for range 20 { // each by a new connection
		require.Equal(t, http.StatusServiceUnavailable, status(t, address, "/readyz"))
		require.Equal(t, http.StatusOK, status(t, address, "/livez"))
		require.Equal(t, http.StatusOK, status(t, address, "/"))
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM)) // the notice is over
	require.Zero(t, p.Exit(t))
}

// An upgrade ends the stream of the old version, and who asks again, as a page does, hears from the new one.
func TestStreamGoesOnWithTheNewVersion(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0")
	pid, address := p.Serving(t)
	for range 3 {
		old := streamOf(t, address)
		require.Equal(t, pid, old.pid)
		require.NoError(t, syscall.Kill(pid, syscall.SIGHUP))
		next, again := p.Serving(t)
		require.Equal(t, address, again)
		old.until(t, `"kind":"draining"`)
		old.ends(t)
		pid = next
		require.Equal(t, pid, streamOf(t, address).pid, "the very next connection")
		becomesReady(t, address)
		require.Contains(t, exampletest.Get(t, address+"/health/"), `"origin":"inherited"`)
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	require.Zero(t, p.Exit(t))
}

type stream struct {
	lines *bufio.Scanner
	pid   int
}

func streamOf(t *testing.T, address string) *stream {
	t.Helper()
	client := http.Client{Timeout: exampletest.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/health/api/health/events")
	require.NoError(t, err)
	t.Cleanup(func() { response.Body.Close() })
	require.Equal(t, http.StatusOK, response.StatusCode)
	s := &stream{lines: bufio.NewScanner(response.Body)}
	var hello struct{ PID int }
	data, ok := strings.CutPrefix(s.until(t, `data: {"pid"`), "data: ")
	require.True(t, ok)
	require.NoError(t, json.Unmarshal([]byte(data), &hello))
	s.pid = hello.PID
	return s
}

func (s *stream) until(t *testing.T, text string) string {
	t.Helper()
	for s.lines.Scan() {
		if strings.Contains(s.lines.Text(), text) {
			return s.lines.Text()
		}
	}
	require.Fail(t, "the stream has ended", "%q was not seen: %v", text, s.lines.Err())
	return ""
}

func (s *stream) ends(t *testing.T) {
	t.Helper()
	late := time.Now().Add(exampletest.Timeout)
	for s.lines.Scan() {
		require.True(t, time.Now().Before(late))
	}
	require.NoError(t, s.lines.Err())
}
