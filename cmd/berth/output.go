package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/strategy"
)

// What all commands share: flags, arguments, tables, JSON and colour.

// defaultRanges are the ports of development servers, as envcfg has them.
const defaultRanges = "3000-3010,8000-8010,9000-9010"

func addJSON(flags *pflag.FlagSet, asJSON *bool) {
	flags.BoolVar(asJSON, "json", false, "print one JSON document; docs/cli.md has its schema")
}

func addDryRun(flags *pflag.FlagSet, dryRun *bool) {
	flags.BoolVarP(dryRun, "dry-run", "n", false, "say what would be done, and do nothing")
}

// addStateDir adds the flag; [console.stateDir] makes a directory of it.
func addStateDir(flags *pflag.FlagSet, dir *string) {
	flags.StringVar(dir, "state-dir", "", "`directory` of locks and records (default: BERTH_STATE_DIR, else the user's)")
}

// stateDir is the state directory that a flag names, else the environment, else "", the default of the user.
func (c console) stateDir(flag string) string { return cmp.Or(flag, c.getenv("BERTH_STATE_DIR")) }

// addChoice adds a flag that takes one of some values, the first where it is not given, and completes them.
func addChoice(cmd *cobra.Command, value *string, name, usage string, values ...string) {
	*value = values[0]
	cmd.Flags().Var(&choice{value, values}, name, usage+strings.Join(values, ", "))
	complete := cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
	_ = cmd.RegisterFlagCompletionFunc(name, complete) // it fails for flags that are missing, or registered twice
}

// addNetwork adds the flag for one of the networks.
func addNetwork(cmd *cobra.Command, network *string, networks ...string) {
	addChoice(cmd, network, "network", "one of ", networks...)
}

// A choice is a flag that takes one of some values.
type choice struct {
	value  *string
	values []string
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return "name" }
func (c *choice) Set(text string) error {
	for _, v := range c.values {
		if strings.EqualFold(v, text) {
			*c.value = v
			return nil
		}
	}
	return fmt.Errorf("use one of %s", strings.Join(c.values, ", "))
}

// A span is a flag for a duration that is not negative.
type span struct {
	value *time.Duration
	least time.Duration
}

func (s *span) String() string { return s.value.String() }
func (s *span) Type() string   { return "duration" }
func (s *span) Set(text string) error {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return errors.New("write a number with its unit, such as 500ms, 5s or 1m")
	case d < s.least:
		return fmt.Errorf("the least is %v", s.least)
	}
	*s.value = d
	return nil
}

// parsePorts reads arguments that are one port each. Each counts once.
func parsePorts(args []string) ([]int, error) {
	var ports []int
	seen := map[int]bool{}
	for _, arg := range args {
		port, err := parsePort(arg)
		if err != nil {
			return nil, err
		}
		if !seen[port] {
			seen[port] = true
			ports = append(ports, port)
		}
	}
	return ports, nil
}

func parsePort(text string) (int, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is not a port: use a number from 1 to 65535", text)
	}
	return int(port), nil
}

// parseRanges reads arguments such as "3000-3010" and "8000,9000-9010"; without any it is defaultRanges.
func parseRanges(args []string) ([]strategy.Range, error) {
	if len(args) == 0 {
		args = []string{defaultRanges}
	}
	for _, arg := range args {
		if _, err := strategy.ParseRanges(arg); err != nil {
			return nil, errors.New(strings.TrimPrefix(err.Error(), "strategy: "))
		}
	}
	return strategy.ParseRanges(strings.Join(args, ","))
}

