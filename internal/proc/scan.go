package proc

import (
	"maps"
	"slices"
)

// A search is what [Holders] was asked, and what was found of it so far. It is free of system calls.
type search struct {
	wanted []uint64 // sorted and distinct
	first  bool     // one holder of each socket is enough
	found  map[uint64][]int
}

func newSearch(inodes []uint64, first bool) *search {
	wanted := slices.Clone(inodes)
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if len(wanted) > 0 && wanted[0] == 0 {
		wanted = wanted[1:] // what the socket tables print for a socket that no process has: TIME_WAIT and the like
	}
	return &search{wanted: wanted, first: first, found: make(map[uint64][]int, len(wanted))}
}

// add records a holder and reports whether the search has ended.
func (s *search) add(inode uint64, pid int) (ended bool) {
	if holders := s.found[inode]; !s.first || len(holders) == 0 {
		s.found[inode] = append(holders, pid)
	}
	return s.ended()
}

// ended reports whether nothing is left to find. It never is where every holder is wanted.
func (s *search) ended() bool { return len(s.wanted) == 0 || s.first && len(s.found) == len(s.wanted) }

// result returns the holders of each socket, highest pid first.
func (s *search) result() map[uint64][]int {
	for pids := range maps.Values(s.found) {
		slices.SortFunc(pids, func(a, b int) int { return b - a })
	}
	return s.found
}
