//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	if play() {
		return
	}
	os.Exit(m.Run())
}

// smallScale is large enough for every contestant to do its job, and to be checked by it.
var smallScale = scale{busy: 40, crowds: [2]int{10, 20}, racers: 12, ports: 18, seconds: 60, upgrades: 4, peerUpgrades: 2, idle: 50}

// Every row runs, and each contestant finds the answer; see contestant.do. Afterwards nothing is left.
func TestExperiments(t *testing.T) {
	names := map[string]bool{}
	for _, e := range experiments {
		t.Run(e.name, func(t *testing.T) {
			before := entries(t, "/proc/self/fd")
			var begun []string
			p, err := e.run(t.Context(), smallScale, 2, func(name string) { begun = append(begun, name) })
			require.NoError(t, err)
			if e.table == nil {
				require.NotEmpty(t, p.results)
				require.Len(t, begun, len(p.results))
			} else {
				require.Contains(t, p.table, "| berth")
			}
			for _, r := range p.results {
				full := e.name + "/" + r.name
				require.False(t, names[full], "two rows are called %s", full)
				names[full] = true
				for part := range strings.SplitSeq(r.name, "/") {
					require.Regexp(t, `^[a-z]+=[a-z0-9-]+$`, part, "benchstat pairs by key=value")
				}
				require.Len(t, r.medians, 2+len(r.peers))
				for i, m := range r.medians {
					require.Positive(t, m.took, "%s by %s", r.name, r.contestants()[i].name)
				}
				require.Zero(t, r.medians[0].failed)
				require.NotEmpty(t, r.goal.text)
				require.Len(t, r.cells(), 9)
			}
			require.Empty(t, children(t), "processes are left")
			// The runtime opens a few for itself, once.
			require.LessOrEqual(t, len(entries(t, "/proc/self/fd")), len(before)+4, "descriptors are left")
		})
	}
	for _, parent := range []string{os.TempDir(), "/dev/shm"} {
		left, err := filepath.Glob(filepath.Join(parent, tempPrefix(os.Getpid())+"*"))
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func entries(t *testing.T, dir string) []os.DirEntry {
	all, err := os.ReadDir(dir)
	require.NoError(t, err)
	return all
}

// children are the processes that this one started and has not waited for.
func children(t *testing.T) []string {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(t, err)
	var all []string
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) { // the thread has ended
			continue
		}
		require.NoError(t, err)
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// A wrong answer is an error, however fast.
func TestWrongAnswers(t *testing.T) {
	l := &lab{scale: smallScale}
	defer l.close()
	port, err := l.freePort()
	require.NoError(t, err)
	_, err = walk(port)
	require.ErrorContains(t, err, "nobody")
	for _, f := range finders {
		if f.available() {
			_, err := f.find(port)
			require.Error(t, err, f.name)
		}
	}
	_, err = takeOver(role{Do: doReclaim, Address: "256.0.0.1:1"}, "")
	require.Error(t, err)
	o, err := race(4, role{Do: doRace, First: port, Last: port})
	require.NoError(t, err)
	require.Equal(t, 3, o.failed, "four processes, one port")
}

func TestMeasure(t *testing.T) {
	var order []string
	by := func(name string, took ...time.Duration) contestant {
		i := 0
		return contestant{name, func() (outcome, error) {
			order = append(order, name)
			i++
			return outcome{took: took[i-1], failed: i}, nil
		}}
	}
	r := row{name: "job=test", ours: by("ours", 9*ms, 3*ms, 5*ms), bare: by("bare", 2*ms, 2*ms, 2*ms), peers: []contestant{by("peer", 4*ms, 8*ms, 6*ms)}}
	got, err := measure(t.Context(), r, 3)
	require.NoError(t, err)
	require.Equal(t, []outcome{{5 * ms, 2}, {2 * ms, 2}, {6 * ms, 2}}, got.medians)
	require.Equal(t, "ours bare peer bare peer ours peer ours bare", strings.Join(order, " "), "each comes first once")

	broken := errors.New("broken")
	r.bare.do = func() (outcome, error) { return outcome{}, broken }
	r.ours, r.peers = by("ours", 2*ms), nil
	_, err = measure(t.Context(), r, 1)
	require.ErrorIs(t, err, broken)
	require.ErrorContains(t, err, "job=test: bare")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = measure(ended, r, 1)
	require.ErrorIs(t, err, context.Canceled)
}

// A short job is repeated, and the mean of its repetitions is the sample.
func TestSample(t *testing.T) {
	jobs := 0
	c := contestant{"short", func() (outcome, error) {
		jobs++
		return outcome{took: time.Duration(jobs%2*2+1) * sampleTime / 40, failed: 1}, nil
	}}
	got, err := c.sample()
	require.NoError(t, err)
	require.Equal(t, 20, jobs)
	require.Equal(t, outcome{took: sampleTime / 20, failed: 1}, got)
}

func TestMedian(t *testing.T) {
	require.Equal(t, outcome{took: 3, failed: 1}, median([]outcome{{3, 1}, {9, 5}, {1, 0}}))
	require.Equal(t, outcome{took: 4, failed: 0}, median([]outcome{{3, 0}, {5, 0}}))
	require.Equal(t, outcome{took: 7}, median([]outcome{{took: 7}}))
}

func TestGoals(t *testing.T) {
	of := func(ours, bare time.Duration, peers ...time.Duration) result {
		r := result{medians: []outcome{{took: ours}, {took: bare}}}
		for _, p := range peers {
			r.medians = append(r.medians, outcome{took: p})
		}
		return r
	}
	for _, c := range []struct {
		goal goal
		of   result
		met  bool
	}{
		{atMost(ms), of(ms, 1), true},
		{atMost(ms), of(ms+1, 1), false},
		{atMost(ms), result{medians: []outcome{{1, 1}, {1, 0}}}, false}, // fast, and it failed
		{timesBare(1.5), of(150, 100), true},
		{timesBare(1.5), of(156, 100), false},
		{timesPeer(0.2), of(20, 1, 200, 100), true},
		{timesPeer(0.2), of(21, 1, 200, 100), false},
		{timesPeer(0.2), of(1, 1), false}, // nobody to compare with
		{beyondBare(5 * ms), of(15*ms, 10*ms), true},
		{beyondBare(5 * ms), of(15*ms+1, 10*ms), false},
	} {
		require.Equal(t, c.met, c.goal.met(c.of), "%s: %v", c.goal.text, c.of.medians)
	}
}

func TestReport(t *testing.T) {
	r := result{
		row: row{
			text: "a job", goal: atMost(ms), ours: contestant{name: "berth"}, bare: contestant{name: "net"},
			peers: []contestant{{name: "slow"}, {name: "quick"}},
		},
		medians: []outcome{{took: 500 * us}, {took: 2 * ms}, {took: 30 * ms, failed: 7}, {took: 10 * ms}},
	}
	text := report([]part{
		{title: "One", results: []result{r}}, {title: "One", results: []result{r}}, {title: "Two"}, {title: "Three", finding: finding{table: "| of its own |\n"}},
	}, 15, "a machine")
	require.Contains(t, text, "\n### Three\n\n| of its own |\n")
	require.Equal(t, 1, strings.Count(text, "### One"), "parts of one title are one table")
	require.Contains(t, text, "\n### One\n\n![One](charts/one.svg)\n\n| ")
	require.Contains(t, text, "a machine. Medians of 15 interleaved rounds.")
	require.Contains(t, text, "| a job | 500 us | 2 ms net | 0.25 | 10 ms quick | 0.050 | 30 ms slow, 7 failed | at most 1 ms | yes |")

	for d, want := range map[time.Duration]string{
		999 * time.Nanosecond: "0.999 us", 12345 * time.Nanosecond: "12.3 us", 100 * us: "100 us", 1234567: "1.23 ms",
		189 * ms: "189 ms", 1500 * ms: "1.5 s",
	} {
		require.Equal(t, want, format(d))
	}
}

// The picture shows the figures of the table.
func TestCharts(t *testing.T) {
	r := result{
		row:     row{text: "a `job` <of many>", ours: contestant{name: "berth"}, bare: contestant{name: "net"}},
		medians: []outcome{{took: 500 * us}, {took: 2 * ms, failed: 1}},
	}
	parts := []part{
		{title: "One & two", results: []result{r}},
		{title: "One & two", results: []result{r}},
		{title: "Lost", finding: finding{bars: []bars{{"requests", []bar{{"berth", "ours", 0, "none"}, {"peer", "peer", 3, "3"}}}}}},
		{title: "Nothing"},
	}
	readme := filepath.Join(t.TempDir(), "README.md")
	for range 2 { // also over what is there
		require.NoError(t, writeCharts(readme, parts))
	}
	files, err := filepath.Glob(filepath.Join(filepath.Dir(readme), "charts", "*"))
	require.NoError(t, err)
	require.Len(t, files, 2)

	type picture struct {
		Label string `xml:"aria-label,attr"`
		Bars  []struct {
			Class string  `xml:"class,attr"`
			Width float64 `xml:"width,attr"`
		} `xml:"rect"`
		Texts []string `xml:"text"`
	}
	read := func(name string) (p picture) {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(readme), name))
		require.NoError(t, err)
		require.NoError(t, xml.Unmarshal(text, &p))
		return p
	}
	one := read("charts/one---two.svg")
	require.Contains(t, one.Label, "One & two")
	require.Len(t, one.Bars, 4)
	require.Equal(t, "ours", one.Bars[0].Class)
	require.Equal(t, "bare", one.Bars[1].Class)
	require.InDelta(t, 4, one.Bars[1].Width/one.Bars[0].Width, 0.01)
	require.Equal(t, []string{"a job <of many>", "berth", "500 us", "net", "2 ms, 1 failed"}, one.Texts[1:6])
	lost := read("charts/lost.svg")
	require.Less(t, lost.Bars[0].Width, 3.0)
	require.Greater(t, lost.Bars[1].Width, 100.0)
}

