package activation_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/systemdtest"
)

func init() {
	roles["puppet"] = playPuppet
	roles["messenger"] = playMessenger
}

const (
	controlVariable = "BERTH_TEST_CONTROL"
	textVariable    = "BERTH_TEST_TEXT"
)

// hello is the first thing that a service tells the test, through the socket at BERTH_TEST_CONTROL.
type hello struct {
	PID      int
	Restored bool     // what it serves came from the store
	Names    []string // LISTEN_FDNAMES
	TCP, UDP string   // addresses
}

// An order is what a puppet does next; it gives a reply.
type order struct {
	Do, Text string
	N        int
}

type reply struct {
	Error, Text string
	Unsupported bool
}

// greet dials the test and says hello.
func greet(h hello) (net.Conn, error) {
	conn, err := net.Dial("unix", os.Getenv(controlVariable))
	if err != nil {
		return nil, err
	}
	h.PID = os.Getpid()
	return conn, json.NewEncoder(conn).Encode(h)
}

// playPuppet does what the test says until that hangs up.
func playPuppet() error {
	var names []string
	if text := os.Getenv("LISTEN_FDNAMES"); text != "" {
		names = strings.Split(text, ":")
	}
	conn, err := greet(hello{Names: names})
	if err != nil {
		return err
	}
	defer conn.Close()
	p := new(puppetState)
	for in, out := json.NewDecoder(conn), json.NewEncoder(conn); ; {
		var o order
		if err := in.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		text, err := p.obey(o)
		a := reply{Text: text}
		if err != nil {
			a.Error, a.Unsupported = err.Error(), errors.Is(err, errors.ErrUnsupported)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

type puppetState struct {
	hang   atomic.Bool
	checks chan struct{}
	kept   []any
}

func (p *puppetState) obey(o order) (string, error) {
	switch o.Do {
	case "ready":
		return "", activation.Ready()
	case "reloading":
		return "", activation.Reloading()
	case "stopping":
		return "", activation.Stopping()
	case "status":
		return "", activation.Status(o.Text)
	case "mainpid":
		return "", activation.MainPID(o.N)
	case "extend":
		return "", activation.Extend(time.Duration(o.N) * time.Second)
	case "barrier":
		return "", activation.Barrier(context.Background())
	case "unstore":
		return "", activation.Unstore(o.Text)
	case "watchdog":
		p.checks = make(chan struct{})
		go func() {
			_ = activation.Watchdog(context.Background(), func(context.Context) error {
				if p.hang.Load() {
					select {}
				}
				p.checks <- struct{}{}
				return nil
			})
		}()
		return "", nil
	case "checks":
		for range o.N {
			<-p.checks
		}
		return "", nil
	case "hang":
		p.hang.Store(true)
		go func() {
			for range p.checks { // none is in the way
			}
		}()
		return "", nil
	case "puppet": // a child that stays
		return "", child0("puppet", "").Start()
	case "messenger": // a child that sends one message and ends
		out, err := child0("messenger", o.Text).CombinedOutput()
		return string(out), err
	case "store listener":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		p.kept = append(p.kept, ln)
		return ln.Addr().String(), activation.Store(o.Text, ln.(*net.TCPListener))
	case "store bound": // and does not listen
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return "", err
		}
		f := os.NewFile(uintptr(fd), "bound")
		p.kept = append(p.kept, f)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return "", err
		}
		return "", activation.Store(o.Text, f)
	case "store connection": // to the test, and keeps none itself
		conn, err := net.Dial("unix", os.Getenv(controlVariable))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return "", activation.Store(o.Text, conn.(*net.UnixConn))
	}
	return "", fmt.Errorf("order %q is unknown", o.Do)
}

// child0 is a child of a service, which has its environment.
func child0(role, text string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role, textVariable+"="+text)
	return cmd
}

// playMessenger is as short-lived as a process can be.
func playMessenger() error {
	if err := activation.Status(os.Getenv(textVariable)); err != nil {
		return err
	}
	return activation.Barrier(context.Background())
}

// A control is where services say hello.
type control struct {
	*net.UnixListener
	path string
}

func newControl(t testing.TB) *control {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return &control{ln, path}
}

