package holder

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// nowhere is a pid that no process has, on any system.
const nowhere = 1 << 30

// me is who judges in these tests.
func me() proc.Process {
	return proc.Process{
		PID: os.Getpid(), Start: 1000, UID: os.Geteuid(), RealUID: os.Geteuid(), Command: "app", Executable: "/home/alice/bin/app", Dir: "/home/alice/src",
	}
}

// stale is an earlier run of the same program: ours, and no rule speaks for it.
func stale() holding {
	return holding{
		socket:  sockets.Socket{Network: "tcp", State: sockets.Listening, Inode: 77, UID: os.Geteuid()},
		process: proc.Process{PID: nowhere, Start: 900, UID: os.Geteuid(), RealUID: os.Geteuid(), Command: "app", Executable: "/home/alice/bin/app", Dir: "/home/alice"},
	}
}

func judged(self proc.Process, name string, holdings ...holding) []holding {
	for i := range holdings {
		holdings[i].holder = holderOf(holdings[i].socket, holdings[i].process)
	}
	Search{Name: name}.judge(self, holdings)
	return holdings
}

// Each rule alone changes the verdict, and nothing else does.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name    string
		change  func(self *proc.Process, h *holding)
		refusal string
	}{
		{"none", func(*proc.Process, *holding) {}, ""},
		{"bound", func(_ *proc.Process, h *holding) { h.socket.State = sockets.Bound }, ""},
		{"client", func(_ *proc.Process, h *holding) { h.socket.State = sockets.Connected },
			"it is a client whose connection happens to use this port; it ends with its connection"},
		{"closed connection", func(_ *proc.Process, h *holding) {
			h.socket, h.process = sockets.Socket{Network: "tcp", State: sockets.Connected, UID: -1}, proc.Process{}
		}, "it is what remains of a closed connection; the system keeps it for a minute"},
		{"invisible", func(_ *proc.Process, h *holding) { h.process.PID = 0 }, "it cannot be seen; run as root to see the process; it belongs to user "},
		{"self", func(_ *proc.Process, h *holding) { h.process.PID = os.Getpid() }, "it is this process itself; close or share the first listener"},
		{"pid 1", func(_ *proc.Process, h *holding) { h.process.PID = 1 }, "it is pid 1, which runs the system or the container; choose another port"},
		{"kernel thread", func(_ *proc.Process, h *holding) { h.process.Kernel = true }, "it is a kernel thread; "},
		{"ancestor", func(_ *proc.Process, h *holding) { h.process.PID = os.Getppid() }, "it is an ancestor of this process: the shell, editor or tool that started it; choose another port"},
		{"user unknown", func(_ *proc.Process, h *holding) { h.process.UID = -1 }, "it cannot be inspected; "},
		{"real user unknown", func(_ *proc.Process, h *holding) { h.process.RealUID = -1 }, "it cannot be inspected; "},
		{"start unknown", func(_ *proc.Process, h *holding) { h.process.Start = 0 }, "it cannot be inspected; "},
		{"forwarder", func(_ *proc.Process, h *holding) { h.process.Command = "docker-proxy" }, "it forwards the port for a container; docker ps (or podman ps) --filter publish="},
		{"container", func(_ *proc.Process, h *holding) { h.process.Container = "web" }, "it runs in a container, whose runtime would start it again; stop container web"},
		{"another container", func(self *proc.Process, h *holding) { self.Container, h.process.Container = "api", "web" }, "it runs in a container"},
		{"the same container", func(self *proc.Process, h *holding) { self.Container, h.process.Container = "web", "web" }, ""},
		{"seen from a container", func(self *proc.Process, _ *holding) { self.Container = "api" }, ""},
		{"systemd", func(self *proc.Process, h *holding) {
			self.Unit, h.process.Unit, h.process.Command = "user@1000.service", "user@1000.service", "systemd"
		}, "it is a systemd manager, which holds the socket for a .socket unit; systemctl list-sockets"},
		{"unit", func(_ *proc.Process, h *holding) { h.process.Unit = "nginx.service" }, "systemd manages it and would start it again; systemctl stop nginx"},
		{"another unit", func(self *proc.Process, h *holding) { self.Unit, h.process.Unit = "a.service", "b.service" }, "systemd manages it"},
		{"the same unit", func(self *proc.Process, h *holding) { self.Unit, h.process.Unit = "a.service", "a.service" }, ""},
		{"seen from a unit", func(self *proc.Process, _ *holding) { self.Unit = "a.service" }, ""},
		{"another user", func(_ *proc.Process, h *holding) { h.process.UID = 123456789 }, "it belongs to user 123456789; "},
		{"another real user", func(_ *proc.Process, h *holding) { h.process.RealUID = 123456789 }, "it belongs to user 123456789; "},
		{"seen by another user", func(self *proc.Process, _ *holding) { self.UID, self.RealUID = 123456789, 123456789 }, "it belongs to user "},
		{"newer", func(_ *proc.Process, h *holding) { h.process.Start = 1001 }, "it was started after this process, and the newest start wins; kill "},
		{"of the same tick, newer", func(self *proc.Process, h *holding) { self.PID, h.process.Start = nowhere-1, 1000 }, "it was started after this process"},
		{"of the same tick, older", func(self *proc.Process, h *holding) { self.PID, h.process.Start = nowhere+1, 1000 }, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			self, h := me(), stale()
			test.change(&self, &h)
			got := judged(self, "", h)[0].holder
			if test.refusal == "" {
				require.Empty(t, got.Refusal)
			} else {
				require.Regexp(t, `^`+regexpQuote(test.refusal), got.Refusal)
			}
			require.Equal(t, test.refusal == "", strategy.AnyOfMine(got), "a refusal holds whatever the caller allows")
			newer := test.name == "newer" || test.name == "of the same tick, newer"
			require.Equal(t, newer, got.Newer)
		})
	}
}

