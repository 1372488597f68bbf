package main

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"
)

// A group of bars is one job, done by several: each group has a scale of its own.
type bars struct {
	text string
	bars []bar
}

// A bar is what one of them took, or lost: shorter is better.
type bar struct {
	name  string
	kind  string // class in the style: "ours", "bare" or "peer"
	value float64
	label string
}

// bars are the row as a group.
func (r result) bars() bars {
	group := bars{text: strings.ReplaceAll(r.text, "`", "")}
	for i, c := range r.contestants() {
		kind := "peer"
		switch i {
		case 0:
			kind = "ours"
		case 1:
			kind = "bare"
		}
		group.bars = append(group.bars, bar{c.name, kind, float64(r.medians[i].took), cell(r.medians[i], "")})
	}
	return group
}

const chartStyle = `<style>
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}.job{font-weight:600}.value{fill:#59636e}
.ours{fill:#0b6bcb}.bare{fill:#8c959f}.peer{fill:#d0a215}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.value{fill:#9198a1}.ours{fill:#4c9aff}.bare{fill:#6e7681}.peer{fill:#b58900}}
</style>
`

// chart draws groups of bars as SVG. Where the longest bar of a group is more than that many times the next ones, they would
// be invisible without a least width, so each bar has one.
func chart(title string, groups []bars) string {
	const (
		width, names, longest, least = 910, 340, 440, 2.0
		head, job, line, gap, thick  = 34, 22, 20, 12, 12
	)
	height := head + gap/2
	for _, g := range groups {
		height += job + len(g.bars)*line + gap
	}
	var b strings.Builder
	title = html.EscapeString(title)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", width, height, width, height, title)
	b.WriteString(chartStyle)
	fmt.Fprintf(&b, `<text class="title" x="0" y="18">%s</text>`+"\n", title)
	y := head
	for _, g := range groups {
		most := 0.0
		for _, bar := range g.bars {
			most = max(most, bar.value)
		}
		fmt.Fprintf(&b, `<text class="job" x="0" y="%d">%s</text>`+"\n", y+14, html.EscapeString(g.text))
		y += job
		for _, bar := range g.bars {
			size := least
			if most > 0 {
				size = max(least, bar.value/most*longest)
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/><text class="value" x="%.1f" y="%d">%s</text>`+"\n",
				names-8, y+thick-1, html.EscapeString(bar.name), bar.kind, names, y, size, thick, names+size+8, y+thick-1, html.EscapeString(bar.label))
			y += line
		}
		y += gap
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// charts draws one picture for each title, in the order of the parts.
func charts(parts []part) (titles []string, pictures map[string]string) {
	groups := map[string][]bars{}
	for _, p := range parts {
		if len(p.bars)+len(p.results) > 0 && groups[p.title] == nil {
			titles = append(titles, p.title)
		}
		groups[p.title] = append(groups[p.title], p.bars...)
		for _, r := range p.results {
			groups[p.title] = append(groups[p.title], r.bars())
		}
	}
	pictures = map[string]string{}
	for _, title := range titles {
		pictures[title] = chart(title+": shorter is better, each job has its own scale", groups[title])
	}
	return titles, pictures
}

// chartFile is the name of the picture for a title.
func chartFile(title string) string {
	return "charts/" + strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, title), "-") + ".svg"
}

// writeCharts writes the pictures beside the file that shows them, and removes those of titles that are gone.
func writeCharts(readme string, parts []part) error {
	dir := filepath.Dir(readme)
	if err := os.MkdirAll(filepath.Join(dir, "charts"), 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "charts", "*.svg"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	titles, pictures := charts(parts)
	for _, title := range titles {
		if err := os.WriteFile(filepath.Join(dir, chartFile(title)), []byte(pictures[title]), 0o644); err != nil {
			return err
		}
	}
	return nil
}
