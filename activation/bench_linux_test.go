package activation

import (
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/descriptor"
)

// BenchmarkTake compares with what a program would do by hand to the same descriptor. The cost of what FromEnv finds out
// once is shown apart. Each descriptor is a fresh duplicate, made and closed outside the measurement.
func BenchmarkTake(b *testing.B) {
	for _, socket := range []struct{ network, address string }{{"tcp", "127.0.0.1:0"}, {"unix", "@berth-benchmark"}} {
		ln, err := net.Listen(socket.network, socket.address)
		require.NoError(b, err)
		defer ln.Close()
		address := ln.Addr().String()
		var own int
		raw, err := ln.(syscall.Conn).SyscallConn()
		require.NoError(b, err)
		require.NoError(b, raw.Control(func(fd uintptr) { own = int(fd) }))

		bare := func(fd int) (net.Listener, error) {
			f := os.NewFile(uintptr(fd), "web")
			defer f.Close()
			return net.FileListener(f)
		}
		known, err := descriptor.Look(own)
		require.NoError(b, err)
		// A set of two, so that something is to be told apart.
		prepare := func(fd int, facts descriptor.Socket) *Set {
			other := newPassed(1<<20, "other", descriptor.Socket{Network: socket.network, Listening: true})
			return &Set{sockets: []*passed{other, newPassed(fd, "web", facts)}}
		}
		var set *Set
		for _, c := range []struct {
			name   string
			before func(fd int)
			do     func(fd int) (net.Listener, error)
		}{
			{"bare", func(int) {}, bare},
			{"name", func(fd int) { set = prepare(fd, known) }, func(int) (net.Listener, error) { return set.Take("web", socket.network, address) }},
			{"address", func(fd int) { set = prepare(fd, known) }, func(int) (net.Listener, error) { return set.Take("", socket.network, address) }},
			{"adopt+address", func(int) {}, func(fd int) (net.Listener, error) {
				if _, err := descriptor.Passed(fd); err != nil {
					return nil, err
				}
				descriptor.Keep(fd)
				facts, err := descriptor.Look(fd)
				if err != nil {
					return nil, err
				}
				return prepare(fd, facts).Take("", socket.network, address)
			}},
		} {
			b.Run("network="+socket.network+"/by="+c.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					fd, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0)
					require.NoError(b, err)
					c.before(fd)
					b.StartTimer()
					taken, err := c.do(fd)
					b.StopTimer()
					require.NoError(b, err)
					taken.Close()
					b.StartTimer()
				}
			})
		}
	}
}

// BenchmarkNothingPassed is what every call of listener.Listen pays for where there is no systemd.
func BenchmarkNothingPassed(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		set, err := FromEnv()
		if set != nil || err != nil {
			b.Fatal("this process was passed sockets")
		}
		if _, err := set.Take("", "tcp", ":8080"); err == nil {
			b.Fatal("a nil Set gave something")
		}
	}
}
