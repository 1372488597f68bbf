package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// An experiment prepares circumstances and gives the rows that are measured in them. To add one, write its prepare and
// list it in experiments; to add a row, append it to what a prepare returns. Table, Go benchmarks and tests follow.
type experiment struct {
	name    string // of the Go benchmark, without "Benchmark"
	title   string // of its part of the table
	prepare func(*lab) ([]row, error)

	// table, instead of prepare, measures what does not come in rows of times, and gives a table of its own.
	table func(context.Context, *lab) (finding, error)
}

var experiments = []experiment{
	listenExperiment, firstFreeExperiment, portToPIDExperiment(0), portToPIDExperiment(1), reclaimExperiment, raceExperiment,
	activatedExperiment, acceptExperiment, frontDoorExperiment, sendfileExperiment, idleExperiment, upgradeExperiment, lossExperiment,
}

// A row is one job, done by berth and by others under the same circumstances: a line of the table.
type row struct {
	name  string // of the sub-benchmark, "key=value/key=value", the same in every run so that benchstat can pair it
	text  string // of the table
	ours  contestant
	bare  contestant // what the standard library or the kernel gives without anybody's help
	peers []contestant
	goal  goal
}

// A contestant is one way to do a job.
type contestant struct {
	name string
	// do does the job once. It takes its own time, so that what comes before and after does not count, and it checks
	// what it got: a fast wrong answer is an error.
	do func() (outcome, error)
}

// An outcome is one job done.
type outcome struct {
	took   time.Duration
	failed int // parts of the job that failed where that is no error but a finding: losers of a race
}

// timed is for jobs that count from beginning to end.
func timed(job func() error) func() (outcome, error) {
	return func() (outcome, error) {
		begin := time.Now()
		err := job()
		return outcome{took: time.Since(begin)}, err
	}
}

// contestants are all of a row, ours first.
func (r row) contestants() []contestant {
	return slices.Concat([]contestant{r.ours, r.bare}, r.peers)
}

// A result is a row measured.
type result struct {
	row
	medians []outcome // in the order of contestants
}

func (r result) ours() time.Duration { return r.medians[0].took }
func (r result) bare() time.Duration { return r.medians[1].took }

// peer is the best peer and its place in contestants; 0 where there is none.
func (r result) peer() (best int) {
	for i := 2; i < len(r.medians); i++ {
		if best == 0 || r.medians[i].took < r.medians[best].took {
			best = i
		}
	}
	return best
}

// measure lets the contestants do the job in turn, round after round, and takes medians: whatever slows the machine for a
// while meets all of them. Who comes first changes from round to round.
func measure(ctx context.Context, r row, rounds int) (result, error) {
	all := r.contestants()
	samples := make([][]outcome, len(all))
	for round := range rounds {
		if err := ctx.Err(); err != nil {
			return result{}, err
		}
		for i := range all {
			i = (i + round) % len(all)
			sample, err := all[i].sample()
			if err != nil {
				return result{}, fmt.Errorf("%s: %s: %w", r.name, all[i].name, err)
			}
			samples[i] = append(samples[i], sample)
		}
	}
	measured := result{row: r}
	for _, s := range samples {
		measured.medians = append(measured.medians, median(s))
	}
	return measured, nil
}

// sampleTime is how long a sample takes at least, so that a short job is repeated and what it leaves to the garbage
// collector counts.
const sampleTime = 2 * ms

// sample is the mean of as many jobs as sampleTime has room for, and of one at least.
func (c contestant) sample() (outcome, error) {
	var sum outcome
	jobs := 0
	for sum.took < sampleTime {
		o, err := c.do()
		if err != nil {
			return outcome{}, err
		}
		sum.took += o.took
		sum.failed += o.failed
		jobs++
	}
	return outcome{sum.took / time.Duration(jobs), sum.failed / jobs}, nil
}

func median(samples []outcome) outcome {
	took := make([]time.Duration, len(samples))
	failed := make([]int, len(samples))
	for i, s := range samples {
		took[i], failed[i] = s.took, s.failed
	}
	slices.Sort(took)
	slices.Sort(failed)
	middle := len(samples) / 2
	return outcome{(took[(len(took)-1)/2] + took[middle]) / 2, failed[middle]}
}

// A goal is what a row is measured against.
type goal struct {
	text string
	met  func(result) bool
}

func atMost(d time.Duration) goal {
	return goal{"at most " + format(d), func(r result) bool { return r.ours() <= d && r.medians[0].failed == 0 }}
}

// timesBare allows for the noise between two equal calls.
func timesBare(factor float64) goal {
	const noise = 0.05
	return goal{fmt.Sprintf("at most %.1f x bare", factor), func(r result) bool {
		return ratio(r.ours(), r.bare()) <= factor+noise
	}}
}

func timesPeer(factor float64) goal {
	return goal{fmt.Sprintf("at most %.1f x the best peer", factor), func(r result) bool {
		best := r.peer()
		return best > 0 && ratio(r.ours(), r.medians[best].took) <= factor
	}}
}

func beyondBare(d time.Duration) goal {
	return goal{"at most " + format(d) + " beyond bare", func(r result) bool { return r.ours()-r.bare() <= d }}
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
