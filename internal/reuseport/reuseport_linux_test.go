package reuseport

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// group opens sockets that listen on one address, the first of them as any other program does.
func group(t *testing.T, network, address string, n int, first net.ListenConfig) []*net.TCPListener {
	t.Helper()
	ln, err := first.Listen(t.Context(), network, address)
	require.NoError(t, err)
	all := []*net.TCPListener{ln.(*net.TCPListener)}
	t.Cleanup(func() {
		for _, ln := range all {
			ln.Close()
		}
	})
	require.NoError(t, Allow(all[0]))
	for len(all) < n {
		ln, err := join(t.Context(), network, all[0].Addr().String())
		require.NoError(t, err)
		all = append(all, ln.(*net.TCPListener))
	}
	return all
}

func join(ctx context.Context, network, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: Control}
	config.SetMultipathTCP(false)
	return config.Listen(ctx, network, address)
}

// arrive makes connections, and counts with which listener each of them waits.
func arrive(t *testing.T, address string, of []*net.TCPListener, connections int) []int {
	t.Helper()
	for range connections {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
		defer conn.Close()
	}
	counts := make([]int, len(of))
	for i, ln := range of {
		q, err := Watch(ln)
		require.NoError(t, err)
		defer q.Close()
		for {
			conn, err := q.Accept()
			require.NoError(t, err)
			if conn == nil {
				break
			}
			require.NotEmpty(t, conn.RemoteAddr().String())
			conn.Close()
			counts[i]++
		}
		require.True(t, q.Empty())
	}
	return counts
}

func TestSteer(t *testing.T) {
	const connections = 400
	plain, multipath := net.ListenConfig{}, net.ListenConfig{}
	plain.SetMultipathTCP(false)
	multipath.SetMultipathTCP(true)
	for name, test := range map[string]struct {
		network, address string
		dial             []string
		first            net.ListenConfig
	}{
		"IPv4":                     {"tcp4", "127.0.0.1:0", []string{"127.0.0.1"}, plain},
		"IPv6":                     {"tcp6", "[::1]:0", []string{"::1"}, plain},
		"both":                     {"tcp", "[::]:0", []string{"127.0.0.1", "::1"}, plain},
		"an MPTCP socket leads it": {"tcp", "[::]:0", []string{"127.0.0.1", "::1"}, multipath},
	} {
		t.Run(name, func(t *testing.T) {
			all := group(t, test.network, test.address, 5, test.first)
			_, port, err := net.SplitHostPort(all[0].Addr().String())
			require.NoError(t, err)
			for _, host := range test.dial {
				address := net.JoinHostPort(host, port)
				for _, to := range [][]int{{0, 1, 2, 3}, {1, 3}, {2}, {0, 1, 2, 3, 4}} {
					require.NoError(t, Steer(all[1], to))
					counts := arrive(t, address, all, connections)
					for i, count := range counts {
						chosen := false
						for _, place := range to {
							chosen = chosen || place == i
						}
						if !chosen {
							require.Zero(t, count, "%v: %v", to, counts)
							continue
						}
						// Half of its share is five standard deviations away, or it is a bad hash.
						require.Greater(t, count, connections/len(to)/2, "%v: %v", to, counts)
					}
				}
			}
		})
	}
}

// Each peer stays with one socket, as it does when the kernel decides: for QUIC, say.
func TestAPeerStaysWithItsSocket(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		config := net.ListenConfig{}
		first, err := config.ListenPacket(t.Context(), "udp", net.JoinHostPort(host, "0"))
		require.NoError(t, err)
		defer first.Close()
		require.NoError(t, Allow(first.(*net.UDPConn)))
		config.Control = Control
		all := []net.PacketConn{first}
		for range 3 {
			conn, err := config.ListenPacket(t.Context(), "udp", first.LocalAddr().String())
			require.NoError(t, err)
			defer conn.Close()
			all = append(all, conn)
		}
		require.NoError(t, Steer(first.(*net.UDPConn), []int{0, 1, 2, 3}))
		const peers, packets = 100, 5
		for range peers {
			conn, err := net.Dial("udp", first.LocalAddr().String())
			require.NoError(t, err)
			defer conn.Close() // later, so that no other gets its port
			for range packets {
				_, err := conn.Write([]byte("x"))
				require.NoError(t, err)
			}
		}
		type packet struct {
			socket int
			from   string
		}
		got := make(chan packet)
		for i, conn := range all {
			go func() {
				for {
					_, from, err := conn.ReadFrom(make([]byte, 1))
					if err != nil {
						return // the end of the test
					}
					got <- packet{i, from.String()}
				}
			}()
		}
		socketOf, load := map[string]int{}, make([]int, len(all))
		for range peers * packets {
			p := <-got
			if before, known := socketOf[p.from]; known {
				require.Equal(t, before, p.socket)
			}
			socketOf[p.from] = p.socket
			load[p.socket]++
		}
		require.Len(t, socketOf, peers)
		for _, n := range load {
			require.Positive(t, n, "%v", load)
		}
	}
}

// Before anybody may join, nobody can; then only who asks for it.
func TestExclusive(t *testing.T) {
	alone := group(t, "tcp", "127.0.0.1:0", 1, net.ListenConfig{})[0]
	other, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer other.Close()
	_, err = join(t.Context(), "tcp", other.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	_, err = net.Listen("tcp", alone.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.Error(t, Steer(other.(*net.TCPListener), []int{0}), "one alone is no group")
	require.ErrorIs(t, Steer(alone, nil), errors.ErrUnsupported)
	require.ErrorIs(t, Steer(alone, make([]int, MaxSteered+1)), errors.ErrUnsupported)
}

func TestQueue(t *testing.T) {
	ln := group(t, "tcp", "127.0.0.1:0", 1, net.ListenConfig{})[0]
	q, err := Watch(ln)
	require.NoError(t, err)
	defer q.Close()
	require.True(t, q.Empty())
	conn, err := q.Accept()
	require.NoError(t, err)
	require.Nil(t, conn)
	require.ErrorIs(t, q.Wait(time.Now().Add(time.Millisecond)), os.ErrDeadlineExceeded)

	client, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, q.Wait(time.Now().Add(time.Minute)))
	require.NoError(t, q.Wait(time.Time{}), "it takes nothing")
	require.False(t, q.Empty())
	conn, err = q.Accept()
	require.NoError(t, err)
	require.IsType(t, &net.TCPConn{}, conn)
	require.Equal(t, client.LocalAddr().String(), conn.RemoteAddr().String())
	conn.Close()

	waiting := make(chan error)
	go func() { waiting <- q.Wait(time.Time{}) }()
	require.NoError(t, q.Close())
	require.Error(t, <-waiting)
	_, err = q.Accept()
	require.Error(t, err)
	require.Error(t, q.Wait(time.Time{}))
}

func TestMostSteered(t *testing.T) {
	all := group(t, "tcp", "127.0.0.1:0", 2, net.ListenConfig{})
	require.NoError(t, Steer(all[1], make([]int, MaxSteered)))
	require.Equal(t, []int{10, 0}, arrive(t, all[0].Addr().String(), all, 10))
}