// writeJSON writes the one document of a command.
func (c console) writeJSON(document any) error {
	encoder := json.NewEncoder(c.stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(document)
}

// A style is what a terminal shows text in: parameters of the control sequence SGR.
type style string

const (
	plain  style = ""
	bold   style = "1"
	faint  style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// A palette paints text where it may.
type palette bool

func (p palette) paint(s style, text string) string {
	if !p || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// palette is that of a writer, which is c's stdout or stderr: colour is for terminals that want it.
func (c console) palette(w io.Writer) palette {
	return palette(c.getenv("NO_COLOR") == "" && c.controllable(w))
}

// controllable tells whether a writer is a terminal that takes control sequences. The console of Windows has to be told to; it
// is not.
func (c console) controllable(w io.Writer) bool {
	_, _, terminal := terminalSize(w)
	return terminal && c.getenv("TERM") != "dumb" && runtime.GOOS != "windows"
}

// terminalSize tells whether w is a terminal and how much it shows; 0 where that is unknown.
func terminalSize(w io.Writer) (columns, lines int, terminal bool) {
	file, ok := w.(*os.File)
	if !ok {
		return 0, 0, false
	}
	conn, err := file.SyscallConn() // Fd would make it blocking, for others too
	if err != nil {
		return 0, 0, false
	}
	err = conn.Control(func(fd uintptr) {
		if terminal = term.IsTerminal(int(fd)); terminal {
			columns, lines, _ = term.GetSize(int(fd)) // 0 where it fails
		}
	})
	return columns, lines, terminal && err == nil
}

// A cell is a field of a table.
type cell struct {
	text  string
	style style
}

// cells are texts in no particular style.
func cells(texts ...string) []cell {
	row := make([]cell, len(texts))
	for i, text := range texts {
		row[i].text = text
	}
	return row
}

// A table has columns as wide as they need to be, two spaces apart, the first row being the heads. Empty cells show "-".
type table [][]cell

// lines are those of the table, cut to so many columns of a terminal, 0 not at all.
func (t table) lines(p palette, columns int) []string {
	var widths []int
	for _, row := range t {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.shown()))
		}
	}
	lines := make([]string, len(t))
	for n, row := range t {
		var b strings.Builder
		at := 0 // columns written
		for i, c := range row {
			text, s := c.shown(), c.style
			if n == 0 {
				s = bold
			}
			if columns > 0 && at+utf8.RuneCountInString(text) > columns {
				text = string([]rune(text)[:max(columns-at, 0)])
			}
			b.WriteString(p.paint(s, text))
			if i == len(row)-1 {
				break
			}
			pad := widths[i] - utf8.RuneCountInString(text) + 2
			if at += widths[i] + 2; columns > 0 && at >= columns {
				break
			}
			b.WriteString(strings.Repeat(" ", pad))
		}
		lines[n] = b.String()
	}
	return lines
}

func (c cell) shown() string { return cmp.Or(printable.Text(c.text), "-") }

// age is a duration for people, to two digits or so: "45s", "12m", "5h", "3d".
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s" // the clock was set
	case d < 2*time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 2*day:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/day)) + "d"
}

// A holderJSON is a process in every document that has some.
type holderJSON struct {
	PID        int        `json:"pid"` // 0: not to be seen
	UID        int        `json:"uid"` // -1: unknown
	User       string     `json:"user"`
	Command    string     `json:"command"`
	Executable string     `json:"executable"`
	Dir        string     `json:"dir"`
	Args       []string   `json:"args"`
	Started    *time.Time `json:"started"` // null: unknown
	Address    string     `json:"address"`
	State      string     `json:"state"`
	Unit       string     `json:"unit"`
	UserUnit   bool       `json:"user_unit"`
	Container  string     `json:"container"`
	Reserved   bool       `json:"reserved"`
	Service    string     `json:"service"` // for which it is reserved
	Until      *time.Time `json:"until"`   // null: nothing says so
	Refusal    string     `json:"refusal"` // "": no rule forbids to stop it
}

func holderDocument(h strategy.Holder) holderJSON {
	return holderJSON{
		PID: h.PID, UID: h.UID, User: h.User, Command: h.Command, Executable: h.Executable, Dir: h.Dir,
		Args: list(h.Args), Started: known(h.Started), Address: h.Address, State: h.State,
		Unit: h.Unit, UserUnit: h.UserUnit, Container: h.Container,
		Reserved: h.Reserved, Service: h.Service, Until: known(h.Until), Refusal: h.Refusal,
	}
}

// known is a time, nil where that is zero.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func holderDocuments(holders []strategy.Holder) []holderJSON {
	documents := make([]holderJSON, len(holders))
	for i, h := range holders {
		documents[i] = holderDocument(h)
	}
	return documents
}

// list is a slice that JSON shows as a list, also where it is empty.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// logger reports what the packages below do, on stderr, a message a line.
func (c console) logger() *slog.Logger { return slog.New(messages{c.stderr}) }

// messages is a handler for people: the messages say it all, and attributes are for machines.
type messages struct{ w io.Writer }

func (messages) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (m messages) Handle(_ context.Context, r slog.Record) error {
	_, err := fmt.Fprintln(m.w, "berth:", r.Message)
	return err
}
func (m messages) WithAttrs([]slog.Attr) slog.Handler { return m }
func (m messages) WithGroup(string) slog.Handler      { return m }
