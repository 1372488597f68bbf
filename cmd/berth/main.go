// Command berth shows who has which port, frees ports, and gives programs of any language theirs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == becomeCommand { // see program.start
		os.Exit(become(os.Args[2:]))
	}
	os.Exit(execute(context.Background(), console{os.Stdin, os.Stdout, os.Stderr, os.Getenv}, os.Args[1:]))
}

// A console is where a command reads and writes.
type console struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
}

// Exit statuses; `berth help exit-status` explains them.
const (
	statusDone    = 0
	statusFailed  = 1
	statusNothing = 2 // nothing there: no holder, no free port, no record
	statusRefused = 3 // a rule forbids it
)

// A statusError ends a command with a status. With a nil Err nothing is printed.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// execute runs the command line and returns the exit status.
func execute(ctx context.Context, c console, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(c)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return statusDone
	}
	var status *statusError
	if !errors.As(err, &status) {
		status = &statusError{statusFailed, err}
	}
	if status.err != nil {
		fmt.Fprintln(c.stderr, "berth:", status.err)
	}
	return status.status
}

func newRoot(c console) *cobra.Command {
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Who has which port, and what to do about it",
		Long:          rootLong,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       programVersion(),
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help shows the flags", err, cmd.CommandPath())
	})
	root.AddCommand(newRun(c), newDoctor(c), newDemo(c), newHelper(c))
	root.AddCommand(newStatus(c), newHealth(c), newFind(c), newKill(c), newCleanup(c), newReset(c), newServe(c), newMan(c), newExitStatus())
	return root
}
