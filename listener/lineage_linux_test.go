package listener_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
)

// outside is what another process sees of a family.
type outside struct {
	records  map[string]registry.Record // by address, of locks that are held
	texts    map[string]string          // of the state directory's files, by name
	port     string
	portInfo os.FileInfo // nil: there is no port file
}

func (f *family) look(t *testing.T) outside {
	t.Helper()
	o := outside{records: map[string]registry.Record{}, texts: map[string]string{}}
	for _, rec := range records(t, f.role.StateDir) {
		o.records[rec.Address] = rec
	}
	for _, name := range filesIn(t, f.role.StateDir) {
		text, err := os.ReadFile(filepath.Join(f.role.StateDir, name))
		require.NoError(t, err)
		o.texts[name] = string(text)
	}
	if text, err := os.ReadFile(f.portFile); err == nil {
		o.port = string(text)
		o.portInfo, err = os.Stat(f.portFile)
		require.NoError(t, err)
	}
	return o
}

// requireOf checks that lock, record and port file are those of a member, and that the addresses are served.
func (f *family) requireOf(t *testing.T, m *member, origin string) outside {
	t.Helper()
	now := f.look(t)
	addresses := strings.Fields(f.role.Address)
	require.Len(t, now.records, len(addresses))
	for _, address := range addresses {
		rec := now.records[address]
		require.Equal(t, m.pid, rec.PID)
		require.Equal(t, origin, rec.Origin)
		require.Equal(t, "web", rec.Name)
		require.NotZero(t, rec.Inode)
		f.requireServed(t, address)
	}
	require.NotNil(t, now.portInfo, "there is a port file")
	require.Equal(t, strings.Join(addresses, "\n")+"\n", now.port)
	return now
}

func (f *family) requireServed(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial(f.role.Network, address)
	require.NoError(t, err)
	if tcp, ok := conn.(*net.TCPConn); ok {
		require.NoError(t, tcp.SetLinger(0)) // or its port is taken for a minute, which another test may ask for
	}
	require.NoError(t, conn.Close())
}

// requireSoleHolder checks whom a look at the addresses finds.
func (f *family) requireSoleHolder(t *testing.T, m *member) {
	t.Helper()
	dir, err := registry.Open(f.role.StateDir)
	require.NoError(t, err)
	for _, address := range strings.Fields(f.role.Address) {
		c := crash{network: f.role.Network, address: address}
		diagnosis := holder.Search{Target: c.target(t), Records: dir, Name: "web"}.Diagnose(t.Context())
		var listening []int
		for _, h := range diagnosis.Holders {
			if h.State != "connected" { // what is left of a connection of another test
				listening = append(listening, h.PID)
				require.True(t, h.Ours)
			}
		}
		require.Equal(t, []int{m.pid}, listening)
	}
}

// requireAs checks that nothing was touched.
func (f *family) requireAs(t *testing.T, before outside) {
	t.Helper()
	now := f.look(t)
	require.Equal(t, before.records, now.records)
	require.Equal(t, before.texts, now.texts)
	require.Equal(t, before.port, now.port)
	require.Equal(t, before.portInfo.ModTime(), now.portInfo.ModTime())
	require.True(t, os.SameFile(before.portInfo, now.portInfo))
}

// requireNothing checks that all is gone, but for the file of an inherited Unix socket, which is the lineage's.
func (f *family) requireNothing(t *testing.T) {
	t.Helper()
	require.Empty(t, filesIn(t, f.role.StateDir))
	require.NoFileExists(t, f.portFile)
}

// everyLineage runs a test with a family for each kind of socket; the first member listens.
func everyLineage(t *testing.T, test func(t *testing.T, f *family, parent *member)) {
	t.Helper()
	dir := shortDir(t)
	for _, r := range []role{
		{Network: "tcp", Address: "127.0.0.1:" + freePort(t)},
		{Network: "tcp", Address: "127.0.0.1:" + freePort(t) + " 127.0.0.2:" + freePort(t)},
		{Network: "unix", Address: filepath.Join(dir, "stream")},
		{Network: "udp", Address: "127.0.0.1:" + freePort(t)},
		{Network: "unixgram", Address: filepath.Join(dir, "datagram")},
	} {
		t.Run(r.Network+" "+strings.ReplaceAll(r.Address, "/", "|"), func(t *testing.T) {
			f, parent := newFamily(t, r)
			f.listens(t, parent, "bound")
			f.requireOf(t, parent, "bound")
			test(t, f, parent)
			require.NoError(t, os.RemoveAll(dir)) // what is the lineage's to remove
			require.NoError(t, os.Mkdir(dir, 0o700))
		})
	}
}

