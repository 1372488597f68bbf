package proc

import (
	"github.com/shirou/gopsutil/v4/process"
	"golang.org/x/sys/windows"
)

// ownUser is the user id that stands for the user of this process: Windows has no numbers for users.
const ownUser = 0

// userIDs returns ownUser for a process of the same user, and -1, unknown, for any other.
func userIDs(info *process.Process) (ruid, euid int) {
	same, err := sameUser(uint32(info.Pid))
	if err != nil || !same {
		return -1, -1
	}
	return ownUser, ownUser
}

func sameUser(pid uint32) (bool, error) {
	handle, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return false, err
	}
	defer windows.CloseHandle(handle)
	var token windows.Token
	if err := windows.OpenProcessToken(handle, windows.TOKEN_QUERY, &token); err != nil {
		return false, err
	}
	defer token.Close()
	theirs, err := token.GetTokenUser()
	if err != nil {
		return false, err
	}
	ours, err := windows.GetCurrentProcessToken().GetTokenUser() // a pseudo-handle, not to be closed
	if err != nil {
		return false, err
	}
	return ours.User.Sid.Equals(theirs.User.Sid), nil
}
