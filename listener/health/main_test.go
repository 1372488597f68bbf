package health_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/listener"
)

const (
	holdVariable  = "BERTH_HEALTH_HOLD"  // "NETWORK ADDRESS": have that until stdin ends
	stateVariable = "BERTH_HEALTH_STATE" // with it, by a Config with this state directory
)

// TestMain is also a process that holds an address. It ends without Close, as one that was killed, when its stdin ends, and
// in order when a line comes in.
func TestMain(m *testing.M) {
	if what := os.Getenv(holdVariable); what != "" {
		network, address, _ := strings.Cut(what, " ")
		socket, at, err := hold(network, address)
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		fmt.Println("ready", at)
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
			_ = socket.Close()
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func hold(network, address string) (io.Closer, net.Addr, error) {
	if network == "udp" {
		conn, err := net.ListenPacket(network, address)
		if err != nil {
			return nil, nil, err
		}
		return conn, conn.LocalAddr(), nil
	}
	if dir := os.Getenv(stateVariable); dir != "" {
		cfg := listener.Config{StateDir: dir, Name: "held"}
		ln, err := cfg.Listen(context.Background(), network, address)
		if err != nil {
			return nil, nil, err
		}
		return ln, ln.Addr(), nil
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, nil, err
	}
	return ln, ln.Addr(), nil
}

// A holder is a process that has an address.
type holder struct {
	pid     int
	address string
	release func() // and end, in order
	crash   func() // end, and leave the record
}

// holding starts a holder. With a state directory it has a record, as the service "held". The environment is on top of this
// process's.
func holding(t testing.TB, network, address, stateDir string, env ...string) holder {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), holdVariable+"="+network+" "+address, stateVariable+"="+stateDir, "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, env...)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var once sync.Once
	end := func(text string) func() {
		return func() {
			once.Do(func() {
				_, _ = io.WriteString(stdin, text)
				stdin.Close()
				_ = cmd.Wait()
			})
		}
	}
	h := holder{pid: cmd.Process.Pid, release: end("\n"), crash: end("")}
	t.Cleanup(h.crash)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	var ok bool
	h.address, ok = strings.CutPrefix(strings.TrimSpace(line), "ready ")
	require.True(t, ok, line)
	return h
}
