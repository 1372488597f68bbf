package holder

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

// Advice is what a person can do about a failed bind of target, most useful first, each one sentence without a full stop.
// It diagnoses only where that matters.
func Advice(target sockets.Target, failure error, diagnose func() strategy.Diagnosis) []string {
	switch {
	case errors.Is(failure, syscall.EADDRINUSE):
		return ConflictAdvice(target, diagnose())
	case errors.Is(failure, fs.ErrPermission) && target.Path != "":
		return []string{"the directory of the socket does not let this user write: choose another path"}
	case errors.Is(failure, fs.ErrPermission):
		return []string{permissionAdvice}
	case errors.Is(failure, syscall.EADDRNOTAVAIL):
		return []string{"no interface of this machine has that address: choose one that `ip addr` shows, or none for all"}
	case errors.Is(failure, fs.ErrNotExist) && target.Path != "":
		return []string{"the directory of the socket is missing: create it"}
	case errors.Is(failure, syscall.EMFILE), errors.Is(failure, syscall.ENFILE):
		return []string{"the process is out of file descriptors: raise the limit (ulimit -n) or close some"}
	}
	return nil
}

// ConflictAdvice is what a person can do about an address that others hold.
func ConflictAdvice(target sockets.Target, d strategy.Diagnosis) []string {
	var advice []string
	add := func(text string) {
		for _, a := range advice {
			if a == text {
				return
			}
		}
		advice = append(advice, text)
	}
	for _, h := range d.Holders {
		add(remedy(h))
	}
	if len(d.Holders) == 0 {
		if what := Obstacle(target); what != "" {
			return []string{"remove it or choose another path"}
		}
		if d.Complete {
			return []string{"nobody holds it any more: try again"}
		}
		add(asRoot + " to see who holds it")
	}
	if target.Path != "" {
		add("choose another path")
	} else {
		add("choose another port")
	}
	return advice
}

// Obstacle tells what is at the path of a Unix socket when that is nobody's: "the file of a socket that nobody serves", "a
// directory" ... It is "" for other networks and where nothing is there.
func Obstacle(target sockets.Target) string {
	if target.Path == "" || target.Path[0] == '@' {
		return ""
	}
	info, err := os.Lstat(target.Path)
	if err != nil {
		return ""
	}
	switch info.Mode().Type() {
	case fs.ModeSocket:
		return "the file of a socket that nobody serves"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case 0:
		return "a regular file"
	}
	return "no socket"
}

// remedy is what helps against one holder.
func remedy(h strategy.Holder) string {
	connected := h.State == sockets.Connected.String()
	switch {
	case remains(connected, h.PID, h.UID):
		return "the system keeps it for a minute after its end: try again later"
	case connected:
		return "it ends with its connection; a port outside the ephemeral range cannot meet this"
	case h.PID == 0 && h.User != "":
		return asRoot + " to see the process; it belongs to user " + h.User
	case h.PID == 0:
		return asRoot + " to see the process"
	case h.PID == proc.Self().PID:
		return "close or share the first listener of this process"
	case forwarders[h.Command]:
		return "docker ps (or podman ps) --filter publish=" + port(h.Address) + " shows the container to stop"
	case h.Container != "":
		return "stop container " + shortID(h.Container)
	case h.Command == "systemd":
		return "systemctl list-sockets shows the unit to stop"
	case h.Unit != "" && h.UserUnit:
		return "systemctl --user stop " + strings.TrimSuffix(h.Unit, ".service")
	case h.Unit != "":
		return "systemctl stop " + strings.TrimSuffix(h.Unit, ".service")
	case strings.HasPrefix(h.Command, "ControlCe"): // macOS, ports 5000 and 7000
		return "turn off AirPlay Receiver in System Settings > General > AirDrop & Handoff"
	case h.PID == 1 || strings.HasPrefix(h.Refusal, isAncestor):
		return "choose another port"
	case h.UID >= 0 && proc.Self().UID > 0 && h.UID != proc.Self().UID:
		return fmt.Sprintf("stop pid %d as user %s or root", h.PID, h.User)
	}
	return killCommand + strconv.Itoa(h.PID)
}

func port(address string) string {
	if _, port, err := net.SplitHostPort(address); err == nil {
		return port
	}
	return ""
}

// shortID is a container's id as its tools print it: twelve digits of 64. Names stay whole.
func shortID(id string) string {
	const whole, digits = 64, 12
	if len(id) == whole {
		return id[:digits]
	}
	return id
}
