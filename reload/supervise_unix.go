//go:build unix

package reload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/descriptor"
	"github.com/berth-go/berth/internal/proc"
)

// Supervise keeps the program in the foreground while its versions come and go: for a terminal, an editor, a tool that
// restarts on changes, and as the first process of a container, whose end would be the container's. Call it first in main:
//
//	if code, over := reload.Supervise(ctx, reload.Config{}); over {
//		os.Exit(code)
//	}
//
// It starts the program once more (Config.Command, if set) and returns there at once, with over false, and the program
// goes on with [New]. In the first process it returns when the program has ended, with over true and its exit status, which
// is 128 and more for a signal.
//
// Meanwhile it holds the sockets and files that the program gives to its Upgrader, so clients wait, and are not refused,
// while a version that has crashed is started again. That is at once after the first crash, and after a pause that doubles, from
// 0.1 to 10 seconds, after others. It gives up after ten in a row that did not become ready, or crashed within 10 seconds;
// after the very first that does not become ready; and when the program ends with status 0.
//
// SIGHUP upgrades, also when it is sent to the program, and skips a pause. SIGINT, SIGTERM, SIGQUIT, SIGUSR1 and SIGUSR2 are
// passed on; the first three are not followed by a restart. When ctx ends, or the terminal is closed, the program gets
// SIGTERM. Each version leads a process group of its own, so it cannot read from a terminal, and what it leaves behind there is
// killed with it. As process 1, Supervise also reaps the orphans that the kernel gives it (Linux).
//
// systemd knows this process alone: it tells READY, RELOADING, STOPPING, STATUS and WATCHDOG, and no version has
// NOTIFY_SOCKET or the watchdog's variables. Sockets that systemd passed go to each version that asks for them: by name or
// address, not by number. Should Supervise be killed, the program goes on without it.
//
// A program that has become a version by an upgrade, or has one above it, is never a supervisor. On systems without
// upgrades (Windows) it returns at once.
func Supervise(ctx context.Context, config Config) (code int, over bool) {
	return supervise(ctx, config, faults{}, 100*time.Millisecond)
}

