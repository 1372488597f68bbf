package sockets

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
)

// Messages of sock_diag(7), as laid out in linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h and
// linux/unix_diag.h. Numbers are the machine's own, ports and addresses those of the network.

const (
	sockDiagByFamily = 20 // type of requests and answers

	nlmsgError = 2
	nlmsgDone  = 3

	nlmRequestDump = 0x1 | 0x100 | 0x200 // NLM_F_REQUEST | NLM_F_DUMP

	headerSize   = 16 // struct nlmsghdr
	inetReqSize  = 56 // struct inet_diag_req_v2
	inetMsgSize  = 72 // struct inet_diag_msg
	unixReqSize  = 24 // struct unix_diag_req
	unixMsgSize  = 16 // struct unix_diag_msg
	attrSize     = 4  // struct nlattr
	bytecodeSize = 16 // two comparisons

	afUnix  = 1
	afInet  = 2
	afInet6 = 10

	protocolTCP = 6
	protocolUDP = 17

	inetReqBytecode = 1  // INET_DIAG_REQ_BYTECODE
	inetV6Only      = 11 // INET_DIAG_SKV6ONLY
	bytecodeGE      = 2  // INET_DIAG_BC_S_GE
	bytecodeLE      = 3  // INET_DIAG_BC_S_LE

	unixShow = 0x1 | 0x2 | 0x40 // UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_UID
	unixName = 0
	unixVFS  = 1
	unixUID  = 7
)

// States of include/net/tcp_states.h, which all families share.
const (
	stateEstablished   = 1
	stateSynRecv       = 3
	stateClose         = 7 // bound, not listening; a datagram socket without a peer
	stateListen        = 10
	stateNewSynRecv    = 12
	stateBoundInactive = 13 // only to ask by, since Linux 6.8: what is found is reported as stateClose
)

var (
	errShort = errors.New("sock_diag: message cut short")
	errType  = errors.New("sock_diag: message of an unknown type")
)

// stateOf returns what a state in the table means, 0 where such a socket takes no address: a connection request
// is a listener's.
func stateOf(state uint8) State {
	switch state {
	case stateListen:
		return Listening
	case stateClose:
		return Bound
	case stateSynRecv, stateNewSynRecv:
		return 0
	default:
		return Connected
	}
}

// diagStates returns the bits to ask for states with.
func diagStates(network string, states states) (bits uint32) {
	bound, connected := uint32(1<<stateClose), uint32(1<<stateEstablished)
	if network == "tcp" {
		// Everything up to TCP_CLOSING that is neither of the others; a request (SYN_RECV) takes no address.
		bound, connected = 1<<stateBoundInactive, 0xffe&^(1<<stateListen|1<<stateClose|1<<stateSynRecv)
	}
	if states.has(Listening) {
		bits |= 1 << stateListen
	}
	if states.has(Bound) {
		bits |= bound
	}
	if states.has(Connected) {
		bits |= connected
	}
	return bits
}

func appendHeader(b []byte, size int) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(headerSize+size))
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, nlmRequestDump)
	return append(b, make([]byte, 8)...) // sequence number and sender: the socket is for one question at a time
}