func TestOurs(t *testing.T) {
	self := me()
	record := func(change func(*registry.Record)) func(*holding) {
		return func(h *holding) {
			h.process.Executable = "/usr/bin/other" // nothing but the record is left
			h.record = &registry.Record{PID: nowhere, Start: 900, Inode: 77, Executable: "/usr/bin/other", Name: "api"}
			change(h.record)
		}
	}
	// The recorded process has ended, and this one has its socket.
	orphan := func(change func(*registry.Record)) func(*holding) {
		return func(h *holding) {
			h.process.Executable, h.process.PID, h.process.Start = "/bin/sleep", nowhere+1, 950
			h.record = &registry.Record{PID: nowhere, Start: 900, Inode: 77, Executable: self.Executable}
			change(h.record)
		}
	}
	tests := []struct {
		name   string
		asks   string // name of the service that asks
		change func(*holding)
		ours   bool
	}{
		{"same executable", "", func(*holding) {}, true},
		{"same executable, rebuilt", "", func(h *holding) { h.process.Deleted = true }, true},
		{"another executable", "", func(h *holding) { h.process.Executable = "/usr/bin/python3" }, false},
		{"another executable, same directory", "", func(h *holding) { h.process.Executable, h.process.Dir = "/usr/bin/python3", self.Dir }, false},
		{"unknown executable", "", func(h *holding) { h.process.Executable, h.process.Dir = "", "" }, false},
		{"invisible", "", func(h *holding) { h.process.PID = 0 }, false},
		{"recorded, same name and nothing else", "api", record(func(*registry.Record) {}), false},
		{"recorded, same name and directory", "api", record(func(r *registry.Record) { r.Dir = self.Dir }), true},
		{"recorded, same name and main package", "api", record(func(r *registry.Record) { r.Main = proc.MainPackage(self.PID) }), true},
		{"recorded, same name, no main package", "api", record(func(r *registry.Record) { r.Main = unnamedMain }), false},
		{"recorded, another name", "web", record(func(*registry.Record) {}), false},
		{"recorded, another name of the same executable", "web", func(h *holding) {
			h.record = &registry.Record{PID: nowhere, Start: 900, Name: "api", Executable: self.Executable}
		}, false},
		{"recorded, nameless asks", "", record(func(*registry.Record) {}), false},
		{"recorded, nameless", "api", record(func(r *registry.Record) { r.Name = "" }), false},
		{"record of another pid", "api", record(func(r *registry.Record) { r.PID, r.Inode = nowhere+2, 78 }), false},
		{"record of a recycled pid", "api", record(func(r *registry.Record) { r.Start, r.Inode = 899, 78 }), false},
		{"orphan, same executable", "", orphan(func(*registry.Record) {}), true},
		{"orphan, same name and nothing else", "api", orphan(func(r *registry.Record) { r.Name, r.Executable = "api", "/old/path" }), false},
		{"orphan, same name and directory", "api", orphan(func(r *registry.Record) { r.Name, r.Executable, r.Dir = "api", "/old/path", self.Dir }), true},
		{"another user's, same executable", "", func(h *holding) { h.process.UID++ }, false},
		{"orphan, another name", "web", orphan(func(r *registry.Record) { r.Name = "api" }), false},
		{"orphan of another program", "", orphan(func(r *registry.Record) { r.Executable = "/usr/bin/other" }), false},
		{"orphan of nobody known", "", orphan(func(r *registry.Record) { r.Executable = "" }), false},
		{"of another socket", "", orphan(func(r *registry.Record) { r.Inode = 78 }), false},
		{"of an unknown socket", "", orphan(func(r *registry.Record) { r.Inode = 0 }), false},
		{"older than the record", "", orphan(func(r *registry.Record) { r.Start = 951 }), false},
		{"the recorded one lives", "", orphan(func(r *registry.Record) { r.PID, r.Start = living(t) }), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := stale()
			test.change(&h)
			require.Equal(t, test.ours, judged(self, test.asks, h)[0].holder.Ours)
		})
	}
}

