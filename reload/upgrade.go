package reload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/storename"
)

// errStopped is what an upgrade ends with that was asked for too late.
var errStopped = errors.New("this process stops")

// errNotReady is the Err of an [UpgradeError] whose process ended by itself with status 0.
var errNotReady = errors.New("it ended without an error before it was ready: does it call Ready or Serve?")

// errNotOurs is how a child of systemd has ended, in place of its status.
var errNotOurs = errors.New("systemd has its exit status")

// An UpgradeError says why the new version did not take over. The old one goes on, and nothing is left of the new one.
type UpgradeError struct {
	Command string   // path of the new version
	PID     int      // its process; 0 where none was started
	Output  []string // the last lines that it wrote
	// Err is why: an *exec.ExitError, context.DeadlineExceeded where it was not ready in time ... Of how a child of systemd
	// ended only systemd knows, and from [Supervise] nothing but the text and context.DeadlineExceeded come.
	Err error

	first bool // under a supervisor: there is no old one
}

func (e *UpgradeError) Error() string {
	what, so := "upgrade to ", " failed, this version goes on: "
	if e.first {
		what, so = "start of ", " failed: "
	}
	text := what + e.Command
	if e.PID != 0 {
		text += fmt.Sprintf(" (pid %d)", e.PID)
	}
	text += so + strings.ReplaceAll(e.Err.Error(), "\n", "; ")
	if len(e.Output) > 0 {
		text += fmt.Sprintf("; its last line: %q", e.Output[len(e.Output)-1])
	}
	return text
}

// Unwrap returns Err.
func (e *UpgradeError) Unwrap() error { return e.Err }

// A request is for an upgrade. All who ask before it is begun share it.
type request struct {
	ctx    context.Context // ends when nobody waits any more
	cancel context.CancelFunc
	asking int           // who waits
	done   chan struct{} // closed when err is set
	err    error
}

