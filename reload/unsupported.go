//go:build !unix

package reload

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// Where tableflip does not run, New says so and nothing of this is reached.

var upgradeSignals []os.Signal

func hasParent() bool { return false }

func fileID(fs.FileInfo) (device, inode uint64) { return 0, 0 }

func addressOf(syscall.Conn) string { return "" }

type passed struct {
	label label
	file  *os.File
}

func closePassed([]passed) {}

func writeNames(io.Writer, []passed) error { return errors.ErrUnsupported }

type channel struct{}

func openChannel(*os.File) (*channel, error) { return nil, errors.ErrUnsupported }

func (*channel) send(message, *os.File) error        { return errors.ErrUnsupported }
func (*channel) receive() (message, *os.File, error) { return message{}, nil, errors.ErrUnsupported }
func (*channel) close() error                        { return nil }

type output struct{}

func (*output) add(label, *os.File) {}
func (*output) restore()            {}

type successor struct {
	*channel
	pid              int
	ready, led, gone chan struct{}
	exit             error
}

func launch(*exec.Cmd, []passed, message, func(message, *os.File)) (*successor, error) {
	return nil, errors.ErrUnsupported
}

func (*successor) lead() error     { return errors.ErrUnsupported }
func (*successor) letGo()          {}
func (*successor) ended() error    { return errors.ErrUnsupported }
func (*successor) kill()           {}
func (*successor) release()        {}
func (*successor) lines() []string { return nil }

// Supervise returns at once: without upgrades there is nothing to supervise.
func Supervise(context.Context, Config) (code int, over bool) { return 0, false }
