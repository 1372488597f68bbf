package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestServes(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0")
	pid, address := p.Serving(t)
	var document struct {
		Healthy bool
		Service struct {
			PID     int
			Sockets []struct{ Address string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(exampletest.Get(t, address+"/health/api/health/ports")), &document))
	require.True(t, document.Healthy)
	require.Equal(t, pid, document.Service.PID)
	require.Equal(t, address, document.Service.Sockets[0].Address)
	becomesReady(t, address)
	require.Equal(t, http.StatusOK, status(t, address, "/livez"))
	require.NoError(t, p.Process.Signal(os.Kill))
	p.Exit(t)
}

// status is that of an answer on a connection of its own.
func status(t testing.TB, address, path string) int {
	t.Helper()
	client := http.Client{Timeout: exampletest.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + path)
	require.NoError(t, err)
	response.Body.Close()
	return response.StatusCode
}

// becomesReady waits for what follows at once on the line in the log that says where the program serves.
func becomesReady(t testing.TB, address string) {
	t.Helper()
	require.Eventually(t, func() bool { return status(t, address, "/readyz") == http.StatusOK }, exampletest.Timeout, time.Millisecond)
}

func TestAlert(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	p := exampletest.Start(t, "-addr", taken.Addr().String())
	line := p.Until(t, "ALERT: tcp "+taken.Addr().String()+" is taken")
	require.True(t, strings.Contains(line, "kind=conflict"), line)
	p.Until(t, "ALERT: tcp "+taken.Addr().String()+" is not served")
	require.Equal(t, 1, p.Exit(t))
}
