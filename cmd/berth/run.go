package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/envcfg"
	"github.com/berth-go/berth/internal/descriptor"
	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// Statuses of a program that did not start, as a shell has them.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// How a program comes to its next version.
const (
	upgradeNone   = ""
	upgradeAny    = "any"    // started once more on the same socket
	upgradeReload = "reload" // by package reload
)

// runOptions are the flags of run.
type runOptions struct {
	port       string // "": as the environment says
	ranges     string
	host       string
	strategy   string
	name       string
	stateDir   string
	portOnly   bool
	upgrade    string
	readyAfter time.Duration
}

func newRun(c console) *cobra.Command {
	o := runOptions{readyAfter: time.Second}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "Give a program its port",
		Long: `Run obtains a port and starts a program on it, in any language.

The program gets the listening socket as descriptor 3, by the protocol of systemd (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES),
and the number of the port as PORT. A program that knows PORT alone binds it itself: give it --port-only.

Where the port is taken, the environment decides what happens, as for programs that use the library (APP_ENV,
BERTH_STRATEGY, ...; docs/environment.md), or --strategy does. With --range the program moves to the first free port of it.

Signals are passed on, and the exit status is that of the program, 128 and more for a signal.

With --upgrade, SIGHUP starts the program once more on the same socket. When the new one is ready, the old one gets SIGTERM.
docs/cli.md says what is guaranteed.`,
		Example: `  berth run --port 3000 -- python3 server.py
  berth run --range 3000-3010 --port-only -- npm run dev
  berth run --port 8080 --upgrade -- ./server`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), c, o, args) },
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows COMMAND is the program's
	flags.StringVarP(&o.port, "port", "p", "", "`port` to obtain, 0 for any free one (default: PORT, else 3000)")
	flags.StringVarP(&o.ranges, "range", "r", "", "`ports` to choose from, such as 3000-3010,8000-8010")
	flags.StringVar(&o.host, "host", "", "`address` or name to listen on (default: HOST, else all interfaces)")
	flags.StringVar(&o.strategy, "strategy", "", "some of wait, reclaim, fallback and failfast, separated by commas (default: as APP_ENV implies)")
	flags.StringVar(&o.name, "name", "", "`name` of the service, in records and as the socket's (default: one made of command and directory)")
	addStateDir(flags, &o.stateDir)
	flags.BoolVar(&o.portOnly, "port-only", false, "pass PORT and no socket; the program binds it itself")
	flags.Var(&choice{&o.upgrade, []string{upgradeAny, upgradeReload}}, "upgrade", "restart without a pause on SIGHUP; =reload for a program that uses package reload")
	flags.Lookup("upgrade").NoOptDefVal = upgradeAny
	flags.Var(&span{&o.readyAfter, 0}, "ready-after", "with --upgrade: when a program that does not say READY=1 counts as ready")
	return cmd
}

// check finds what is wrong with the flags.
func (o runOptions) check() error {
	if o.port != "" {
		if _, err := strconv.ParseUint(o.port, 10, 16); err != nil {
			return fmt.Errorf("--port %q: use a number from 0 to 65535", o.port)
		}
	}
	if o.ranges != "" {
		if _, err := parseRanges([]string{o.ranges}); err != nil {
			return fmt.Errorf("--range: %w", err)
		}
	}
	if strings.ContainsFunc(o.name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
		return fmt.Errorf("--name %q: use letters, digits and - . _ @", o.name)
	}
	if o.portOnly && o.upgrade == upgradeAny {
		return errors.New("--port-only and --upgrade exclude each other: without a socket that stays open there is no restart without a pause")
	}
	return nil
}

