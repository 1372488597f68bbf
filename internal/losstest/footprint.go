package losstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A Footprint is what a process takes of the system.
type Footprint struct {
	Descriptors []string // number and name of each
	Environ     string
	Resident    int // bytes
}

// FootprintOf reads it from /proc, which is Linux's.
func FootprintOf(pid int) (Footprint, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	all, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return Footprint{}, err
	}
	var f Footprint
	for _, fd := range all {
		if name, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err == nil { // else it was closed meanwhile
			f.Descriptors = append(f.Descriptors, fd.Name()+" "+name)
		}
	}
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return Footprint{}, err
	}
	f.Environ = string(environ)
	statm, err := os.ReadFile(filepath.Join(dir, "statm"))
	if err != nil {
		return Footprint{}, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 { // it has ended
		return Footprint{}, fmt.Errorf("process %d has no memory", pid)
	}
	pages, err := strconv.Atoi(fields[1])
	f.Resident = pages * os.Getpagesize()
	return f, err
}

// AtRest is the footprint of a new version that nobody has asked anything, once it has noticed the end of the one before. No
// event tells when that is, so it looks until the version has no more than so many descriptors, or nothing changes any
// more.
func AtRest(pid, descriptors int) (Footprint, error) {
	f, err := FootprintOf(pid)
	for unchanged := 0; err == nil && unchanged < 20 && len(f.Descriptors) > descriptors; unchanged++ {
		time.Sleep(10 * time.Millisecond)
		before := len(f.Descriptors)
		if f, err = FootprintOf(pid); len(f.Descriptors) != before {
			unchanged = 0
		}
	}
	return f, err
}
