package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestFails(t *testing.T) {
	p := exampletest.Start(t, "-addr", "nonsense")
	p.Until(t, "missing port")
	require.Equal(t, 1, p.Exit(t))
}

func TestUnitFile(t *testing.T) { exampletest.Verify(t, "rawtcp", "rawtcp.service") }
