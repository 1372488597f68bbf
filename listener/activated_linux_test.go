package listener_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/systemdtest"
	"github.com/berth-go/berth/listener"
)

func init() {
	roles["take"] = role.playTake
	roles["bare"] = role.playBare
	roles["service"] = role.playService
}

// playTake asks for several addresses, separated by spaces, and tells how it came by each; then it serves the first.
func (r role) playTake() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	var all []net.Listener
	for address := range strings.FieldsSeq(r.Address) {
		ln, err := cfg.Listen(context.Background(), r.Network, address)
		if err != nil {
			return err
		}
		fmt.Println("took", ln.Origin().Kind, ln.Addr())
		all = append(all, ln)
	}
	return r.serve(all[0])
}

// playBare is "plain" by listener.Listen, and says of which type the result is.
func (r role) playBare() error {
	ln, err := listener.Listen(r.Network, r.Address)
	if err != nil {
		return err
	}
	fmt.Printf("took %T %v\n", ln, ln.Addr())
	return r.serve(ln)
}

// playService is a service of systemd that answers what it accepted before it ends.
func (r role) playService() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	ln, err := r.listen()
	if err != nil {
		return err
	}
	if err := activation.Status(ln.Origin().Kind.String() + " " + ln.Addr().String()); err != nil {
		return err
	}
	if err := activation.Ready(); err != nil {
		return err
	}
	go func() {
		<-stop
		_ = ln.Close()
	}()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		fmt.Fprintln(conn, os.Getpid())
		conn.Close()
	}
}

func encodeRole(t testing.TB, r role) string {
	t.Helper()
	text, err := json.Marshal(r)
	require.NoError(t, err)
	return string(text)
}

// socketActivate starts a role under systemd-socket-activate, which waits for the first connection and then becomes it.
func socketActivate(t testing.TB, r role, args ...string) *process {
	t.Helper()
	program, err := exec.LookPath("systemd-socket-activate")
	need(t, err == nil, "systemd-socket-activate")
	exe, err := os.Executable()
	require.NoError(t, err)
	args = append(args, "-E", roleVariable+"="+encodeRole(t, r), "-E", "GORACE=atexit_sleep_ms=0", exe)
	return start(t, exec.Command(program, args...))
}

// dialOnceListening dials until somebody listens: systemd-socket-activate does not tell when it does.
func dialOnceListening(t testing.TB, address string) net.Conn {
	t.Helper()
	for begin := time.Now(); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.Less(t, time.Since(begin), deadline)
	}
}

func TestActivatedWhereAMatchingSocketWasPassed(t *testing.T) {
	for _, test := range []struct {
		do, requested string // requested: what the program asks for, PORT stands for the port that is passed
		set           bool   // named among the Sources
		want          string
	}{
		{"take", "127.0.0.1:PORT", false, "took activated 127.0.0.1:PORT"},
		{"take", "127.0.0.1:PORT", true, "took activated 127.0.0.1:PORT"},
		{"take", "localhost:PORT", false, "took activated 127.0.0.1:PORT"},
		{"take", "fd:3", false, "took activated 127.0.0.1:PORT"},
		{"take", "fd:web", false, "took activated 127.0.0.1:PORT"},
		{"take", "fd:web", true, "took activated 127.0.0.1:PORT"},
		{"bare", "127.0.0.1:PORT", false, "took *net.TCPListener 127.0.0.1:PORT"},
		{"bare", "fd:web", false, "took *net.TCPListener 127.0.0.1:PORT"},
	} {
		t.Run(fmt.Sprint(test.do, " ", test.requested, " ", test.set), func(t *testing.T) {
			port := freePort(t)
			r := role{Do: test.do, Network: "tcp", Address: strings.ReplaceAll(test.requested, "PORT", port), StateDir: t.TempDir(), Log: true, Set: test.set}
			p := socketActivate(t, r, "-l", "127.0.0.1:"+port, "--fdname=web")
			conn := dialOnceListening(t, "127.0.0.1:"+port)
			line, _ := p.line(t)
			require.Equal(t, strings.ReplaceAll(test.want, "PORT", port), line)
			p.ready(t)
			answer, err := io.ReadAll(conn)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintln(p.pid()), string(answer), "the connection that waited is answered")
			if test.do == "take" {
				log := p.logged(t, 1)
				require.Contains(t, log, "origin=activated")
				require.NotContains(t, log, "none of the sockets")
			}
		})
	}
}

