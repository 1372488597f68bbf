package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

func newKill(c console) *cobra.Command {
	k := killer{grace: 5 * time.Second}
	var asJSON bool
	var stateDir, signal string
	cmd := &cobra.Command{
		Use:   "kill PORT...",
		Short: "Stop whoever has a port, and wait until it can be bound",
		Long: `Kill asks every process that holds a socket of the port to end, kills who has not ended after the grace, and waits until the
port can be bound. Of one port, all holders are stopped or none.

Without --any it stops what berth has a record of: services that were started through berth, and what inherited their
sockets. With --any it stops any process of this user. No flag makes it stop pid 1, its own ancestors (shell, editor), a
process of another user, what systemd or a container runtime manages, or a client whose connection happens to use the
port: then the exit status is 3, and the message says what to do instead.

The exit status is 2 where nobody has any of the ports.`,
		Example: "  berth kill 3000\n  berth kill --any --grace 0s 3000 8080\n  berth kill --dry-run 3000",
		Args:    somePorts,
	}
	flags := cmd.Flags()
	addChoice(cmd, &signal, "signal", "asks them to end: ", "TERM", "INT", "HUP", "QUIT", "KILL")
	flags.Var(&span{&k.grace, 0}, "grace", "time to end before they are killed; 0s kills at once")
	flags.BoolVar(&k.any, "any", false, "stop also what berth has no record of")
	addNetwork(cmd, &k.network, "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6")
	addDryRun(flags, &k.dryRun)
	addStateDir(flags, &stateDir)
	addJSON(flags, &asJSON)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ports, err := parsePorts(args)
		if err != nil {
			return err
		}
		k.signal = asking[signal]
		dir := c.stateDir(stateDir)
		c.warnOfRecords(dir)
		k.records, _ = registry.Existing(dir) // without records nothing is tracked
		k.log = slog.New(slog.DiscardHandler)
		if !asJSON {
			k.log = c.logger()
		}
		document := killJSON{DryRun: k.dryRun, Ports: []killedJSON{}}
		var failures []error
		for _, port := range ports {
			killed, err := k.kill(cmd.Context(), port)
			document.Ports = append(document.Ports, killed)
			if err != nil {
				failures = append(failures, err)
			}
			if !asJSON && err == nil {
				if _, err := fmt.Fprintln(c.stdout, killed); err != nil {
					return err
				}
			}
		}
		if asJSON {
			if err := c.writeJSON(document); err != nil {
				return err
			}
		}
		if len(failures) > 0 {
			return joined(failures)
		}
		if !slices.ContainsFunc(document.Ports, func(k killedJSON) bool { return k.Result != resultNothing }) {
			return &statusError{status: statusNothing}
		}
		return nil
	}
	return cmd
}

// joined is several failures as one, whose exit status is refused where all are.
func joined(failures []error) error {
	status := statusRefused
	for _, err := range failures {
		if refused := (*holder.RefusedError)(nil); !errors.As(err, &refused) {
			status = statusFailed
		}
	}
	lines := make([]string, len(failures))
	for i, err := range failures {
		lines[i] = printable.Text(err.Error())
	}
	return &statusError{status, errors.New(strings.Join(lines, "\nberth: "))}
}

// asking are the signals that end a process which has no other use for them. Those that Windows does not have do what the
// others do there: nothing asks a process to end.
var asking = map[string]syscall.Signal{
	"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT, "KILL": syscall.SIGKILL,
}

type killer struct {
	network     string
	signal      syscall.Signal
	grace       time.Duration // 0 kills at once
	any, dryRun bool
	records     *registry.Dir // nil: none
	log         *slog.Logger
}

// What became of a port.
const (
	resultStopped   = "stopped"
	resultWouldStop = "would stop"
	resultNothing   = "nothing" // nobody has it
	resultRefused   = "refused"
	resultFailed    = "failed"
)

type killJSON struct {
	DryRun bool         `json:"dry_run"`
	Ports  []killedJSON `json:"ports"`
}

type killedJSON struct {
	Network string       `json:"network"`
	Port    int          `json:"port"`
	Result  string       `json:"result"`
	Stopped []holderJSON `json:"stopped"` // whom it stopped, or would stop
	Reason  string       `json:"reason"`  // why it refused or failed

	holders []strategy.Holder
}

// String is one line.
func (k killedJSON) String() string {
	what := fmt.Sprintf("%s port %d", k.Network, k.Port)
	who := printable.Text(strategy.Diagnosis{Holders: k.holders}.String())
	switch k.Result {
	case resultStopped:
		return fmt.Sprintf("%s is free: stopped %s", what, who)
	case resultWouldStop:
		return fmt.Sprintf("%s: would stop %s", what, who)
	case resultNothing:
		return fmt.Sprintf("%s: nobody has it", what)
	}
	return fmt.Sprintf("%s: %s", what, k.Reason)
}

