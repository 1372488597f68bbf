package sockets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// tables are asked in order. Netlink is not there in every sandbox (gVisor, seccomp), and its modules (tcp_diag,
// udp_diag, unix_diag) may be missing or forbidden to load.
var tables = []table{netlinkTable, procTable}

// wholeTable is false: a table gives the states that are asked for.
const wholeTable = false

// buffers are as large as the largest piece in which the kernel answers a dump (netlink_recvmsg limits
// max_recvmsg_len to 32 KiB less its own overhead).
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// netlinkTable asks sock_diag(7). It needs no privileges.
func netlinkTable(q query, visit func(*Socket)) error {
	families := []uint8{afInet, afInet6}
	if !q.v4 {
		families = families[1:]
	}
	if len(families) == 1 || q.network != "tcp" || q.states == only(Listening) {
		return netlinkDump(q, visit, families...)
	}
	// For what does not listen, the kernel walks all its sockets once a family, for a millisecond or more: at the same time,
	// then.
	var v4 []Socket
	done := make(chan error, 1)
	go func() { done <- netlinkDump(q, func(s *Socket) { v4 = append(v4, *s) }, afInet) }()
	err := netlinkDump(q, visit, afInet6)
	if failed := <-done; failed != nil {
		return failed
	}
	for i := range v4 {
		visit(&v4[i])
	}
	return err
}

// netlinkDump asks for one family after the other; of Unix sockets there is but one.
func netlinkDump(q query, visit func(*Socket), families ...uint8) error {
	// The kernel has queued an answer before write returns, and the next before read does, so nothing ever waits.
	// Should a sandbox see this otherwise, EAGAIN is better than a read without end.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)

	var space [headerSize + inetReqSize + attrSize + bytecodeSize]byte
	states := diagStates(q.network, q.states)
	if kindOf(q.network) != 0 {
		return dump(fd, appendUnixRequest(space[:0], states), func(b []byte) (bool, error) {
			return parseUnixDiag(b, visit)
		})
	}
	protocol := uint8(protocolTCP)
	if q.network == "udp" {
		protocol = protocolUDP
	}
	parse := func(b []byte) (bool, error) { return parseInetDiag(b, q.network, visit) }
	for _, family := range families {
		if err := dump(fd, appendInetRequest(space[:0], family, protocol, states, q.first, q.last), parse); err != nil {
			return err
		}
	}
	return nil
}

// dump sends request and hands what comes back to parse, until that has seen the end.
func dump(fd int, request []byte, parse func([]byte) (done bool, err error)) error {
	if _, err := unix.Write(fd, request); err != nil {
		return os.NewSyscallError("write", err)
	}
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	for {
		n, err := unix.Read(fd, buffer[:])
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if done, err := parse(buffer[:n]); done || err != nil {
			return err
		}
	}
}

// procTable reads /proc/net, all of it for every question.
func procTable(q query, visit func(*Socket)) error {
	var found []Socket
	collect := func(s *Socket) {
		if q.has(s) {
			found = append(found, *s)
		}
	}
	if kindOf(q.network) != 0 {
		if err := parseFile("/proc/net/unix", func(r io.Reader) error { return parseProcUnix(r, collect) }); err != nil {
			return err
		}
	} else {
		// Both files, whatever q says: one explains the other (inferV6Only).
		parse := func(r io.Reader) error { return parseProcInet(r, q.network, collect) }
		if err := parseFile("/proc/net/"+q.network, parse); err != nil {
			return err
		}
		// A kernel without IPv6 has no second file.
		if err := parseFile("/proc/net/"+q.network+"6", parse); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		inferV6Only(found)
	}
	for i := range found {
		visit(&found[i])
	}
	return nil
}

func parseFile(name string, parse func(io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := parse(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// fileOf returns what is at path, following links as connect(2) does.
func fileOf(path string) (id fileID, missing bool) {
	info, err := os.Stat(path)
	if err != nil {
		return fileID{}, errors.Is(err, fs.ErrNotExist)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}, false
	}
	return fileID{device: uint64(stat.Dev), inode: uint32(stat.Ino), known: true}, false
}

// zoneIndex returns the index of the interface that a zone names, 0 if there is none.
func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}
