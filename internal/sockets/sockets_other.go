//go:build !linux

package sockets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	psnet "github.com/shirou/gopsutil/v4/net"
)

var tables = []table{systemTable}

// wholeTable is true: a table gives every state, and a second look would find the same.
const wholeTable = true

// systemTable asks lsof (macOS, FreeBSD), netstat (OpenBSD, NetBSD; no holders) or iphlpapi.dll (Windows; no Unix
// sockets). lsof shows other users' processes to root only.
func systemTable(q query, visit func(*Socket)) error {
	network := q.network
	if kindOf(network) != 0 {
		network = "unix"
		switch runtime.GOOS {
		case "darwin", "freebsd":
		default:
			return fmt.Errorf("unix sockets on %s: %w", runtime.GOOS, errors.ErrUnsupported)
		}
	}
	rows, err := psnet.Connections(network)
	if err != nil {
		return err
	}
	for i := range rows {
		c := &rows[i]
		r := row{
			network:    network,
			v6:         c.Family == syscall.AF_INET6,
			local:      c.Laddr.IP,
			localPort:  c.Laddr.Port,
			remote:     c.Raddr.IP,
			remotePort: c.Raddr.Port,
			status:     c.Status,
			pid:        int(c.Pid),
		}
		if s, ok := r.socket(); ok && q.has(&s) {
			visit(&s)
		}
	}
	return nil
}

// fileOf only tells whether there is anything at path: no table outside Linux names the file of a socket.
func fileOf(path string) (id fileID, missing bool) {
	_, err := os.Stat(path)
	return fileID{}, errors.Is(err, fs.ErrNotExist)
}

// zoneIndex is unknown: no table outside Linux names the interface of a socket.
func zoneIndex(string) uint32 { return 0 }
