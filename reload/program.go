package reload

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-go/berth/internal/descriptor"
)

// Where this process was started, before the program changes its directory.
var startDir, _ = os.Getwd()

// A program is how this process was started, so that its next version can be.
type program struct {
	path string // as it was called, so that a link that points elsewhere by then is followed; "" when unknown
	file string // the executable itself
	args []string
}

func thisProgram() program {
	p := program{args: append([]string(nil), os.Args...)}
	p.file, _ = os.Executable()
	if len(os.Args) == 0 {
		return p
	}
	// The first argument is a convention, and a login shell or `exec -a` does not keep it.
	path := os.Args[0]
	if strings.ContainsRune(path, filepath.Separator) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(startDir, path)
		}
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return p
	}
	if a, err := os.Stat(found); err == nil {
		if b, err := os.Stat(p.file); err == nil && os.SameFile(a, b) {
			p.path = path
		}
	}
	return p
}

// command is the program as its path leads to it now.
func (p program) command() (*exec.Cmd, error) {
	path := p.path
	if path == "" {
		path = p.file
	}
	if path == "" {
		return nil, errors.New("it is unknown how this program was started: set Config.Command")
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("%w: put the program back, or set Config.Command", err)
	}
	// The directory of a release that was deleted meanwhile must not keep all later ones from starting.
	dir := startDir
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			break
		}
		dir = filepath.Dir(dir) // of "" it is "."
	}
	return &exec.Cmd{Path: found, Args: p.args, Env: os.Environ(), Dir: dir}, nil
}

// environment is what a new version gets: without what is for this process alone.
func environment(environ []string) []string {
	environ = without(environ,
		"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", // sd_listen_fds(3): the sockets come another way
		descriptor.PassedVariable,
		"WATCHDOG_PID", // sd_watchdog_enabled(3): this process; without it whoever is the main one
		sentinel)
	return append(environ, sentinel+"=yes")
}

// without leaves out variables.
func without(environ []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(names, name)
	})
}

// What tableflip passes: a pipe to write to, a pipe to read from, and then what is handed on.
const readyPipe, namesPipe = 3, 4

// sentinel is tableflip's variable that tells a process of its parent.
const sentinel = "TABLEFLIP_HAS_PARENT_7DIU3"
