package listener_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/listener"
)

func init() { roles["kin"] = role.playKin }

// A kin is to package listener what the upgrader of package reload is: one process of a lineage. What that finds out by
// itself, the kin is told by the test.
type kin struct {
	charged atomic.Bool
	given   map[string]*os.File // from the parent, not taken yet

	mu      sync.Mutex
	files   map[string]*opener // what the next gets
	sockets []string           // type and key of those that were kept
	locks   int                // how often one was given

	calling sync.Mutex
	calls   []*func()
}

type opener struct{ open func() (*os.File, error) }

const kinVariable = "BERTH_TEST_KIN" // what is inherited, from descriptor 3 on

func newKin() (*kin, error) {
	k := &kin{files: map[string]*opener{}, given: map[string]*os.File{}}
	text, inherited := os.LookupEnv(kinVariable)
	k.charged.Store(!inherited)
	if !inherited {
		return k, nil
	}
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, err
	}
	for i, name := range names {
		unix.CloseOnExec(3 + i)
		k.given[name] = os.NewFile(uintptr(3+i), name)
	}
	return k, nil
}

func socketKey(name, network, address string) string {
	return strings.Join([]string{"socket", name, network, address}, " ")
}

func takeSocket[T any](k *kin, name, network, address string, from func(*os.File) (T, error)) (T, error) {
	key := socketKey(name, network, address)
	var none T
	file, err := k.TakeFile(key)
	if err != nil {
		return none, err
	}
	defer file.Close()
	socket, err := from(file)
	if err == nil {
		k.keep(key, any(socket).(syscall.Conn))
	}
	return socket, err
}

func (k *kin) Take(name, network, address string) (net.Listener, error) {
	return takeSocket(k, name, network, address, net.FileListener)
}

func (k *kin) TakePacket(name, network, address string) (net.PacketConn, error) {
	return takeSocket(k, name, network, address, net.FilePacketConn)
}

func (k *kin) Keep(name, network, address string, socket syscall.Conn) error {
	k.keep(socketKey(name, network, address), socket)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sockets = append(k.sockets, fmt.Sprintf("%T %s", socket, address))
	return nil
}

func (k *kin) keep(key string, socket syscall.Conn) {
	k.KeepFile(key, func() (file *os.File, err error) {
		raw, err := socket.SyscallConn()
		if err != nil {
			return nil, err
		}
		controlErr := raw.Control(func(fd uintptr) {
			var duplicate int
			if duplicate, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
				file = os.NewFile(uintptr(duplicate), key)
			}
		})
		return file, errors.Join(controlErr, err)
	})
}

func (k *kin) InCharge() bool { return k.charged.Load() }

func (k *kin) OnCharge(f func()) (cancel func()) {
	k.calling.Lock()
	defer k.calling.Unlock()
	if k.InCharge() {
		f()
	}
	k.calls = append(k.calls, &f)
	return func() {
		k.calling.Lock()
		defer k.calling.Unlock()
		k.calls = slices.DeleteFunc(k.calls, func(other *func()) bool { return other == &f })
	}
}

func (k *kin) charge() {
	k.calling.Lock()
	defer k.calling.Unlock()
	k.charged.Store(true)
	for _, f := range k.calls {
		(*f)()
	}
}

func (k *kin) KeepFile(name string, open func() (*os.File, error)) (forget func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if strings.HasPrefix(name, "lock ") {
		k.locks++
	}
	o := &opener{open}
	k.files[name] = o
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.files[name] == o {
			delete(k.files, name)
		}
	}
}

func (k *kin) TakeFile(name string) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	file := k.given[name]
	if file == nil {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	delete(k.given, name)
	return file, nil
}

// open is everything that the next version gets now.
func (k *kin) open() (names []string, files []*os.File, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, o := range k.files {
		file, err := o.open()
		if errors.Is(err, net.ErrClosed) || errors.Is(err, fs.ErrClosed) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		names, files = append(names, name), append(files, file)
	}
	return names, files, nil
}

