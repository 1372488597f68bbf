package middleware_test

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/middleware"
)

// What KeepAlive says is what the kernel has, also on a socket that came as a descriptor.
func TestKeepAlive(t *testing.T) {
	for name, test := range map[string]struct {
		of                        middleware.KeepAlive
		on, idle, interval, count int
	}{
		"zero": {middleware.KeepAlive{}, 1, 15, 15, 9},
		"set":  {middleware.KeepAlive{Idle: 40 * time.Second, Interval: 7 * time.Second, Count: 3}, 1, 40, 7, 3},
		"off":  {middleware.KeepAlive{Off: true}, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := listen(t, "tcp").(*net.TCPListener).File()
			require.NoError(t, err)
			defer file.Close()
			passed, err := net.FileListener(file)
			require.NoError(t, err)
			defer passed.Close()
			// Where it stands does not matter, nor what is around the connection.
			ln := test.of.Wrap(seeThrough{new(middleware.Track).Wrap(passed)})
			_, server := connect(t, ln)
			raw, err := server.(syscall.Conn).SyscallConn()
			require.NoError(t, err)
			option := func(level, name int) (value int) {
				require.NoError(t, raw.Control(func(fd uintptr) { value, err = syscall.GetsockoptInt(int(fd), level, name) }))
				require.NoError(t, err)
				return value
			}
			require.Equal(t, test.on, option(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE))
			if test.on == 1 {
				require.Equal(t, test.idle, option(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE))
				require.Equal(t, test.interval, option(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL))
				require.Equal(t, test.count, option(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT))
			}
		})
	}
	connect(t, listen(t, "unix", middleware.KeepAlive{}.Wrap))
}
