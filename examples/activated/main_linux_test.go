package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

// TestUnits runs the unit files in a real systemd, with all of their hardening that the manager of a user can do.
func TestUnits(t *testing.T) {
	address := exampletest.FreeAddress(t)
	m := exampletest.Systemd(t, "activated", map[string]string{
		"activated.socket":  exampletest.Unit(t, "activated.socket", "ListenStream=8080", "ListenStream="+address),
		"activated.service": exampletest.Unit(t, "activated.service"),
	})
	m.Systemctl(t, "start", "activated.socket")
	require.Equal(t, "inactive", m.Property(t, "activated.service", "ActiveState"))
	first := exampletest.Get(t, address)
	require.Contains(t, first, "which is activated\n")
	m.Await(t, "activated.service", "ActiveState", "active") // by then it said that it is ready

	// A request made while it is down waits for the next start.
	m.Systemctl(t, "stop", "activated.service")
	require.Equal(t, "success", m.Property(t, "activated.service", "Result"))
	second := exampletest.Get(t, address)
	require.Contains(t, second, "which is activated\n")
	require.NotEqual(t, first, second, "another process")
	m.Systemctl(t, "stop", "activated.socket", "activated.service")
	require.Equal(t, "success", m.Property(t, "activated.service", "Result"))
}
