// Package activation connects a program with systemd: passed sockets come in, readiness, status and stored sockets go
// out. It works the same with any passer that speaks the protocol of sd_listen_fds(3), such as systemfd and
// systemd-socket-activate, and does nothing where there is none.
//
// A server whose port systemd may hold:
//
//	set, err := activation.FromEnv()
//	if err != nil {
//		return err // the environment is malformed or lies
//	}
//	ln, err := set.Take("web", "tcp", ":8080")
//	if errors.Is(err, fs.ErrNotExist) {
//		ln, err = net.Listen("tcp", ":8080") // started by hand
//	}
//	if err != nil {
//		return err
//	}
//	for _, socket := range set.Unused() {
//		log.Printf("passed, but not used: %v", socket)
//	}
//	if err := activation.Ready(); err != nil {
//		return err
//	}
//	return http.Serve(ln, handler)
//
// Package listener does the first half by itself.
package activation

import (
	"fmt"
	"os"
	"sync"

	"github.com/berth-go/berth/internal/descriptor"
)

// FromEnv takes over every socket that was passed to this process, as LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES announce
// them. It does so once; every call, from any goroutine, returns the same. Where nothing was passed, to this process, or
// the system knows no such thing, the Set is nil, which works and holds nothing.
//
// Afterwards the variables are gone from the environment and the descriptors are close-on-exec: no child inherits either.
// Before the first call a child inherits both, so call it early.
//
// A missing LISTEN_PID is accepted. A malformed value, a count that does not fit the names, and a descriptor that is not
// open, was not passed or is no socket (ListenFIFO=, for one) are errors; then all that was announced and came is closed.
func FromEnv() (*Set, error) { return fromEnv() }

var fromEnv = sync.OnceValues(func() (*Set, error) {
	if !descriptor.Supported {
		return nil, nil
	}
	announced, err := parseEnvironment(os.Getpid(), takeVariable(variablePID), takeVariable(variableFDs), takeVariable(variableNames))
	first := firstFD
	if text := takeVariable(descriptor.PassedVariable); text != "" {
		first, announced, err = parsePassed(text)
	}
	takeVariable(variablePIDFD)
	return adopt(first, announced, err)
})

// takeVariable takes a variable out of the environment. Most are not there, and with cgo a look is much cheaper than Unsetenv.
func takeVariable(name string) string {
	value, ok := os.LookupEnv(name)
	if ok {
		_ = os.Unsetenv(name) // cannot fail for such a name
	}
	return value
}

// maxPassed bounds the look at descriptors whose number only a lying environment can announce.
const maxPassed = 1 << 16

// adopt takes over the announced descriptors, from the first on, or closes them all: where malformed says so, or one is not what it should
// be. The Files of go-systemd's activation package would hand out whatever has the number, the descriptor of the Go
// runtime's poller included, and takes a count that is no number for none.
func adopt(first int, announced plan, malformed error) (*Set, error) {
	err := malformed
	refuse := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf("activation: "+format+"; "+restart, args...)
		}
	}
	var came []int
	var sockets []*passed
	for i := range min(announced.count, maxPassed) {
		fd := first + i
		ours, openErr := descriptor.Passed(fd)
		switch {
		case openErr != nil:
			refuse("%s=%d announces descriptor %d, which is not open: %w", variableFDs, announced.count, fd, openErr)
			continue
		case !ours:
			refuse("%s=%d announces descriptor %d, which was not passed but opened or taken by this process", variableFDs, announced.count, fd)
			continue
		}
		descriptor.Keep(fd)
		came = append(came, fd)
		if err != nil {
			continue
		}
		facts, lookErr := descriptor.Look(fd)
		if lookErr != nil {
			refuse("%s=%d announces descriptor %d, which is no socket: %w", variableFDs, announced.count, fd, lookErr)
			continue
		}
		sockets = append(sockets, newPassed(fd, announced.name(i), facts))
	}
	if announced.count > maxPassed {
		refuse("%s=%d announces more descriptors than the %d that are accepted", variableFDs, announced.count, maxPassed)
	}
	if err != nil {
		for _, fd := range came {
			_ = descriptor.Close(fd) // the failure that led here is what counts
		}
		return nil, err
	}
	if len(sockets) == 0 {
		return nil, nil
	}
	return &Set{sockets: sockets}, nil
}
