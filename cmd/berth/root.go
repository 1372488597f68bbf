//go:generate go test -run TestGenerated . -update

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// programVersion is that of the module, as `go install` knows it.
func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

const rootLong = `Berth shows who has which port, frees ports, and gives programs of any language theirs.

` + exitStatuses

// exitStatuses is indented as what manual pages leave as it is.
const exitStatuses = `Every command ends with one of these exit statuses:

    0  done
    1  error; of berth health also: a port is not healthy
    2  nothing there: no holder, no port that can be bound, no record to act on
    3  refused: a rule forbids to stop a process; the message says which

Of several, an error counts before a refusal. Berth run ends with the status of its command.`

// newExitStatus is no command but a topic of help.
func newExitStatus() *cobra.Command {
	return &cobra.Command{Use: "exit-status", Short: "What the exit statuses mean", Long: exitStatuses}
}

func newMan(c console) *cobra.Command {
	return &cobra.Command{
		Use:     "man DIRECTORY",
		Short:   "Write the manual pages into a directory",
		Long:    `Man writes a page for every command, in section 1, into a directory that it makes where it is missing.`,
		Example: "  berth man ~/.local/share/man/man1",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("where to? Write for example: berth man ~/.local/share/man/man1")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			header := &doc.GenManHeader{Section: "1", Source: "berth " + programVersion(), Manual: "berth"}
			cmd.Root().DisableAutoGenTag = true // it has the date of the day
			if err := doc.GenManTree(cmd.Root(), header, dir); err != nil {
				return err
			}
			pages, err := filepath.Glob(filepath.Join(dir, "berth*.1"))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.stdout, "%d pages in %s\n", len(pages), dir)
			return err
		},
	}
}