// request asks for an upgrade without waiting.
func (u *Upgrader) request() {
	if c := u.supervisor(); c != nil {
		if err := c.send(message{Do: doUpgrade}, nil); err == nil {
			return
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.successor != nil {
		_ = u.successor.send(message{Do: doUpgrade}, nil)
		return
	}
	u.requestLocked()
}

func (u *Upgrader) requestLocked() *request {
	if u.pending == nil {
		ctx, cancel := context.WithCancel(context.Background())
		u.pending = &request{ctx: ctx, cancel: cancel, done: make(chan struct{})}
	}
	u.pending.asking++
	select {
	case u.wake <- struct{}{}:
	default: // it wakes already
	}
	return u.pending
}

// Upgrade starts the next version and returns when that has taken over: it was ready, owns records and files, and accepts
// connections. Then Done is closed, or Serve drains. Whatever goes wrong before, the new process is killed with all that it
// has started, this one goes on as if nothing had happened, and the error is an [*UpgradeError].
//
// One upgrade runs at a time. Those asked for meanwhile, before this process is ready or while its own parent drains,
// wait their turn, and all that wait are done by one upgrade, to what the program is then. What is asked for after the new
// version has taken over is passed on to it, without waiting for how it ends there.
//
// When ctx ends, Upgrade returns its error, and the upgrade is given up unless somebody else waits for it.
func (u *Upgrader) Upgrade(ctx context.Context) error {
	if u == nil {
		return fmt.Errorf("reload: no upgrade without an Upgrader: %w", errors.ErrUnsupported)
	}
	if c := u.supervisor(); c != nil {
		if err := u.upgradeBySupervisor(ctx, c); !errors.Is(err, errAlone) {
			return err
		}
	}
	u.mu.Lock()
	select {
	case <-u.closing:
		u.mu.Unlock()
		return fmt.Errorf("reload: no upgrade: %w", errStopped)
	default:
	}
	if s := u.successor; s != nil {
		u.mu.Unlock()
		if err := s.send(message{Do: doUpgrade}, nil); err != nil {
			return fmt.Errorf("reload: the new version, pid %d: %w", s.pid, err)
		}
		return nil
	}
	r := u.requestLocked()
	u.mu.Unlock()

	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
	}
	u.mu.Lock()
	if r.asking--; r.asking == 0 {
		r.cancel()
		if u.pending == r {
			u.pending = nil
		}
	}
	u.mu.Unlock()
	return ctx.Err()
}

// run carries out upgrades, one after the other.
func (u *Upgrader) run() {
	defer close(u.stopped)
	u.program = thisProgram() // here, where nobody waits for it
	if !u.turn() {
		u.finishPending(fmt.Errorf("reload: no upgrade: %w", errStopped))
		return
	}
	u.abandon()
	rehearse()
	if u.parent != nil && u.parent.next != nil { // the supervisor has ended, and had another version lead before
		select {
		case <-u.closing:
			return
		case <-u.resumed:
		}
	}
	for {
		select {
		case <-u.closing:
			u.finishPending(fmt.Errorf("reload: no upgrade: %w", errStopped))
			return
		case <-u.wake:
		}
		u.mu.Lock()
		r := u.pending
		u.pending = nil
		u.mu.Unlock()
		if r == nil {
			continue // whoever asked has given up
		}
		r.err = u.upgrade(r.ctx)
		r.cancel()
		close(r.done)
		if r.err != nil {
			continue
		}
		select {
		case <-u.closing:
			return
		case <-u.resumed:
		}
	}
}

// rehearse has the encodings prepared that the one upgrade in the life of a process needs, which then goes faster.
func rehearse() {
	var names bytes.Buffer
	_ = writeNames(&names, []passed{{label: label{Socket: &identity{}}}}) // to memory nothing fails
	_, _ = json.Marshal(message{Do: doHello, Label: &label{}})
}

// turn waits until this process may be replaced: it is ready, and its own parent has ended.
func (u *Upgrader) turn() bool {
	select {
	case <-u.ready:
	case <-u.closing:
		return false
	}
	if u.parent == nil {
		return true
	}
	select {
	case <-u.parent.gone:
		return true
	case <-u.closing:
		return false
	}
}

func (u *Upgrader) finishPending(err error) {
	u.mu.Lock()
	r := u.pending
	u.pending = nil
	u.mu.Unlock()
	if r != nil {
		r.err = err
		r.cancel()
		close(r.done)
	}
}

// upgrade starts the next version and steps back for it.
func (u *Upgrader) upgrade(ctx context.Context) error {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, u.config.timeout())
	defer cancel()
	failure := &UpgradeError{Command: "the next version"}
	give := func(err error) error {
		failure.Err = err
		u.report(failure, begin)
		return failure
	}

	u.tell(activation.Reloading())
	cmd, err := commandOf(u.config.Command, u.program)
	if err != nil {
		return give(err)
	}
	failure.Command = cmd.Path
	u.log.LogAttrs(ctx, slog.LevelInfo, "upgrading", slog.String("command", cmd.Path))
	u.event(EventUpgrading, 0, nil)
	files, err := u.estate()
	if err != nil {
		return give(err)
	}
	u.faults.reach("start")
	s, err := launch(cmd, files, message{Sibling: u.isChildOfSystemd()}, nil)
	if err != nil {
		return give(err)
	}
	failure.PID = s.pid
	u.tell(activation.Status(fmt.Sprintf("upgrading: waiting for pid %d", s.pid)))
	u.faults.reach("started")

	give = func(err error) error {
		s.kill()
		s.release()
		_ = pidFile(u.config.PIDFile).discard(s.pid) // it blocks nobody, and the next one replaces it
		failure.Err, failure.Output = err, s.lines()
		u.report(failure, begin)
		return failure
	}
	if err := u.await(ctx, s, s.ready); err != nil {
		return give(err)
	}
	u.faults.reach("ready")
	// From here on giving up costs: whoever asked cannot, and the time is the new version's to take charge in.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), u.config.timeout())
	defer cancel()
	// With NotifyAccess=main systemd hears this process until it has taken note of the new one, and that one from then on.
	supervised := activation.Supervised()
	if supervised {
		u.announce(ctx, s.pid)
	}
	u.faults.reach("announced")
	u.charge.leave()
	u.hold(true)
	err = s.lead()
	if err == nil {
		u.faults.reach("told")
		err = u.await(ctx, s, s.led)
	}
	if err != nil {
		if supervised { // heard where the unit listens to all; elsewhere systemd sees the end of a main process
			u.announce(ctx, os.Getpid())
		}
		s.kill() // before this process is in charge again
		u.takeBack()
		return give(err)
	}
	u.log.LogAttrs(ctx, slog.LevelInfo, "upgraded", slog.Int("pid", s.pid), slog.Duration("after", time.Since(begin)))
	u.event(EventUpgraded, time.Since(begin), nil)
	s.letGo()
	u.faults.reach("led")
	u.retire(s)
	return nil
}