func TestAMismatchBetweenUnitAndProgramIsLoggedOnce(t *testing.T) {
	for _, named := range []bool{false, true} {
		port := freePort(t)
		r := role{Do: "take", Network: "tcp", Address: "127.0.0.1:0 127.0.0.1:0", StateDir: t.TempDir(), Log: true, Name: "api", Set: named}
		p := socketActivate(t, r, "-l", "127.0.0.1:"+port)
		dialOnceListening(t, "127.0.0.1:"+port)
		for range 2 {
			line, _ := p.line(t)
			require.Contains(t, line, "took bound")
		}
		p.ready(t)
		log := p.logged(t, 2)
		require.Equal(t, 1, strings.Count(log, "none of the sockets that systemd passed and nobody took yet is the one asked for"), log)
		for _, part := range []string{"requested=127.0.0.1:0", "name=api", "descriptor 3", "tcp 127.0.0.1:" + port} {
			require.Contains(t, log, part)
		}
	}
}

func TestALyingEnvironmentIsAnError(t *testing.T) {
	for _, do := range []string{"take", "bare"} {
		p := play(t, role{Do: do, Network: "tcp", Address: "127.0.0.1:0", StateDir: t.TempDir()}, func(cmd *exec.Cmd) {
			cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
		})
		text := p.failed(t)
		require.Contains(t, text, "listen tcp: ")
		require.Contains(t, text, "LISTEN_FDS=1 announces descriptor 3")
	}
	for _, named := range []bool{false, true} {
		p := play(t, role{Do: "take", Network: "tcp", Address: "fd:web", Set: named})
		require.Contains(t, p.failed(t), "fd:web: no sockets were passed")
	}
}

// unit is a service that plays a role, with an address that systemctl restart has to keep.
func unit(t testing.TB, r role) string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	script := filepath.Join(t.TempDir(), "start")
	require.NoError(t, os.WriteFile(script, fmt.Appendf(nil, "export GORACE=atexit_sleep_ms=0 %s='%s'\nexec %s\n", roleVariable, encodeRole(t, r), exe), 0o600))
	return "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=notify\nNotifyAccess=main\nFileDescriptorStoreMax=4\nExecStart=/bin/sh " + script + "\n"
}

func TestStoredListenersSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	path := filepath.Join(dir, "sock")
	services := map[string]role{
		"fallback": {Do: "service", Network: "tcp", Address: taken.Addr().String(), Strategy: "staging", Ranges: "0", Store: true},
		"unix":     {Do: "service", Network: "unix", Address: path, Store: true, Name: "a name: with a colon", Set: true},
		"plain":    {Do: "service", Network: "tcp", Address: "127.0.0.1:0", Store: false},
	}
	units := map[string]string{}
	for name, r := range services {
		r.StateDir, r.PortFile = filepath.Join(dir, "state"), filepath.Join(dir, name+".port")
		units[name+".service"] = unit(t, r)
	}
	m := systemdtest.Start(t, units)
	address := func(t testing.TB, name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name+".port"))
		require.NoError(t, err)
		return strings.TrimSpace(string(text))
	}

	for name, first := range map[string]string{"fallback": "fallback", "unix": "bound"} {
		t.Run(name, func(t *testing.T) {
			m.Systemctl(t, "start", name+".service")
			at := address(t, name)
			require.Equal(t, first+" "+at, m.Property(t, name+".service", "StatusText"))

			restartUnderLoad(t, m, name+".service", services[name].Network, at)
			require.Equal(t, at, address(t, name), "the address that was obtained is kept")
			m.Systemctl(t, "stop", name+".service")
		})
	}

	t.Run("without Store", func(t *testing.T) {
		m.Systemctl(t, "start", "plain.service")
		before := address(t, "plain")
		m.Systemctl(t, "restart", "plain.service")
		require.NotEqual(t, before, address(t, "plain"))
		require.Equal(t, "bound "+address(t, "plain"), m.Property(t, "plain.service", "StatusText"))
	})
}

