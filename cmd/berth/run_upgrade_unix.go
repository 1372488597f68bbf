//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/envcfg"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/reload"
)

// readyTimeout is how long a new version may take, where the one before has said when it was ready.
const readyTimeout = time.Minute

// runReload supervises a program that uses package reload. That has the program make its own sockets, and keeps them.
func runReload(ctx context.Context, p *program, settings envcfg.Settings) error {
	config := reload.Config{
		Drain:  settings.Drain,
		Logger: settings.Config.Logger,
		Command: func() (*exec.Cmd, error) {
			return &exec.Cmd{Path: p.path, Args: p.argv, Env: slices.Clone(p.env)}, nil
		},
	}
	// The context ends with a signal, which the supervisor gets itself.
	code, over := reload.Supervise(context.WithoutCancel(ctx), config)
	switch {
	case !over:
		return errors.New("this is a version of a program under a supervisor already: run it without --upgrade")
	case code != 0:
		return &statusError{status: code}
	}
	return nil
}

// A supervisor has the versions of a program come and go on one socket. It holds that itself, so that clients wait, and are
// not refused, whatever the versions do. Its goroutine, which is that of supervise, owns the state.
type supervisor struct {
	program    *program
	log        *slog.Logger
	socket     *os.File
	readyAfter time.Duration
	drain      time.Duration
	dir        string // of notification sockets; "" where there is none

	current *version // serves; nil: it has ended
	next    *version // is to serve instead; nil: none
	retired *version // has been asked to end; nil: none
	speaks  bool     // the program says when it is ready
	wanted  bool     // an upgrade
	stopped bool     // asked to end, so no version is started any more
	code    int      // exit status of the last that served
	started int

	patience <-chan time.Time // for next
	drained  <-chan time.Time // for retired
	ready    chan *version
}

// A version is one start of the program.
type version struct {
	*child
	notify *net.UnixConn // nil: there is none
}

// supervise starts the program, and its next version with each SIGHUP, until the last one ends, whose exit status it returns.
func supervise(p *program, l *lease, settings envcfg.Settings, readyAfter time.Duration) (_ int, err error) {
	runtime.LockOSThread() // see program.start
	defer runtime.UnlockOSThread()
	defer func() { err = errors.Join(err, l.close()) }()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	orphans, stop := reaper()
	defer stop()

	s := &supervisor{
		program: p, log: settings.Config.Logger, readyAfter: readyAfter, drain: max(settings.Drain, 0), ready: make(chan *version, 1),
	}
	// systemd, if it is there, knows this process, and each version has a socket of its own to say that it is ready.
	p.env = withoutVariables(p.env, "NOTIFY_SOCKET", "WATCHDOG_USEC")
	if s.dir, err = notifyDir(); err != nil {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, fmt.Sprintf("the program cannot say when it is ready: %v", err))
	} else {
		defer func() { _ = os.RemoveAll(s.dir) }() // nobody asks for what is left in the temporary directory
	}
	if s.socket, err = l.socketFile(); err != nil {
		return 0, err
	}
	defer s.socket.Close()
	watched, unwatch := context.WithCancel(context.Background())
	defer unwatch()
	go func() { s.tell(activation.Watchdog(watched, nil)) }()

	if s.current, err = s.start(); err != nil {
		return 0, err
	}
	s.patience = time.After(s.readyAfter)
	terminal := hasTerminal()
	for s.current != nil || s.next != nil || s.retired != nil {
		if s.wanted && !s.stopped && s.current != nil && s.next == nil && s.retired == nil {
			s.upgrade()
		}
		select {
		case sig := <-signals:
			if sig == syscall.SIGHUP && terminal && !hasTerminal() {
				sig = syscall.SIGTERM // it was closed
			}
			s.signal(sig.(syscall.Signal))
		case <-orphans:
			proc.ReapOrphans(s.owns)
		case v := <-s.ready:
			s.becameReady(v)
		case <-s.patience:
			s.patience = nil
			s.waited()
		case <-s.drained:
			s.drained = nil
			s.log.LogAttrs(context.Background(), slog.LevelWarn, fmt.Sprintf("killing the old version, pid %d, which has not ended in %v", s.retired.pid, s.drain))
			s.retired.kill()
		case <-s.current.ended():
			s.code = exitStatus(s.current.exit)
			s.current.close()
			s.current = nil
			if s.next != nil {
				s.promote("the old version has ended")
			}
		case <-s.next.ended():
			s.gaveUp(fmt.Sprintf("it ended with status %d before it was ready", exitStatus(s.next.exit)))
		case <-s.retired.ended():
			s.retired.close()
			s.retired, s.drained = nil, nil
		}
	}
	return s.code, nil
}

// ended is closed when the version has ended; nil for none.
func (v *version) ended() <-chan struct{} {
	if v == nil {
		return nil
	}
	return v.gone
}

