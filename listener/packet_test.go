package listener_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func listenPacket(t testing.TB, cfg *listener.Config, network, address string) *listener.PacketConn {
	t.Helper()
	ensureStateDir(t, cfg)
	conn, err := cfg.ListenPacket(context.Background(), network, address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(deadline)))
	return conn
}

// peer is a socket that sends to conn.
func peer(t testing.TB, conn net.PacketConn) *net.UDPConn {
	t.Helper()
	client, err := net.DialUDP("udp", nil, conn.LocalAddr().(*net.UDPAddr))
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	require.NoError(t, client.SetDeadline(time.Now().Add(deadline)))
	return client
}

func TestPacketConn(t *testing.T) {
	for _, network := range []string{"udp", "udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			state := t.TempDir()
			address := anyAddress(t, network)
			conn := listenPacket(t, &listener.Config{StateDir: state, Name: "dns"}, network, address)
			require.Equal(t, listener.Origin{Kind: listener.Bound, Requested: address, Address: conn.LocalAddr().String()}, conn.Origin())
			require.IsType(t, (*net.UDPConn)(nil), conn.Unwrap())
			require.Nil(t, conn.RemoteAddr())
			recs := records(t, state)
			require.Len(t, recs, 1)
			require.Equal(t, []string{network, address, conn.LocalAddr().String(), "dns", "bound"},
				[]string{recs[0].Network, recs[0].Requested, recs[0].Address, recs[0].Name, recs[0].Origin})

			client := peer(t, conn)
			from := client.LocalAddr().(*net.UDPAddr)
			say := func(text string) {
				_, err := client.Write([]byte(text))
				require.NoError(t, err)
			}
			heard := func(want string) {
				buffer := make([]byte, 100)
				n, err := client.Read(buffer)
				require.NoError(t, err)
				require.Equal(t, want, string(buffer[:n]))
			}
			buffer := make([]byte, 100)

			say("1")
			n, addr, err := conn.ReadFrom(buffer)
			require.NoError(t, err)
			require.Equal(t, "1", string(buffer[:n]))
			require.Equal(t, from.String(), addr.String())
			_, err = conn.WriteTo([]byte("one"), addr)
			require.NoError(t, err)
			heard("one")

			say("2")
			n, oobn, _, udpAddr, err := conn.ReadMsgUDP(buffer, make([]byte, 100))
			require.NoError(t, err)
			require.Equal(t, "2", string(buffer[:n]))
			require.Zero(t, oobn)
			require.Equal(t, from.Port, udpAddr.Port)
			n, _, err = conn.WriteMsgUDP([]byte("two"), nil, udpAddr)
			require.NoError(t, err)
			require.Equal(t, 3, n)
			heard("two")

			say("3")
			n, addrPort, err := conn.ReadFromUDPAddrPort(buffer)
			require.NoError(t, err)
			require.Equal(t, "3", string(buffer[:n]))
			require.Equal(t, from.AddrPort().Port(), addrPort.Port())
			_, err = conn.WriteToUDPAddrPort([]byte("three"), addrPort)
			require.NoError(t, err)
			heard("three")

			say("4")
			n, err = conn.Read(buffer)
			require.NoError(t, err)
			require.Equal(t, "4", string(buffer[:n]))
			_, err = conn.Write([]byte("to nobody"))
			require.Error(t, err)

			require.NoError(t, conn.SetReadBuffer(64<<10))
			require.NoError(t, conn.SetWriteBuffer(64<<10))
			raw, err := conn.SyscallConn()
			require.NoError(t, err)
			called := false
			require.NoError(t, raw.Control(func(uintptr) { called = true }))
			require.True(t, called)
			file, err := conn.File()
			require.NoError(t, err)
			again, err := net.FilePacketConn(file)
			require.NoError(t, err)
			require.Equal(t, conn.LocalAddr().String(), again.LocalAddr().String())
			require.NoError(t, again.Close())
			require.NoError(t, file.Close())

			require.NoError(t, conn.SetDeadline(time.Unix(1, 0)))
			_, _, err = conn.ReadFrom(buffer)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NoError(t, conn.SetReadDeadline(time.Time{}))

			read := make(chan error, 1)
			go func() {
				_, _, err := conn.ReadFrom(make([]byte, 1))
				read <- err
			}()
			require.NoError(t, conn.Close())
			require.ErrorIs(t, <-read, net.ErrClosed)
			require.NoError(t, conn.Close(), "it repeats its first result")
			_, _, err = conn.ReadFrom(buffer)
			require.ErrorIs(t, err, net.ErrClosed)
			require.Empty(t, filesIn(t, state))
		})
	}
}