// restartUnderLoad restarts a service five times, while new connections come all the time: every one is answered.
func restartUnderLoad(t *testing.T, m *systemdtest.Manager, service, network, address string) {
	t.Helper()
	var answered, lost atomic.Int64
	var reason atomic.Value
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := ask(network, address); err != nil {
					lost.Add(1)
					reason.Store(err.Error())
				} else {
					answered.Add(1)
				}
			}
		})
	}
	for range 5 {
		before := m.Property(t, service, "MainPID")
		m.Systemctl(t, "restart", service)
		require.NotEqual(t, before, m.Property(t, service, "MainPID"))
		require.Equal(t, "activated "+address, m.Property(t, service, "StatusText"))
	}
	close(stop)
	load.Wait()
	require.Zero(t, lost.Load(), "%v", reason.Load())
	require.Positive(t, answered.Load())
	t.Logf("5 restarts, %d connections answered, none lost", answered.Load())
}

func TestASocketUnitLosesNothingInARestart(t *testing.T) {
	address := net.JoinHostPort("127.0.0.1", freePort(t))
	r := role{Do: "service", Network: "tcp", Address: address, StateDir: t.TempDir()}
	m := systemdtest.Start(t, map[string]string{
		"app.socket":  "[Socket]\nListenStream=" + address + "\n",
		"app.service": strings.Replace(unit(t, r), "FileDescriptorStoreMax=4\n", "", 1),
	})
	m.Systemctl(t, "start", "app.socket")
	require.Equal(t, "inactive", m.Property(t, "app.service", "ActiveState"))
	require.NoError(t, ask("tcp", address), "the connection that starts the service is answered")
	require.Equal(t, "active", m.Property(t, "app.service", "ActiveState"))
	restartUnderLoad(t, m, "app.service", "tcp", address)
}

// ask connects and wants a whole answer.
func ask(network, address string) error {
	conn, err := net.DialTimeout(network, address, deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && !strings.HasSuffix(string(answer), "\n") {
		err = fmt.Errorf("answered %q", answer)
	}
	return err
}

func TestAStoreThatTakesNothingIsLogged(t *testing.T) {
	r := role{Do: "service", Network: "tcp", Address: "127.0.0.1:0", Store: true, Log: true, StateDir: t.TempDir()}
	notify := strings.Replace(unit(t, r), "FileDescriptorStoreMax=4\n", "", 1)
	plain := strings.NewReplacer("FileDescriptorStoreMax=4\n", "", "Type=notify\nNotifyAccess=main", "Type=exec").Replace(unit(t, r))
	m := systemdtest.Start(t, map[string]string{"notify.service": notify, "plain.service": plain})
	for _, name := range []string{"notify.service", "plain.service"} {
		m.Systemctl(t, "start", name)
		require.Eventually(t, func() bool { return strings.Contains(m.UnitLog(name), "level=INFO") }, deadline, time.Millisecond)
		log := m.UnitLog(name)
		require.Contains(t, log, "the socket does not survive a restart of the service")
		require.Contains(t, log, "FileDescriptorStoreMax=")
	}
}

func TestStoreWithoutSystemdDoesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	cfg := listener.Config{StateDir: t.TempDir(), Store: true}
	ln, err := cfg.Listen(t.Context(), "unix", path)
	require.NoError(t, err)
	require.FileExists(t, path)
	require.NoError(t, ln.Close())
	require.NoFileExists(t, path, "nobody keeps it, so it goes")
}
