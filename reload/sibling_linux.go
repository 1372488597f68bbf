package reload

import (
	"os"
	"strconv"
	"syscall"

	"github.com/berth-go/berth/activation"
)

// Under systemd a new version is started as a child of systemd and not of this process, though this one is there still.
// systemd finds out once whether a main process is its child, when it is told of that process. Of one that is not it does not
// see the end while its parent lives; and as long as it lives, systemctl stop does not wait for it, but sends SIGKILL right
// after SIGTERM (systemd 252).

// isChildOfSystemd tells whether a sibling of this process is a child of systemd: this process is one. systemd 248 says so to
// the first version, that one to the next, and so on.
func (u *Upgrader) isChildOfSystemd() bool {
	if !activation.Supervised() || os.Getpid() == 1 { // the kernel lets process 1 have no siblings
		return false
	}
	return os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) || u.parent != nil && u.parent.hello.Sibling
}

// beSibling has a command become a child of this process's parent.
func beSibling(attr *syscall.SysProcAttr) { attr.Cloneflags |= syscall.CLONE_PARENT }