// QUIC and DNS servers reach for these packages, which look for more than net.PacketConn.
func TestPacketConnGolangX(t *testing.T) {
	conn := listenPacket(t, &listener.Config{}, "udp4", "127.0.0.1:0")
	p4 := ipv4.NewPacketConn(conn)
	require.NoError(t, p4.SetTTL(64))
	client := peer(t, conn)
	_, err := client.Write([]byte("word"))
	require.NoError(t, err)
	batch := []ipv4.Message{{Buffers: [][]byte{make([]byte, 100)}, OOB: make([]byte, 100)}}
	n, err := p4.ReadBatch(batch, 0)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, "word", string(batch[0].Buffers[0][:batch[0].N]))
	// This method of theirs wants the *net.UDPConn itself.
	p4 = ipv4.NewPacketConn(conn.Unwrap())
	require.NoError(t, p4.SetControlMessage(ipv4.FlagTTL|ipv4.FlagInterface, true))
	_, err = client.Write([]byte("again"))
	require.NoError(t, err)
	buffer := make([]byte, 100)
	_, cm, from, err := p4.ReadFrom(buffer)
	require.NoError(t, err)
	require.NotNil(t, cm)
	require.Positive(t, cm.IfIndex)
	require.Equal(t, client.LocalAddr().String(), from.String())

	p6 := ipv6.NewPacketConn(listenPacket(t, &listener.Config{}, "udp6", "[::1]:0"))
	require.NoError(t, p6.SetHopLimit(64))
}

func TestUnixgram(t *testing.T) {
	need(t, len(supported([]string{"unixgram"})) > 0, "Unix datagram sockets")
	path := anyAddress(t, "unixgram")
	state := t.TempDir()
	conn := listenPacket(t, &listener.Config{StateDir: state}, "unixgram", path)
	require.IsType(t, (*net.UnixConn)(nil), conn.Unwrap())
	require.Equal(t, path, conn.LocalAddr().String())
	require.Len(t, records(t, state), 1)

	client, err := net.Dial("unixgram", path)
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("word"))
	require.NoError(t, err)
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	require.NoError(t, err)
	require.Equal(t, "word", string(buffer[:n]))

	_, _, _, _, err = conn.ReadMsgUDP(buffer, nil)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, _, err = conn.WriteMsgUDP(buffer, nil, nil)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, _, err = conn.ReadFromUDPAddrPort(buffer)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	_, err = conn.WriteToUDPAddrPort(buffer, netip.AddrPort{})
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.NoError(t, conn.SetReadBuffer(64<<10))

	require.NoError(t, conn.Close())
	require.NoFileExists(t, path, "package net would leave it")
	require.Empty(t, filesIn(t, state))
	conn = listenPacket(t, &listener.Config{}, "unixgram", path)
	require.NoError(t, conn.Close())
}

// bare is a packet connection that can nothing else.
type bare struct{ net.PacketConn }

