package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/listener"
)

func newDemo(c console) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work, in half a minute",
		Long: `Demo shows, with real processes on free ports of 127.0.0.1: a stale server that gives way to its next start, a port of
somebody else that is left alone, a diagnosis, and upgrades of a server while clients ask it, with the count of what they
lost. It leaves nothing behind. The exit status is 1 where something does not go as it tells.`,
		Example: "  berth demo",
		Args:    cobra.NoArgs,
	}
	addJSON(cmd.Flags(), &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s := &stage{ctx: cmd.Context(), out: c.stdout, paint: c.palette(c.stdout)}
		if asJSON {
			s.out = io.Discard
		} else if _, _, terminal := terminalSize(c.stdout); terminal {
			s.pause = 1500 * time.Millisecond // somebody reads
		}
		d, err := s.play()
		if err != nil {
			return err
		}
		if asJSON {
			err = c.writeJSON(d)
		}
		if err == nil && d.Failed > 0 {
			err = &statusError{status: statusFailed}
		}
		return err
	}
	return cmd
}

// A performance is the document of demo.
type performance struct {
	Failed   int       `json:"failed"`
	Steps    []finding `json:"steps"`
	Answered int       `json:"answered"` // requests of the upgrade
	Lost     int       `json:"lost"`     // of them, and connections that were closed without a word
}

// A stage is where the demo plays.
type stage struct {
	ctx   context.Context // of one demo, which the stage does not outlive
	out   io.Writer
	paint palette
	pause time.Duration // for whoever reads
	*clinic
	performance

	live *helper // has the port of the first steps
}

// say prints a line.
func (s *stage) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "     "+format+"\n", args...) // where it fails, the demo goes on for its exit status
}

// quote prints what a process said.
func (s *stage) quote(said string) {
	for line := range strings.Lines(strings.TrimSpace(said)) {
		s.say("%s", s.paint.paint(faint, "| "+printable.Text(strings.TrimRight(line, "\n"))))
	}
}

// read gives the reader time.
func (s *stage) read() { _ = sleep(s.ctx, s.pause) } // play looks at ctx

// play plays all steps. An error says that ctx ended, or that there is no stage.
func (s *stage) play() (performance, error) {
	dir, err := os.MkdirTemp("", "berth-demo-")
	if err != nil {
		return s.performance, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // in the temporary directory
	s.clinic = &clinic{s.ctx, filepath.Join(dir, "state")}
	defer func() {
		if s.live != nil {
			s.live.end()
		}
	}()
	steps := []struct {
		name string
		do   func() (string, error)
	}{
		{"A stale server gives way", s.stale},
		{"A port of somebody else is left alone", s.foreign},
		{"Who has the port, and what to do", s.diagnose},
		{"An upgrade under load", s.upgrade},
	}
	for i, step := range steps {
		_, _ = fmt.Fprintf(s.out, "%s  %s\n", s.paint.paint(bold, fmt.Sprintf("%d/%d", i+1, len(steps))), s.paint.paint(bold, step.name))
		s.read()
		begin := time.Now()
		detail, err := step.do()
		if s.ctx.Err() != nil {
			return s.performance, context.Cause(s.ctx)
		}
		f := finding{step.name, passed, detail, time.Since(begin).Milliseconds()}
		var cannot unableError
		switch {
		case errors.As(err, &cannot):
			f.Status, f.Detail = unable, err.Error()
			s.say("%s", s.paint.paint(yellow, f.Detail))
		case err != nil:
			s.Failed++
			f.Status, f.Detail = failed, err.Error()
			s.say("%s", s.paint.paint(red, "this went wrong: "+f.Detail))
		default:
			s.say("%s", s.paint.paint(green, detail))
		}
		s.Steps = append(s.Steps, f)
		_, _ = fmt.Fprintln(s.out)
		s.read()
	}
	return s.performance, nil
}

func (s *stage) stale() (string, error) {
	old, err := s.start(part{strategy: "development", name: "demo"})
	if err != nil {
		return "", err
	}
	defer old.end()
	port := portOf(old.address)
	s.say("A server, pid %d, listens on port %d. Say that you have forgotten it in another terminal.", old.pid(), port)
	s.say("Now you start it again, with strategy.Development():")
	s.read()
	if s.live, err = s.start(part{address: old.address, strategy: "development", name: "demo"}); err != nil {
		return "", err
	}
	s.quote(s.live.stderr.String())
	return fmt.Sprintf("Pid %d has port %d, and pid %d has ended. No kill, no lsof.", s.live.pid(), port, old.pid()), reclaimed(old, s.live)
}

func (s *stage) foreign() (string, error) {
	if s.live == nil {
		return "", errors.New("there is no server")
	}
	s.say("Another service wants the same port. It is not the same program, so it stops nobody:")
	s.read()
	other, err := s.start(part{address: s.live.address, strategy: "development", name: "another"})
	if err != nil {
		return "", err
	}
	defer other.end()
	s.quote(other.stderr.String())
	return fmt.Sprintf("Both serve: %d and %d.", portOf(s.live.address), portOf(other.address)), spared(s.live, other)
}

func (s *stage) diagnose() (string, error) {
	if s.live == nil {
		return "", errors.New("there is no server")
	}
	_, err := net.Listen("tcp", s.live.address)
	s.say("net.Listen says:")
	s.quote(fmt.Sprint(err))
	_, err = listener.Listen("tcp", s.live.address)
	s.say("listener.Listen, which takes its place, says:")
	s.quote(fmt.Sprint(err))
	begin := time.Now()
	report, inspectErr := s.inspect(s.live.address)
	if inspectErr != nil {
		return "", inspectErr
	}
	s.say("and `berth health %d`, in %v:", report.Port, time.Since(begin).Round(100*time.Microsecond))
	s.quote(report.String())
	if err == nil || !holds(report.Holders, s.live.pid()) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", s.live.pid())) {
		return "", fmt.Errorf("pid %d is not named", s.live.pid())
	}
	return "The error is still the one of net.Listen: errors.Is(err, syscall.EADDRINUSE).", nil
}

func (s *stage) upgrade() (string, error) {
	if !passesSockets {
		return "", unableError("this system passes no sockets to the next version of a program")
	}
	const upgrades = 3
	s.say("An HTTP server is replaced %d times while 12 clients ask it without rest. They never ask twice.", upgrades)
	pause := max(s.pause, 300*time.Millisecond)
	n := 0
	results, err := s.upgradeUnderLoad(upgrades, pause, func(pid int, soFar losstest.Results) {
		n++
		sum := soFar.Sum()
		s.say("kill -HUP: version %d, pid %d, has taken over; %d requests answered, %d lost", n+1, pid, sum.Answered, sum.Lost)
	})
	if err != nil {
		return "", err
	}
	sum := results.Sum()
	s.Answered, s.Lost = sum.Answered, sum.Lost
	if sum.Lost > 0 || sum.Answered == 0 {
		return "", errors.New(results.String())
	}
	return fmt.Sprintf("%d requests answered by %d versions. Lost: %d.", sum.Answered, len(results[0].PIDs), sum.Lost), nil
}
