package holder

import (
	"path/filepath"
	"slices"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
)

// judge fills in Ours, Newer and Refusal: the rules under which a process may be stopped, all of them here. Rule 1, that
// the process holds a socket which really is in the way, is what makes a holding; see stop for how it is verified.
func (s Search) judge(self proc.Process, holdings []holding) {
	oldest := self.Start
	for _, h := range holdings {
		if h.process.PID != 0 {
			oldest = min(oldest, h.process.Start) // 0 where it is unknown
		}
	}
	ancestors := proc.AncestorsSince(oldest)
	for i := range holdings {
		h := &holdings[i]
		h.holder.Newer = h.process.PID != 0 && h.process.PID != self.PID && self.Before(h.process)
		if cause := refusal(self, ancestors, h.socket, h.process); cause != "" {
			h.holder.Refusal = cause // which remedy reads
			h.holder.Refusal += "; " + remedy(h.holder)
		}
		h.holder.Ours = sameUser(self, h) && s.ours(self, h)
	}
	// What a process of ours handed down is ours too: it holds the very same socket, and came later. Whoever came
	// earlier is the one that it was inherited from, a supervisor, and is not.
	for i := range holdings {
		heir := &holdings[i]
		heir.holder.Ours = heir.holder.Ours || sameUser(self, heir) && slices.ContainsFunc(holdings, func(h holding) bool {
			return h.holder.Ours && h.socket.Inode != 0 && h.socket.Inode == heir.socket.Inode && h.process.Before(heir.process)
		})
	}
}

// sameUser tells whether a holding's process is known, and of the user of this one.
func sameUser(self proc.Process, h *holding) bool {
	return h.process.PID != 0 && h.process.UID == self.UID
}

const isAncestor = "it is an ancestor of this process"

// refusal is the rule that forbids to stop a process whoever asks, "" where none does.
func refusal(self proc.Process, ancestors []int, socket sockets.Socket, p proc.Process) string {
	switch {
	case remains(socket.State == sockets.Connected, p.PID, socket.UID):
		return "it is what remains of a closed connection"
	case socket.State == sockets.Connected:
		return "it is a client whose connection happens to use this port"
	case p.PID == 0:
		return "it cannot be seen"
	case p.PID == self.PID:
		return "it is this process itself"
	case p.PID == 1:
		return "it is pid 1, which runs the system or the container"
	case p.Kernel:
		return "it is a kernel thread"
	case slices.Contains(ancestors, p.PID):
		return isAncestor + ": the shell, editor or tool that started it"
	case p.UID < 0 || p.RealUID < 0 || p.Start == 0:
		return "it cannot be inspected"
	case forwarders[p.Command]:
		return "it forwards the port for a container"
	case p.Container != "" && p.Container != self.Container:
		return "it runs in a container, whose runtime would start it again"
	case p.Command == "systemd":
		return "it is a systemd manager, which holds the socket for a .socket unit"
	case p.Unit != "" && p.Unit != self.Unit:
		return "systemd manages it and would start it again"
	case p.UID != self.UID:
		return "it belongs to user " + userName(p.UID)
	case p.RealUID != self.UID:
		return "it belongs to user " + userName(p.RealUID)
	case self.Before(p):
		return "it was started after this process, and the newest start wins"
	}
	return ""
}

// remains tells whether nobody has a connection any more: the kernel keeps it for up to a minute (TIME_WAIT), and where
// its listener did not set SO_REUSEADDR, nobody can listen on the address meanwhile.
func remains(connected bool, pid, uid int) bool { return connected && pid == 0 && uid < 0 }

// forwarders listen on behalf of a container that is elsewhere. Stopping them frees the port until their runtime
// notices, and leaves the container running.
var forwarders = map[string]bool{
	"docker-proxy": true, "rootlessport": true, "rootlesskit": true, "slirp4netns": true, "pasta": true, "pasta.avx2": true,
	"gvproxy": true, "conmon": true, "vpnkit": true, "com.docker.backe": true, "com.docker.backend": true,
}

// ours tells whether a process may be stopped by default: it is an earlier run of this program, or an orphan of one.
func (s Search) ours(self proc.Process, h *holding) bool {
	name := s.Name
	if r := h.record; r != nil && (h.recorded() || orphan(h)) {
		switch {
		case s.AnyProgram:
			return true
		case name == "" || r.Name == "":
			if sameRun(self, r) {
				return true
			}
		case name != r.Name:
			return false // two names are two services, even of one executable
		case sameService(self, r):
			return true
		}
	}
	return !s.AnyProgram && sameProgram(self, h.process)
}

// orphan tells whether a process holds the very socket that a recorded one, which ended, had bound: it inherited it.
func orphan(h *holding) bool {
	r := h.record
	return r.Inode != 0 && r.Inode == h.socket.Inode && r.Start <= h.process.Start && !alive(r)
}

func alive(r *registry.Record) bool {
	start, err := proc.Start(r.PID)
	return err == nil && start == r.Start
}

// sameService tells whether a record with the name of this service is one of it: another build, or one that was started
// elsewhere. The name alone proves nothing, since two projects may both say "web".
func sameService(self proc.Process, r *registry.Record) bool {
	return sameRun(self, r) || r.Dir != "" && r.Dir == self.Dir ||
		r.Main != "" && r.Main != unnamedMain && r.Main == proc.MainPackage(self.PID)
}

// unnamedMain is the main package of what `go run file.go` builds, whatever is in the file.
const unnamedMain = "command-line-arguments"

// sameRun tells whether a record was written by an earlier run of this program.
func sameRun(self proc.Process, r *registry.Record) bool {
	return r.Executable != "" && r.Executable == self.Executable || sameMain(self, r.Main, r.Executable, r.Dir)
}

// sameProgram tells whether a process runs this program: the same executable, also when a rebuild replaced it, or, since
// `go run` and live-reload tools build to changing paths, the same main package in the same working directory.
func sameProgram(self, p proc.Process) bool {
	if p.Executable != "" && p.Executable == self.Executable {
		return true
	}
	if p.Dir == "" || p.Dir != self.Dir { // before the executable is read
		return false
	}
	return sameMain(self, proc.MainPackage(p.PID), p.Executable, p.Dir)
}

// sameMain tells whether a program with this main package, at this path and in this working directory, is another build
// of the one that runs here.
func sameMain(self proc.Process, main, executable, dir string) bool {
	if main == "" || main != proc.MainPackage(self.PID) || dir == "" || dir != self.Dir {
		return false
	}
	// `go run a.go` and `go run b.go` have one name for their packages, and only those of their files apart.
	return main != unnamedMain || filepath.Base(executable) == filepath.Base(self.Executable)
}
