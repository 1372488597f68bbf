//go:build unix

package reload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
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
// Meanwhile it holds the sockets that the program gives to its Upgrader, so they are open while a version that has crashed is
// started again, after a pause that grows; it gives up when ten in a row did not become ready, or the very first.
// SIGHUP upgrades, also when it is sent to the program; other signals are passed on to it, and what ends the program then
// ends Supervise. When ctx ends, the program gets SIGTERM. What a version leaves behind in its process group is killed with
// it. As process 1 it also reaps the orphans that it is given. systemd is told of it, and not of its children.
//
// A program that has become a version by an upgrade, or has one above it, is never a supervisor. On systems without
// upgrades (Windows) it returns at once.
func Supervise(ctx context.Context, config Config) (code int, over bool) {
	if os.Getenv(sentinel) != "" && hasParent() {
		return 0, false
	}
	v := &supervisor{config: config, log: config.Logger, program: thisProgram(), started: make(chan trial), ended: make(chan *ward)}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if v.config.Command == nil {
		v.config.Command = v.program.command
	}
	return v.run(ctx), true
}

// A supervisor is the process above all versions. Its goroutine owns its state.
type supervisor struct {
	config  Config
	log     *slog.Logger
	program program

	child    *ward          // leads; nil while none does
	last     *ward          // led last: what it has given is for the next
	starting *ward          // is to lead next; nil: none
	retired  map[*ward]bool // drain
	failures int            // versions in a row that did not become ready
	code     int            // exit status of the last that led or failed to
	stopping bool
	wanted   bool    // an upgrade is asked for that has not begun
	asking   []*ward // who asked for it, or for the one that runs

	started chan trial
	ended   chan *ward
}

// A ward is a version under supervision.
type ward struct {
	*successor
	retires chan struct{} // it has stepped back

	mu     sync.Mutex
	estate map[string]passed // what it has given: the next version is to have that
}

// A trial is how the start of a version went.
type trial struct {
	ward *ward
	err  error
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
	asked := make(chan *ward)
	v.retired = map[*ward]bool{}
	defer v.clear()

	v.start(asked)
	var restart <-chan time.Time
	stop := ctx.Done()
	for {
		if v.stopping && v.child == nil && v.starting == nil {
			return v.code
		}
		if v.wanted && v.starting == nil && v.child != nil && len(v.retired) == 0 && !v.stopping {
			v.wanted = false
			v.tell(activation.Reloading())
			v.start(asked)
		}
		select {
		case sig := <-signals:
			v.signal(sig.(syscall.Signal))
		case <-stop:
			stop = nil
			v.signal(syscall.SIGTERM)
		case <-orphans:
			proc.ReapOrphans(v.owns)
		case w := <-asked:
			v.wanted, v.asking = true, append(v.asking, w)
		case t := <-v.started:
			if over := v.begun(t); over {
				return v.code
			}
			if v.child == nil && !v.stopping {
				restart = time.After(v.pause())
			}
		case w := <-v.ended:
			proc.ReapOrphans(v.owns)
			if v.retired[w] {
				delete(v.retired, w)
				continue
			}
			v.child = nil
			v.code = exitCode(w.exit)
			v.log.LogAttrs(ctx, slog.LevelInfo, "the program has ended", slog.Int("pid", w.pid), slog.Int("status", v.code))
			if v.code == 0 {
				v.stopping = true
			}
			switch {
			case v.starting != nil && v.stopping:
				go v.starting.kill() // reported as a trial that failed
			case v.starting == nil && !v.stopping:
				restart = time.After(v.pause())
			}
		case <-restart:
			restart = nil
			if v.child == nil && v.starting == nil && !v.stopping {
				v.start(asked)
			}
		}
	}
}

// signal passes a signal on, or acts on it.
func (v *supervisor) signal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGHUP:
		v.wanted = true
		return
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT:
		if !v.stopping {
			v.tell(activation.Stopping())
		}
		v.stopping = true
	}
	for _, w := range []*ward{v.child, v.starting} {
		if w != nil {
			w.signal(sig)
		}
	}
}