// environ is the environment of this process with what the flags say, in which the last of several counts.
func (o runOptions) environ() ([]string, error) {
	environ := os.Environ()
	set := func(name, value string) {
		if value != "" {
			environ = append(environ, name+"="+value)
		}
	}
	if o.port != "" || o.ranges != "" || o.host != "" {
		environ = append(environ, "LISTEN_ADDRESS=") // which would win
	}
	if o.ranges != "" {
		ranges, err := strategy.ParseRanges(o.ranges)
		if err != nil {
			return nil, err
		}
		set("PORT", strconv.Itoa(int(ranges[0].First)))
		set("PORT_RANGES", o.ranges)
		if before, err := envcfg.Load(environ); err == nil && before.Environment == envcfg.Production && os.Getenv("BERTH_STRATEGY") == "" {
			set("BERTH_STRATEGY", "fallback,failfast") // whoever names a range means it
		}
	}
	set("PORT", o.port)
	set("HOST", o.host)
	set("BERTH_STRATEGY", o.strategy)
	set("BERTH_NAME", o.name)
	set("BERTH_STATE_DIR", o.stateDir)
	return environ, nil
}

// run gives a program its port, and returns when that has ended.
func run(ctx context.Context, c console, o runOptions, argv []string) error {
	if err := o.check(); err != nil {
		return err
	}
	environ, err := o.environ()
	if err != nil {
		return err
	}
	settings, err := envcfg.Load(environ)
	if err != nil {
		return err
	}
	if c.getenv("BERTH_LOG") == "" {
		settings.Config.Logger = c.logger()
	}
	p, err := newProgram(c, argv)
	if err != nil {
		return err
	}
	if o.upgrade == upgradeReload {
		p.env = ownEnvironment(environ) // by which it makes its sockets
		return runReload(ctx, p, settings)
	}
	if settings.Network != "tcp" || strings.HasPrefix(settings.Address, "fd:") {
		return errors.New("run is for TCP ports: give --port, or unset LISTEN_ADDRESS")
	}
	if !o.portOnly && !passesSockets {
		return fmt.Errorf("this system passes no sockets to other programs (%w): use --port-only", errors.ErrUnsupported)
	}
	p.socketName = settings.Config.Name
	if settings.Config.Name == "" {
		settings.Config.Name = p.serviceName()
	}
	settings.Config.Strategy = p.knowing(settings.Config.Strategy, settings.Config)
	l, err := obtain(ctx, settings)
	if err != nil {
		return obtainError(err)
	}
	p.setAddress(settings.Address, l.ln.Addr())
	var code int
	if o.upgrade == upgradeAny {
		code, err = supervise(p, l, settings, o.readyAfter)
	} else {
		code, err = accompany(p, l, settings.Config.Logger, o.portOnly)
	}
	switch {
	case err != nil:
		return err
	case code != 0:
		return &statusError{status: code}
	}
	return nil
}

// obtainError has the exit status that tells why there is no port.
func obtainError(err error) error {
	var refused *holder.RefusedError
	switch {
	case errors.As(err, &refused):
		return &statusError{statusRefused, err}
	case errors.Is(err, syscall.EADDRINUSE):
		return &statusError{statusNothing, err}
	}
	return err
}

// A program is what run starts.
type program struct {
	console
	path       string // the executable
	argv       []string
	env        []string
	socketName string // "": none was given
}

func newProgram(c console, argv []string) (*program, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return nil, &statusError{startStatus(err), err}
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	return &program{console: c, path: path, argv: argv, env: ownEnvironment(os.Environ())}, nil
}

// ownEnvironment is an environment without what was meant for this process alone.
func ownEnvironment(environ []string) []string {
	return withoutVariables(environ, "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", descriptor.PassedVariable, "WATCHDOG_PID")
}

func withoutVariables(environ []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(names, name)
	})
}

// startStatus is the status after a program did not start, as a shell has it.
func startStatus(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return statusNotFound
	}
	return statusNotExecutable
}

// exitStatus is that of a program that has ended, as a shell has it.
func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		return statusFailed
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// setAddress tells the program where it listens. HOST is told only where somebody asked for one.
func (p *program) setAddress(requested string, obtained net.Addr) {
	host, port, err := net.SplitHostPort(obtained.String())
	if err != nil {
		return // the kernel's are well-formed
	}
	p.env = append(withoutVariables(p.env, "LISTEN_ADDRESS", "PORT"), "PORT="+port)
	if asked, _, err := net.SplitHostPort(requested); err == nil && asked != "" {
		p.env = append(withoutVariables(p.env, "HOST"), "HOST="+host)
	}
}