// upgrade starts the next version.
func (k *kin) upgrade(r role) error {
	names, files, err := k.open()
	if err != nil {
		return err
	}
	defer func() {
		for _, file := range files {
			file.Close()
		}
	}()
	inherited, err := json.Marshal(names)
	if err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+string(text), kinVariable+"="+string(inherited))
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// playKin does what it is told, a line an order, and answers each by a line. It ends with the connection.
func (r role) playKin() error {
	k, err := newKin()
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", r.Control)
	if err != nil {
		return err
	}
	fmt.Fprintln(conn, os.Getpid())
	var opened []interface{ Close() error }
	for scanner := bufio.NewScanner(conn); scanner.Scan(); {
		order, argument, _ := strings.Cut(scanner.Text(), " ")
		answer, err := "ok", error(nil)
		switch order {
		case "listen": // on what the role says, and what the order adds
			var origins []string
			opened, origins, err = r.listenAs(k, strings.TrimSpace(r.Address+" "+argument))
			answer = strings.Join(origins, " ")
		case "kept":
			answer = strings.Join(k.sockets, ", ")
		case "hands": // what would be handed on
			var names []string
			var files []*os.File
			names, files, err = k.open()
			for _, file := range files {
				file.Close()
			}
			answer = strconv.Itoa(len(names))
		case "upgrade":
			err = k.upgrade(r)
		case "step-back":
			k.charged.Store(false)
		case "charge":
			k.charge()
		case "close":
			for _, ln := range opened {
				err = errors.Join(err, ln.Close())
			}
		}
		if err != nil {
			answer = "failed " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Fprintln(conn, answer)
	}
	return nil
}

func (r role) listenAs(k *kin, addresses string) (opened []interface{ Close() error }, origins []string, err error) {
	if r.Network == "fleet" {
		return r.joinAs(k)
	}
	cfg, err := r.config()
	if err != nil {
		return nil, nil, err
	}
	cfg.Sources = []listener.Source{k}
	if isPacket(r.Network) {
		conn, err := cfg.ListenPacket(context.Background(), r.Network, addresses)
		if err != nil {
			return nil, nil, err
		}
		return []interface{ Close() error }{conn}, []string{conn.Origin().Kind.String()}, nil
	}
	all, err := cfg.ListenAll(context.Background(), r.Network, strings.Fields(addresses)...)
	for _, ln := range all {
		opened, origins = append(opened, ln), append(origins, ln.Origin().Kind.String())
	}
	return opened, origins, err
}

// A family is a lineage in processes of their own, which do what the test says.
type family struct {
	role     role
	control  net.Listener
	root     *process
	dir      string
	portFile string
}

// newFamily plays the role in a first process.
func newFamily(t *testing.T, r role) (*family, *member) {
	t.Helper()
	f := &family{dir: shortDir(t)}
	r.Do, r.Name, r.StateDir, r.PortFile = "kin", "web", filepath.Join(f.dir, "state"), filepath.Join(f.dir, "port")
	r.Control = filepath.Join(f.dir, "control")
	f.role, f.portFile = r, r.PortFile
	f.control = listenPlain(t, "unix", r.Control)
	f.root = play(t, r)
	return f, f.join(t)
}

// A member is one process of a family.
type member struct {
	pid    int
	handle *proc.Handle
	conn   net.Conn
	lines  *bufio.Reader
}

// join waits for the process that was started.
func (f *family) join(t *testing.T) *member {
	t.Helper()
	conn, err := f.control.Accept()
	require.NoError(t, err)
	m := &member{conn: conn, lines: bufio.NewReader(conn)}
	m.pid, err = strconv.Atoi(m.line(t))
	require.NoError(t, err)
	m.handle, err = proc.Open(m.pid)
	require.NoError(t, err)
	t.Cleanup(func() {
		conn.Close()
		_ = m.handle.Kill()
		m.handle.Close()
	})
	return m
}

func (m *member) line(t *testing.T) string {
	t.Helper()
	line, err := m.lines.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func (m *member) ask(t *testing.T, order string) string {
	t.Helper()
	_, err := fmt.Fprintln(m.conn, order)
	require.NoError(t, err)
	return m.line(t)
}

func (m *member) do(t *testing.T, orders ...string) {
	t.Helper()
	for _, order := range orders {
		require.Equal(t, "ok", m.ask(t, order), order)
	}
}

func (m *member) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, m.handle.Kill())
	require.NoError(t, m.handle.Wait(t.Context()))
}

// end lets the process end without closing anything.
func (m *member) end(t *testing.T) {
	t.Helper()
	require.NoError(t, m.conn.Close())
	require.NoError(t, m.handle.Wait(t.Context()))
}

// upgrade has a member start its child.
func (f *family) upgrade(t *testing.T, m *member) *member {
	t.Helper()
	m.do(t, "upgrade")
	return f.join(t)
}