// service is a unit in which the test binary plays a role.
func (c *control) service(t testing.TB, role string, lines ...string) string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	return fmt.Sprintf("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=%s\nEnvironment=%s=%s %s=%s GORACE=atexit_sleep_ms=0\nLimitCORE=0\n%s\n",
		exe, roleVariable, role, controlVariable, c.path, strings.Join(lines, "\n"))
}

func (c *control) accept(t testing.TB) net.Conn {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	conn, err := c.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A puppet is a service that does what it is told.
type puppet struct {
	hello
	conn net.Conn
	in   *json.Decoder
}

func (c *control) puppet(t testing.TB) *puppet {
	t.Helper()
	p := &puppet{conn: c.accept(t)}
	p.in = json.NewDecoder(bufio.NewReader(p.conn))
	require.NoError(t, p.conn.SetDeadline(time.Now().Add(2*patience)))
	require.NoError(t, p.in.Decode(&p.hello))
	return p
}

func (p *puppet) ask(t testing.TB, o order) reply {
	t.Helper()
	require.NoError(t, json.NewEncoder(p.conn).Encode(o))
	var a reply
	require.NoError(t, p.in.Decode(&a), "%+v", o)
	return a
}

// do is an order that succeeds.
func (p *puppet) do(t testing.TB, what string, args ...any) string {
	t.Helper()
	o := order{Do: what}
	for _, arg := range args {
		switch arg := arg.(type) {
		case int:
			o.N = arg
		case string:
			o.Text = arg
		}
	}
	a := p.ask(t, o)
	require.Empty(t, a.Error, "%+v", o)
	return a.Text
}

// begin runs systemctl start or restart, which ends when the unit is started.
func begin(m *systemdtest.Manager, verb, unit string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := m.Try(verb, unit)
		done <- err
	}()
	return done
}

// started starts a unit with a puppet and lets it be ready.
func (c *control) started(t testing.TB, m *systemdtest.Manager, unit string, lines ...string) *puppet {
	t.Helper()
	m.Add(t, map[string]string{unit: c.service(t, "puppet", append([]string{"Type=notify"}, lines...)...)})
	done := begin(m, "start", unit)
	p := c.puppet(t)
	p.do(t, "ready")
	require.NoError(t, <-done)
	return p
}

