//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/descriptor"
	"github.com/berth-go/berth/internal/proc"
)

// passesSockets tells whether descriptors survive the start of another program.
const passesSockets = true

// becomeCommand is the first argument of the process that becomes the program: the child's pid, which LISTEN_PID has to be, is
// known to the child alone. main looks for it before anything else, so that no signal is taken from the program.
const becomeCommand = "become-program"

// become replaces this process by a program: the number of a pipe, the path and the arguments. The pipe is closed by the
// exec; where that fails, it gets the number of the error.
func become(args []string) int {
	const least = 3 // the pipe, the path and the name
	if len(args) < least {
		return statusFailed
	}
	pipe, err := strconv.Atoi(args[0])
	if err != nil {
		return statusFailed
	}
	syscall.CloseOnExec(pipe)
	env := os.Environ()
	if os.Getenv("LISTEN_FDS") != "" {
		env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	}
	err = syscall.Exec(args[1], args[2:], env)
	report := os.NewFile(uintptr(pipe), "pipe")
	if no := syscall.Errno(0); errors.As(err, &no) {
		_, _ = fmt.Fprint(report, int(no)) // without it the status has to do
	}
	return startStatus(err)
}

// A child is the program at work.
type child struct {
	*exec.Cmd
	pid  int
	gone chan struct{} // closed when it has ended
	exit error         // how; once gone is closed
}

// start starts the program, with a socket if not nil, and returns when it runs. The goroutine must be locked to its thread,
// and live as long as the program: on Linux the program gets SIGTERM when the thread ends, which is when this process is
// killed.
func (p *program) start(socket *os.File, add []string, alone bool) (*child, error) {
	self, err := ownPath()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := &exec.Cmd{Path: self, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, SysProcAttr: &syscall.SysProcAttr{Setpgid: alone}}
	endWithParent(cmd.SysProcAttr)
	cmd.Env = append(cmd.Env, p.env...)
	if socket != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, socket)
		cmd.Env = append(cmd.Env, p.listenEnv()...)
	}
	cmd.Env = append(cmd.Env, add...)
	const first = 3 // after the standard streams
	pipe := strconv.Itoa(first + len(cmd.ExtraFiles))
	cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	cmd.Args = append([]string{os.Args[0], becomeCommand, pipe, p.path}, p.argv...)
	err = cmd.Start()
	_ = w.Close() // the child has its own
	if err != nil {
		return nil, &statusError{statusNotExecutable, err}
	}
	reported, err := io.ReadAll(r) // until the exec
	if err == nil && len(reported) > 0 {
		_ = cmd.Wait() // it has ended
		no, _ := strconv.Atoi(string(reported))
		err = &os.PathError{Op: "exec", Path: p.path, Err: syscall.Errno(no)}
		return nil, &statusError{startStatus(err), err}
	}
	c := &child{Cmd: cmd, pid: cmd.Process.Pid, gone: make(chan struct{})}
	go c.await(alone)
	return c, nil
}

// ownPath is a path to this program that holds also when its file was replaced.
func ownPath() (string, error) {
	if runtime.GOOS == "linux" {
		if _, err := os.Stat("/proc/self/exe"); err == nil {
			return "/proc/self/exe", nil
		}
	}
	return os.Executable()
}

// await sees the end of the program. What it leaves in a process group of its own ends with it, before the number of the
// group can be another's.
func (c *child) await(alone bool) {
	if alone {
		if handle, err := proc.Open(c.pid); err == nil {
			_ = handle.Wait(context.Background())
			_ = handle.Close()
		}
		_ = syscall.Kill(-c.pid, syscall.SIGKILL) // it fails where nobody is left
	}
	c.exit = c.Wait()
	close(c.gone)
}

// socketFile is a duplicate of the socket for programs. They get it as systemd passes it: blocking. That is a property of the
// socket, which all that have it share, so it is set once, before the first program may want it otherwise.
func (l *lease) socketFile() (*os.File, error) {
	file, err := descriptor.Duplicate(l.ln, l.ln.Addr().String())
	if err != nil {
		return nil, err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	var held descriptor.Held
	controlErr := conn.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) })
	if err = errors.Join(err, controlErr); err == nil {
		held, err = descriptor.Hold(file)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(held), l.ln.Addr().String()), nil // which finds it blocking, and leaves it so
}

// early is when a program that fails has probably not done anything yet.
const early = 10 * time.Second

// passedOn are the signals that go to the program.
var passedOn = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// accompany starts the program and stays until it ends, with its exit status.
func accompany(p *program, l *lease, log *slog.Logger, portOnly bool) (_ int, err error) {
	runtime.LockOSThread() // see start
	defer runtime.UnlockOSThread()
	defer func() { err = errors.Join(err, l.close()) }()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)

	warn := func(err error) {
		if err != nil {
			log.LogAttrs(context.Background(), slog.LevelWarn, fmt.Sprintf("no record for the program: %v", err))
		}
	}
	var socket *os.File
	if portOnly {
		warn(l.leave()) // and so frees the port
		l.record.Inode = 0
	} else if socket, err = l.socketFile(); err != nil {
		return 0, err
	}
	begin := time.Now()
	running, err := p.start(socket, nil, false)
	if err != nil {
		return 0, errors.Join(err, closeFile(socket))
	}
	if !portOnly {
		warn(errors.Join(closeFile(socket), l.leave()))
	}
	warn(l.assign(running.pid))
	orphans, stop := reaper()
	defer stop()
	for {
		select {
		case sig := <-signals:
			// A terminal has told everybody in the foreground.
			if (sig == syscall.SIGINT || sig == syscall.SIGQUIT) && proc.Foreground() {
				continue
			}
			_ = running.Process.Signal(sig) // it may have ended
		case <-orphans:
			proc.ReapOrphans(func(pid int) bool { return pid == running.pid })
		case <-running.gone:
			code := exitStatus(running.exit)
			if !portOnly && 0 < code && code < 128 && time.Since(begin) < early {
				log.LogAttrs(context.Background(), slog.LevelInfo, "if the program says that the address is in use, it binds PORT itself: run it with --port-only")
			}
			return code, nil
		}
	}
}

func closeFile(file *os.File) error {
	if file == nil {
		return nil
	}
	return file.Close()
}

// reaper tells process 1 of children that have ended: it is given those whose parents have.
func reaper() (<-chan os.Signal, func()) {
	orphans := make(chan os.Signal, 1)
	if os.Getpid() == 1 {
		signal.Notify(orphans, syscall.SIGCHLD)
	}
	return orphans, func() { signal.Stop(orphans) }
}