// start starts a version, which reports to started.
func (v *supervisor) start(asked chan<- *ward) {
	w := &ward{retires: make(chan struct{}, 1), estate: map[string]passed{}}
	old := v.child
	fail := func(err error) {
		go func() { v.started <- trial{w, &UpgradeError{Command: "the program", Err: err}} }()
	}
	v.starting = w
	cmd, err := v.config.Command()
	if err == nil {
		err = cmd.Err
	}
	if err != nil {
		fail(err)
		return
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = without(environment(cmd.Env, sentinel+"=yes"), "NOTIFY_SOCKET", "WATCHDOG_USEC") // systemd knows this process
	files, err := v.last.files()
	if err != nil {
		fail(err)
		return
	}
	begin := time.Now()
	ready := make(chan struct{}) // launch has returned
	w.successor, err = launch(cmd, files, message{Supervised: true}, func(m message, file *os.File) {
		<-ready
		switch m.Do {
		case doKeep:
			w.keep(m.Label, file)
		case doForget:
			w.forget(m.Label)
		case doRetire:
			select {
			case w.retires <- struct{}{}:
			default:
			}
		case doUpgrade:
			select {
			case asked <- w:
			case <-w.gone:
			}
		}
	})
	close(ready)
	if err != nil {
		fail(err)
		return
	}
	v.log.LogAttrs(context.Background(), slog.LevelInfo, "started the program", slog.String("command", cmd.Path), slog.Int("pid", w.pid))
	go func() {
		err := w.introduce(old, v.config.timeout())
		if err != nil {
			w.kill()
			w.release()
			err = &UpgradeError{Command: cmd.Path, PID: w.pid, Output: w.lines(), Err: err}
		} else {
			v.log.LogAttrs(context.Background(), slog.LevelInfo, "the program is ready", slog.Int("pid", w.pid), slog.Duration("after", time.Since(begin)))
		}
		v.started <- trial{w, err}
		if err == nil {
			<-w.gone
			w.release()
			v.ended <- w
		}
	}()
}

// introduce waits until the version is ready, and has it lead instead of the old one.
func (w *ward) introduce(old *ward, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	await := func(said <-chan struct{}) error {
		select {
		case <-said:
			return nil
		case <-w.gone:
			if w.exit == nil {
				return errNotReady
			}
			return fmt.Errorf("it ended before it was ready: %w", w.exit)
		case <-timer.C:
			return fmt.Errorf("it was not ready within %v: %w", timeout, context.DeadlineExceeded)
		}
	}
	if err := await(w.ready); err != nil {
		return err
	}
	if old != nil && old.send(message{Do: doRetire}, nil) == nil {
		select {
		case <-old.retires:
		case <-old.gone: // it could not say so
		case <-timer.C:
			return errors.New("the old version does not step back")
		}
	}
	err := w.lead(false)
	if err == nil {
		err = await(w.led)
	}
	if err != nil && old != nil {
		w.kill() // before the other one is in charge again
		_ = old.send(message{Do: doLead}, nil)
	}
	return err
}

// begun takes note of how a start went. It reports true where there is nothing left to supervise.
func (v *supervisor) begun(t trial) (over bool) {
	w := t.ward
	v.starting = nil
	answer := message{Do: doUpgraded}
	if t.err == nil {
		v.failures = 0
		if v.child != nil {
			v.retired[v.child] = true
		}
		if v.last != nil {
			v.last.clear()
		}
		v.child, v.last = w, w
		if v.stopping {
			w.signal(syscall.SIGTERM)
		}
		v.tell(activation.Ready())
	} else {
		answer.Error = t.err.Error()
		v.log.LogAttrs(context.Background(), slog.LevelError, "not ready", slog.Any("error", t.err))
		w.clear()
		v.failures++
		if v.child != nil {
			v.tell(activation.Ready())
			v.tell(activation.Status(t.err.Error()))
		} else if w.successor != nil {
			v.code = max(1, exitCode(w.exit))
		} else {
			v.code = 127 // as a shell says
		}
	}
	for _, asked := range v.asking {
		if asked.successor != nil {
			_ = asked.send(answer, nil) // it may have ended
		}
	}
	v.asking = nil
	const most = 10
	return t.err != nil && v.child == nil && (v.last == nil || v.failures >= most)
}

// pause grows from failure to failure, and begins at nothing: a version that ran and crashed is missed now.
func (v *supervisor) pause() time.Duration {
	if v.failures == 0 {
		return 0
	}
	return min(100*time.Millisecond<<min(v.failures-1, 10), 10*time.Second)
}

func (v *supervisor) tell(err error) {
	if err != nil {
		v.log.LogAttrs(context.Background(), slog.LevelWarn, "systemd was not told", slog.Any("error", err))
	}
}

// owns tells whether a process is waited for already.
func (v *supervisor) owns(pid int) bool {
	for _, w := range []*ward{v.child, v.starting} {
		if w != nil && w.successor != nil && w.pid == pid {
			return true
		}
	}
	for w := range v.retired {
		if w.pid == pid {
			return true
		}
	}
	return false
}

// clear ends what is left of all versions, at the end.
func (v *supervisor) clear() {
	for w := range v.retired {
		select {
		case <-w.gone:
		case <-time.After(v.config.drain()):
			w.kill()
		}
		<-v.ended
	}
	if v.last != nil {
		for _, f := range v.last.estate {
			if s := f.label.Socket; s != nil && s.File != nil {
				_ = s.File.remove() // it crashed, or has done so itself
			}
		}
		v.last.clear()
	}
}

func (w *ward) signal(sig syscall.Signal) {
	if w.successor == nil {
		return
	}
	w.successor.mu.Lock()
	defer w.successor.mu.Unlock()
	if !w.over {
		_ = syscall.Kill(w.pid, sig) // it is not reaped yet, so the pid is its own
	}
}

func (w *ward) keep(l *label, file *os.File) {
	if l == nil || file == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	key := l.encode()
	if old, ok := w.estate[key]; ok {
		_ = old.file.Close()
	}
	w.estate[key] = passed{*l, file}
}

func (w *ward) forget(l *label) {
	if l == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.estate[l.encode()]; ok {
		_ = old.file.Close()
		delete(w.estate, l.encode())
	}
}

// files are duplicates of what the version has given.
func (w *ward) files() ([]passed, error) {
	if w == nil {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var files []passed
	for _, f := range w.estate {
		file, err := descriptor.Duplicate(f.file, f.file.Name())
		if err != nil {
			closePassed(files)
			return nil, err
		}
		files = append(files, passed{f.label, file})
	}
	return files, nil
}

func (w *ward) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, f := range w.estate {
		_ = f.file.Close()
		delete(w.estate, key)
	}
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
