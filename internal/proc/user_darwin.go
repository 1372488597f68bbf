package proc

import (
	"github.com/shirou/gopsutil/v4/process"
	"golang.org/x/sys/unix"
)

// userIDs returns the real and the effective user id, -1 where unknown. gopsutil tells the effective one alone.
func userIDs(info *process.Process) (ruid, euid int) {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", int(info.Pid))
	if err != nil || k.Proc.P_pid != info.Pid { // a pid that is gone gives an empty answer
		return -1, -1
	}
	return int(k.Eproc.Pcred.P_ruid), int(k.Eproc.Ucred.Uid)
}
