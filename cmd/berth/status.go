package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

func newStatus(c console) *cobra.Command {
	var asJSON, watching bool
	var network, stateDir string
	interval := time.Second
	cmd := &cobra.Command{
		Use:   "status [RANGE...]",
		Short: "Show who has which port",
		Long: `Status shows every port of the ranges that is not free: its state, the processes that have it, and the service that berth
has a record of. It binds nothing and stops nobody.

Without a range it looks at ` + defaultRanges + `. A port is healthy where berth has a true record of its server,
in use where somebody else or a client has it, reserved where it is bound by somebody who does not listen, and locked where
a berth process has its lock and no socket.`,
		Example: "  berth status\n  berth status 1-65535\n  berth status --watch 3000-3010 8080",
	}
	flags := cmd.Flags()
	flags.BoolVarP(&watching, "watch", "w", false, "look again and again until Ctrl-C; on a terminal in place")
	flags.Var(&span{&interval, 10 * time.Millisecond}, "interval", "time between two looks of --watch")
	addNetwork(cmd, &network, "tcp", "udp")
	addStateDir(flags, &stateDir)
	addJSON(flags, &asJSON)
	cmd.MarkFlagsMutuallyExclusive("watch", "json")

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ranges, err := parsePortRanges(args)
		if err != nil {
			return err
		}
		o := inspect.Options{Network: network, Ranges: ranges, StateDir: c.stateDir(stateDir)}
		c.warnOfRecords(o.StateDir)
		ctx := cmd.Context()
		if watching {
			return c.watch(ctx, o, interval)
		}
		summary, err := inspect.System(ctx, o)
		if err != nil {
			return err
		}
		if asJSON {
			return c.writeJSON(statusDocument(o, summary))
		}
		_, err = fmt.Fprintln(c.stdout, strings.Join(statusLines(summary, c.palette(c.stdout), 0, time.Now()), "\n"))
		return err
	}
	return cmd
}

// parsePortRanges reads ranges of ports to look at, which "any free port" is not.
func parsePortRanges(args []string) ([]strategy.Range, error) {
	ranges, err := parseRanges(args)
	for _, r := range ranges {
		if r.First == 0 {
			return nil, errors.New(`port range "0": there is no port 0 to look at: use 1 to 65535`)
		}
	}
	return ranges, err
}

// warnOfRecords says why nothing is tracked, where the state directory is there and cannot be used.
func (c console) warnOfRecords(dir string) {
	if _, err := registry.Existing(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(c.stderr, "berth: records are not read:", err)
	}
}