// kill frees one port.
func (k *killer) kill(ctx context.Context, port int) (killedJSON, error) {
	killed := killedJSON{Network: k.network, Port: port, Result: resultNothing, Stopped: []holderJSON{}}
	err := k.free(ctx, port, &killed)
	var refused *holder.RefusedError
	switch {
	case errors.As(err, &refused):
		killed.Result = resultRefused
		text := refusal(refused)
		if len(killed.holders) > 0 {
			text = fmt.Sprintf("stopped %v, and then: %s; whatever starts it again has to be stopped first", strategy.Diagnosis{Holders: killed.holders}, text)
		}
		err = &explained{fmt.Sprintf("%s port %d: %s", k.network, port, text), err}
	case err != nil:
		killed.Result = resultFailed
		err = fmt.Errorf("%s port %d: %w", k.network, port, err)
	case len(killed.holders) > 0 && k.dryRun:
		killed.Result = resultWouldStop
	case len(killed.holders) > 0:
		killed.Result = resultStopped
	}
	if err != nil {
		killed.Reason = err.Error()
	}
	killed.Stopped = holderDocuments(killed.holders)
	return killed, err
}

// explained is an error in the words of the command line.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }

// refusal is the reason for a refusal, where no rule forbids it with the flag that does.
func refusal(e *holder.RefusedError) string {
	if e.Holder.Refusal != "" || e.Holder.PID == 0 {
		return e.Error()
	}
	return fmt.Sprintf("%v is not stopped: berth has no record of it; --any stops it all the same", e.Holder)
}

// free stops the holders of a port until it can be bound.
func (k *killer) free(ctx context.Context, port int, killed *killedJSON) error {
	// After a round the port is free, or about to be, as a socket can outlive its process by a moment, or somebody has taken
	// it since: whom the next round refuses to stop, as it is newer than this process.
	const patience, longest = 5 * time.Second, 50 * time.Millisecond
	var stopped time.Time
	for pause := time.Millisecond; ; pause = min(2*pause, longest) {
		_, bindErr := bind(ctx, k.network, net.JoinHostPort("", strconv.Itoa(port)))
		targets, err := targetsOf(k.network, port, bindErr)
		if err != nil {
			return err
		}
		if len(targets) == 0 {
			return nil
		}
		for _, target := range targets {
			holders, err := k.stop(ctx, target)
			killed.holders = append(killed.holders, holders...)
			if err != nil {
				return err
			}
		}
		switch {
		case k.dryRun && len(killed.holders) > 0:
			return nil
		case stopped.IsZero() && !k.dryRun:
			stopped = time.Now()
			continue // at once: usually it is free by now
		case k.dryRun, time.Since(stopped) > patience:
			return fmt.Errorf("it cannot be bound, and nobody is seen who could be stopped (%w): sudo berth health %d", bindErr, port)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// targetsOf are the addresses that have to be freed for a port, given what became of an attempt to bind it.
func targetsOf(network string, port int, bindErr error) ([]sockets.Target, error) {
	all, ok := sockets.TargetOf(network, addrOf(network, nil, port))
	if !ok {
		return nil, net.UnknownNetworkError(network)
	}
	var targets []sockets.Target
	switch {
	case bindErr == nil:
	case errors.Is(bindErr, fs.ErrPermission): // of a port that is not for this user: the table has to tell
		inTheWay, err := sockets.InTheWay(all)
		if err != nil {
			return nil, err
		}
		if len(inTheWay) > 0 && inTheWay[0].State != sockets.Connected {
			targets = append(targets, all)
		}
	default:
		targets = append(targets, all)
	}
	// On some systems one can listen on all interfaces, and another on one of them.
	listed, err := sockets.List(registry.Kind(network), uint16(port), uint16(port))
	for _, s := range listed {
		ip := s.Local.Addr()
		if all.Conflicts(s) || ip.Is4() && !all.V4 || ip.Is6() && !all.V6 {
			continue
		}
		if target, ok := sockets.TargetOf(network, addrOf(network, ip.AsSlice(), port)); ok {
			targets = append(targets, target)
		}
	}
	return targets, err
}

func addrOf(network string, ip net.IP, port int) net.Addr {
	if registry.Kind(network) == "udp" {
		return &net.UDPAddr{IP: ip, Port: port}
	}
	return &net.TCPAddr{IP: ip, Port: port}
}

func (k *killer) stop(ctx context.Context, target sockets.Target) ([]strategy.Holder, error) {
	search := holder.Search{Target: target, Records: k.records, AnyProgram: true}
	var allow func(strategy.Holder) bool
	if k.any {
		allow = strategy.AnyOfMine
	}
	if k.dryRun {
		return search.WouldStop(ctx, allow)
	}
	grace := k.grace
	if grace == 0 {
		grace = -1
	}
	return search.StopBy(ctx, allow, holder.Means{Signal: k.signal, Grace: grace}, k.log)
}