// listens has a member listen on all of its addresses.
func (f *family) listens(t *testing.T, m *member, origin string) {
	t.Helper()
	want := strings.Repeat(" "+origin, len(strings.Fields(f.role.Address)))
	require.Equal(t, want, " "+m.ask(t, "listen"))
}

// succeed takes an upgrade to the point where the child is in charge.
func (f *family) succeed(t *testing.T, parent *member) (child *member) {
	t.Helper()
	child = f.upgrade(t, parent)
	f.listens(t, child, "inherited")
	parent.do(t, "step-back")
	child.do(t, "charge")
	return child
}

func TestHandover(t *testing.T) {
	everyLineage(t, func(t *testing.T, f *family, parent *member) {
		first := f.look(t)
		child := f.upgrade(t, parent)
		f.requireAs(t, first)
		f.listens(t, child, "inherited")
		f.requireAs(t, first)
		parent.do(t, "step-back")
		f.requireAs(t, first)
		child.do(t, "charge")
		second := f.requireOf(t, child, "inherited")
		require.False(t, os.SameFile(first.portInfo, second.portInfo), "the child has written its own")
		parent.do(t, "close")
		f.requireAs(t, second)
		parent.end(t)
		f.requireAs(t, second)
		f.requireSoleHolder(t, child)

		// And once more, from a process that has inherited everything itself.
		grandchild := f.succeed(t, child)
		third := f.requireOf(t, grandchild, "inherited")
		child.do(t, "close")
		child.end(t)
		f.requireAs(t, third)
		grandchild.do(t, "close")
		f.requireNothing(t)
	})
}

// Between the step back and the charge nobody is in charge.
func TestTheParentClosesOrDiesBeforeTheChildIsInCharge(t *testing.T) {
	everyLineage(t, func(t *testing.T, f *family, parent *member) {
		before := f.look(t)
		child := f.upgrade(t, parent)
		f.listens(t, child, "inherited")
		parent.do(t, "step-back", "close")
		f.requireAs(t, before)
		parent.end(t)
		f.requireAs(t, before)
		child.do(t, "charge")
		f.requireOf(t, child, "inherited")

		grandchild := f.upgrade(t, child)
		f.listens(t, grandchild, "inherited")
		child.kill(t)
		grandchild.do(t, "charge")
		f.requireOf(t, grandchild, "inherited")
		grandchild.do(t, "close")
		f.requireNothing(t)
	})
}

func TestAChildThatIsNeverInChargeChangesNothing(t *testing.T) {
	everyLineage(t, func(t *testing.T, f *family, parent *member) {
		before := f.look(t)
		for name, end := range map[string]func(t *testing.T, child *member){
			"killed":            func(t *testing.T, child *member) { child.kill(t) },
			"ended, not closed": func(t *testing.T, child *member) { child.end(t) },
			"closed": func(t *testing.T, child *member) {
				child.do(t, "close")
				f.requireAs(t, before)
				child.end(t)
			},
		} {
			t.Run(name, func(t *testing.T) {
				child := f.upgrade(t, parent)
				f.listens(t, child, "inherited")
				f.requireAs(t, before)
				end(t, child)
				f.requireAs(t, before)
				f.requireOf(t, parent, "bound")
			})
		}
		parent.do(t, "close")
		f.requireNothing(t)
	})
}

