package sockets

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// message is a netlink message, padded.
func message(kind uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(headerSize+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, make([]byte, 10)...)
	b = append(b, body...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(attrSize+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func done(code int32) []byte {
	return message(nlmsgDone, binary.NativeEndian.AppendUint32(nil, uint32(code)))
}

func inetMessage(family, state uint8, local, remote netip.AddrPort, device, uid, inode uint32, attrs ...[]byte) []byte {
	b := make([]byte, inetMsgSize)
	b[0], b[1] = family, state
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], remote.Port())
	copy(b[8:], local.Addr().AsSlice())
	copy(b[24:], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[40:], device)
	binary.NativeEndian.PutUint32(b[64:], uid)
	binary.NativeEndian.PutUint32(b[68:], inode)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return message(sockDiagByFamily, b)
}

func unixMessage(k kind, state uint8, inode uint32, attrs ...[]byte) []byte {
	b := make([]byte, unixMsgSize)
	b[0], b[1], b[2] = afUnix, uint8(k), state
	binary.NativeEndian.PutUint32(b[4:], inode)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return message(sockDiagByFamily, b)
}

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func collect(parse func(visit func(*Socket)) (bool, error)) (sockets []Socket, done bool, err error) {
	done, err = parse(func(s *Socket) { sockets = append(sockets, *s) })
	return sockets, done, err
}

func inetSeed() []byte {
	at := netip.MustParseAddrPort
	return join(
		inetMessage(afInet, stateListen, at("127.0.0.1:80"), at("0.0.0.0:0"), 3, 1000, 42),
		inetMessage(afInet6, stateClose, at("[::]:81"), at("[::]:0"), 0, 0, 43, attr(8, []byte{0}), attr(inetV6Only, []byte{1})),
		inetMessage(afInet6, stateEstablished, at("[::ffff:127.0.0.1]:82"), at("[::ffff:127.0.0.2]:9"), 0, 0, 44),
		inetMessage(afInet, 6, at("127.0.0.1:83"), at("127.0.0.1:9"), 0, 0, 0),
		inetMessage(afInet, stateSynRecv, at("127.0.0.1:84"), at("127.0.0.1:9"), 0, 0, 0),
		done(0),
	)
}

func TestParseInetDiag(t *testing.T) {
	at := netip.MustParseAddrPort
	got, done, err := collect(func(visit func(*Socket)) (bool, error) { return parseInetDiag(inetSeed(), "tcp", visit) })
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, []Socket{
		{Network: "tcp", Local: at("127.0.0.1:80"), Remote: at("0.0.0.0:0"), State: Listening, Device: 3, UID: 1000, Inode: 42},
		{Network: "tcp", Local: at("[::]:81"), Remote: at("[::]:0"), State: Bound, V6Only: true, Inode: 43},
		{Network: "tcp", Local: at("127.0.0.1:82"), Remote: at("127.0.0.2:9"), State: Connected, Inode: 44},
		{Network: "tcp", Local: at("127.0.0.1:83"), Remote: at("127.0.0.1:9"), State: Connected, UID: -1},
	}, got)
}

func unixSeed() []byte {
	vfs := binary.NativeEndian.AppendUint32(nil, 77)
	vfs = binary.NativeEndian.AppendUint32(vfs, 8<<20|1)
	uid := binary.NativeEndian.AppendUint32(nil, 1000)
	return join(
		unixMessage(stream, stateListen, 1, attr(unixName, []byte("/run/x\x00")), attr(unixVFS, vfs), attr(unixUID, uid)),
		unixMessage(datagram, stateClose, 2, attr(unixName, []byte("\x00name"))),
		unixMessage(datagram, stateEstablished, 3, attr(unixName, []byte("@odd"))),
		unixMessage(stream, stateEstablished, 4, attr(unixName, []byte("/run/x\x00"))), // accepted
		unixMessage(stream, stateClose, 5),                                             // no name
		done(0),
	)
}

func TestParseUnixDiag(t *testing.T) {
	got, done, err := collect(func(visit func(*Socket)) (bool, error) { return parseUnixDiag(unixSeed(), visit) })
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, []Socket{
		{Network: "unix", Path: "/run/x", State: Listening, Inode: 1, UID: 1000, kind: stream, file: fileID{device: 0x801, inode: 77, known: true}},
		{Network: "unix", Path: "@name", State: Bound, Inode: 2, UID: -1, kind: datagram},
		{Network: "unix", Path: "./@odd", State: Connected, Inode: 3, UID: -1, kind: datagram},
	}, got)
}

func TestParseDiagEnds(t *testing.T) {
	nothing := func([]byte) error { return nil }
	for _, c := range []struct {
		name string
		b    []byte
		done bool
		err  error
	}{
		{"empty", nil, false, nil},
		{"done", done(0), true, nil},
		{"dump failed", done(-int32(syscall.EINVAL)), false, syscall.EINVAL},
		{"refused", message(nlmsgError, binary.NativeEndian.AppendUint32(nil, ^uint32(syscall.ENOENT)+1)), false, syscall.ENOENT},
		{"more to come", message(sockDiagByFamily, nil), false, nil},
		{"header cut", done(0)[:headerSize-1], false, errShort},
		{"body cut", done(0)[:headerSize+2], false, errShort},
		{"size too small", make([]byte, headerSize), false, errShort},
		{"no code", message(nlmsgDone, nil), false, errShort},
		{"unknown type", message(99, nil), false, errType},
	} {
		t.Run(c.name, func(t *testing.T) {
			done, err := parseDiag(c.b, nothing)
			require.Equal(t, c.done, done)
			require.ErrorIs(t, err, c.err)
		})
	}
}

func TestStatDevice(t *testing.T) {
	require.Equal(t, uint64(0x801), statDevice(8<<20|1))
	require.Equal(t, uint64(0xfd<<8), statDevice(253<<20))
	// As makedev(3) has it.
	require.Equal(t, uint64(0x123abc45), statDevice(0xabc<<20|0x12345))
}

func FuzzParseInetDiag(f *testing.F) {
	f.Add(inetSeed())
	f.Add(inetSeed()[:100])
	f.Add(done(-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := parseInetDiag(b, "tcp", func(s *Socket) {
			require.NotZero(t, s.State)
			require.False(t, s.Local.Addr().Is4In6())
		})
		if err != nil {
			require.NotEmpty(t, err.Error())
		}
	})
}

func FuzzParseUnixDiag(f *testing.F) {
	f.Add(unixSeed())
	f.Add(unixSeed()[:70])
	f.Add(done(-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := parseUnixDiag(b, func(s *Socket) {
			require.NotZero(t, s.State)
			require.NotEmpty(t, s.Path)
		})
		if err != nil {
			require.NotEmpty(t, err.Error())
		}
	})
}
