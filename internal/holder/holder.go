// Package holder joins the kernel's table of sockets, the processes and our own records into one answer: who holds an
// address, may it be stopped, and what can a person do. It is also the only place from which a process is signalled.
package holder

import (
	"context"
	"errors"
	"io/fs"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// A Search asks who holds an address.
type Search struct {
	Target  sockets.Target
	Name    string        // service name of who asks, "" none
	Records *registry.Dir // nil: no records

	// AnyProgram makes whoever the records name ours, whatever program it is, and nobody else: the command line acts for a
	// person, and is no later run of anything.
	AnyProgram bool
}

// A holding is one process with one of the sockets in the way.
type holding struct {
	socket  sockets.Socket
	process proc.Process // PID 0: not to be seen
	record  *registry.Record
	holder  strategy.Holder
}

// Diagnose finds a holder for every socket in the way: the recorded one first, then the newest process. It stops there;
// processes that inherited the same socket are found by [Search.DiagnoseAll].
func (s Search) Diagnose(ctx context.Context) strategy.Diagnosis {
	return s.diagnose(ctx, true)
}

// DiagnoseAll finds every process that holds a socket in the way.
func (s Search) DiagnoseAll(ctx context.Context) strategy.Diagnosis {
	return s.diagnose(ctx, false)
}

func (s Search) diagnose(ctx context.Context, first bool) strategy.Diagnosis {
	// The longest is for a machine on which the process has to wait for a processor before it can let go.
	const longest = 128 * time.Millisecond
	for pause := 2 * time.Millisecond; ; pause *= 4 {
		inTheWay, err := sockets.InTheWay(s.Target)
		if err != nil {
			return strategy.Diagnosis{}
		}
		diagnosis := s.DiagnoseSockets(ctx, inTheWay, first)
		// A socket of a user whose processes can be seen, and yet without a process: that one is about to end and has
		// closed its descriptor already, or handed it to a child between the looks at the table and at the processes.
		if pause > longest || !slices.ContainsFunc(diagnosis.Holders, func(h strategy.Holder) bool { return h.PID == 0 && visible(h.UID) }) {
			return diagnosis
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return diagnosis
		}
	}
}

// visible tells whether this user may inspect the processes of another.
func visible(uid int) bool {
	self := proc.Self().UID
	return uid >= 0 && (self == 0 || self == uid)
}

// DiagnoseSockets tells who holds these sockets. With first, one holder for each is enough.
func (s Search) DiagnoseSockets(ctx context.Context, inTheWay []sockets.Socket, first bool) strategy.Diagnosis {
	if len(inTheWay) == 0 {
		return strategy.Diagnosis{Complete: sockets.Exhaustive(s.Target.Network)}
	}
	records := s.recordsOf(inTheWay)
	pids, complete := pidsOf(ctx, inTheWay, records, first)
	holdings := describe(inTheWay, records, pids)
	found := len(holdings)
	holdings = settle(ctx, holdings)
	if first && len(holdings) < found { // who passed hid who stays
		pids, complete = pidsOf(ctx, inTheWay, records, false)
		holdings = settle(ctx, describe(inTheWay, records, pids))
	}
	s.judge(proc.Self(), holdings)
	diagnosis := strategy.Diagnosis{Complete: complete}
	type place struct {
		pid  int
		port uint16
	}
	seen := map[place]bool{}
	for _, h := range holdings {
		at := place{h.holder.PID, h.socket.Local.Port()}
		if at.pid != 0 && seen[at] { // it holds the port twice: for IPv4 and IPv6, say
			continue
		}
		seen[at] = true
		diagnosis.Holders = append(diagnosis.Holders, h.holder)
	}
	return diagnosis
}

// pidsOf finds the processes of each socket, in the order of inTheWay. Complete means that every socket has a holder, or
// that every process could be inspected.
func pidsOf(ctx context.Context, inTheWay []sockets.Socket, records []*registry.Record, first bool) (pids [][]int, complete bool) {
	pids = make([][]int, len(inTheWay))
	var recorded map[uint64]int
	if first {
		recorded = recordedPIDs(records, inTheWay)
	}
	var unknown []uint64
	for i, socket := range inTheWay {
		switch {
		case socket.PIDs != nil:
			pids[i] = socket.PIDs
		case socket.Inode == 0: // of the kernel, or of a system that shows none
		default:
			if pid := recorded[socket.Inode]; pid != 0 {
				pids[i] = []int{pid}
				continue
			}
			unknown = append(unknown, socket.Inode)
		}
	}
	complete = true
	if len(unknown) > 0 {
		found, all, err := proc.Holders(ctx, unknown, first)
		complete = all && err == nil
		for i, socket := range inTheWay {
			if pids[i] == nil {
				pids[i] = found[socket.Inode]
			}
		}
	}
	if !slices.ContainsFunc(pids, func(p []int) bool { return len(p) == 0 }) {
		complete = true
	}
	return pids, complete
}

// recordedPIDs are the processes that our records name for the sockets, where they really have them, by inode. A process is
// looked at once, however many sockets it has.
func recordedPIDs(records []*registry.Record, inTheWay []sockets.Socket) map[uint64]int {
	type process struct {
		pid   int
		start uint64
	}
	said := map[process][]uint64{}
	for i, socket := range inTheWay {
		if r := records[i]; r != nil && r.Inode == socket.Inode {
			p := process{r.PID, r.Start}
			said[p] = append(said[p], r.Inode)
		}
	}
	pids := map[uint64]int{}
	for p, inodes := range said {
		if start, err := proc.Start(p.pid); err != nil || start != p.start {
			continue
		}
		held, _ := proc.Held(p.pid, inodes) // those before an error
		for _, inode := range held {
			pids[inode] = p.pid
		}
	}
	return pids
}

func (s Search) recordsOf(inTheWay []sockets.Socket) []*registry.Record {
	records := make([]*registry.Record, len(inTheWay))
	for i, socket := range inTheWay {
		records[i] = s.record(socket)
	}
	return records
}

// record is what our state directory says of a socket's address, nil where it says nothing of this boot.
func (s Search) record(socket sockets.Socket) *registry.Record {
	if s.Records == nil {
		return nil
	}
	network, address := socket.Network, Address(socket)
	if s.Target.Path != "" { // the table may know the socket by a relative path
		network, address = s.Target.Network, AbsolutePath(s.Target.Path)
	}
	entry, err := s.Records.Lookup(network, address)
	if err != nil || entry.Err != nil || entry.Record.Boot != proc.BootID() {
		return nil
	}
	return &entry.Record
}

// AbsolutePath is the path of a Unix socket by which records know it. Abstract names, and paths of an unknown working
// directory, are as they are.
func AbsolutePath(path string) string {
	if strings.HasPrefix(path, "@") {
		return path
	}
	if absolute, err := filepath.Abs(path); err == nil {
		return absolute
	}
	return path
}

// Address is a socket's local address as text.
func Address(socket sockets.Socket) string {
	if socket.Network == "unix" {
		return socket.Path
	}
	return socket.Local.String()
}

// describe gathers the facts on each process. One that ended in the meantime is left out, together with its socket when
// it was the only holder.
func describe(inTheWay []sockets.Socket, records []*registry.Record, pids [][]int) []holding {
	var holdings []holding
	for i, socket := range inTheWay {
		if socket.Network == "unix" && socket.State == sockets.Connected {
			// A datagram socket: the kernel calls both connected when one connects to the other (unix_dgram_connect),
			// so a server for ever after its first client. It owns its name as before, and is no ephemeral client.
			socket.State = sockets.Bound
		}
		record := records[i]
		if len(pids[i]) == 0 {
			holdings = append(holdings, holding{socket: socket, record: record})
		}
		for _, pid := range pids[i] {
			process, err := proc.Get(pid)
			if errors.Is(err, fs.ErrNotExist) || err == nil && process.Zombie {
				continue
			}
			if err != nil { // it may not be looked at; the pid is worth telling
				process = proc.Process{PID: pid, UID: -1, RealUID: -1}
			}
			holdings = append(holdings, holding{socket: socket, process: process, record: record})
		}
	}
	for i := range holdings {
		h := &holdings[i]
		h.holder = holderOf(h.socket, h.process)
		if h.recorded() && h.record.State == registry.Reserved && (h.record.Inode == h.socket.Inode || h.record.Inode == 0) {
			h.holder.Reserved, h.holder.Service, h.holder.Until = true, h.record.Name, h.record.Until
		}
	}
	slices.SortStableFunc(holdings, func(a, b holding) int {
		if a.recorded() != b.recorded() {
			if a.recorded() {
				return -1
			}
			return 1
		}
		return byAge(b.process, a.process)
	})
	return holdings
}

// longestPassing is for a machine on which the child has to wait for a processor.
const longestPassing = 512 * time.Millisecond

// mayPass tells whether a process may be a child that is about to run something else. One that is older than all the pauses of
// settle together has what it has for good, such as a worker of a server.
func mayPass(p proc.Process, now time.Time) bool {
	return p.Forked && now.Sub(p.Started) < 2*longestPassing
}

// settle leaves out who held a socket in passing: a child has all of its parent's descriptors between fork and exec, for
// about a millisecond. It would look like a newer start of the same program, which nobody may stop and which an older one
// gives way to. A process that was started by an exec, or that has the socket still after the pauses, is believed.
func settle(ctx context.Context, holdings []holding) []holding {
	self := proc.Self()
	newer := func(h holding) bool {
		return !h.recorded() && h.socket.Inode != 0 && h.process.PID != 0 && self.Before(h.process)
	}
	passed := func(h holding) bool {
		if !newer(h) {
			return false
		}
		holds, err := proc.Holds(h.process.PID, h.socket.Inode)
		return !holds && !errors.Is(err, fs.ErrPermission)
	}
	for pause := time.Millisecond; ; pause *= 2 {
		holdings = slices.DeleteFunc(holdings, passed)
		if pause > longestPassing || !slices.ContainsFunc(holdings, func(h holding) bool { return newer(h) && mayPass(h.process, time.Now()) }) {
			return holdings
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return holdings
		}
	}
}

// byAge orders processes, the oldest first.
func byAge(a, b proc.Process) int {
	switch {
	case a.Before(b):
		return -1
	case b.Before(a):
		return 1
	}
	return 0
}

// recorded tells whether the record names this very process.
func (h holding) recorded() bool {
	return h.record != nil && h.record.PID == h.process.PID && h.record.Start == h.process.Start
}

// holderOf is what callers are told of a process with a socket; judge adds the verdict.
func holderOf(socket sockets.Socket, p proc.Process) strategy.Holder {
	uid := p.UID
	if p.PID == 0 {
		uid = socket.UID
	}
	return strategy.Holder{
		PID: p.PID, UID: uid, User: userName(uid), Command: p.Command, Executable: p.Executable, Dir: p.Dir, Args: p.Args,
		Started: p.Started, Address: Address(socket), State: socket.State.String(), Unit: p.Unit, UserUnit: p.UserUnit, Container: p.Container,
	}
}

// userName is the name of a uid, else its number; "" for -1.
func userName(uid int) string {
	if uid < 0 {
		return ""
	}
	id := strconv.Itoa(uid)
	// The usual case, and cached by os/user. On Windows only the user of this process has a number.
	if me, err := user.Current(); err == nil && (me.Uid == id || runtime.GOOS == "windows") {
		return me.Username
	}
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
