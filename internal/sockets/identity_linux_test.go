package sockets

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.8.0-45-generic": true, "6.8": true, "6.18.44-fc": true, "7.0": true, "10.1.2": true,
		"6.7.12": false, "5.15.0-1": false, "6": false, "": false, "x.y": false, "6.rc1": false,
	} {
		require.Equal(t, want, atLeast(release, 6, 8), release)
	}
}

func TestInodeOfIsWhatProcShows(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	require.NoError(t, err)
	var link string
	require.NoError(t, raw.Control(func(fd uintptr) { link, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd))) }))
	require.NoError(t, err)
	shown := strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")
	require.Equal(t, shown, strconv.FormatUint(InodeOf(ln), 10))
	require.Zero(t, InodeOf("no socket"))
}

func TestExhaustiveMeansThatBoundSocketsAreShown(t *testing.T) {
	// A socket that is bound and does not listen is in the table exactly when Exhaustive says so.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	port := uint16(name.(*syscall.SockaddrInet4).Port)
	shown, err := List("tcp", port, port)
	require.NoError(t, err)
	require.Equal(t, Exhaustive("tcp"), len(shown) == 1)
	require.True(t, Exhaustive("udp"))
	require.True(t, Exhaustive("unix"))
}
