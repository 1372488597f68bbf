package reload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/descriptor"
)

// Config says how a program is upgraded. The zero value is ready to use.
type Config struct {
	// Timeout bounds the time that the new version takes to become ready; then it is killed and the old one goes on. 0
	// means a minute.
	Timeout time.Duration

	// Drain is the ceiling for what Serve waits for, after an upgrade and at the end: requests in flight, connections that
	// have not spoken since, hijacked and raw ones. Then they are closed. 0 means 30 seconds; less than 0 closes them at once.
	Drain time.Duration

	// PIDFile, if not "", is written atomically when this process takes charge, and removed when it stops. A new version that
	// cannot write it does not become ready.
	PIDFile string

	// Command is the new version; its standard streams, ExtraFiles and process group are set by Upgrade, and variables
	// that are for the old process alone are left out of its Env. What it starts must become the program by exec, not start
	// it: systemd is told its pid. Nil means this program with its arguments, in the directory that it was started in; its path
	// is looked up at each call, so a replaced file and a link that points elsewhere are followed.
	Command func() (*exec.Cmd, error)

	// Logger gets what happens: upgrades asked for, started, failed and done, and what a drain had to close. Nil discards.
	Logger *slog.Logger

	// Notice is how long a stop goes on serving after it has been announced (EventStopping), so that load balancers that ask
	// for readiness have time to look elsewhere. A second signal ends it. 0 means none: with an upgrade, or a socket unit,
	// nobody has to look elsewhere.
	Notice time.Duration

	// OnEvent, if not nil, is called for what happens to this process, with how long it took and why it failed, where that
	// applies: one of the Event constants. It is called by the goroutine that does it, which goes on when it returns, so it
	// must be quick, and must not call the Upgrader. There are only built-in types, so that a health page or a metric has no need to import this package.
	OnEvent func(event string, took time.Duration, err error)
}

// What Config.OnEvent is told.
const (
	EventReady         = "ready"          // Serve accepts on every listener, and this process leads
	EventUpgrading     = "upgrading"      // a new version is being started
	EventUpgraded      = "upgraded"       // it leads; took since it was started
	EventUpgradeFailed = "upgrade failed" // it does not, and this one goes on; with the error
	EventDraining      = "draining"       // Serve finishes what it has, since a new version leads
	EventResumed       = "resumed"        // the new version has ended, and this one serves again; with why
	EventStopping      = "stopping"       // Serve is going to stop: told before anything is turned away
	EventStopped       = "stopped"        // Serve has ended; took since it began to drain or stop
)

func (c *Config) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return time.Minute
}

func (c *Config) drain() time.Duration {
	switch {
	case c.Drain < 0:
		return 0
	case c.Drain == 0:
		return 30 * time.Second
	}
	return c.Drain
}

// An Upgrader hands the sockets of this process to its next version. A process has at most one, since what it inherits is
// one. Its methods may be called concurrently. A nil Upgrader works: it has nothing, keeps nothing, and cannot upgrade.
type Upgrader struct {
	config  Config
	log     *slog.Logger
	program program
	faults  faults

	parent *parent // nil: the first version

	mu       sync.Mutex
	sockets  []*socket          // open in this process
	legacy   []*legacy          // inherited and not taken
	unwanted []*legacy          // not even by Ready
	held     bool               // Serve is not to accept
	keepers  map[string]*keeper // files to hand on
	heirloom map[string]*os.File
	serving  chan *successor // Serve is told here of one that leads; nil: there is no Serve
	gates    []*gate         // of Serve

	pending   *request     // an upgrade that nobody works on yet
	successor *successor   // in charge instead of this process
	files     []socketFile // of Unix sockets, to be removed at the last stop

	asked map[int]chan<- error // upgrades that the supervisor has been asked for
	asks  int                  // how many

	charge charge

	becomeReady func() error
	ready       chan struct{} // closed by Ready
	wake        chan struct{} // there is a pending upgrade
	resumed     chan struct{} // the successor has ended, and this process is in charge again
	doneOnce    sync.Once
	done        chan struct{}
	haltOnce    sync.Once
	close       func() error
	closing     chan struct{} // closed by Close
	stopped     chan struct{} // closed when the loop has ended
}

// faults lets tests stop this process at each step.
type faults struct{ at func(step string) }

func (f faults) reach(step string) {
	if f.at != nil {
		f.at(step)
	}
}

// A socket is one that goes to the next version.
type socket struct {
	identity
	conn syscall.Conn
	addr string // "" where it does not tell
}

