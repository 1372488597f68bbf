package envcfg

import (
	"slices"
	"strings"
)

// misspells tells whether a variable of the environment is probably meant to be the one called name. Both come without
// their prefix, since services are often called A_ and B_.
//
// Short names have many neighbours that mean something: POST, SORT and PORTS are no misspelt PORT. So for them it is only
// what a slip of the fingers makes: two letters exchanged, one left out or one doubled.
func misspells(candidate, name string) bool {
	const (
		short = 4
		long  = 14
	)
	switch {
	case candidate == name:
		return false
	case strings.EqualFold(candidate, name):
		return true
	case len(name) >= long:
		return distance(candidate, name) <= 2
	case distance(candidate, name) > 1:
		return false
	case len(name) > short || len(candidate) < len(name):
		return true
	case len(candidate) == len(name):
		a, b := []byte(candidate), []byte(name)
		slices.Sort(a)
		slices.Sort(b)
		return slices.Equal(a, b)
	default:
		return string(slices.Compact([]byte(candidate))) == name
	}
}

// distance counts the letters to insert, leave out or replace, and the neighbours to exchange, to make name of the
// candidate (optimal string alignment). What is farther than two letters is just far.
func distance(candidate, name string) int {
	const far = 3
	if diff := len(candidate) - len(name); diff >= far || -diff >= far || len(name) >= longestName {
		return far
	}
	var rows [3][longestName]int // of this letter of the candidate, the one before and the one before that
	row, last, secondLast := &rows[0], &rows[1], &rows[2]
	for j := range len(name) + 1 {
		row[j] = j
	}
	for i := range len(candidate) {
		row, last, secondLast = secondLast, row, last
		row[0] = i + 1
		for j := range len(name) {
			replace := last[j]
			if candidate[i] != name[j] {
				replace++
			}
			row[j+1] = min(replace, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && candidate[i] == name[j-1] && candidate[i-1] == name[j] {
				row[j+1] = min(row[j+1], secondLast[j-1]+1)
			}
		}
	}
	return min(row[len(name)], far)
}

// longestName is above the length of every name that is known.
const longestName = 32