// watch shows the status again and again. Its end by ctx is no failure.
func (c console) watch(ctx context.Context, o inspect.Options, interval time.Duration) error {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		summary, err := inspect.System(ctx, o)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		columns, height, _ := terminalSize(c.stdout)
		lines := statusLines(summary, c.palette(c.stdout), columns, time.Now())
		text := strings.Join(lines, "\n") + "\n\n"
		if c.controllable(c.stdout) {
			text = inPlace(lines, height)
		}
		if _, err := fmt.Fprint(c.stdout, text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}

// inPlace is what makes a terminal of so many lines show these and nothing else. The last line, the sum, is always seen.
func inPlace(lines []string, height int) string {
	if height > 1 && len(lines) >= height {
		kept := max(height-3, 0)
		more := fmt.Sprintf("... %d more", len(lines)-kept-1)
		lines = append(lines[:kept:kept], more, lines[len(lines)-1])
	}
	const home, clearLine, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	return home + strings.Join(lines, clearLine+"\n") + clearLine + "\n" + clearBelow
}

var stateStyles = map[inspect.State]style{
	inspect.Healthy: green, inspect.InUse: yellow, inspect.Reserved: yellow, inspect.Locked: red, inspect.Available: plain,
}

// statusLines are the table of the ports that are not free, and the sum.
func statusLines(summary inspect.Summary, p palette, columns int, now time.Time) []string {
	t := table{cells("PORT", "STATE", "PID", "COMMAND", "USER", "AGE", "SERVICE", "TRACKED", "DIRECTORY")}
	complete := true
	for _, r := range summary.Ports {
		if r.State != inspect.Available {
			t = append(t, statusRows(r, now)...)
		}
		complete = complete && r.Complete
	}
	var lines []string
	if len(t) > 1 {
		lines = append(t.lines(p, columns), "")
	}
	if !complete {
		lines = append(lines, "Some processes may not be looked into: root sees who they are.")
	}
	sum := fmt.Sprintf("%d ports: %d free, %d in use (%d tracked), %d locked", summary.Total, summary.Free, summary.InUse, summary.Tracked, summary.Locked)
	switch summary.Errors {
	case 0:
	case 1:
		sum += "; 1 record is out of date, see berth reset --dry-run"
	default:
		sum += fmt.Sprintf("; %d records are out of date, see berth reset --dry-run", summary.Errors)
	}
	return append(lines, sum)
}

// statusRows are a row for each holder of a port.
func statusRows(r inspect.Report, now time.Time) [][]cell {
	port, state := strconv.Itoa(r.Port), cell{string(r.State), stateStyles[r.State]}
	service := r.Service
	if !r.Until.IsZero() {
		service = strings.TrimSpace(service + " until " + r.Until.Format(time.TimeOnly))
	}
	tracked := "no"
	if r.State == inspect.Healthy {
		tracked = "yes"
	}
	if len(r.Holders) == 0 {
		row := cells(port, "", "", "", "", "", service, tracked, "")
		row[1] = state
		return [][]cell{row}
	}
	var rows [][]cell
	for _, h := range r.Holders {
		pid, since := "", ""
		if h.PID != 0 {
			pid = strconv.Itoa(h.PID)
		}
		if !h.Started.IsZero() {
			since = age(now.Sub(h.Started))
		}
		row := cells(port, "", pid, h.Command, h.User, since, service, tracked, h.Dir)
		row[1] = state
		rows = append(rows, row)
	}
	return rows
}

// A portJSON is a report in the documents of status and health.
type portJSON struct {
	Network         string       `json:"network"`
	Address         string       `json:"address"`
	Port            int          `json:"port"`
	State           string       `json:"state"`
	Tracked         bool         `json:"tracked"`
	Service         string       `json:"service"`
	Until           *time.Time   `json:"until"`
	Complete        bool         `json:"complete"`
	Holders         []holderJSON `json:"holders"`
	Records         []string     `json:"records"`
	Recommendations []string     `json:"recommendations"`
}

func portDocument(r inspect.Report) portJSON {
	return portJSON{
		Network: r.Network, Address: r.Address, Port: r.Port, State: string(r.State), Tracked: r.State == inspect.Healthy,
		Service: r.Service, Until: known(r.Until), Complete: r.Complete, Holders: holderDocuments(r.Holders),
		Records: list(r.Records), Recommendations: list(r.Recommendations),
	}
}

func portDocuments(reports []inspect.Report) []portJSON {
	documents := make([]portJSON, len(reports))
	for i, r := range reports {
		documents[i] = portDocument(r)
	}
	return documents
}

type statusJSON struct {
	Network string      `json:"network"`
	Ranges  []string    `json:"ranges"`
	Summary summaryJSON `json:"summary"`
	Ports   []portJSON  `json:"ports"`
}

type summaryJSON struct {
	Total   int `json:"total"`
	Free    int `json:"free"`
	InUse   int `json:"in_use"`
	Tracked int `json:"tracked"`
	Locked  int `json:"locked"`
	Errors  int `json:"errors"`
}

func statusDocument(o inspect.Options, s inspect.Summary) statusJSON {
	ranges := make([]string, len(o.Ranges))
	for i, r := range o.Ranges {
		ranges[i] = r.String()
	}
	return statusJSON{o.Network, ranges, summaryJSON{s.Total, s.Free, s.InUse, s.Tracked, s.Locked, s.Errors}, portDocuments(s.Ports)}
}