func supervise(ctx context.Context, config Config, faults faults, pause time.Duration) (code int, over bool) {
	if os.Getenv(sentinel) != "" && hasParent() {
		return 0, false
	}
	config.PIDFile = absolute(config.PIDFile)
	v := &supervisor{
		config: config, log: config.Logger, program: thisProgram(), faults: faults, shortest: pause,
		retired: map[*ward]bool{}, calls: make(chan func()), over: make(chan struct{}), terminal: hasTerminal(),
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	return v.run(ctx), true
}

// A supervisor is the process above all versions. The goroutine of run owns its state; others have it call functions.
type supervisor struct {
	config   Config
	log      *slog.Logger
	program  program
	faults   faults
	shortest time.Duration // pause before a restart; those that follow are multiples
	terminal bool          // there was one at the start
	given    []given       // by systemd

	child    *ward          // leads; nil: none does
	last     *ward          // led last: what it has given is for the next
	starting *ward          // is to lead next; nil: none
	retired  map[*ward]bool // drain
	failures int            // in a row
	restart  <-chan time.Time
	code     int            // exit status of the last that led, or was to
	stopping syscall.Signal // asked for; 0: not
	finished bool           // no version is started any more
	asking   []wish         // for the upgrade that runs
	waiting  []wish         // for the next

	calls chan func()
	over  chan struct{} // closed when nobody takes calls any more
}

// A given is a socket that systemd passed to the supervisor.
type given struct {
	name string
	held descriptor.Held
}

// A wish is for an upgrade.
type wish struct {
	from *ward // nil: nobody waits for the answer
	id   int
}

func (v *supervisor) run(ctx context.Context) int {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	orphans := make(chan os.Signal, 1)
	if os.Getpid() == 1 {
		signal.Notify(orphans, syscall.SIGCHLD)
		defer signal.Stop(orphans)
	}
	defer close(v.over)
	v.activate()
	watched, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	defer unwatch()
	go func() { v.tell(activation.Watchdog(watched, v.responds)) }()
	defer v.clear()

	v.start()
	stop := ctx.Done()
	var patience <-chan time.Time // for those that drain, at the end
	for {
		v.reap()
		switch {
		case v.starting != nil:
		case !v.finished && v.child == nil && len(v.waiting) > 0, // whoever asks for an upgrade does not want to wait
			!v.finished && v.child != nil && len(v.waiting) > 0 && len(v.retired) == 0:
			v.start()
		case v.finished && v.child == nil && len(v.retired) == 0:
			return v.code
		case v.finished && v.child == nil && patience == nil:
			const slack = 5 * time.Second // they keep to it themselves
			patience = time.After(v.config.drain() + slack)
		}
		select {
		case sig := <-signals:
			v.signal(sig.(syscall.Signal))
		case <-stop:
			stop = nil
			v.stop(syscall.SIGTERM)
		case <-orphans:
		case call := <-v.calls:
			call()
		case <-v.restart:
			v.restart = nil
			if v.child == nil && v.starting == nil && !v.finished {
				v.start()
			}
		case <-patience:
			for w := range v.retired {
				go w.kill()
			}
		}
	}
}

// call has the supervisor's goroutine call f.
func (v *supervisor) call(f func()) {
	select {
	case v.calls <- f:
	case <-v.over:
	}
}

// responds tells the watchdog that the loop goes round.
func (v *supervisor) responds(ctx context.Context) error {
	select {
	case v.calls <- func() {}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// activate takes over what systemd passed.
func (v *supervisor) activate() {
	set, err := activation.FromEnv()
	if err != nil {
		v.log.LogAttrs(context.Background(), slog.LevelError, "the program has no sockets from systemd", slog.Any("error", err))
	}
	for _, s := range set.Unused() {
		v.given = append(v.given, given{s.Name, descriptor.Held(s.FD)})
	}
}

// signal passes a signal on, or acts on it.
func (v *supervisor) signal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGHUP:
		if v.terminal && !hasTerminal() {
			v.stop(syscall.SIGTERM)
			return
		}
		v.ask(wish{})
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT:
		v.stop(sig)
	default:
		if v.child != nil { // one that starts beside it may have no handler yet
			v.child.signal(sig)
		} else if v.starting != nil {
			v.starting.signal(sig)
		}
	}
}

// stop passes on what ends the program.
func (v *supervisor) stop(sig syscall.Signal) {
	if v.stopping == 0 {
		v.tell(activation.Stopping())
	}
	v.stopping, v.finished, v.waiting = sig, true, nil
	for w := range v.retired {
		w.signal(sig)
	}
	switch {
	case v.starting == nil && v.child != nil:
		v.child.stop(sig)
	case v.starting != nil && v.child != nil:
		v.starting.cancel(errStopped) // and then the other is in charge again, to remove what it has
	case v.starting != nil:
		v.starting.stop(sig)
	}
}

// ask asks for an upgrade.
func (v *supervisor) ask(a wish) {
	if !v.finished && (a.from != nil || !slices.Contains(v.waiting, a)) {
		v.waiting = append(v.waiting, a)
	}
}

// unask takes that back. An upgrade that nobody wants is given up.
func (v *supervisor) unask(a wish) {
	is := func(b wish) bool { return a == b }
	v.waiting = slices.DeleteFunc(v.waiting, is)
	if !slices.ContainsFunc(v.asking, is) {
		return
	}
	v.asking = slices.DeleteFunc(v.asking, is)
	if len(v.asking) == 0 && v.child != nil {
		v.starting.cancel(context.Canceled)
	}
}

// start starts a version, which is to lead.
func (v *supervisor) start() {
	w := &ward{yielded: make(chan int, 1), resumed: make(chan struct{}, 1), estate: map[string]kept{}}
	ctx, cancel := context.WithCancelCause(context.Background())
	w.cancel = cancel
	old := v.child
	if old != nil {
		v.tell(activation.Reloading())
	}
	v.starting, v.restart = w, nil
	v.asking, v.waiting = v.waiting, nil
	files, err := v.last.files()
	var sockets []*os.File
	if err == nil {
		sockets, err = v.unclaimed()
	}
	go func() {
		begin := time.Now()
		s, err := v.try(ctx, w, old, files, sockets, err)
		if err == nil {
			v.log.LogAttrs(ctx, slog.LevelInfo, "the program is ready", slog.Int("pid", s.pid), slog.Duration("after", time.Since(begin)))
		}
		v.call(func() { v.started(w, err) })
		if err == nil {
			<-s.gone
			s.release()
			v.call(func() { v.ended(w) })
		}
	}()
}

// try has a version started and leading, or leaves nothing of it. It takes over files and sockets.
func (v *supervisor) try(ctx context.Context, w, old *ward, files []passed, sockets []*os.File, err error) (_ *successor, _ error) {
	defer func() {
		for _, f := range sockets {
			_ = f.Close()
		}
	}()
	failure := &UpgradeError{Command: "the program", first: old == nil}
	give := func(err error) (*successor, error) {
		closePassed(files)
		failure.Err = err
		return nil, failure
	}
	if err != nil {
		return give(err)
	}
	cmd, err := commandOf(v.config.Command, v.program) // which may take its time to build it
	if err != nil {
		return give(err)
	}
	failure.Command = cmd.Path
	cmd.Env = without(cmd.Env, "NOTIFY_SOCKET", "WATCHDOG_USEC") // systemd knows this process
	cmd.ExtraFiles = sockets
	hello := message{Supervised: true}
	if old != nil {
		hello.PID = old.pid
	}
	ctx, cancel := context.WithTimeout(ctx, v.config.timeout())
	defer cancel()
	var witness *os.File
	if old != nil {
		var theirs *os.File
		if witness, theirs, err = os.Pipe(); err != nil {
			return give(err)
		}
		defer witness.Close()
		files = append(files, passed{label{Witness: true}, theirs})
	}
	s, err := launch(cmd, files, hello, func(m message, file *os.File) { v.hear(w, m, file) })
	files = nil
	if err != nil {
		return give(err)
	}
	failure.PID = s.pid
	v.log.LogAttrs(ctx, slog.LevelInfo, "started the program", slog.String("command", cmd.Path), slog.Int("pid", s.pid))
	v.call(func() {
		w.successor = s
		if v.stopping != 0 && v.child == nil {
			w.stop(v.stopping)
		}
	})
	if err := v.introduce(ctx, s, old, witness); err != nil {
		s.kill()
		s.release()
		_ = pidFile(v.config.PIDFile).discard(s.pid) // it blocks nobody, and the next one replaces it
		failure.Output = s.lines()
		return give(err)
	}
	return s, nil
}

// introduce waits until the version is ready, and has it lead instead of the old one.
func (v *supervisor) introduce(ctx context.Context, s *successor, old *ward, witness *os.File) error {
	await := func(said <-chan struct{}) error { return await(ctx, s, said, v.config.timeout(), nil) }
	reach := func(step string) {
		if old == nil {
			step = "first " + step
		}
		v.faults.reach(step)
	}
	reach("launched")
	if err := await(s.ready); err != nil {
		return err
	}
	reach("ready")
	err := old.yield(ctx, s.pid, witness)
	if err == nil {
		reach("yielded")
		err = s.lead()
	}
	if err == nil {
		reach("told")
		err = await(s.led)
	}
	if err != nil && old != nil {
		s.kill() // before the other one is in charge again
		old.resume()
	}
	if err == nil {
		s.capture.leave()
		reach("led")
	}
	return err
}

// hear does what a version says. It runs in the goroutine that listens to it.
func (v *supervisor) hear(w *ward, m message, file *os.File) {
	if file != nil {
		defer file.Close() // for one who waits until a label is forgotten that says so
	}
	switch m.Do {
	case doKeep:
		w.keep(m.Label, file)
	case doForget:
		w.forget(m.Label)
	case doYield:
		select {
		case <-w.yielded: // nobody wants to know any more
		default:
		}
		w.yielded <- m.PID
	case doLead: // again
		select {
		case w.resumed <- struct{}{}:
		default:
		}
	case doUpgrade:
		a := wish{}
		if m.ID != 0 {
			a = wish{w, m.ID}
		}
		v.call(func() { v.ask(a) })
	case doCancel:
		v.call(func() { v.unask(wish{w, m.ID}) })
	}
}

// started takes note of how a start went.
func (v *supervisor) started(w *ward, err error) {
	v.starting = nil
	w.cancel(nil)
	asked := v.asking
	v.asking = nil
	if err == nil {
		v.leads(w)
	} else {
		v.failed(w, err)
	}
	for _, a := range asked {
		a.answer(err)
	}
	if v.stopping != 0 && v.child != nil && !v.child.told {
		v.child.stop(v.stopping)
	}
}

func (v *supervisor) leads(w *ward) {
	if old := v.child; old != nil {
		v.failures = 0
		v.retired[old] = true
		_ = old.send(message{Do: doRetire}, nil) // it may have ended
		for i, a := range v.waiting {
			if a.from == old { // it cannot wait any longer, but an upgrade it gets
				a.answer(nil)
				v.waiting[i] = wish{}
			}
		}
	}
	if v.last != nil {
		v.last.clear()
	}
	v.child, v.last, w.since = w, w, time.Now()
	v.tell(activation.Ready())
	v.tell(activation.Status(fmt.Sprintf("supervises pid %d", w.pid)))
}

func (v *supervisor) failed(w *ward, err error) {
	w.clear()
	v.waiting = slices.DeleteFunc(v.waiting, func(a wish) bool { return a.from == w })
	var failure *UpgradeError
	attrs := []slog.Attr{slog.Any("error", err)}
	if errors.As(err, &failure) && len(failure.Output) > 1 {
		attrs = append(attrs, slog.Any("output", failure.Output))
	}
	v.log.LogAttrs(context.Background(), slog.LevelError, "the program did not start", attrs...)
	if v.child != nil {
		v.tell(activation.Ready()) // ends what Reloading began
		v.tell(activation.Status(err.Error()))
		return
	}
	v.code = startCode(err)
	if v.code == 0 || v.last == nil {
		v.finished = true
	}
	v.again()
}

// ended takes note of the end of a version that has led.
func (v *supervisor) ended(w *ward) {
	if v.retired[w] {
		delete(v.retired, w)
		w.clear() // what it has given since
		return
	}
	v.child = nil
	v.code = exitCode(w.exit)
	v.log.LogAttrs(context.Background(), slog.LevelInfo, "the program has ended", slog.Int("pid", w.pid), slog.Int("status", v.code))
	if v.code == 0 {
		v.finished = true
	}
	const stable = 10 * time.Second
	if time.Since(w.since) >= stable {
		v.failures = 0
	}
	switch {
	case v.starting == nil:
		v.again()
	case v.finished:
		v.starting.cancel(errStopped)
	}
}

// again has the program started once more, after a pause that grows. After one that ran for a while there is none.
func (v *supervisor) again() {
	if v.finished {
		return
	}
	const most = 10
	var pause time.Duration
	if v.failures > 0 {
		pause = min(v.shortest<<(v.failures-1), 100*v.shortest)
	}
	if v.failures++; v.failures >= most {
		v.log.LogAttrs(context.Background(), slog.LevelError, "gave up", slog.Int("failures", v.failures))
		v.finished = true
		return
	}
	v.log.LogAttrs(context.Background(), slog.LevelWarn, "starting the program again", slog.Duration("in", pause))
	v.restart = time.After(pause)
}

func (v *supervisor) tell(err error) {
	if err != nil {
		v.log.LogAttrs(context.Background(), slog.LevelWarn, "systemd was not told", slog.Any("error", err))
	}
}

// reap waits for what the kernel gave to process 1. While a program is being started it might take what belongs to that:
// the command may be built first.
func (v *supervisor) reap() {
	if os.Getpid() == 1 && (v.starting == nil || v.starting.successor != nil) {
		proc.ReapOrphans(v.owns)
	}
}

// owns tells whether a process is waited for already.
func (v *supervisor) owns(pid int) bool {
	is := func(w *ward) bool { return w != nil && w.successor != nil && w.pid == pid }
	for w := range v.retired {
		if is(w) {
			return true
		}
	}
	return is(v.child) || is(v.starting)
}

// clear lets go of what the versions have given, at the end.
func (v *supervisor) clear() {
	if v.last == nil {
		return
	}
	for _, k := range v.last.estate {
		if s := k.label.Socket; s != nil && s.File != nil {
			_ = s.File.remove() // where it crashed; else it has done so itself
		}
	}
	v.last.clear()
}

// unclaimed are the sockets of systemd that the version which led last has not taken.
func (v *supervisor) unclaimed() (files []*os.File, err error) {
	for _, g := range v.given {
		if v.last.has(g.held) {
			continue
		}
		file, err := g.held.File(g.name)
		if err != nil {
			return files, err
		}
		files = append(files, file)
	}
	return files, nil
}

func (a wish) answer(err error) {
	if a.from == nil || a.from.successor == nil {
		return
	}
	_ = a.from.send(message{Do: doUpgraded, ID: a.id, Failure: failureOf(err)}, nil) // it may have ended
}

// startCode is the status after a start that failed, as a shell has it.
func startCode(err error) int {
	var failure *UpgradeError
	switch {
	case errors.As(err, &failure) && failure.PID != 0 && errors.Is(err, errNotReady):
		return 0
	case failure != nil && failure.PID != 0:
		return exitCode(err)
	case errors.Is(err, fs.ErrPermission):
		return 126
	}
	return 127
}

// exitCode is the status as a shell has it.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		return 1
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// hasTerminal tells whether this process has a controlling terminal.
func hasTerminal() bool {
	file, err := os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	_ = file.Close()
	return true
}