// An address that only the new version has is its own from the start.
func TestAChildsOwnAddress(t *testing.T) {
	for network, addresses := range map[string]func() (both, own string){
		"tcp":  func() (string, string) { return "127.0.0.1:" + freePort(t), "127.0.0.2:" + freePort(t) },
		"unix": func() (string, string) { dir := shortDir(t); return filepath.Join(dir, "a"), filepath.Join(dir, "b") },
	} {
		t.Run(network, func(t *testing.T) {
			both, own := addresses()
			f, parent := newFamily(t, role{Network: network, Address: both})
			f.listens(t, parent, "bound")
			before := f.look(t)

			child := f.upgrade(t, parent)
			require.Equal(t, "inherited bound", child.ask(t, "listen "+own))
			now := f.look(t)
			require.Equal(t, child.pid, now.records[own].PID)
			require.Equal(t, before.records[both], now.records[both])
			require.Equal(t, before.port, now.port)
			f.requireServed(t, own)
			child.do(t, "close")
			f.requireAs(t, before)
			if network == "unix" {
				require.NoFileExists(t, own)
				require.FileExists(t, both)
			}
			child.end(t)

			child = f.upgrade(t, parent)
			require.Equal(t, "inherited bound", child.ask(t, "listen "+own))
			parent.do(t, "step-back")
			child.do(t, "charge")
			parent.do(t, "close")
			parent.end(t)
			now = f.look(t)
			require.Equal(t, child.pid, now.records[own].PID)
			require.Equal(t, child.pid, now.records[both].PID)
			require.Equal(t, both+"\n"+own+"\n", now.port)
			child.do(t, "close")
			f.requireNothing(t)
			require.NoFileExists(t, own)
		})
	}
}

// The successor dies while its parent still drains: all is the parent's again, and can be handed on again.
func TestResume(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, f *family, child *member){
		"killed": func(t *testing.T, f *family, child *member) {
			before := f.look(t)
			child.kill(t)
			f.requireAs(t, before)
		},
		// Then the lock is free, which the parent shared, and its file gone.
		"closed": func(t *testing.T, f *family, child *member) {
			child.do(t, "close")
			f.requireNothing(t)
			child.end(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			everyLineage(t, func(t *testing.T, f *family, parent *member) {
				for range 2 {
					child := f.succeed(t, parent)
					taken := f.requireOf(t, child, "inherited")
					end(t, f, child)
					parent.do(t, "charge")
					resumed := f.requireOf(t, parent, "bound")
					if name == "killed" { // otherwise the file system may give the same inode again
						require.False(t, os.SameFile(taken.portInfo, resumed.portInfo))
					}
				}
				child := f.succeed(t, parent)
				parent.do(t, "close")
				parent.end(t)
				f.requireOf(t, child, "inherited")
				child.do(t, "close")
				f.requireNothing(t)
			})
		})
	}
}

// What was closed is not handed on.
func TestClosedBeforeAnUpgrade(t *testing.T) {
	everyLineage(t, func(t *testing.T, f *family, parent *member) {
		handed := 2 * len(strings.Fields(f.role.Address)) // socket and lock of each
		require.Equal(t, strconv.Itoa(handed), parent.ask(t, "hands"))
		parent.do(t, "close")
		f.requireNothing(t)
		require.Equal(t, "0", parent.ask(t, "hands"))
		parent.do(t, "step-back", "charge")
		f.requireNothing(t)
		child := f.upgrade(t, parent)
		f.listens(t, child, "bound")
		child.do(t, "close")
		require.Empty(t, filesIn(t, f.role.StateDir))
	})
}

// A parent in charge that closes while its child starts takes away what is its own. The child makes it anew.
func TestClosedDuringAnUpgrade(t *testing.T) {
	f, parent := newFamily(t, role{Network: "tcp", Address: "127.0.0.1:" + freePort(t)})
	f.listens(t, parent, "bound")
	child := f.upgrade(t, parent)
	f.listens(t, child, "inherited")
	parent.do(t, "close")
	f.requireNothing(t)
	child.do(t, "charge")
	f.requireOf(t, child, "inherited")
	child.do(t, "close")
	f.requireNothing(t)

	// Earlier, so that the child finds a lock that is of no use.
	f, parent = newFamily(t, role{Network: "tcp", Address: "127.0.0.1:" + freePort(t), Log: true})
	f.listens(t, parent, "bound")
	child = f.upgrade(t, parent)
	parent.do(t, "close")
	f.listens(t, child, "inherited")
	child.do(t, "charge")
	f.requireOf(t, child, "inherited")
	require.Contains(t, f.root.stderr.String(), "the lock of the version before is of no use")
	child.do(t, "close")
	f.requireNothing(t)
}

