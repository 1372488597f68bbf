package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

func newCleanup(c console) *cobra.Command {
	s := cleaner{grace: 5 * time.Second}
	var asJSON bool
	var stateDir string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Stop orphans of earlier runs and remove stale records",
		Long: `Cleanup goes through the records of the state directory. An orphan is a process that goes on with the very socket of a
recorded service which has ended. It is asked to end. Then the stale records are removed. Services that run, and processes
that no record leads to, are left alone.

With --force, orphans that have not ended after the grace are killed, and recorded services are stopped that accept no
connection within it. Nothing makes cleanup stop what berth kill refuses to.

The exit status is 2 where there was nothing to do, and 3 where a process was not stopped by a rule.`,
		Example: "  berth cleanup\n  berth cleanup --force --dry-run",
		Args:    cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&s.force, "force", "f", false, "kill orphans that do not end, and stop services that do not respond")
	flags.Var(&span{&s.grace, time.Millisecond}, "grace", "time to end, and to accept a connection")
	addDryRun(flags, &s.dryRun)
	addStateDir(flags, &stateDir)
	addJSON(flags, &asJSON)

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s.log = slog.New(slog.DiscardHandler)
		if !asJSON {
			s.log = c.logger()
		}
		return c.sweep(c.stateDir(stateDir), s.dryRun, asJSON, func(records *registry.Dir, entry registry.Entry) (swept, error) {
			return s.clean(cmd.Context(), records, entry)
		})
	}
	return cmd
}

// A swept is what became of one record, in the documents of cleanup and reset.
type swept struct {
	Path    string `json:"path"`
	Network string `json:"network"`
	Address string `json:"address"` // "" where it is damaged
	Service string `json:"service"`
	PID     int    `json:"pid"` // 0 where it is damaged

	Record  string       `json:"record"`
	Action  string       `json:"action"`
	Stopped []holderJSON `json:"stopped"`
	Reason  string       `json:"reason"` // why it was kept, or what failed

	holders []strategy.Holder
}

// What a record is.
const (
	recordLive         = "live"
	recordStale        = "stale"
	recordOrphaned     = "orphaned" // stale, and somebody goes on with its socket
	recordUnresponsive = "unresponsive"
	recordDamaged      = "damaged" // or of a future version
)

// What was done.
const (
	actionKept    = "kept"
	actionRemoved = "removed"
	actionStopped = "stopped" // and the record removed
	actionRefused = "refused"
	actionFailed  = "failed"
)

type sweepJSON struct {
	DryRun  bool    `json:"dry_run"`
	Records []swept `json:"records"`
}

func sweptOf(entry registry.Entry) swept {
	return swept{
		Path: entry.Path, Network: entry.Network, Address: entry.Record.Address, Service: entry.Record.Name, PID: entry.Record.PID,
		Stopped: []holderJSON{}, Action: actionKept,
	}
}

// String is one line; what was only rehearsed says so.
func (s swept) line(dryRun bool) string {
	what := "record " + s.Path
	if s.Address != "" {
		what = fmt.Sprintf("record of %s (pid %d) for %s %s", cmp.Or(s.Service, "a service without a name"), s.PID, s.Network, s.Address)
	}
	did := func(done, would string) string {
		if dryRun {
			return "would " + would
		}
		return done
	}
	var text string
	switch s.Action {
	case actionRemoved:
		text = fmt.Sprintf("%s the %s %s", did("removed", "remove"), s.Record, what)
	case actionStopped:
		text = fmt.Sprintf("%s %v and %s the %s %s", did("stopped", "stop"), strategy.Diagnosis{Holders: s.holders}, did("removed", "remove"), s.Record, what)
	default:
		text = fmt.Sprintf("%s the %s %s", s.Action, s.Record, what)
	}
	if s.Reason != "" && s.Action != actionRefused && s.Action != actionFailed { // those go to stderr
		text += ": " + s.Reason
	}
	return printable.Text(text)
}

