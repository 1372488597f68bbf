package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
)

// dieTogether: the program ends with a run that is killed.
const dieTogether = true

// Ctrl-C reaches run and the program both. The program gets it once. Without --upgrade run is held up until the program has
// its own, since the kernel and Go make one of two that come at once.
func TestRunInterruptedInTerminal(t *testing.T) {
	for _, mode := range []string{"--upgrade", "--port-only=false"} {
		p := newPlace(t)
		terminal, end, err := openTerminal(80, 24)
		require.NoError(t, err)
		cmd := exec.Command(filepath.Join(p.dir, "berth"), "run", "--port", strconv.Itoa(p.port), mode, "--", "app", "-window", "300ms")
		cmd.Args[0] = "berth"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = end, end, end
		cmd.Env = append(os.Environ(), "PATH="+p.dir+":"+os.Getenv("PATH"), "BERTH_STATE_DIR="+p.state, "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		require.NoError(t, cmd.Start())
		end.Close()
		timer := time.AfterFunc(deadline, func() { _ = cmd.Process.Kill() })
		interrupts := 0
		for lines := bufio.NewScanner(terminal); lines.Scan(); {
			switch line := lines.Text(); {
			case strings.Contains(line, "ready"):
				if mode != "--upgrade" {
					require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
					require.Eventually(t, func() bool {
						p, err := proc.Get(cmd.Process.Pid)
						return err == nil && p.Stopped
					}, deadline, time.Millisecond)
				}
				_, err := terminal.Write([]byte{3}) // Ctrl-C
				require.NoError(t, err)
			case strings.Contains(line, "interrupt"):
				interrupts++
				require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
			}
		}
		_ = cmd.Wait() // the status tells
		timer.Stop()
		terminal.Close()
		require.Equal(t, 1, interrupts, mode)
		require.Equal(t, 100+int(syscall.SIGINT), cmd.ProcessState.ExitCode(), mode)
	}
}
