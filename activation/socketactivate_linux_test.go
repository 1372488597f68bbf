package activation_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/testneed"
)

// answerTimeout is only reached when something is broken.
const answerTimeout = 30 * time.Second

func init() {
	roles["serve named"] = serveNamed
	roles["serve all"] = serveAll
	roles["serve connection"] = serveConnection
}

// serveNamed answers one connection on each of the sockets a and b, which are at addresses that it does not know.
func serveNamed() error {
	set, err := activation.FromEnv()
	if err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		ln, err := set.Take(name, "tcp", ":80")
		if err != nil {
			ln, err = set.Take(name, "unix", "/nowhere")
		}
		if err != nil {
			return err
		}
		if err := answer(ln, name); err != nil {
			return err
		}
	}
	return nil
}

func answer(ln net.Listener, text string) error {
	defer ln.Close()
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "%s %T %s %q\n", text, ln, ln.Addr(), listenVariables())
	return err
}

// serveAll answers once on everything, in order.
func serveAll() error {
	set, err := activation.FromEnv()
	if err != nil {
		return err
	}
	for _, socket := range set.Unused() {
		if socket.Network != "udp" && socket.Network != "unixgram" {
			ln, err := set.Take("", socket.Network, socket.Address)
			if err != nil {
				return err
			}
			if err := answer(ln, socket.Name); err != nil {
				return err
			}
			continue
		}
		conn, err := set.TakePacket("", socket.Network, socket.Address)
		if err != nil {
			return err
		}
		buffer := make([]byte, 100)
		n, from, err := conn.ReadFrom(buffer)
		if err == nil {
			_, err = conn.WriteTo(append(buffer[:n], fmt.Sprintf(" %T %q\n", conn, listenVariables())...), from)
		}
		if err := errors.Join(err, conn.Close()); err != nil {
			return err
		}
	}
	return nil
}

// serveConnection is a service with Accept=yes.
func serveConnection() error {
	set, err := activation.FromEnv()
	if err != nil {
		return err
	}
	conn, err := set.Conn()
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "%T %s %v %s", conn, conn.LocalAddr(), set.Unused(), line)
	return errors.Join(err, conn.Close())
}

// activate has systemd-socket-activate start a child in the role when somebody connects.
func activate(t *testing.T, role string, args ...string) {
	t.Helper()
	program, err := exec.LookPath("systemd-socket-activate")
	testneed.That(t, err == nil, "systemd-socket-activate, of the package systemd")
	exe, err := os.Executable()
	require.NoError(t, err)
	args = append(args, "-E", roleVariable+"="+role, "-E", "GORACE=atexit_sleep_ms=0", exe)
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with --accept it has children
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var log strings.Builder
	lines := bufio.NewScanner(stderr)
	sockets := 0
	for _, a := range args {
		if a == "-l" {
			sockets++
		}
	}
	for sockets > 0 && lines.Scan() {
		fmt.Fprintln(&log, lines.Text())
		if strings.HasPrefix(lines.Text(), "Listening on ") {
			sockets--
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines.Scan() {
			fmt.Fprintln(&log, lines.Text())
		}
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	require.Zero(t, sockets)
}

// freePort is a port that was free a moment ago: systemd-socket-activate takes no port 0.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(answerTimeout)))
	return conn
}

func read(t *testing.T, conn net.Conn) string {
	t.Helper()
	text, err := io.ReadAll(conn)
	require.NoError(t, err)
	return string(text)
}

func TestSocketActivateOne(t *testing.T) {
	address := freePort(t)
	activate(t, "serve all", "-l", address)
	require.Equal(t, "unknown *net.TCPListener "+address+" []\n", read(t, dial(t, "tcp", address)))
}

func TestSocketActivateWildcard(t *testing.T) {
	_, port, err := net.SplitHostPort(freePort(t))
	require.NoError(t, err)
	activate(t, "serve all", "-l", port)
	require.Equal(t, "unknown *net.TCPListener [::]:"+port+" []\n", read(t, dial(t, "tcp", "127.0.0.1:"+port)))
}

func TestSocketActivateTwoNamed(t *testing.T) {
	address, path := freePort(t), t.TempDir()+"/s"
	activate(t, "serve named", "-l", path, "-l", address, "--fdname=b:a")
	a, b := dial(t, "tcp", address), dial(t, "unix", path)
	require.Equal(t, "a *net.TCPListener "+address+" []\n", read(t, a))
	require.Equal(t, "b *net.UnixListener "+path+" []\n", read(t, b))
}

func TestSocketActivateDatagram(t *testing.T) {
	address, path := freePort(t), t.TempDir()+"/s"
	activate(t, "serve all", "-d", "-l", address, "-l", path)
	udp := dial(t, "udp", address)
	_, err := io.WriteString(udp, "hello")
	require.NoError(t, err)
	text, err := bufio.NewReader(udp).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello *net.UDPConn []\n", text)

	gram, err := net.DialUnix("unixgram", &net.UnixAddr{Name: path + ".client", Net: "unixgram"}, &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer gram.Close()
	require.NoError(t, gram.SetDeadline(time.Now().Add(answerTimeout)))
	_, err = io.WriteString(gram, "hello")
	require.NoError(t, err)
	text, err = bufio.NewReader(gram).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello *net.UnixConn []\n", text)
}

func TestSocketActivateSequentialPackets(t *testing.T) {
	path := t.TempDir() + "/s"
	activate(t, "serve all", "--seqpacket", "-l", path)
	conn := dial(t, "unixpacket", path)
	text, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "unknown *net.UnixListener "+path+" []\n", text)
}

func TestSocketActivateAccept(t *testing.T) {
	address := freePort(t)
	activate(t, "serve connection", "-a", "-l", address)
	for _, text := range []string{"one\n", "two\n"} {
		conn := dial(t, "tcp", address)
		_, err := io.WriteString(conn, text)
		require.NoError(t, err)
		require.Equal(t, "*net.TCPConn "+address+" [] "+text, read(t, conn))
	}
}
