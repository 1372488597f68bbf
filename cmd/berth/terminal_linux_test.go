package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func init() {
	scriptCommands["terminal"] = scriptTerminal
	signals["STOP"] = unix.SIGSTOP
	share = func(_, _ string, conn syscall.RawConn) (err error) {
		controlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(controlErr, err)
	}
}

// terminal FILE COLUMNS COMMAND [ARGUMENT...]: runs it on a terminal, 10 lines high, until it has ended or shown its ports
// twice. What the terminal got is in the file.
func scriptTerminal(ts *testscript.TestScript, _ bool, args []string) {
	columns, err := strconv.Atoi(args[1])
	ts.Check(err)
	terminal, end, err := openTerminal(columns, 10)
	ts.Check(err)
	defer terminal.Close()
	command := args[2]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if candidate := filepath.Join(dir, command); isExecutable(candidate) {
			command = candidate
			break
		}
	}
	cmd := exec.Command(command, args[3:]...)
	cmd.Env = os.Environ()
	for _, variable := range []string{"BERTH_STATE_DIR", "GORACE", "NO_COLOR", "TERM"} {
		cmd.Env = append(cmd.Env, variable+"="+ts.Getenv(variable))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = end, end, end
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	end.Close()
	timer := time.AfterFunc(deadline, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var got bytes.Buffer
	buffer, asked := make([]byte, 4096), false
	for {
		n, err := terminal.Read(buffer) // an error (EIO) when the other end is closed
		got.Write(buffer[:n])
		if err != nil {
			break
		}
		if !asked && strings.Count(got.String(), " free, ") >= 2 {
			asked = true
			_, err := terminal.Write([]byte{3}) // Ctrl-C
			ts.Check(err)
		}
	}
	ts.Check(cmd.Wait())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), got.Bytes(), 0o600))
}

// openTerminal makes a pseudo-terminal, pty(7).
func openTerminal(columns, lines int) (terminal, end *os.File, err error) {
	terminal, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(terminal.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(lines), Col: uint16(columns)})
	}
	if err == nil {
		end, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		terminal.Close()
		return nil, nil, err
	}
	return terminal, end, nil
}

// Colour is for terminals alone, and for those who want it.
func TestPalette(t *testing.T) {
	terminal, end, err := openTerminal(80, 24)
	require.NoError(t, err)
	defer terminal.Close()
	defer end.Close()
	file, err := os.Open(os.DevNull) // a device, and no terminal
	require.NoError(t, err)
	defer file.Close()
	for _, test := range []struct {
		file     *os.File
		env      map[string]string
		coloured bool
	}{
		{end, nil, true},
		{end, map[string]string{"TERM": "xterm"}, true},
		{end, map[string]string{"TERM": "dumb"}, false},
		{end, map[string]string{"NO_COLOR": "1"}, false},
		{file, nil, false},
	} {
		c := console{stdout: test.file, getenv: func(name string) string { return test.env[name] }}
		require.Equal(t, palette(test.coloured), c.palette(c.stdout), "%v", test.env)
	}
	columns, lines, isTerminal := terminalSize(end)
	require.Equal(t, []any{80, 24, true}, []any{columns, lines, isTerminal})
	_, _, isTerminal = terminalSize(new(bytes.Buffer))
	require.False(t, isTerminal)
}
