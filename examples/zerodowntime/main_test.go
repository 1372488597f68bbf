package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestServes(t *testing.T) {
	p := exampletest.Start(t, "-addr", "127.0.0.1:0")
	p.Until(t, "listening on")
	pid, address := p.Serving(t)
	require.Equal(t, p.Process.Pid, pid)
	require.Regexp(t, `^pid \d+ on `+address+`, which is bound\n$`, exampletest.Get(t, address))
	require.NoError(t, p.Process.Signal(os.Kill))
	p.Exit(t)
}

func TestFails(t *testing.T) {
	p := exampletest.Start(t, "-addr", "nonsense")
	p.Until(t, "missing port")
	require.Equal(t, 1, p.Exit(t))
}

func TestUnitFile(t *testing.T) { exampletest.Verify(t, "zerodowntime", "zerodowntime.service") }
