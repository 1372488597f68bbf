package ephemeral

import (
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/strategy"
)

// Both hold for IPv6 too, and are of the network namespace.
const (
	rangeFile    = "/proc/sys/net/ipv4/ip_local_port_range"
	reservedFile = "/proc/sys/net/ipv4/ip_local_reserved_ports"
)

func read() (strategy.Range, bool) {
	var text [64]byte
	return parseRange(string(text[:readInto(text[:], rangeFile)]))
}

func reserved() []strategy.Range {
	text := make([]byte, 4096) // which is more than anybody writes by hand
	n := readInto(text, reservedFile)
	if n == len(text) {
		return nil
	}
	return parseReserved(string(text[:n]))
}

// readInto reads a file with three system calls. The first file that package os opens costs a process several times that,
// and many that start at one instant wait for each other.
func readInto(text []byte, path string) int {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }() // it was only read
	n, err := unix.Read(fd, text)
	if err != nil {
		return 0
	}
	return n
}
