package porttest_test

import (
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/porttest"
	"github.com/berth-go/berth/strategy"
)

// Elsewhere only those who know of the port keep off.
func TestPortKeepsOthersOff(t *testing.T) {
	port := porttest.Port(t)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	stranger := func() error {
		return syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	require.ErrorIs(t, stranger(), syscall.EADDRINUSE)
	_, err = new(listener.Config).Reserve(t.Context(), "tcp", at(port))
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	pool := listener.Pool{Host: "127.0.0.1", Ranges: []strategy.Range{{First: uint16(port), Last: uint16(port)}}, Wait: -1}
	_, err = pool.Lease(t.Context(), "")
	require.ErrorIs(t, err, syscall.EADDRINUSE)

	ln, err := net.Listen("tcp", at(port)) // and while the program listens
	require.NoError(t, err)
	defer ln.Close()
	require.ErrorIs(t, stranger(), syscall.EADDRINUSE)
	_, err = net.Listen("tcp", at(port))
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}