// open tells whether the program has not closed it.
func (s *socket) open() bool {
	raw, err := s.conn.SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// A legacy is an inherited socket that nobody has asked for yet.
type legacy struct {
	identity
	file *os.File
	addr string
}

// fits tells whether the socket is one for a request: by what it was asked for, or what it has; of a further one of a group, whose
// address is given, by that alone.
func (l *legacy) fits(id identity, obtained string) bool {
	switch {
	case l.Packet != id.Packet:
		return false
	case obtained != "":
		return l.Network == id.Network && sameAddress(l.addr, obtained)
	}
	return l.same(id) || l.Network == id.Network && id.isObtained(l.addr)
}

type keeper struct{ open func() (*os.File, error) }

var (
	single  sync.Mutex
	current atomic.Pointer[Upgrader] // the process's
)

// New returns the Upgrader of this process, with what its parent handed over, if this is a new version. Call it once, early:
// before anything is started that must not inherit descriptors, and before Listen. On a system without the means (Windows)
// the error is errors.ErrUnsupported, and the nil Upgrader can be used.
func New(config Config) (*Upgrader, error) { return newUpgrader(config, faults{}) }

func newUpgrader(config Config, faults faults) (*Upgrader, error) {
	single.Lock()
	defer single.Unlock()
	if current.Load() != nil {
		return nil, errors.New("reload: this process has an Upgrader already: use that one, a process inherits once")
	}
	config.PIDFile = absolute(config.PIDFile)
	u := &Upgrader{
		config: config, log: config.Logger, faults: faults,
		keepers: map[string]*keeper{}, heirloom: map[string]*os.File{}, asked: map[int]chan<- error{},
		ready: make(chan struct{}), wake: make(chan struct{}, 1), resumed: make(chan struct{}),
		done: make(chan struct{}), closing: make(chan struct{}), stopped: make(chan struct{}),
	}
	u.becomeReady = sync.OnceValue(u.doReady)
	u.close = sync.OnceValue(u.doClose)
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	// What systemd passed must not reach processes that this one starts, whether or not anybody asks for it. What is wrong
	// with it is for the one who does to hear.
	_, _ = activation.FromEnv()
	if err := u.inherit(); err != nil {
		return nil, fmt.Errorf("reload: %w", err)
	}
	u.charge.has.Store(u.parent == nil)
	u.held = u.parent != nil // what a version accepts that fails before it leads is lost with it
	current.Store(u)
	if u.parent != nil {
		go u.parent.watch(u)
	}
	go u.run()
	return u, nil
}

// inherit takes over what the parent passed.
func (u *Upgrader) inherit() error {
	if os.Getenv(sentinel) != "" && !hasParent() {
		// Another program of this machine upgrades itself by tableflip and started this one for something else.
		u.log.LogAttrs(context.Background(), slog.LevelDebug, "ignored a variable that was meant for another process", slog.String("variable", sentinel))
		if err := os.Unsetenv(sentinel); err != nil {
			return err
		}
	}
	if os.Getenv(sentinel) != "" { // tableflip lets its two pipes go to whatever this process starts
		descriptor.Keep(readyPipe)
		descriptor.Keep(namesPipe)
	}
	flip, err := tableflip.New(tableflip.Options{})
	_ = os.Unsetenv(sentinel) // a subprocess would take it for its own; it fails for malformed names only
	switch {
	case errors.Is(err, tableflip.ErrNotSupported):
		return fmt.Errorf("upgrades without a gap: %w on this system", errors.ErrUnsupported)
	case err != nil:
		return err
	}
	files, err := flip.Files()
	// Files are duplicates: this closes the originals, and what this package has no use for.
	flip.Stop()
	<-flip.Exit()
	if err != nil {
		return fmt.Errorf("inherited descriptors: %w", err)
	}
	if !flip.HasParent() {
		return nil
	}
	u.parent = &parent{flip: flip, lead: make(chan struct{}), orphan: make(chan struct{}), gone: make(chan struct{})}
	for _, file := range files {
		l, err := parseLabel(file.Name())
		if err != nil {
			u.log.LogAttrs(context.Background(), slog.LevelWarn, "closed a descriptor of the old version", slog.Any("error", err))
			_ = file.Close()
			continue
		}
		switch {
		case l.Control:
			if u.parent.channel, err = openChannel(file); err != nil {
				return err
			}
		case l.Witness:
			u.parent.witness = file
		case l.Stream != "":
			u.parent.output.add(l, file)
		case l.File != "":
			u.heirloom[l.File] = file
		default:
			u.legacy = append(u.legacy, &legacy{*l.Socket, file, addressOf(file)})
		}
	}
	return u.parent.greet()
}

// HasParent reports whether this process is a new version of one that ran before, or runs still.
func (u *Upgrader) HasParent() bool { return u != nil && u.parent != nil }

// missingError says that nothing was inherited for a request. It is fs.ErrNotExist.
type missingError struct{ what string }

func (e *missingError) Error() string        { return "reload: nothing was inherited for " + e.what }
func (e *missingError) Is(target error) bool { return target == fs.ErrNotExist }

// Take returns the listener that the version before had for this name, network and address, with the address that it obtained
// then. The error is fs.ErrNotExist where there is none. Of listeners without a fixed address (port 0) each call gives the next.
// A socket that has just the address that is asked for is found by that too, whatever name it had. Of several at one address
// (see [Upgrader.KeepMember]) it is the first. An address that this process has open already is an error: a
// program that listens twice on one address loses one of the two in an upgrade.
func (u *Upgrader) Take(name, network, address string) (net.Listener, error) {
	return take(u, identity{Name: name, Network: network, Address: address}, "", fileListener)
}

// TakePacket is [Upgrader.Take] for packet sockets.
func (u *Upgrader) TakePacket(name, network, address string) (net.PacketConn, error) {
	return take(u, identity{Packet: true, Name: name, Network: network, Address: address}, "", filePacketConn)
}

// TakeMember returns one more of several listeners that the version before had at one address (SO_REUSEPORT), in the order in
// which it got them. The first has been taken for name, network and address, and has the address obtained. The error is
// fs.ErrNotExist when there are no more. Package listener calls it.
func (u *Upgrader) TakeMember(name, network, address, obtained string) (net.Listener, error) {
	return take(u, identity{Name: name, Network: network, Address: address}, obtained, fileListener)
}

// TakePacketMember is [Upgrader.TakeMember] for packet sockets.
func (u *Upgrader) TakePacketMember(name, network, address, obtained string) (net.PacketConn, error) {
	return take(u, identity{Packet: true, Name: name, Network: network, Address: address}, obtained, filePacketConn)
}

func fileListener(file *os.File) (net.Listener, net.Addr, error) {
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, nil, err
	}
	return ln, ln.Addr(), nil
}