func TestWriteBetweenMarkers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	require.NoError(t, os.WriteFile(path, []byte("before\n"+beginMarker+"old\n"+endMarker+"after\n"), 0o644))
	for range 2 { // also over its own result
		require.NoError(t, writeBetweenMarkers(path, "new\n"))
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "before\n"+beginMarker+"\nnew\n\n"+endMarker+"after\n", string(text))
	}
	require.NoError(t, os.WriteFile(path, []byte("no markers"), 0o644))
	require.ErrorContains(t, writeBetweenMarkers(path, "new"), "lacks the markers")

	// The README has them, and room for what is written.
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(text, []byte(beginMarker)))
	require.Equal(t, 1, bytes.Count(text, []byte(endMarker)))
}

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{"-rounds 0": "at least one", "-only Nothing": "no such experiment", "-unknown": "not defined"} {
		require.ErrorContains(t, run(t.Context(), strings.Fields(args), io.Discard, io.Discard), want)
	}
}

func TestPIDIn(t *testing.T) {
	for text, want := range map[string]int{"4242\n": 4242, " 4242": 4242, `LISTEN 0 4096 127.0.0.1:3000 0.0.0.0:* users:(("a b",pid=4242,fd=3))`: 4242} {
		got, err := pidIn(exec.Command("printf", "%s", text))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := pidIn(exec.Command("true"))
	require.ErrorContains(t, err, "no pid")
}