// serviceName is what makes two runs of one command in one directory the same service, and all others different ones. Every
// run is a run of berth, so the executable says nothing.
func (p *program) serviceName() string {
	dir, _ := os.Getwd() // without one, the command alone has to do
	sum := sha256.Sum256([]byte(dir + "\x00" + strings.Join(p.argv, "\x00")))
	return filepath.Base(p.argv[0]) + "-" + hex.EncodeToString(sum[:4])
}

// knowing is the strategy with a better knowledge of whose run a process is, where it is about ours. Every run has the same
// executable, berth, by which the rules would take one for another where no record tells its service; and a program that
// binds PORT itself does so on an address that its record need not have.
func (p *program) knowing(s strategy.Strategy, config listener.Config) strategy.Strategy {
	self, main := proc.Self(), proc.MainPackage(os.Getpid())
	ours := func(h strategy.Holder) bool {
		switch {
		case startedByRun(h, self, config):
			return true
		case h.Executable == self.Executable, main != "" && proc.MainPackage(h.PID) == main:
			return h.Ours && h.Dir == self.Dir && p.runs(h.Args)
		}
		return h.Ours
	}
	return strategy.Func(func(f strategy.Failure) strategy.Action {
		if diagnose := f.Diagnose; diagnose != nil {
			f.Diagnose = func() strategy.Diagnosis {
				d := diagnose()
				d.Holders = slices.Clone(d.Holders)
				for i, h := range d.Holders {
					d.Holders[i].Ours = ours(h)
				}
				return d
			}
		}
		action := s.Decide(f)
		if reclaim, ok := action.(strategy.Reclaim); ok && reclaim.Allow == nil {
			reclaim.Allow = ours
			return reclaim
		}
		return action
	})
}

// runs tells whether a command line of berth ends with this program's.
func (p *program) runs(args []string) bool {
	return len(args) > len(p.argv) && slices.Equal(args[len(args)-len(p.argv):], p.argv)
}

// startedByRun tells whether a holder is the program of an earlier run of this service, in this directory, or descends from
// it: a record says so of its port, and the process that the record names lives.
func startedByRun(h strategy.Holder, self proc.Process, config listener.Config) bool {
	_, port, err := net.SplitHostPort(h.Address)
	if err != nil || h.PID == 0 {
		return false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return false
	}
	records, err := registry.Existing(config.StateDir)
	if err != nil {
		return false
	}
	entries, err := records.Entries("tcp", uint16(number), uint16(number))
	if err != nil {
		return false
	}
	for _, e := range entries {
		r := e.Record
		if e.Err == nil && r.Boot == proc.BootID() && r.Name == config.Name && r.Dir != "" && r.Dir == self.Dir && descends(h.PID, r.PID, r.Start) {
			return true
		}
	}
	return false
}

// descends tells whether a process is, or descends from, the one with this pid and start.
func descends(pid, from int, start uint64) bool {
	const generations = 32
	for range generations {
		p, err := proc.Get(pid)
		switch {
		case err != nil || p.Start == 0 || p.Start < start:
			return false
		case p.PID == from:
			return p.Start == start
		}
		pid = p.PPID
	}
	return false
}

// sockets of the program, as LISTEN_FDS announces them. LISTEN_PID is set by the process that becomes the program.
func (p *program) listenEnv() []string {
	name := p.socketName
	if name == "" {
		name = "unknown" // what sd_listen_fds_with_names(3) calls one without a name
	}
	return []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=" + name}
}

// obtain has the listener made, and keeps hold of what it has.
func obtain(ctx context.Context, settings envcfg.Settings) (*lease, error) {
	l := &lease{stateDir: settings.Config.StateDir}
	config := settings.Config
	config.Sources = []listener.Source{l}
	set, err := passedToUs()
	if err != nil {
		return nil, err
	}
	config.Sources = append(config.Sources, set)
	if l.ln, err = config.Listen(ctx, settings.Network, settings.Address); err != nil {
		return nil, err
	}
	return l, nil
}