func TestNotifySystemd(t *testing.T) {
	m := systemdtest.Start(t, nil)

	t.Run("Ready", func(t *testing.T) {
		c := newControl(t)
		m.Add(t, map[string]string{"ready.service": c.service(t, "puppet", "Type=notify")})
		done := begin(m, "start", "ready.service")
		p := c.puppet(t)
		p.do(t, "status", "nearly there")
		p.do(t, "barrier")
		require.Equal(t, "activating", m.Property(t, "ready.service", "ActiveState"))
		require.Equal(t, "nearly there", m.Property(t, "ready.service", "StatusText"))
		select {
		case err := <-done:
			require.FailNow(t, "it counts as started before it is ready", "%v", err)
		default:
		}
		p.do(t, "ready")
		require.NoError(t, <-done)
		require.Equal(t, "active", m.Property(t, "ready.service", "ActiveState"))

		p.do(t, "status", "serving on :3000\nSTOPPING=1\rMAINPID=1 – é\xff")
		p.do(t, "barrier")
		require.Contains(t, m.Systemctl(t, "status", "ready.service"), "Status: \"serving on :3000 STOPPING=1 MAINPID=1 – é")
		require.Equal(t, "active", m.Property(t, "ready.service", "ActiveState"))
		p.do(t, "status", strings.Repeat("long ", 2000))
		p.do(t, "barrier")
		require.Regexp(t, "^(long ){800,}", m.Property(t, "ready.service", "StatusText"))
		p.do(t, "status", "")
		p.do(t, "barrier")
		require.Equal(t, "", m.Property(t, "ready.service", "StatusText"))

		p.do(t, "reloading")
		p.do(t, "barrier")
		require.Equal(t, "reloading", m.Property(t, "ready.service", "ActiveState"))
		p.do(t, "ready")
		p.do(t, "barrier")
		require.Equal(t, "active", m.Property(t, "ready.service", "ActiveState"))

		p.do(t, "stopping")
		p.do(t, "barrier")
		require.Equal(t, "deactivating", m.Property(t, "ready.service", "ActiveState"))
		p.conn.Close()
		m.Await(t, "ready.service", "ActiveState", "inactive")
		require.Equal(t, "success", m.Property(t, "ready.service", "Result"))
	})

	// The old process says who is next, the next one is heard from then on, and the old one no longer.
	t.Run("MainPID", func(t *testing.T) {
		c := newControl(t)
		p := c.started(t, m, "mainpid.service")
		p.do(t, "puppet")
		next := c.puppet(t)
		next.do(t, "status", "too early")
		next.do(t, "barrier") // it is closed also when the sender is ignored
		require.Equal(t, "", m.Property(t, "mainpid.service", "StatusText"))
		require.Equal(t, strconv.Itoa(p.PID), m.Property(t, "mainpid.service", "MainPID"))
		p.do(t, "mainpid", next.PID)
		p.do(t, "barrier")
		require.Equal(t, strconv.Itoa(next.PID), m.Property(t, "mainpid.service", "MainPID"))
		p.do(t, "status", "too late")
		next.do(t, "status", "my turn")
		next.do(t, "barrier")
		require.Equal(t, "my turn", m.Property(t, "mainpid.service", "StatusText"))
		p.conn.Close()
		_, err := p.in.Token()
		require.Error(t, err)
		require.Equal(t, "active", m.Property(t, "mainpid.service", "ActiveState"))
		m.Systemctl(t, "stop", "mainpid.service")
	})

	// A process that ends at once: without the barrier systemd could not tell whose message it was.
	t.Run("Barrier", func(t *testing.T) {
		c := newControl(t)
		p := c.started(t, m, "barrier.service", "NotifyAccess=all")
		for i := range 20 {
			want := "message " + strconv.Itoa(i)
			require.Equal(t, "", p.do(t, "messenger", want))
			require.Equal(t, want, m.Property(t, "barrier.service", "StatusText"))
		}
		m.Systemctl(t, "stop", "barrier.service")
	})

	// One service asks for more time, another with as much time and a later start does not. When the other has had its
	// time, so would have the first.
	t.Run("Extend", func(t *testing.T) {
		c := newControl(t)
		m.Add(t, map[string]string{
			"extended.service": c.service(t, "puppet", "Type=notify", "TimeoutStartSec=1s"),
			"late.service":     c.service(t, "puppet", "Type=notify", "TimeoutStartSec=1500ms"),
		})
		extended := begin(m, "start", "extended.service")
		p := c.puppet(t)
		p.do(t, "extend", 60)
		p.do(t, "barrier")
		require.Error(t, <-begin(m, "start", "late.service"))
		require.Equal(t, "timeout", m.Property(t, "late.service", "Result"))
		require.Equal(t, "activating", m.Property(t, "extended.service", "ActiveState"))
		p.do(t, "ready")
		require.NoError(t, <-extended)
		m.Systemctl(t, "stop", "extended.service")
	})

	t.Run("Watchdog", func(t *testing.T) {
		const usec = "WatchdogSec=2s"
		ch, ci := newControl(t), newControl(t)
		healthy := ch.started(t, m, "healthy.service", usec, "Restart=always", "RestartSec=0")
		hung := ci.started(t, m, "hung.service", usec, "Restart=always", "RestartSec=0")
		for _, p := range []*puppet{healthy, hung} {
			p.do(t, "watchdog")
			p.do(t, "checks", 2)
		}
		hung.do(t, "hang")
		healthy.do(t, "checks", 4) // for two intervals
		again := ci.puppet(t)
		require.NotEqual(t, hung.PID, again.PID)
		again.do(t, "ready")
		require.Equal(t, "1", m.Property(t, "hung.service", "NRestarts"))
		m.AwaitLog(t, "hung.service: Watchdog timeout")
		require.Equal(t, "0", m.Property(t, "healthy.service", "NRestarts"))
		require.Equal(t, strconv.Itoa(healthy.PID), m.Property(t, "healthy.service", "MainPID"))
		m.Systemctl(t, "stop", "hung.service", "healthy.service")
	})

	t.Run("Store", func(t *testing.T) { testStore(t, m) })
	t.Run("Restart", func(t *testing.T) { testRestart(t, m) })
}
