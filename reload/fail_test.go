//go:build unix

package reload_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever is wrong with the new version, the old one goes on and says why; nothing is left of the new one.
func TestNewVersionFails(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	require.NoError(t, os.WriteFile(garbage, []byte("\x7fELF garbage"), 0o755))
	for name, c := range map[string]struct {
		change func(*role) // of the first version
		next   func(*role)
		reason string // in the error
	}{
		"missing":  {change: func(r *role) { r.Reload.Command = []string{"/nonexistent/program"} }, reason: "no such file"},
		"garbage":  {change: func(r *role) { r.Reload.Command = []string{garbage} }, reason: "exec format error"},
		"no path":  {change: func(r *role) { r.Reload.Command = []string{"berth-no-such-program"} }, reason: "executable file not found"},
		"stranger": {change: func(r *role) { r.Reload.Command = []string{"sleep", "600"}; r.Reload.Timeout = 100 * time.Millisecond }, reason: "was not ready within 100ms"},
		"exit 7":   {next: func(r *role) { r.Fail, r.Child = "exit 7", true }, reason: "exit status 7; its last line"},
		"exit 0":   {next: func(r *role) { r.Fail = "exit 0" }, reason: "it ended without an error before it was ready"},
		"panic":    {next: func(r *role) { r.Fail = "panic" }, reason: "exit status 2"},
		"hang": {change: func(r *role) { r.Reload.Timeout = 300 * time.Millisecond }, next: func(r *role) { r.Fail, r.Child = "hang", true },
			reason: "was not ready within 300ms"},
		"bad address":    {next: func(r *role) { r.Listen[0].Network = "tcp6" }, reason: "no suitable address found"},
		"bad descriptor": {change: func(r *role) { r.Reload.Command = []string{"sh", "-c", `exec 5<&-; exec "$0"`, os.Args[0]} }, reason: "socket operation on non-socket"},
		"bad names":      {change: func(r *role) { r.Reload.Command = []string{"sh", "-c", `exec 4</dev/null; exec "$0"`, os.Args[0]} }, reason: "exit status"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			r := h.role()
			r.Listen[0].Address = "127.0.0.1:" + strconv.Itoa(freePort(t))
			if c.change != nil {
				c.change(&r)
			}
			l := begin(t, r)
			l.said("listens")
			first, _ := l.said("ready")
			if c.next != nil {
				next := h.role()
				next.Listen[0].Address = r.Listen[0].Address
				next.Reload.Timeout = r.Reload.Timeout
				c.next(&next)
				l.next(next)
			}
			signalTo(t, first, syscall.SIGHUP)
			l.logged("no upgrade")
			log := l.log.String()
			require.Contains(t, log, c.reason)
			if strings.HasPrefix(name, "exit 7") {
				require.Regexp(t, `output=.*the configuration is bad`, log) // all of them are logged
			}
			h.owner(t, first, r.Listen[0].Address)
			if strings.Contains(log, "child ") {
				_, child := l.said("child")
				pid, err := strconv.Atoi(child)
				require.NoError(t, err)
				dies(t, pid)
			}

			// The next one is well.
			r.Reload.Command = nil
			l.next(r)
			if c.change == nil {
				signalTo(t, first, syscall.SIGHUP)
				second, _ := l.said("ready")
				l.said("ended <nil>")
				h.owner(t, second, r.Listen[0].Address)
				first = second
			}
			signalTo(t, first, syscall.SIGTERM)
			l.said("ended <nil>")
			h.empty(t)
		})
	}
}

// given are the ports that freePort has returned.
var given sync.Map

// freePort is a port below those that the system gives by itself, another one each time.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 4000 + rand.IntN(6000)
		if _, twice := given.LoadOrStore(port, true); twice {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			require.NoError(t, ln.Close())
			return port
		}
	}
	require.FailNow(t, "no port is free")
	return 0
}

// What the program writes is not lost, and does not kill it, when its parent has ended: not its own, and not that of a
// program that it started while it was not in charge yet.
func TestOutputOutlivesTheParent(t *testing.T) {
	h := newHouse(t)
	r := h.role()
	l := begin(t, r)
	first, _ := l.said("ready")
	r.Do = "chatty"
	l.next(r)
	signalTo(t, first, syscall.SIGHUP)
	second, _ := l.said("ready")
	l.said("ended <nil>")
	require.NoError(t, l.cmd.Wait())
	for i := range 3 {
		signalTo(t, second, syscall.SIGUSR1)
		_, text := l.said("own")
		require.Equal(t, fmt.Sprint(i), text)
		_, text = l.said("child's")
		require.Equal(t, fmt.Sprint(i), text)
	}
}

func init() { roles["chatty"] = playChatty }

// playChatty writes on SIGUSR1, and has a program do so that it started before it was ready.
func playChatty(p *played) error {
	cmd := exec.Command("sh", "-c", `while read -r n; do echo "$$ child's $n"; done`)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		for i := 0; ; i++ {
			<-signals
			p.say("own %d", i)
			fmt.Fprintln(stdin, i)
		}
	}()
	return playHTTP(p)
}
