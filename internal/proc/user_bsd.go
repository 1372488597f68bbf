//go:build !linux && !darwin && !windows

package proc

import "github.com/shirou/gopsutil/v4/process"

// userIDs returns the real and the effective user id, -1 where unknown.
func userIDs(info *process.Process) (ruid, euid int) {
	uids, err := info.Uids() // real, effective, saved
	if err != nil || len(uids) < 2 {
		return -1, -1
	}
	return int(uids[0]), int(uids[1])
}