// living is a process that is certainly not over. Its start is no later than that of an orphan in TestOurs.
func living(t testing.TB) (pid int, start uint64) {
	t.Helper()
	start, err := proc.Start(1)
	require.NoError(t, err)
	require.LessOrEqual(t, start, uint64(950))
	return 1, start
}

// What ours handed down is ours; what it was handed is not.
func TestOursShared(t *testing.T) {
	ours := stale()
	heir, supervisor, elsewhere := stale(), stale(), stale()
	heir.process.PID, heir.process.Start, heir.process.Executable = nowhere+1, 901, "/bin/sleep"
	supervisor.process.PID, supervisor.process.Start, supervisor.process.Executable = nowhere-1, 899, "/usr/bin/python3"
	elsewhere.process.PID, elsewhere.process.Start, elsewhere.process.Executable = nowhere+2, 902, "/bin/sleep"
	elsewhere.socket.Inode = 78

	for _, order := range [][]holding{{ours, heir, supervisor, elsewhere}, {elsewhere, supervisor, heir, ours}} {
		for _, h := range judged(me(), "", order...) {
			want := h.process.PID == ours.process.PID || h.process.PID == heir.process.PID
			require.Equal(t, want, h.holder.Ours, h.process.Executable)
			require.Empty(t, h.holder.Refusal)
		}
	}

	// Where the system shows no sockets of processes, nothing is known to be inherited.
	ours.socket.Inode, heir.socket.Inode = 0, 0
	require.False(t, judged(me(), "", ours, heir)[1].holder.Ours)
}

func TestSameMain(t *testing.T) {
	self := me()
	main := proc.MainPackage(os.Getpid())
	require.NotEmpty(t, main)
	require.True(t, sameMain(self, main, "/tmp/go-build1/b001/exe/main", self.Dir))
	require.False(t, sameMain(self, main, "/tmp/go-build1/b001/exe/main", "/elsewhere"))
	require.False(t, sameMain(self, main+"/v2", "/tmp/go-build1/b001/exe/main", self.Dir))
	require.False(t, sameMain(self, "", self.Executable, self.Dir))
	self.Dir = ""
	require.False(t, sameMain(self, main, self.Executable, ""))
}

