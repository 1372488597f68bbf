package listener

import (
	"context"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-go/berth/internal/descriptor"
)

// Command is [exec.CommandContext] for a child that takes the reserved sockets over by the protocol of systemd: LISTEN_FDS,
// LISTEN_FDNAMES (the Name, "unknown" without one) and LISTEN_PID. They come from descriptor 3 on, in the order of
// [Reservation.Addrs], and PORT is their port. From now on they listen, and connections wait until the child accepts them.
//
// The child's process id is not known before it runs, so /bin/sh sets LISTEN_PID and becomes the program; the Args of the
// command are those of the shell. Without that file there is no LISTEN_PID, which package activation does not miss, and
// sd_listen_fds(3) does.
//
// The reservation stays, and with it lock and record. Close it once the child has started if the child is to have the
// address alone; a child of which this process starts another when it ends, on the same socket, does without. To set further
// variables, append to Env.
func (r *Reservation) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	if cmd.Err != nil {
		return cmd
	}
	cmd.ExtraFiles, cmd.Err = r.pass()
	if cmd.Err != nil {
		return cmd
	}
	service := r.config.Name
	if service == "" || strings.ContainsFunc(service, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == ':' }) {
		service = "unknown" // what sd_listen_fds_with_names(3) calls one without a name
	}
	names := slices.Repeat([]string{service}, len(cmd.ExtraFiles))
	cmd.Env = append(childEnvironment(),
		"LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	if _, port, err := net.SplitHostPort(r.Addr().String()); err == nil {
		cmd.Env = append(cmd.Env, "PORT="+port)
	}
	const shell = "/bin/sh"
	if info, err := os.Stat(shell); err == nil && info.Mode().IsRegular() {
		const become = `LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@"`
		cmd.Args = append([]string{shell, "-c", become, cmd.Path}, args...)
		cmd.Path = shell
	}
	return cmd
}

// pass makes duplicates of what is reserved, which are the reservation's to close. All commands get the same, so that one which is
// started again and again costs no more descriptors.
func (r *Reservation) pass() ([]*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var files []*os.File
	for _, p := range r.parts {
		if p.gone || r.err != nil {
			continue
		}
		if !isOpen(p.passed) {
			file, err := p.open()
			if err != nil {
				return nil, err
			}
			p.passed = file
		}
		files = append(files, p.passed)
	}
	if len(files) == 0 {
		return nil, r.endedLocked("command")
	}
	return files, nil
}

// isOpen tells whether a file is there, and nobody who was given it has closed it.
func isOpen(file *os.File) bool {
	if file == nil {
		return false
	}
	raw, err := file.SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// childEnvironment is that of this process, without what is meant for it alone.
func childEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		switch name {
		case "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", descriptor.PassedVariable, "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "PORT":
			return true
		}
		return false
	})
}