func filePacketConn(file *os.File) (net.PacketConn, net.Addr, error) {
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, nil, err
	}
	return conn, conn.LocalAddr(), nil
}

// take is for the first, or only, socket for a request; or, where the address is given that this obtained, for another one.
func take[S any](u *Upgrader, id identity, obtained string, from func(*os.File) (S, net.Addr, error)) (S, error) {
	var none S
	if u == nil {
		return none, &missingError{id.String()}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if obtained == "" {
		if err := u.placeLocked(&id); err != nil {
			return none, err
		}
	} else if u.joinLocked(&id, obtained) != nil { // to nothing nothing belongs
		return none, &missingError{id.String()}
	}
	found := -1
	for i, l := range u.legacy {
		if !l.fits(id, obtained) {
			continue
		}
		if found < 0 || id.before(l.identity, u.legacy[found].identity) {
			found = i
		}
	}
	if found < 0 {
		return none, &missingError{id.String()}
	}
	l := u.legacy[found]
	s, addr, err := from(l.file) // a duplicate
	if err != nil {
		if call := (*os.SyscallError)(nil); errors.As(err, &call) {
			err = call // without the name of the file, which is its label
		}
		return none, fmt.Errorf("reload: inherited socket for %s: %w", id, err)
	}
	conn, ok := any(s).(syscall.Conn)
	if !ok { // all types of package net are
		return none, fmt.Errorf("reload: inherited socket for %s: %w: a %T", id, errors.ErrUnsupported, s)
	}
	_ = l.file.Close()
	u.legacy = append(u.legacy[:found], u.legacy[found+1:]...)
	id.File, id.Member = l.File, l.Member
	u.sockets = append(u.sockets, &socket{id, conn, addr.String()})
	u.ownLocked(id.File)
	u.superviseLocked(u.sockets[len(u.sockets)-1])
	return s, nil
}

// placeLocked gives a request its order among those alike, or refuses a second one for a fixed address.
func (u *Upgrader) placeLocked(id *identity) error {
	u.pruneLocked()
	taken := map[int]bool{}
	for _, s := range u.sockets {
		if s.same(*id) {
			taken[s.Order] = true
		}
	}
	if len(taken) > 0 && !id.notFixed() {
		return fmt.Errorf("reload: %s is open in this process already: close it, or give the second one another Name", id)
	}
	for taken[id.Order] {
		id.Order++
	}
	return nil
}

// joinLocked gives a request the order of the group at the address, and the next place in it.
func (u *Upgrader) joinLocked(id *identity, obtained string) error {
	u.pruneLocked()
	joined := false
	for _, s := range u.sockets {
		if s.same(*id) && sameAddress(s.addr, obtained) {
			id.Order, id.Member, joined = s.Order, max(id.Member, s.Member+1), true
		}
	}
	if !joined {
		return fmt.Errorf("reload: no socket for %s has the address %s, so there is no group to join", id, obtained)
	}
	return nil
}

// pruneLocked forgets what the program has closed.
func (u *Upgrader) pruneLocked() {
	u.sockets = slices.DeleteFunc(u.sockets, func(s *socket) bool {
		if s.open() {
			return false
		}
		u.forgetLocked(label{Socket: &s.identity})
		return true
	})
}

// Keep hands a socket on to the next version, as long as it is open; it stays the caller's. A [net.UnixListener] or
// [net.UnixConn] is taken for bound by this program: its file stays where this process closes it after an upgrade, and is
// removed by Close in the last one. A second socket for one fixed address is an error, as in [Upgrader.Take].
func (u *Upgrader) Keep(name, network, address string, conn syscall.Conn) error {
	return u.keep(identity{Name: name, Network: network, Address: address}, conn, false)
}

// KeepMember is [Upgrader.Keep] for one more socket at the address of one that is kept already, or was taken, for just this name,
// network and address (SO_REUSEPORT). Sockets are handed on in the order in which they are kept, which has to be the one in
// which they came to listen. Package listener calls it.
func (u *Upgrader) KeepMember(name, network, address string, conn syscall.Conn) error {
	return u.keep(identity{Name: name, Network: network, Address: address}, conn, true)
}

func (u *Upgrader) keep(id identity, conn syscall.Conn, member bool) error {
	if u == nil {
		return nil
	}
	var addr net.Addr
	switch c := conn.(type) {
	case net.Listener:
		addr = c.Addr()
	case net.PacketConn:
		id.Packet, addr = true, c.LocalAddr()
	default:
		id.Packet = strings.HasPrefix(id.Network, "udp") || strings.HasPrefix(id.Network, "ip") || id.Network == "unixgram"
	}
	switch conn.(type) {
	case *net.UnixListener, *net.UnixConn:
		id.File = newSocketFile(addr)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	obtained := ""
	if addr != nil {
		obtained = addr.String()
	} else {
		obtained = addressOf(conn) // of a mere descriptor
	}
	var err error
	if member {
		err = u.joinLocked(&id, obtained)
	} else {
		err = u.placeLocked(&id)
	}
	if err != nil {
		return err
	}
	if ln, ok := conn.(*net.UnixListener); ok {
		ln.SetUnlinkOnClose(false)
	}
	s := &socket{id, conn, obtained}
	u.sockets = append(u.sockets, s)
	u.ownLocked(id.File)
	u.superviseLocked(s)
	return nil
}

// KeepFile hands a file on with the sockets, under a name. Each upgrade calls open, and closes what it gives afterwards; an
// error that is fs.ErrClosed means that there is nothing to hand on any more, another one fails the upgrade. A second
// call with the name replaces the first. The function that it returns ends the keeping.
func (u *Upgrader) KeepFile(name string, open func() (*os.File, error)) (forget func()) {
	if u == nil {
		return func() {}
	}
	k := &keeper{open}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.keepers[name] = k
	u.superviseFileLocked(name, k)
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.keepers[name] == k {
			delete(u.keepers, name)
			u.forgetLocked(label{File: name})
		}
	}
}

// TakeFile returns the file that the version before kept under the name. The error is fs.ErrNotExist where there is none. To
// hand it on again, give it to KeepFile.
func (u *Upgrader) TakeFile(name string) (*os.File, error) {
	if u == nil {
		return nil, &missingError{"file " + name}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	file, ok := u.heirloom[name]
	if !ok {
		return nil, &missingError{"file " + name}
	}
	delete(u.heirloom, name)
	return file, nil
}

// estate is duplicates of what the next version is to have.
func (u *Upgrader) estate() (files []passed, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer func() {
		if err != nil {
			closePassed(files)
		}
	}()
	for _, s := range u.sockets {
		file, err := descriptor.Duplicate(s.conn, s.Address)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			continue
		}
		if err != nil {
			return files, fmt.Errorf("%s: %w", s.identity, err)
		}
		id := s.identity
		files = append(files, passed{label{Socket: &id}, file})
	}
	for name, k := range u.keepers {
		file, err := k.open()
		if errors.Is(err, fs.ErrClosed) {
			continue
		}
		if err != nil {
			return files, fmt.Errorf("file %s: %w", name, err)
		}
		files = append(files, passed{label{File: name}, file})
	}
	return files, nil
}

// Done is closed when this process should end: the next version serves, Serve stops, or Close was called. Serve itself returns
// only when what is in flight has been finished; until then, Done tells connections that nobody else can tell to end.
func (u *Upgrader) Done() <-chan struct{} {
	if u == nil {
		return nil
	}
	return u.done
}

func (u *Upgrader) event(event string, took time.Duration, err error) {
	if u != nil && u.config.OnEvent != nil {
		u.config.OnEvent(event, took, err)
	}
}

func (u *Upgrader) finish() { u.doneOnce.Do(func() { close(u.done) }) }