// heir is the next version of a kin, in this process.
func (k *kin) heir(t testing.TB) *kin {
	t.Helper()
	names, files, err := k.open()
	require.NoError(t, err)
	heir, err := newKin()
	require.NoError(t, err)
	heir.charged.Store(false)
	for i, name := range names {
		heir.given[name] = files[i]
		t.Cleanup(func() { files[i].Close() })
	}
	return heir
}

func newKinIn(t testing.TB) *kin {
	t.Helper()
	k, err := newKin()
	require.NoError(t, err)
	return k
}

func TestPortFileOfALineageThatCannotBeWritten(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	missing := filepath.Join(dir, "missing")
	logger, log := newJournal(slog.LevelWarn)
	first := newKinIn(t)
	cfg := &listener.Config{StateDir: state, PortFile: filepath.Join(missing, "port"), Logger: logger, Sources: []listener.Source{first}}

	// Where it would be written at once, that fails Listen, and nothing is handed on.
	for name, attempt := range map[string]func() error{
		"Listen":    func() error { return closed(cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")) },
		"ListenAll": func() error { _, err := cfg.ListenAll(t.Context(), "tcp", "127.0.0.1:0", "127.0.0.2:0"); return err },
	} {
		err := attempt()
		require.IsType(t, (*net.OpError)(nil), err, name)
		require.ErrorContains(t, err, "port file: ")
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.Empty(t, first.sockets)
		require.Empty(t, first.files)
		require.Empty(t, first.calls)
		require.Empty(t, filesIn(t, state))
	}
	require.Empty(t, log.entries(t, slog.LevelWarn))

	// Later it is too late for that.
	second := newKinIn(t)
	second.charged.Store(false)
	cfg.Sources = []listener.Source{second}
	ln := listen(t, cfg, "tcp", "127.0.0.1:0")
	require.Empty(t, log.entries(t, slog.LevelWarn))
	second.charge()
	warn := log.entries(t, slog.LevelWarn)
	require.Len(t, warn, 1)
	require.Contains(t, warn[0].Error, "port file: ")
	require.NoError(t, os.Mkdir(missing, 0o700))
	second.charge()
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
	text, err := os.ReadFile(cfg.PortFile)
	require.NoError(t, err)
	require.Equal(t, ln.Addr().String()+"\n", string(text))
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, missing))
	require.Empty(t, second.calls)
}

// The path is that of the moment of Listen, whenever the file is written.
func TestRelativePortFileOfALineage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	k := newKinIn(t)
	k.charged.Store(false)
	ln := listen(t, &listener.Config{StateDir: t.TempDir(), PortFile: "port", Sources: []listener.Source{k}}, "tcp", "127.0.0.1:0")
	require.Empty(t, filesIn(t, dir))
	t.Chdir(t.TempDir())
	k.charge()
	require.Equal(t, []string{"port"}, filesIn(t, dir))
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, dir))
}

// Without locks the rest is as it is with them.
func TestLineageWithoutAStateDirectory(t *testing.T) {
	dir := shortDir(t)
	path, port := filepath.Join(dir, "s"), filepath.Join(dir, "port")
	logger, log := newJournal(slog.LevelWarn)
	first := newKinIn(t)
	cfg := listener.Config{StateDir: unusable(t), PortFile: port, Logger: logger, Sources: []listener.Source{first}}
	parent := listen(t, &cfg, "unix", path)
	require.Len(t, log.entries(t, slog.LevelWarn), 1)
	require.Len(t, first.files, 1)

	second := first.heir(t)
	cfg.Sources = []listener.Source{second}
	child := listen(t, &cfg, "unix", path)
	require.Equal(t, listener.Inherited, child.Origin().Kind)
	first.charged.Store(false)
	second.charge()
	require.NoError(t, parent.Close())
	require.ElementsMatch(t, []string{"s", "port"}, filesIn(t, dir))
	require.NoError(t, child.Close())
	require.Equal(t, []string{"s"}, filesIn(t, dir), "which is the lineage's")
	require.Len(t, log.entries(t, slog.LevelWarn), 2, "no more than one each")
}