// appendInetRequest asks for the sockets of a family and protocol that are in one of states and have a local port
// in [first,last]. The kernel chooses, so that a machine with many sockets costs little.
func appendInetRequest(b []byte, family, protocol uint8, states uint32, first, last uint16) []byte {
	b = appendHeader(b, inetReqSize+attrSize+bytecodeSize)
	b = append(b, family, protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	b = append(b, make([]byte, inetReqSize-8)...) // inet_diag_sockid: any
	b = binary.NativeEndian.AppendUint16(b, attrSize+bytecodeSize)
	b = binary.NativeEndian.AppendUint16(b, inetReqBytecode)
	// Each operation names where to go on: the next one, or 4 behind the end of the code, which rejects. The port
	// stands in the "no" of a second, empty operation.
	b = append(b, bytecodeGE, 8)
	b = binary.NativeEndian.AppendUint16(b, bytecodeSize+4)
	b = append(b, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, first)
	b = append(b, bytecodeLE, 8)
	b = binary.NativeEndian.AppendUint16(b, bytecodeSize-8+4)
	b = append(b, 0, 0)
	return binary.NativeEndian.AppendUint16(b, last)
}

// appendUnixRequest asks for all Unix sockets in one of states. The kernel has no filter for names.
func appendUnixRequest(b []byte, states uint32) []byte {
	b = appendHeader(b, unixReqSize)
	b = append(b, afUnix, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	b = append(b, make([]byte, 4)...) // any inode
	b = binary.NativeEndian.AppendUint32(b, unixShow)
	return append(b, make([]byte, 8)...) // any cookie
}

// parseDiag calls message for every answer in b, which is what one read of the netlink socket returned. done
// reports that no more will come.
func parseDiag(b []byte, message func([]byte) error) (done bool, err error) {
	for len(b) > 0 {
		if len(b) < headerSize {
			return false, errShort
		}
		size := binary.NativeEndian.Uint32(b)
		if size < headerSize || uint64(size) > uint64(len(b)) {
			return false, errShort
		}
		body := b[headerSize:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case sockDiagByFamily:
			if err := message(body); err != nil {
				return false, err
			}
		case nlmsgDone, nlmsgError:
			// Both start with a negative error number; a dump that broke off ends with Done.
			if len(body) < 4 {
				return false, errShort
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code < 0 && code > -4096 {
				return false, syscall.Errno(-code)
			}
			return true, nil
		default:
			return false, errType
		}
		b = b[min(align(int(size)), len(b)):]
	}
	return false, nil
}

// align rounds up to the boundary on which messages and attributes start.
func align(n int) int { return (n + 3) &^ 3 }

// attribute splits the first attribute off b. A malformed one ends the list.
func attribute(b []byte) (kind uint16, value, rest []byte, ok bool) {
	if len(b) < attrSize {
		return 0, nil, nil, false
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < attrSize || size > len(b) {
		return 0, nil, nil, false
	}
	return binary.NativeEndian.Uint16(b[2:]), b[attrSize:size], b[min(align(size), len(b)):], true
}

// parseInetDiag visits the TCP or UDP sockets in b.
func parseInetDiag(b []byte, network string, visit func(*Socket)) (done bool, err error) {
	var s Socket
	return parseDiag(b, func(m []byte) error {
		if len(m) < inetMsgSize {
			return errShort
		}
		state := stateOf(m[1])
		if state == 0 {
			return nil
		}
		s = Socket{
			Network: network,
			Local:   addrPort(m[0], m[8:24], m[4:6]),
			Remote:  addrPort(m[0], m[24:40], m[6:8]),
			State:   state,
			Device:  binary.NativeEndian.Uint32(m[40:]),
			UID:     int(binary.NativeEndian.Uint32(m[64:])),
			Inode:   uint64(binary.NativeEndian.Uint32(m[68:])),
		}
		if s.Inode == 0 {
			s.UID = -1 // left by its process, as in TIME_WAIT: the kernel fills in 0, which is root
		}
		s.V6Only = specificV6(s.Local.Addr())
		if s.Local.Addr() == netip.IPv6Unspecified() {
			for rest := m[inetMsgSize:]; ; {
				kind, value, next, ok := attribute(rest)
				if !ok {
					break
				}
				if kind == inetV6Only && len(value) > 0 {
					s.V6Only = value[0] != 0
					break
				}
				rest = next
			}
		}
		visit(&s)
		return nil
	})
}

func addrPort(family uint8, ip, port []byte) netip.AddrPort {
	var addr netip.Addr
	switch family {
	case afInet:
		addr = netip.AddrFrom4([4]byte(ip))
	case afInet6:
		addr = netip.AddrFrom16([16]byte(ip)).Unmap()
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port))
}

// parseUnixDiag visits the Unix sockets in b that own a name.
func parseUnixDiag(b []byte, visit func(*Socket)) (done bool, err error) {
	var s Socket
	return parseDiag(b, func(m []byte) error {
		if len(m) < unixMsgSize {
			return errShort
		}
		s = Socket{
			Network: "unix",
			State:   stateOf(m[2]),
			Inode:   uint64(binary.NativeEndian.Uint32(m[4:])),
			UID:     -1,
			kind:    kind(m[1]),
		}
		if !ownsName(s.kind, s.State) {
			return nil
		}
		for rest := m[unixMsgSize:]; ; {
			kind, value, next, ok := attribute(rest)
			if !ok {
				break
			}
			switch {
			case kind == unixName:
				s.Path = unixPath(string(value))
			case kind == unixVFS && len(value) >= 8:
				s.file = fileID{
					inode:  binary.NativeEndian.Uint32(value),
					device: statDevice(binary.NativeEndian.Uint32(value[4:])),
					known:  true,
				}
			case kind == unixUID && len(value) >= 4: // since Linux 5.3
				s.UID = int(binary.NativeEndian.Uint32(value))
			}
			rest = next
		}
		if s.Path != "" {
			visit(&s)
		}
		return nil
	})
}

// ownsName tells whether a Unix socket owns the name that it shows. An accepted connection shows the listener's,
// and looks like a client that bound a name of its own, which is rare.
func ownsName(k kind, s State) bool {
	return s != 0 && (s != Connected || k == datagram)
}

// unixPath spells a name as package net does. It comes with a final NUL if it is a path, and a leading one if it is
// abstract.
func unixPath(name string) string {
	switch {
	case name == "":
		return ""
	case name[0] == 0:
		return "@" + name[1:]
	}
	for i := range len(name) {
		if name[i] == 0 {
			name = name[:i]
			break
		}
	}
	if isAbstract(name) {
		return "./" + name // a relative path that only looks abstract
	}
	return name
}

// statDevice turns a dev_t of the kernel, 12 bits of major and 20 of minor number, into that of stat(2) on Linux
// (makedev(3)).
func statDevice(device uint32) uint64 {
	major, minor := uint64(device>>20), uint64(device&0xfffff)
	return major<<8 | (minor&0xfff00)<<12 | minor&0xff
}