// hold keeps Serve from accepting, or lets it. Of two versions only the one that leads accepts, so nothing is lost with a new
// one that fails before, and once it leads, whoever connects is answered by that one. In between the kernel queues.
func (u *Upgrader) hold(held bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held = held
	if held {
		holdAll(u.gates...)
		return
	}
	for _, g := range u.gates {
		g.release()
	}
}

// takeBack undoes that another process was to lead, which has ended.
func (u *Upgrader) takeBack() {
	u.charge.take()
	u.hold(false)
}

// announce tells systemd which process is the main one, and waits until it has heard that. What either process has told the
// watchdog may be half an interval ago, or unheard; so the one that is announced begins with a whole interval.
func (u *Upgrader) announce(ctx context.Context, pid int) {
	u.tell(activation.Notify(fmt.Sprintf("MAINPID=%d", pid), "WATCHDOG=1"))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	u.tell(activation.Barrier(ctx))
}

// await waits for the successor to say something.
func (u *Upgrader) await(ctx context.Context, s *successor, said <-chan struct{}) error {
	return await(ctx, s, said, u.config.timeout(), u.closing)
}

func await(ctx context.Context, s *successor, said <-chan struct{}, timeout time.Duration, closing <-chan struct{}) error {
	select {
	case <-said:
		return nil
	default:
	}
	select {
	case <-said:
		return nil
	case <-s.gone:
		return s.ended()
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("it was not ready within %v: %w", timeout, ctx.Err())
		}
		return context.Cause(ctx)
	case <-closing:
		return errStopped
	}
}

// commandOf is the next version, to be started.
func commandOf(make func() (*exec.Cmd, error), p program) (*exec.Cmd, error) {
	if make == nil {
		make = p.command
	}
	cmd, err := make()
	if err != nil {
		return nil, err
	}
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = environment(cmd.Env)
	cmd.ExtraFiles = nil
	return cmd, nil
}

// retire ends the part of this process, which has left charge and is held: another one leads.
func (u *Upgrader) retire(s *successor) {
	u.mu.Lock()
	u.successor = s
	serving, pending := u.serving, u.pending != nil
	u.mu.Unlock()
	if pending { // asked for since this upgrade began, to a program that may be newer
		_ = s.send(message{Do: doUpgrade}, nil) // where it has ended, this process is in charge again
		u.finishPending(nil)
	}
	if serving == nil {
		u.finish()
		return
	}
	serving <- s
}

// resume is the way back, when the successor has ended and this process can still serve.
func (u *Upgrader) resume(s *successor) {
	u.log.LogAttrs(context.Background(), slog.LevelError, "the new version has ended, this one serves again", slog.Int("pid", s.pid), slog.Any("error", s.exit))
	s.release()
	u.mu.Lock()
	u.successor = nil
	u.mu.Unlock()
	u.takeBack()
	u.event(EventResumed, 0, s.exit)
	u.tell(activation.MainPID(os.Getpid()))
	u.tell(activation.Ready())
	select {
	case u.resumed <- struct{}{}:
	case <-u.closing:
	}
}

// report makes a failure known, to whom this process tells the state of the service.
func (u *Upgrader) report(e *UpgradeError, begin time.Time) {
	attrs := []slog.Attr{slog.Any("error", e)}
	if len(e.Output) > 1 {
		attrs = append(attrs, slog.Any("output", e.Output))
	}
	level := slog.LevelError
	if errors.Is(e, errStopped) || errors.Is(e, context.Canceled) {
		level = slog.LevelInfo
	}
	u.log.LogAttrs(context.Background(), level, "no upgrade", attrs...)
	u.event(EventUpgradeFailed, time.Since(begin), e)
	u.tell(activation.Status(e.Error()))
	u.tell(activation.Ready()) // ends what Reloading began; who waits for that finds out why
}

// tell is for messages to systemd: that one is lost must not disturb the service.
func (u *Upgrader) tell(err error) {
	if err != nil && u != nil {
		u.log.LogAttrs(context.Background(), slog.LevelWarn, "systemd was not told", slog.Any("error", err))
	}
}

// Ready says that this process accepts connections. In a new version it returns when the old one has stepped back; from then
// on this process is in charge (see [Upgrader.OnCharge]), and inherited sockets that nobody has taken are closed. It writes
// the PID file, and tells systemd. An error means that this process must end: the old version goes on. Further calls
// return the result of the first. With a nil Upgrader it tells systemd.
func (u *Upgrader) Ready() error {
	if u == nil {
		return activation.Ready()
	}
	return u.becomeReady()
}