// A lock that had to be taken anew is given anew: whoever holds a descriptor for the next version has to get another.
func TestARenewedLockIsHandedOn(t *testing.T) {
	state := t.TempDir()
	first := newKinIn(t)
	cfg := &listener.Config{StateDir: state, Sources: []listener.Source{first}}
	parent := listen(t, cfg, "tcp", "127.0.0.1:"+freePort(t))
	address := parent.Addr().String()
	require.Equal(t, 1, first.locks)
	second := first.heir(t)
	cfg.Sources = []listener.Source{second}
	child := listen(t, cfg, "tcp", address)
	first.charged.Store(false)
	second.charge()
	second.charge() // which changes nothing
	require.Equal(t, 1, second.locks)
	require.NoError(t, child.Close())
	require.Empty(t, filesIn(t, state))
	first.charge()
	require.Equal(t, 2, first.locks)
	require.Len(t, records(t, state), 1)
	require.Contains(t, first.heir(t).given, "lock "+filepath.Join(state, filesIn(t, state)[0]))
	require.NoError(t, parent.Close())
	require.NotContains(t, strings.Join(slices.Collect(maps.Keys(first.files)), " "), "lock ")
	require.Empty(t, filesIn(t, state))
}

// Somebody freed the lock, and another has it: no reason to give up an upgrade.
func TestALockThatCannotBeHandedOn(t *testing.T) {
	state := t.TempDir()
	k := newKinIn(t)
	logger, log := newJournal(slog.LevelWarn)
	listen(t, &listener.Config{StateDir: state, Logger: logger, Sources: []listener.Source{k}}, "tcp", "127.0.0.1:0")
	path := filepath.Join(state, filesIn(t, state)[0])
	lock := k.heir(t).given["lock "+path]
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	other := start(t, exec.Command(needCommand(t, "flock"), path, "sh", "-c", "echo locked; cat"))
	line, _ := other.line(t)
	require.Equal(t, "locked", line)
	names, files, err := k.open()
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.NoError(t, files[0].Close())
	warn := log.entries(t, slog.LevelWarn)
	require.Len(t, warn, 1)
	require.Contains(t, warn[0].Error, "not to be found")
}

// What the parent kept under the lock's name is something else.
func TestAnInheritedLockThatIsNone(t *testing.T) {
	state := t.TempDir()
	address := "127.0.0.1:" + freePort(t)
	dir, err := registry.Open(state)
	require.NoError(t, err)
	strange, err := os.Open(os.DevNull)
	require.NoError(t, err)
	k := newKinIn(t)
	k.given["lock "+dir.PathFor("tcp", address)] = strange
	logger, log := newJournal(slog.LevelWarn)
	ln := listen(t, &listener.Config{StateDir: state, Logger: logger, Sources: []listener.Source{k}}, "tcp", address)
	warn := log.entries(t, slog.LevelWarn)
	require.Len(t, warn, 1)
	require.Contains(t, warn[0].Error, "is not a regular file")
	require.ErrorIs(t, strange.Close(), fs.ErrClosed)
	require.Equal(t, os.Getpid(), records(t, state)[0].PID)
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, state))
}

// A Unix socket that this process bound is given as what it is, any other so that nobody thinks of removing its file.
func TestWhatALineageIsGiven(t *testing.T) {
	k := newKinIn(t)
	cfg := &listener.Config{StateDir: t.TempDir(), Sources: []listener.Source{k}}
	path := filepath.Join(shortDir(t), "s")
	listen(t, cfg, "unix", path)
	listen(t, cfg, "tcp", "127.0.0.1:0")
	listenPacket(t, cfg, "unixgram", path+"gram")
	activated := listenPlain(t, "unix", path+"2")
	cfg.Sources = []listener.Source{k, &source{take: func(string, string, string) (net.Listener, error) { return activated, nil }}}
	ln := listen(t, cfg, "unix", path+"2")
	require.Equal(t, listener.Activated, ln.Origin().Kind)
	require.Same(t, activated, ln.Unwrap())
	require.Equal(t, []string{
		"*net.UnixListener " + path, "*net.TCPListener 127.0.0.1:0", "*net.UnixConn " + path + "gram",
		"struct { syscall.Conn } " + path + "2",
	}, k.sockets)
	heir := k.heir(t) // every one can be handed on
	require.Len(t, heir.given, 8)
}