func (v *version) signal(sig syscall.Signal) {
	if v != nil {
		_ = v.Process.Signal(sig) // it may have ended
	}
}

// kill ends it with all that it has started.
func (v *version) kill() {
	if v.notify != nil {
		_ = v.notify.Close()
	}
	v.signal(syscall.SIGKILL) // see child.await for the rest
}

func (v *version) close() {
	if v.notify != nil {
		_ = v.notify.Close()
	}
}

// start starts a version.
func (s *supervisor) start() (*version, error) {
	s.started++
	v := &version{}
	var add []string
	if s.dir != "" {
		path := filepath.Join(s.dir, fmt.Sprint(s.started))
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return nil, err
		}
		v.notify, add = conn, []string{"NOTIFY_SOCKET=" + path}
	}
	var err error
	if v.child, err = s.program.start(s.socket, add, true); err != nil {
		v.close()
		return nil, err
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, fmt.Sprintf("started %s, pid %d", filepath.Base(s.program.path), v.pid))
	if v.notify != nil {
		go s.listen(v)
	}
	return v, nil
}

// listen hears what a version tells systemd: that it is ready. A barrier (sd_notify_barrier) is a descriptor, which the
// kernel closes as nobody takes it.
func (s *supervisor) listen(v *version) {
	message := make([]byte, 4096)
	for told := false; ; {
		n, err := v.notify.Read(message)
		if err != nil {
			return
		}
		if !told && slices.Contains(strings.Split(string(message[:n]), "\n"), "READY=1") {
			told = true
			select {
			case s.ready <- v:
			case <-v.gone:
			}
		}
	}
}

func (s *supervisor) upgrade() {
	s.wanted = false
	s.tell(activation.Reloading())
	next, err := s.start()
	if err != nil {
		s.log.LogAttrs(context.Background(), slog.LevelError, fmt.Sprintf("the old version goes on: %v", err))
		s.tell(activation.Ready())
		return
	}
	s.next = next
	s.patience = time.After(s.readyAfter)
	if s.speaks {
		s.patience = time.After(readyTimeout)
	}
}

// becameReady takes note of what a version says.
func (s *supervisor) becameReady(v *version) {
	switch v {
	case s.current:
		s.speaks = true
		s.tell(activation.Ready())
	case s.next:
		s.speaks = true
		s.promote("it is ready")
	}
}

// waited is for a version that has not said anything for a while, and lives.
func (s *supervisor) waited() {
	switch {
	case s.next == nil: // it is the first
		if !s.speaks {
			s.tell(activation.Ready())
		}
	case s.speaks:
		s.gaveUp(fmt.Sprintf("it was not ready in %v", readyTimeout))
	default:
		s.promote(fmt.Sprintf("it has lived for %v", s.readyAfter))
	}
}

// promote has the next version serve alone.
func (s *supervisor) promote(why string) {
	s.log.LogAttrs(context.Background(), slog.LevelInfo, fmt.Sprintf("pid %d takes over: %s", s.next.pid, why))
	s.retired, s.current, s.next, s.patience = s.current, s.next, nil, nil
	s.tell(activation.Ready())
	if s.retired == nil { // it has ended
		return
	}
	s.retired.signal(syscall.SIGTERM)
	s.drained = time.After(s.drain)
}

// gaveUp ends a new version; the old one, if it is there, goes on.
func (s *supervisor) gaveUp(why string) {
	goesOn := "the old version goes on"
	if s.current == nil {
		goesOn = "nothing is left"
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, fmt.Sprintf("%s: the new one, pid %d, is none: %s", goesOn, s.next.pid, why))
	s.next.kill()
	<-s.next.gone
	s.next, s.patience = nil, nil
	s.tell(activation.Ready())
}

// signal acts on a signal, or passes it on.
func (s *supervisor) signal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGHUP:
		s.wanted = true
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT:
		if !s.stopped {
			s.tell(activation.Stopping())
		}
		s.stopped = true
		s.next.signal(sig)
		s.retired.signal(sig)
		s.current.signal(sig)
	default:
		s.current.signal(sig)
	}
}

// owns tells whether somebody waits for a process already.
func (s *supervisor) owns(pid int) bool {
	is := func(v *version) bool { return v != nil && v.pid == pid }
	return is(s.current) || is(s.next) || is(s.retired)
}

func (s *supervisor) tell(err error) {
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, fmt.Sprintf("systemd was not told: %v", err))
	}
}

// notifyDir is a directory for sockets that this user alone can reach. The path of a socket is at most 107 bytes long.
func notifyDir() (string, error) {
	const longest = 70
	parent := os.TempDir()
	if len(parent) > longest {
		parent = "/tmp"
	}
	return os.MkdirTemp(parent, "berth-")
}

// hasTerminal tells whether this process has a controlling terminal.
func hasTerminal() bool {
	file, err := os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	_ = file.Close() // it was only asked
	return true
}
