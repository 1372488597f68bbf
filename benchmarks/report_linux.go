package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	us = time.Microsecond
	ms = time.Millisecond
)

// A part is what one experiment found.
type part struct {
	title   string
	results []result
	finding // instead of results
}

// A finding is what does not come in rows of times.
type finding struct {
	table string // in Markdown
	bars  []bars
}

// report is the whole table, in Markdown.
func report(parts []part, rounds int, machine string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. Medians of %d interleaved rounds.\n", machine, rounds)
	title := ""
	for _, p := range parts {
		if p.title != title { // else it goes on
			title = p.title
			fmt.Fprintf(&b, "\n### %s\n\n", title)
			if len(p.results)+len(p.bars) > 0 {
				fmt.Fprintf(&b, "![%s](%s)\n\n", title, chartFile(title))
			}
			if p.table != "" {
				b.WriteString(p.table)
				continue
			}
			b.WriteString("| | berth | bare | ratio | best peer | ratio | other peers | goal | met |\n")
			b.WriteString("| --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |\n")
		}
		for _, r := range p.results {
			b.WriteString("| " + strings.Join(r.cells(), " | ") + " |\n")
		}
	}
	return b.String()
}

func (r result) cells() []string {
	all := r.contestants()
	peer, peerRatio := "", ""
	var others []string
	best := r.peer()
	for i := 2; i < len(all); i++ {
		text := cell(r.medians[i], all[i].name)
		if i != best {
			others = append(others, text)
			continue
		}
		peer, peerRatio = text, times(r.ours(), r.medians[i].took)
	}
	met := "no"
	if r.goal.met(r) {
		met = "yes"
	}
	return []string{
		r.text, cell(r.medians[0], ""), cell(r.medians[1], all[1].name), times(r.ours(), r.bare()),
		peer, peerRatio, strings.Join(others, ", "), r.goal.text, met,
	}
}

func cell(o outcome, name string) string {
	text := format(o.took)
	if name != "" {
		text += " " + name
	}
	if o.failed > 0 {
		text += fmt.Sprintf(", %d failed", o.failed)
	}
	return text
}

func times(a, b time.Duration) string {
	if r := ratio(a, b); r < 0.095 {
		return fmt.Sprintf("%.3f", r)
	} else {
		return fmt.Sprintf("%.2f", r)
	}
}

// format has three digits, which is more than the noise leaves.
func format(d time.Duration) string {
	unit, name := us, "us"
	switch {
	case d >= time.Second:
		unit, name = time.Second, "s"
	case d >= ms:
		unit, name = ms, "ms"
	}
	value := float64(d) / float64(unit)
	switch text := fmt.Sprintf("%.3g", value); {
	case value >= 100: // %g would change to exponents
		return fmt.Sprintf("%.0f %s", value, name)
	default:
		return text + " " + name
	}
}

// thisMachine says what the figures depend on, and when they were taken.
func thisMachine() string {
	kernel := "unknown"
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		// The numbers alone: what follows them names the build of whoever packed it.
		kernel, _, _ = strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	}
	processes := 0
	if entries, err := os.ReadDir("/proc"); err == nil {
		for _, e := range entries {
			if strings.Trim(e.Name(), "0123456789") == "" {
				processes++
			}
		}
	}
	return fmt.Sprintf("%s: %s, %d cores, Linux %s, %s, %d processes before the start", time.Now().Format(time.DateOnly), cpu(),
		runtime.NumCPU(), kernel, runtime.Version(), processes)
}

func cpu() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // some architectures have no name in it
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

const (
	beginMarker = "<!-- figures: written by go run . -->\n"
	endMarker   = "<!-- end of figures -->\n"
)

// writeBetweenMarkers replaces what stands between the markers of a file.
func writeBetweenMarkers(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(old, []byte(beginMarker))
	_, after, ok2 := bytes.Cut(rest, []byte(endMarker))
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the markers %q and %q", path, beginMarker, endMarker)
	}
	return os.WriteFile(path, []byte(string(before)+beginMarker+"\n"+text+"\n"+endMarker+string(after)), 0o644)
}