// The store is systemd's, which listens to the process in charge alone. What is in it stays when the program ends.
func TestALineageStoresWhenInCharge(t *testing.T) {
	dir := shortDir(t)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "nobody"))
	logger, log := newJournal(slog.LevelWarn)
	k := newKinIn(t)
	k.charged.Store(false)
	cfg := &listener.Config{StateDir: t.TempDir(), Store: true, Logger: logger, Sources: []listener.Source{k}}
	ln := listen(t, cfg, "unix", filepath.Join(dir, "s"))
	require.Equal(t, []string{"struct { syscall.Conn } " + filepath.Join(dir, "s")}, k.sockets)
	require.Empty(t, log.entries(t, slog.LevelWarn))
	k.charge()
	warn := log.entries(t, slog.LevelWarn)
	require.Len(t, warn, 1)
	require.Contains(t, warn[0].Error, "is not stored")
	require.NoError(t, ln.Close())
	require.NoFileExists(t, filepath.Join(dir, "s"), "the store did not take it")
}

// A listener is closed while upgrades begin and charge changes. The race detector looks on, and nothing may hang.
func TestClosedAtAnyMomentOfAnUpgrade(t *testing.T) {
	state, port := t.TempDir(), filepath.Join(t.TempDir(), "port")
	for range 100 {
		k := newKinIn(t)
		cfg := &listener.Config{StateDir: state, PortFile: port, Sources: []listener.Source{k}}
		ln, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		var others sync.WaitGroup
		others.Go(func() {
			_, files, err := k.open()
			if err != nil {
				t.Error(err)
			}
			for _, file := range files {
				file.Close()
			}
		})
		others.Go(k.charge)
		require.NoError(t, ln.Close())
		others.Wait()
		require.Empty(t, k.calls)
		require.Empty(t, filesIn(t, state))
		require.NoFileExists(t, port)
	}
}

// A process that only passes through leaves no descriptor behind.
func TestALineageLeavesNoDescriptor(t *testing.T) {
	state := t.TempDir()
	first := newKinIn(t)
	cfg := &listener.Config{StateDir: state, Sources: []listener.Source{first}}
	address := listen(t, cfg, "tcp", "127.0.0.1:"+freePort(t)).Addr().String()
	cycle := func() {
		names, files, err := first.open()
		require.NoError(t, err)
		heir := newKinIn(t)
		heir.charged.Store(false)
		for i, name := range names {
			heir.given[name] = files[i]
		}
		ln, err := (&listener.Config{StateDir: state, Sources: []listener.Source{heir}}).Listen(t.Context(), "tcp", address)
		require.NoError(t, err)
		require.Equal(t, listener.Inherited, ln.Origin().Kind)
		require.NoError(t, ln.Close())
		require.Empty(t, heir.given)
		require.Empty(t, heir.calls)
	}
	cycle()
	before, err := descriptors()
	require.NoError(t, err)
	for range 20 {
		cycle()
	}
	after, err := descriptors()
	require.NoError(t, err)
	require.LessOrEqual(t, len(after), len(before))
	require.Len(t, records(t, state), 1)
}

// A Keeper that cannot take it ends the attempt, also of a version that is not in charge: then all is as before.
func TestAnAttemptOfALineageThatFails(t *testing.T) {
	broken := errors.New("broken")
	state := t.TempDir()
	first := newKinIn(t)
	cfg := &listener.Config{StateDir: state, Sources: []listener.Source{first}}
	parent := listen(t, cfg, "tcp", "127.0.0.1:"+freePort(t))
	before := records(t, state)

	heir := first.heir(t)
	fails := keeper{&source{take: nothing}, func(string, string, string, syscall.Conn) error { return broken }}
	cfg.Sources = []listener.Source{heir, fails}
	_, err := cfg.Listen(t.Context(), "tcp", parent.Addr().String())
	require.ErrorIs(t, err, broken)
	require.Empty(t, heir.calls)
	require.Equal(t, before, records(t, state))
	_, err = cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.ErrorIs(t, err, broken)
	require.Equal(t, before, records(t, state))
}
