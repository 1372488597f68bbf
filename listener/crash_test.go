package listener_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func init() { roles["churn"] = role.playChurn }

// playChurn listens and closes until it is killed. Half of the time it is listening.
func (r role) playChurn() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	fmt.Println("ready", r.Address)
	for {
		if isPacket(r.Network) {
			conn, err := cfg.ListenPacket(context.Background(), r.Network, r.Address)
			if err != nil {
				return err
			}
			time.Sleep(churnPause)
			if err := conn.Close(); err != nil {
				return err
			}
			continue
		}
		ln, err := cfg.Listen(context.Background(), r.Network, r.Address)
		if err != nil {
			return err
		}
		time.Sleep(churnPause)
		if err := ln.Close(); err != nil {
			return err
		}
	}
}

const churnPause = 200 * time.Microsecond

func isPacket(network string) bool { return network == "udp" || network == "unixgram" }

// Whatever moment a process is killed at, the next start finds nothing that is in its way or says something wrong.
func TestKilledAtAnyPoint(t *testing.T) {
	const rounds = 60
	dir, err := os.MkdirTemp("", "berth") // a Unix socket's path is limited to some hundred bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	begin := time.Now()
	t.Run("networks", func(t *testing.T) {
		for i, c := range []crash{
			{network: "tcp", address: net.JoinHostPort("127.0.0.1", freePort(t))},
			{network: "unix", address: filepath.Join(dir, "stream")},
			{network: "udp", address: net.JoinHostPort("127.0.0.1", freePort(t))},
			{network: "unixgram", address: filepath.Join(dir, "datagram")},
		} {
			// One after the other: a child that another of these starts would hold the socket of this process between
			// fork and exec, and so for a moment after its Close.
			t.Run(c.network, func(t *testing.T) {
				c.portFile, c.stateDir = filepath.Join(t.TempDir(), "port"), t.TempDir()
				r := role{Do: "churn", Network: c.network, Address: c.address, StateDir: c.stateDir, PortFile: c.portFile}
				random := rand.New(rand.NewPCG(uint64(i), rounds))
				for round := range rounds {
					p := play(t, r)
					p.ready(t)
					// Several rounds of the other process fit into it, so every point of one is met sooner or later.
					time.Sleep(time.Duration(random.Int64N(int64(3 * time.Millisecond))))
					require.NoError(t, p.Process.Kill())
					require.Error(t, p.exit(t))
					if line, more := p.line(t); more {
						require.FailNow(t, "it ended by itself", "round %d: %s", round, line)
					}
					c.count(t)
					c.next(t)
				}
				t.Logf("%d rounds left %d times a record, %d times a port file and %d times a socket file; %d temporary port files lie about",
					rounds, c.records, c.portFiles, c.socketFiles, len(entries(t, filepath.Dir(c.portFile))))
			})
		}
	})
	t.Logf("%v", time.Since(begin).Round(time.Millisecond))
}

type crash struct {
	network, address, portFile, stateDir string

	records, portFiles, socketFiles int // left behind
}

// count notes what the killed process left.
func (c *crash) count(t testing.TB) {
	t.Helper()
	if len(entries(t, c.stateDir)) > 0 {
		c.records++
	}
	if exists(t, c.portFile) {
		c.portFiles++
	}
	if filepath.IsAbs(c.address) && exists(t, c.address) {
		c.socketFiles++
	}
}

// next is the next start, in this process.
func (c *crash) next(t testing.TB) {
	t.Helper()
	records, err := registry.Open(c.stateDir)
	require.NoError(t, err)
	search := holder.Search{Target: c.target(t), Records: records}
	for _, h := range search.Diagnose(context.Background()).Holders {
		require.Equal(t, "connected", h.State, "nobody has it, but for what is left of a connection of another test: %v", h)
	}
	if entry, err := records.Lookup(c.network, c.address); err == nil {
		require.False(t, entry.Held(), "the record is stale")
	}

	cfg := listener.Config{Strategy: strategy.Production(), StateDir: c.stateDir, PortFile: c.portFile, Name: "next"}
	var opened interface {
		Origin() listener.Origin
		Close() error
	}
	if isPacket(c.network) {
		opened, err = cfg.ListenPacket(context.Background(), c.network, c.address)
	} else {
		opened, err = cfg.Listen(context.Background(), c.network, c.address)
	}
	require.NoError(t, err)
	require.Equal(t, listener.Origin{Kind: listener.Bound, Requested: c.address, Address: c.address}, opened.Origin())

	entry, err := records.Lookup(c.network, c.address)
	require.NoError(t, err)
	require.NoError(t, entry.Err)
	require.True(t, entry.Held())
	require.Equal(t, os.Getpid(), entry.Record.PID)
	require.Equal(t, "next", entry.Record.Name)
	require.Equal(t, c.address, entry.Record.Address)
	require.Len(t, entries(t, c.stateDir), 1)
	text, err := os.ReadFile(c.portFile)
	require.NoError(t, err)
	require.Equal(t, c.address+"\n", string(text))
	diagnosis := search.Diagnose(context.Background())
	require.True(t, diagnosis.Complete)
	require.Len(t, diagnosis.Holders, 1)
	require.Equal(t, os.Getpid(), diagnosis.Holders[0].PID)

	require.NoError(t, opened.Close())
	require.Empty(t, entries(t, c.stateDir))
	require.False(t, exists(t, c.portFile))
	require.False(t, filepath.IsAbs(c.address) && exists(t, c.address))
}

func (c *crash) target(t testing.TB) sockets.Target {
	t.Helper()
	var addr net.Addr
	var err error
	switch c.network {
	case "tcp":
		addr, err = net.ResolveTCPAddr(c.network, c.address)
	case "udp":
		addr, err = net.ResolveUDPAddr(c.network, c.address)
	default:
		addr, err = net.ResolveUnixAddr(c.network, c.address)
	}
	require.NoError(t, err)
	target, ok := sockets.TargetOf(c.network, addr)
	require.True(t, ok)
	return target
}

func entries(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(dir)
	require.NoError(t, err)
	return all
}

func exists(t testing.TB, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	return err == nil
}