func TestForeignPacketConn(t *testing.T) {
	inside, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer inside.Close()
	source := &source{takePacket: func(name, network, address string) (net.PacketConn, error) {
		require.Equal(t, []string{"dns", "udp", ":53"}, []string{name, network, address})
		return bare{inside}, nil
	}}
	conn := listenPacket(t, &listener.Config{Name: "dns", Sources: []listener.Source{source}}, "udp", ":53")
	require.Equal(t, listener.Activated, conn.Origin().Kind)
	for name, call := range map[string]func() error{
		"Read":           func() error { _, err := conn.Read(nil); return err },
		"Write":          func() error { _, err := conn.Write(nil); return err },
		"SetReadBuffer":  func() error { return conn.SetReadBuffer(1) },
		"SetWriteBuffer": func() error { return conn.SetWriteBuffer(1) },
		"File":           func() error { _, err := conn.File(); return err },
		"SyscallConn":    func() error { _, err := conn.SyscallConn(); return err },
	} {
		err := call()
		require.ErrorIs(t, err, errors.ErrUnsupported, name)
		require.IsType(t, (*net.OpError)(nil), err, name)
	}
	require.NoError(t, conn.Close())
	_, err = inside.WriteTo(nil, inside.LocalAddr())
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestPacketFallback(t *testing.T) {
	held, err := net.ListenPacket("udp", "127.0.0.1:"+freePort(t)) // TCP has it free too
	require.NoError(t, err)
	defer held.Close()
	port := portOf(t, held.LocalAddr())
	s := strategy.Staging(ports(port, port), strategy.Range{})
	conn := listenPacket(t, &listener.Config{Strategy: s}, "udp", held.LocalAddr().String())
	require.Equal(t, listener.Fallback, conn.Origin().Kind)
	require.NotEqual(t, held.LocalAddr().String(), conn.LocalAddr().String())

	// TCP has ports of its own.
	ln := listen(t, &listener.Config{}, "tcp", held.LocalAddr().String())
	require.Equal(t, listener.Bound, ln.Origin().Kind)
}

func TestPacketConflict(t *testing.T) {
	held, err := net.ListenPacket("udp", "127.0.0.1:"+freePort(t)) // TCP has it free too
	require.NoError(t, err)
	defer held.Close()
	ln := listenPlain(t, "tcp", held.LocalAddr().String()) // has nothing to do with it
	_, err = listener.ListenPacket("udp", held.LocalAddr().String())
	e := checkInUse(t, err, "udp", held.LocalAddr().String(), held.LocalAddr().String())
	require.Len(t, e.Diagnosis().Holders, 1)
	require.Equal(t, os.Getpid(), e.Diagnosis().Holders[0].PID)
	require.Equal(t, "bound", e.Diagnosis().Holders[0].State)
	require.Contains(t, err.Error(), fmt.Sprintf("pid %d", os.Getpid()))
	require.NoError(t, ln.Close())
}

func TestPacketKeeper(t *testing.T) {
	var got []any
	keeps := keeper{&source{takePacket: func(string, string, string) (net.PacketConn, error) { return nil, os.ErrNotExist }}, nil}
	keeps.keep = func(name, network, address string, socket syscall.Conn) error {
		got = append(got, name, network, address, socket)
		return nil
	}
	conn := listenPacket(t, &listener.Config{Name: "dns", Sources: []listener.Source{keeps}}, "udp", "127.0.0.1:0")
	require.Equal(t, []any{"dns", "udp", "127.0.0.1:0", conn.Unwrap()}, got)
}

// Middleware is for streams.
func TestPacketMiddleware(t *testing.T) {
	cfg := &listener.Config{Middleware: []listener.Middleware{func(net.Listener) net.Listener { panic("not for packets") }}}
	conn := listenPacket(t, cfg, "udp", "127.0.0.1:0")
	require.NoError(t, conn.Close())
}

func TestPacketMissingDirectory(t *testing.T) {
	if len(supported([]string{"unixgram"})) == 0 {
		return
	}
	_, err := listener.ListenPacket("unixgram", filepath.Join(shortDir(t), "not", "there"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.True(t, strings.HasSuffix(err.Error(), "create it"), err.Error())
}