func TestByAge(t *testing.T) {
	older, newer := proc.Process{Start: 1, PID: 9}, proc.Process{Start: 2, PID: 3}
	require.Equal(t, -1, byAge(older, newer))
	require.Equal(t, 1, byAge(newer, older))
	require.Zero(t, byAge(older, older))
}

// A record counts for the boot in which it was written, and where it can be read.
func TestRecordOfAnotherBoot(t *testing.T) {
	dir, err := registry.Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	lock, err := dir.Lock("unix", "/run/app.sock")
	require.NoError(t, err)
	t.Cleanup(func() { lock.Release() })
	search := Search{Records: dir}
	socket := sockets.Socket{Network: "unix", Path: "/run/app.sock"}
	require.Nil(t, search.record(socket), "empty")

	written := registry.Record{PID: 1, Network: "unix", Address: "/run/app.sock", Boot: proc.BootID(), Since: time.Now()}
	require.NoError(t, lock.Write(written))
	require.Equal(t, 1, search.record(socket).PID)
	written.Boot = "another"
	require.NoError(t, lock.Write(written))
	require.Nil(t, search.record(socket))
	socket.Path = "/run/other.sock"
	require.Nil(t, search.record(socket))
	require.Nil(t, Search{}.record(socket))
}

func TestRefused(t *testing.T) {
	ours := strategy.Holder{PID: 5, Ours: true}
	stranger := strategy.Holder{PID: 6}
	unit := strategy.Holder{PID: 7, Ours: true, Refusal: "systemd manages it; systemctl stop app"}
	hidden := strategy.Holder{Refusal: "it cannot be seen; run as root"}
	tests := []struct {
		holders []strategy.Holder
		want    string
	}{
		{nil, ""},
		{[]strategy.Holder{ours}, ""},
		{[]strategy.Holder{ours, stranger}, "pid 6 is not stopped: it is no earlier run of this program; stop it yourself or allow it (strategy.AnyOfMine)"},
		{[]strategy.Holder{stranger, unit}, "pid 7 is not stopped: systemd manages it; systemctl stop app"},
		{[]strategy.Holder{hidden}, "not stopped: it cannot be seen; run as root"},
	}
	for _, test := range tests {
		err := Refused(strategy.Diagnosis{Holders: test.holders})
		if test.want == "" {
			require.NoError(t, err)
			continue
		}
		require.EqualError(t, err, test.want)
		var refused *RefusedError
		require.ErrorAs(t, err, &refused)
		require.Contains(t, test.holders, refused.Holder)
	}
}

func TestUserName(t *testing.T) {
	require.Empty(t, userName(-1))
	require.Equal(t, "123456789", userName(123456789))
	if runtime.GOOS != "windows" {
		require.Equal(t, "root", userName(0))
	}
}

// The command line is no later run of anything: what counts for it is a record, of whatever program.
func TestOursAnyProgram(t *testing.T) {
	record := func(pid int, inode uint64) *registry.Record {
		return &registry.Record{PID: pid, Start: 900, Inode: inode, Executable: "/usr/bin/other", Name: "api"}
	}
	tests := []struct {
		name   string
		change func(*holding)
		ours   bool
	}{
		{"recorded", func(h *holding) { h.record = record(nowhere, 77) }, true},
		{"orphan", func(h *holding) { h.record = record(nowhere-1, 77) }, true},
		{"record of another socket", func(h *holding) { h.record = record(nowhere-1, 78) }, false},
		{"same executable as berth", func(*holding) {}, false},
		{"another user's", func(h *holding) { h.record, h.process.UID = record(nowhere, 77), os.Geteuid()+1 }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := stale()
			test.change(&h)
			h.holder = holderOf(h.socket, h.process)
			holdings := []holding{h}
			Search{AnyProgram: true}.judge(me(), holdings)
			require.Equal(t, test.ours, holdings[0].holder.Ours)
		})
	}
}
