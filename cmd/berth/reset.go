package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/internal/registry"
)

func newReset(c console) *cobra.Command {
	var force, dryRun, asJSON bool
	var stateDir string
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove stale locks and records; stop nobody",
		Long: `Reset removes the locks and records that no running service has. A record is kept while some process goes on with the socket
in it, as it is how berth cleanup finds that one.

With --force it removes all, and says whose they are: these services go on, but no other berth process sees their lock,
and berth has no record of them any more.

The exit status is 2 where there was nothing to remove.`,
		Example: "  berth reset --dry-run\n  berth reset --force",
		Args:    cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&force, "force", "f", false, "remove also those of services that run")
	addDryRun(flags, &dryRun)
	addStateDir(flags, &stateDir)
	addJSON(flags, &asJSON)

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.sweep(c.stateDir(stateDir), dryRun, asJSON, func(records *registry.Dir, entry registry.Entry) (swept, error) {
			s, remove := reset(cmd.Context(), records, entry, force)
			if s.Action != actionRemoved || dryRun {
				return s, nil
			}
			if s.Reason != "" && !asJSON {
				fmt.Fprintln(c.stderr, "berth:", printable.Text(s.Reason)) // before it is done
			}
			return s, s.remove(remove)
		})
	}
	return cmd
}

// reset judges one record, and tells how it is removed where it is to be.
func reset(ctx context.Context, records *registry.Dir, entry registry.Entry, force bool) (s swept, remove func() error) {
	s = sweptOf(entry)
	r := entry.Record
	owner := fmt.Sprintf("pid %d (%s, in %s, since %s)", r.PID, r.Executable, r.Dir, r.Since.Format(time.DateTime))
	search, found := searchOf(records, entry)
	var why string // to keep it
	switch held := entry.Held(); {
	case entry.Err != nil:
		s.Record = recordDamaged
		if held {
			why = "a process holds its lock"
		}
	case held:
		s.Record, why = recordLive, owner+" holds its lock"
	default:
		s.Record = recordStale
		if !found {
			break
		}
		switch has, orphans := heirs(ctx, search, r); {
		case has:
			s.Record, why = recordLive, owner+" has its socket still"
		case orphans:
			s.Record, why = recordOrphaned, "a process goes on with its socket: berth cleanup stops it"
		}
	}
	switch {
	case why == "":
		s.Action = actionRemoved
		return s, entry.Remove
	case force:
		s.Action, s.Reason = actionRemoved, why+"; it goes on without"
		return s, entry.RemoveHeld
	}
	s.Reason = why
	return s, nil
}