func (u *Upgrader) doReady() error {
	file := pidFile(u.config.PIDFile)
	if err := file.prepare(); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if u.parent != nil {
		_ = u.parent.flip.Ready() // it fails where the parent has ended, and then this process leads without it
		u.faults.reach("said ready")
		select {
		case <-u.parent.lead:
		case <-u.parent.orphan:
			return fmt.Errorf("reload: not ready: %w", errOrphan)
		case <-u.closing:
			return fmt.Errorf("reload: not ready: %w", errStopped)
		}
		u.hold(false)
		u.faults.reach("leads")
		u.parent.output.restore()
	}
	var err error
	prepared := true
	u.charge.on(func() {
		err = nil
		if !prepared { // in charge again; what is prepared now is of a version that is gone
			err = file.prepare()
		}
		prepared = false
		if err == nil {
			err = file.commit()
		}
		if err != nil {
			u.log.LogAttrs(context.Background(), slog.LevelWarn, "the PID file does not name this process", slog.Any("error", err))
		}
	})
	if u.parent == nil && err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if u.parent != nil {
		u.charge.take()
	}
	u.dropLegacy()
	close(u.ready)
	u.tell(activation.Ready())
	if u.parent != nil && u.parent.channel != nil {
		u.faults.reach("in charge")
		u.parent.testify()
		_ = u.parent.channel.send(message{Do: doLead}, nil) // the parent may have ended
	}
	return nil
}

// dropLegacy closes what was inherited and nobody wants.
func (u *Upgrader) dropLegacy() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.legacy {
		u.log.LogAttrs(context.Background(), slog.LevelInfo, "closed a socket that this version does not ask for", slog.String("network", l.Network),
			slog.String("requested", l.Address), slog.String("address", l.addr))
		_ = l.file.Close()
	}
	u.unwanted, u.legacy = u.legacy, nil
}

// abandon removes what nobody wants of the version before, which has ended. Until then it may have to serve again.
func (u *Upgrader) abandon() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.unwanted {
		if l.File != nil {
			u.removeLogged(*l.File)
		}
		if activation.Supervised() { // the old version may have stored it, for a next run
			u.tell(activation.Unstore(storename.For(l.Name, l.Network, l.Address)))
		}
	}
	u.unwanted = nil
	for name, file := range u.heirloom {
		if err := registry.Discard(name, file); err != nil {
			u.log.LogAttrs(context.Background(), slog.LevelWarn, "the record of a socket stays that this version does not ask for", slog.Any("error", err))
		}
		_ = file.Close()
		delete(u.heirloom, name)
	}
}

func (u *Upgrader) removeLogged(f socketFile) {
	if err := f.remove(); err != nil {
		u.log.LogAttrs(context.Background(), slog.LevelWarn, "the file of a Unix socket stays", slog.Any("error", err))
	}
}

// ownLocked remembers a file that goes with the last stop.
func (u *Upgrader) ownLocked(f *socketFile) {
	if f == nil {
		return
	}
	for i := range u.files {
		if u.files[i].Path == f.Path {
			u.files[i] = *f
			return
		}
	}
	u.files = append(u.files, *f)
}

// Close ends the Upgrader: a running upgrade is given up, and no other begins. In the process in charge it is the last stop:
// the PID file and the files of Unix sockets are removed. Sockets are not closed, they are the program's. Close them
// first. Calling it again does nothing.
func (u *Upgrader) Close() error {
	if u == nil {
		return nil
	}
	return u.close()
}

// halt gives up a running upgrade, and lets no other begin.
func (u *Upgrader) halt() {
	if u == nil {
		return
	}
	u.haltOnce.Do(func() {
		u.mu.Lock()
		close(u.closing)
		u.mu.Unlock()
	})
	<-u.stopped
}

func (u *Upgrader) doClose() error {
	u.halt()
	var errs []error
	if u.InCharge() {
		u.abandon()
		u.mu.Lock()
		for _, f := range u.files {
			errs = append(errs, f.remove())
		}
		u.mu.Unlock()
		errs = append(errs, pidFile(u.config.PIDFile).remove())
	}
	errs = append(errs, pidFile(u.config.PIDFile).discard(os.Getpid()))
	u.mu.Lock()
	for _, l := range u.legacy {
		_ = l.file.Close()
	}
	for _, file := range u.heirloom {
		_ = file.Close()
	}
	u.legacy, u.heirloom = nil, nil
	u.mu.Unlock()
	if u.parent != nil {
		_ = u.parent.channel.close()
	}
	u.finish()
	return errors.Join(errs...)
}
