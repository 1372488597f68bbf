// Command benchmarks measures berth against bare net and against its peers, in one run: every round gives each of them
// the same job, and the medians of the rounds stand in one table.
//
//	go run .                  # all of it, into README.md
//	go run . -only Listen     # one experiment, to the screen only
//	go test -bench Listen     # the same jobs as Go benchmarks, for benchstat
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if play() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("benchmarks", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rounds := flags.Int("rounds", 15, "rounds whose median is taken")
	readme := flags.String("readme", "README.md", "file that gets the table between its markers; \"\" for none")
	only := flags.String("only", "", "run one experiment alone and write no file: Listen, FirstFree, PortToPID, Reclaim, Race, Activated, Accept, FrontDoor, Sendfile, Idle, Upgrade, Loss or CLI")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rounds < 1 {
		return errors.New("-rounds: at least one")
	}
	var parts []part
	for _, e := range experiments {
		if *only != "" && *only != e.name {
			continue
		}
		p, err := e.run(ctx, fullScale, *rounds, func(name string) { fmt.Fprintf(stderr, "%s/%s\n", e.name, name) })
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return fmt.Errorf("-only %s: there is no such experiment", *only)
	}
	text := report(parts, *rounds, thisMachine())
	if _, err := io.WriteString(stdout, text); err != nil {
		return err
	}
	if *readme == "" || *only != "" {
		return nil
	}
	return errors.Join(writeCharts(*readme, parts), writeBetweenMarkers(*readme, text))
}

// run prepares the experiment in a lab of its own and measures its rows, or its table.
func (e experiment) run(ctx context.Context, s scale, rounds int, begin func(name string)) (part, error) {
	l := &lab{scale: s}
	defer l.close()
	p := part{title: e.title}
	if e.table != nil {
		begin("table")
		var err error
		p.finding, err = e.table(ctx, l)
		return p, err
	}
	rows, err := e.prepare(l)
	if err != nil {
		return p, err
	}
	for _, r := range rows {
		begin(r.name)
		measured, err := measure(ctx, r, rounds)
		if err != nil {
			return p, err
		}
		p.results = append(p.results, measured)
	}
	return p, nil
}
