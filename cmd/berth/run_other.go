//go:build !unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"time"

	"github.com/berth-go/berth/envcfg"
)

// passesSockets tells whether descriptors survive the start of another program.
const passesSockets = false

const becomeCommand = "become-program"

var errUpgrade = fmt.Errorf("run --upgrade: %w on %s", errors.ErrUnsupported, runtime.GOOS)

func become([]string) int { return statusNotExecutable }

func runReload(context.Context, *program, envcfg.Settings) error { return errUpgrade }

func supervise(_ *program, l *lease, _ envcfg.Settings, _ time.Duration) (int, error) {
	return 0, errors.Join(errUpgrade, l.close())
}

// accompany starts the program, which binds the port itself, and stays until it ends, with its exit status. An interrupt
// reaches every process of the console.
func accompany(p *program, l *lease, log *slog.Logger, _ bool) (_ int, err error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	defer signal.Stop(signals)
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.leave(); err != nil {
		log.LogAttrs(context.Background(), slog.LevelWarn, fmt.Sprintf("no record for the program: %v", err))
	}
	cmd := &exec.Cmd{Path: p.path, Args: p.argv, Env: p.env, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr}
	if err := cmd.Start(); err != nil {
		return 0, &statusError{startStatus(err), err}
	}
	return exitStatus(cmd.Wait()), nil
}
