package proc

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func init() { helpers["reap"] = helperReap }

// It runs in a process of its own: it would take the children of other tests.
func TestReapOrphans(t *testing.T) {
	c := helper(t, "reap")
	for _, want := range []string{
		"ended 0 2",        // nobody owns them
		"owned 1 1",        // one is owned
		"waited <nil>",     // and its owner gets its status
		"running 1 0",      // what runs is left alone
		"nobody 0 0 ready", // without children
	} {
		require.Equal(t, want, c.line(t))
	}
}

func helperReap() int {
	start := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		return cmd
	}
	// ended waits for the end of a child without reaping it.
	ended := func(cmd *exec.Cmd) *exec.Cmd {
		for unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		return cmd
	}
	gone := func(commands ...*exec.Cmd) (there, reaped int) {
		for _, cmd := range commands {
			if unix.Kill(cmd.Process.Pid, 0) == nil {
				there++
			} else {
				reaped++
			}
		}
		return there, reaped
	}
	nobody := func(int) bool { return false }

	a, b := ended(start("true")), ended(start("false"))
	ReapOrphans(nobody)
	there, reaped := gone(a, b)
	fmt.Println("ended", there, reaped)

	orphan := ended(start("true"))
	owned := ended(start("true"))
	ReapOrphans(func(pid int) bool { return pid == owned.Process.Pid })
	there, reaped = gone(owned, orphan)
	fmt.Println("owned", there, reaped)
	fmt.Println("waited", owned.Wait())

	running := start("sleep", "600")
	ReapOrphans(nobody)
	there, reaped = gone(running)
	fmt.Println("running", there, reaped)
	running.Process.Kill()
	ended(running)
	ReapOrphans(nobody)
	ReapOrphans(nobody)
	there, _ = gone(running)
	fmt.Println("nobody", there, 0, "ready")
	return 0
}
