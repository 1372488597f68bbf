package listener_test

import (
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
)

// Connections that are made, accepted and closed, one after the other by each client, with as many listeners as given. The
// clients take their part of the processors.
func BenchmarkGroup(b *testing.B) {
	bench := func(name string, all []net.Listener) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					conn, err := net.Dial("tcp", all[0].Addr().String())
					if err != nil {
						b.Error(err)
						return
					}
					_ = conn.(*net.TCPConn).SetLinger(0) // it resets what the server closes first, so nothing stays in TIME_WAIT
					if _, err := conn.Read(make([]byte, 1)); err != nil {
						b.Error(err)
					}
					_ = conn.Close()
				}
			})
		})
	}
	serve := func(all []net.Listener) (stop func()) {
		var serving sync.WaitGroup
		for _, ln := range all {
			serving.Go(func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte("x"))
					_ = conn.Close()
				}
			})
		}
		return func() {
			for _, ln := range all {
				ln.Close()
			}
			serving.Wait()
		}
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	ln, err := plain.Listen(b.Context(), "tcp", "127.0.0.1:0")
	require.NoError(b, err)
	stop := serve([]net.Listener{ln})
	bench("net", []net.Listener{ln})
	stop()
	for _, n := range []int{1, runtime.GOMAXPROCS(0), 4 * runtime.GOMAXPROCS(0)} {
		cfg := &listener.Config{StateDir: b.TempDir()}
		members, err := cfg.ListenGroup(b.Context(), "tcp", "127.0.0.1:0", n)
		require.NoError(b, err)
		var all []net.Listener
		for _, ln := range members {
			all = append(all, ln)
		}
		stop := serve(all)
		bench("members="+strconv.Itoa(n), all)
		stop()
	}
}
