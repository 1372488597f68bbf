package sockets

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"strconv"
)

// parseProcInet visits the sockets in /proc/net/tcp, tcp6, udp or udp6 (proc_pid_net(5)). Lines that it does not
// understand are skipped. Sockets that are bound but do not listen are missing from the TCP files, and nothing
// in them tells IPV6_V6ONLY of a wildcard.
func parseProcInet(r io.Reader, network string, visit func(*Socket)) error {
	var s Socket
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		//   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
		var field [10][]byte
		rest := lines.Bytes()
		for i := range field {
			field[i], rest = word(rest)
		}
		local, ok := procAddrPort(field[1])
		if !ok {
			continue // the heading
		}
		remote, ok := procAddrPort(field[2])
		if !ok {
			continue
		}
		code, err := strconv.ParseUint(string(field[3]), 16, 8)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(string(field[7]), 10, 32)
		if err != nil {
			continue
		}
		inode, err := strconv.ParseUint(string(field[9]), 10, 64)
		if err != nil {
			continue
		}
		s = Socket{
			Network: network,
			Local:   local,
			Remote:  remote,
			V6Only:  specificV6(local.Addr()),
			State:   stateOf(uint8(code)),
			Inode:   inode,
			UID:     int(uid),
		}
		if inode == 0 {
			s.UID = -1 // left by its process, as in TIME_WAIT
		}
		if s.State != 0 {
			visit(&s)
		}
	}
	return lines.Err()
}

// procAddrPort parses "0100007F:1F90": 32-bit words of the address as the machine reads them, and the port.
func procAddrPort(field []byte) (netip.AddrPort, bool) {
	addr, port, ok := bytes.Cut(field, []byte(":"))
	if !ok || len(port) != 4 || len(addr) != 8 && len(addr) != 32 {
		return netip.AddrPort{}, false
	}
	var words, ip [16]byte
	n, err := hex.Decode(words[:], addr)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i := 0; i < n; i += 4 {
		binary.NativeEndian.PutUint32(ip[i:], binary.BigEndian.Uint32(words[i:]))
	}
	var number [2]byte
	if _, err := hex.Decode(number[:], port); err != nil {
		return netip.AddrPort{}, false
	}
	p := binary.BigEndian.Uint16(number[:])
	if n == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[:4])), p), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), p), true
}

// parseProcUnix visits the sockets in /proc/net/unix (proc_pid_net(5)) that own a name. Lines that it does not
// understand are skipped, the rest of a path after a line feed among them.
func parseProcUnix(r io.Reader, visit func(*Socket)) error {
	var s Socket
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// Num       RefCount Protocol Flags    Type St Inode Path
		var field [7][]byte
		rest := lines.Bytes()
		for i := range field {
			field[i], rest = word(rest)
		}
		if len(rest) < 2 { // a blank and the name, which may hold blanks
			continue
		}
		flags, err := strconv.ParseUint(string(field[3]), 16, 32)
		if err != nil {
			continue
		}
		of, err := strconv.ParseUint(string(field[4]), 16, 8)
		if err != nil {
			continue
		}
		inode, err := strconv.ParseUint(string(field[6]), 10, 64)
		if err != nil {
			continue
		}
		const (
			acceptCon   = 0x10000 // __SO_ACCEPTCON
			unconnected = "01"    // SS_UNCONNECTED
		)
		s = Socket{Network: "unix", Path: string(rest[1:]), Inode: inode, UID: -1, State: Connected, kind: kind(of)}
		switch {
		case flags&acceptCon != 0:
			s.State = Listening
		case string(field[5]) == unconnected:
			s.State = Bound
		}
		if ownsName(s.kind, s.State) {
			visit(&s)
		}
	}
	return lines.Err()
}

// word splits the first word off line.
func word(line []byte) (first, rest []byte) {
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	for i, c := range line {
		if c == ' ' {
			return line[:i], line[i:]
		}
	}
	return line, nil
}

// inferV6Only sets V6Only where the other sockets prove it: a wildcard that also covered IPv4 could not exist beside
// an IPv4 socket on its port. (Two that share a port by SO_REUSEPORT could. Then one holder is missed, which does
// no harm; the other way round, one that is not to blame would be named.)
func inferV6Only(sockets []Socket) {
	type port struct {
		network string
		port    uint16
	}
	v4 := make(map[port]bool)
	for _, s := range sockets {
		if s.State != Connected && s.Local.Addr().Is4() {
			v4[port{s.Network, s.Local.Port()}] = true
		}
	}
	for i := range sockets {
		s := &sockets[i]
		if s.State != Connected && s.Local.Addr() == netip.IPv6Unspecified() && v4[port{s.Network, s.Local.Port()}] {
			s.V6Only = true
		}
	}
}
