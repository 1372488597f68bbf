package activation

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/berth-go/berth/internal/descriptor"
)

// The variables of sd_listen_fds(3). systemd 258 added the last; what it protects against, a recycled pid, needs a
// process that dies between the passer's fork and its own start.
const (
	variablePID   = "LISTEN_PID"
	variableFDs   = "LISTEN_FDS"
	variableNames = "LISTEN_FDNAMES"
	variablePIDFD = "LISTEN_PIDFDID"
)

const (
	// firstFD is SD_LISTEN_FDS_START.
	firstFD = 3
	// unnamed is what sd_listen_fds_with_names(3) calls descriptors where the passer named none.
	unnamed = "unknown"
)

const restart = "start the program through systemd or another passer, or unset " + variableFDs

// plan is what the environment announces: count descriptors from firstFD on. Names has as many, or is nil.
type plan struct {
	count int
	names []string
}

func (p plan) name(i int) string {
	if p.names == nil {
		return unnamed
	}
	return p.names[i]
}

// parseEnvironment reads the values of LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES for the process pid; "" is an absent
// one. With an error, count is that of the descriptors that came nevertheless, 0 where nothing tells.
func parseEnvironment(pid int, listenPID, listenFDs, listenNames string) (plan, error) {
	if listenFDs == "" {
		return plan{}, nil // without it, the others announce nothing
	}
	count, err := parseNumber(listenFDs, math.MaxInt32-firstFD)
	if err != nil {
		return plan{}, fmt.Errorf("activation: %s=%q is no number of descriptors: %w; %s", variableFDs, listenFDs, err, restart)
	}
	// systemfd --no-pid sets none, since it does not know who will be the server in the end.
	if listenPID != "" {
		target, err := parseNumber(listenPID, math.MaxInt32)
		if err != nil {
			return plan{count: count}, fmt.Errorf("activation: %s=%q is no process id: %w; leave it to the passer, or unset it", variablePID, listenPID, err)
		}
		if target != pid {
			return plan{}, nil // inherited from a process for which they were meant, a shell for instance
		}
	}
	if listenNames == "" {
		return plan{count: count}, nil
	}
	names := strings.Split(listenNames, ":")
	if len(names) != count {
		return plan{count: count}, fmt.Errorf("activation: %s=%q has %s, %s announces %s; give one name for each, separated by colons, or unset %s",
			variableNames, listenNames, plural(len(names), "name"), variableFDs, plural(count, "descriptor"), variableNames)
	}
	return plan{count: count, names: names}, nil
}

// parsePassed reads what a supervisor announces (reload.Supervise). Other descriptors come before, so it names the first.
func parsePassed(text string) (first int, _ plan, err error) {
	number, names, _ := strings.Cut(text, ":")
	first, err = parseNumber(number, math.MaxInt32-maxPassed)
	if err != nil || first < firstFD || names == "" {
		return 0, plan{}, fmt.Errorf("activation: %s=%q is no number and names; leave it to the supervisor, or unset it", descriptor.PassedVariable, text)
	}
	all := strings.Split(names, ":")
	return first, plan{count: len(all), names: all}, nil
}

// parseNumber takes digits only: the C library's and Go's parsers differ on signs and blanks.
func parseNumber(text string, largest uint64) (int, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, err.(*strconv.NumError).Err //nolint:errorlint // documented to be one; the cause alone, as the text is in the message
	}
	if n > largest {
		return 0, strconv.ErrRange
	}
	return int(n), nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