// sweep does one thing to every record of the state directory, and reports it.
func (c console) sweep(dir string, dryRun, asJSON bool, do func(*registry.Dir, registry.Entry) (swept, error)) error {
	document := sweepJSON{DryRun: dryRun, Records: []swept{}}
	var failures []error
	records, err := registry.Existing(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		entries, err := records.Entries("", 0, 0)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			s, err := do(records, entry)
			s.Stopped = holderDocuments(s.holders)
			if err != nil {
				s.Action, s.Reason = actionFailed, err.Error()
				if refused := (*holder.RefusedError)(nil); errors.As(err, &refused) {
					s.Action = actionRefused
				}
				failures = append(failures, err)
			}
			document.Records = append(document.Records, s)
		}
	}
	if asJSON {
		err = c.writeJSON(document)
	} else {
		err = writeSwept(c.stdout, document)
	}
	switch {
	case err != nil:
		return err
	case len(failures) > 0:
		return joined(failures)
	case !slices.ContainsFunc(document.Records, func(s swept) bool { return s.Action != actionKept }):
		return &statusError{status: statusNothing}
	}
	return nil
}

func writeSwept(w io.Writer, document sweepJSON) error {
	var text strings.Builder
	for _, s := range document.Records {
		text.WriteString(s.line(document.DryRun) + "\n")
	}
	if len(document.Records) == 0 {
		text.WriteString("no records\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// A cleaner stops what records lead to, and removes the stale ones.
type cleaner struct {
	force, dryRun bool
	grace         time.Duration
	log           *slog.Logger
}

func (c cleaner) clean(ctx context.Context, records *registry.Dir, entry registry.Entry) (swept, error) {
	s := sweptOf(entry)
	held := entry.Held()
	search, found := searchOf(records, entry)
	switch {
	case entry.Err != nil && held:
		s.Record, s.Reason = recordDamaged, "a process holds its lock"
		return s, nil
	case entry.Err != nil:
		s.Record = recordDamaged
	case held:
		s.Record, s.Reason = recordLive, "it runs"
		if !c.force || !found {
			return s, nil
		}
		accepts, err := accepts(ctx, entry.Record, c.grace)
		if accepts || err != nil {
			return s, err
		}
		s.Record, s.Reason = recordUnresponsive, ""
		if err := c.stop(ctx, search, &s); err != nil {
			return s, err
		}
	case found:
		owner, orphans := heirs(ctx, search, entry.Record)
		if owner {
			s.Record, s.Reason = recordLive, "it has its socket still, though not its lock"
			return s, nil
		}
		s.Record = recordStale
		if orphans {
			s.Record = recordOrphaned
			if err := c.stop(ctx, search, &s); err != nil {
				return s, err
			}
		}
	default:
		s.Record = recordStale
	}
	if s.Action == actionKept {
		s.Action = actionRemoved
	}
	if c.dryRun {
		return s, nil
	}
	return s, s.remove(entry.Remove)
}

// remove removes the record. One that somebody has locked since is his.
func (s *swept) remove(by func() error) error {
	err := by()
	switch {
	case errors.Is(err, registry.ErrHeld):
		s.Action, s.Reason = actionKept, "it has been taken since"
		return nil
	case err != nil:
		return fmt.Errorf("%w: remove it by hand", err)
	}
	return nil
}

// stop ends the holders of a record's address, or says whom it would stop.
func (c cleaner) stop(ctx context.Context, search holder.Search, s *swept) (err error) {
	if c.dryRun {
		s.holders, err = search.WouldStop(ctx, nil)
	} else {
		s.holders, err = search.StopBy(ctx, nil, holder.Means{Grace: c.grace, AskOnly: !c.force}, c.log)
	}
	var refused *holder.RefusedError
	var goesOn *holder.NotEndedError
	switch {
	case errors.As(err, &refused):
		return &explained{fmt.Sprintf("%s %s: %s", s.Network, s.Address, refusalOfStranger(refused)), err}
	case errors.As(err, &goesOn):
		return fmt.Errorf("%s %s: %w: --force kills it", s.Network, s.Address, err)
	case err != nil:
		return fmt.Errorf("%s %s: %w", s.Network, s.Address, err)
	case len(s.holders) > 0:
		s.Action = actionStopped
	}
	return nil
}

// refusalOfStranger is the reason of a refusal where a stranger shares the address.
func refusalOfStranger(e *holder.RefusedError) string {
	if e.Holder.Refusal != "" || e.Holder.PID == 0 {
		return e.Error()
	}
	return fmt.Sprintf("%v has the address too, and berth has no record of it: stop it yourself, or all of them by berth kill --any", e.Holder)
}

// searchOf asks who holds the address of a record; not found is an address that the table does not have.
func searchOf(records *registry.Dir, entry registry.Entry) (search holder.Search, found bool) {
	r := entry.Record
	target, ok := targetOfRecord(r)
	return holder.Search{Target: target, Records: records, AnyProgram: true}, ok && entry.Err == nil && r.Boot == proc.BootID()
}

func targetOfRecord(r registry.Record) (sockets.Target, bool) {
	if strings.HasPrefix(r.Network, "unix") {
		return sockets.TargetOf(r.Network, &net.UnixAddr{Net: r.Network, Name: r.Address})
	}
	at, err := netip.ParseAddrPort(r.Address)
	if err != nil {
		return sockets.Target{}, false
	}
	return sockets.TargetOf(r.Network, addrOf(r.Network, at.Addr().AsSlice(), int(at.Port())))
}

// heirs tells whether the owner of a stale record has its socket still, and whether others do who inherited it.
func heirs(ctx context.Context, search holder.Search, r registry.Record) (owner, orphans bool) {
	for _, h := range search.DiagnoseAll(ctx).Holders {
		switch {
		case h.PID == r.PID && startedAs(r):
			owner = true
		case h.Ours:
			orphans = true
		}
	}
	return owner, orphans
}

// startedAs tells whether the process that a record names is the one that has its pid now.
func startedAs(r registry.Record) bool {
	start, err := proc.Start(r.PID)
	return err == nil && start == r.Start
}

// accepts tells whether a service accepts a connection in time. The kernel completes connections on its behalf, so what counts
// is whether some process has its end of one. Of what is no TCP listener it is not asked.
func accepts(ctx context.Context, r registry.Record, patience time.Duration) (bool, error) {
	at, err := netip.ParseAddrPort(r.Address)
	if registry.Kind(r.Network) != "tcp" || err != nil {
		return true, nil
	}
	ip := at.Addr().Unmap()
	if ip.IsUnspecified() {
		loopback := netip.IPv6Loopback()
		if ip.Is4() || r.Network != "tcp6" {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		ip = loopback
	}
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(ip, at.Port()).String())
	if err != nil {
		// With its queue full, the kernel lets clients wait. Who refuses them does not listen, or not yet.
		return asked.Err() != nil || ctx.Err() == nil, asked.Err()
	}
	defer func() { _ = conn.Close() }() // nothing was written
	local, remote := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
	answer := make(chan struct{})
	go func() { // whoever speaks, or hangs up, has accepted
		defer close(answer)
		_, _ = conn.Read(make([]byte, 1))
	}()
	defer func() { <-answer }()
	defer func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }()
	const shortest, longest = time.Millisecond, 100 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		end, ok, err := sockets.Connection(remote, local)
		switch {
		case err != nil:
			return true, fmt.Errorf("%s %s: cannot tell whether it responds: %w", r.Network, r.Address, err)
		case ok && (end.Inode != 0 || end.PIDs != nil):
			return true, nil
		}
		select {
		case <-answer:
			return true, nil
		case <-ctx.Done():
			return !ok || asked.Err() != nil, asked.Err() // what the table does not show is no proof
		case <-time.After(pause):
		}
	}
}
