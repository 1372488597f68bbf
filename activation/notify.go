package activation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	socketVariable = "NOTIFY_SOCKET"

	// systemd ignores a longer message as a whole (NOTIFY_BUFFER_MAX, which is PIPE_BUF).
	maxMessage = 4096

	// patience bounds what has no context. A message waits only while systemd does not read and the queue of its socket is
	// full. sd_notify would wait for ever; this is well within the 90 s that systemd gives to a start or a stop.
	patience = 30 * time.Second
)

// Supervised tells whether a service manager has asked to be notified: whether NOTIFY_SOCKET is set. Where it is not,
// Notify and everything built on it do nothing and return nil. On systems other than Linux it is always false.
//
// NOTIFY_SOCKET stays in the environment, so a child has it too. systemd ignores what a child sends unless the unit says
// NotifyAccess=exec or all; a program that starts others under such a unit takes the variable out of their environment.
func Supervised() bool {
	return supervisable && os.Getenv(socketVariable) != ""
}

// Notify tells systemd states of this service in one message, in this order; sd_notify(3) lists them. Each has the form
// NAME=value and is one line; a single newline at its end is dropped. One that is malformed is an error, also when
// unsupervised, and then nothing is sent. So is a message of more than 4096 bytes, which systemd would ignore.
//
// Messages reach systemd in the order of the calls, from whichever goroutine they come. That a message was sent does not
// mean that it was read: see [Barrier]. When systemd does not read for half a minute and its queue is full, the error
// matches [os.ErrDeadlineExceeded].
func Notify(states ...string) error {
	if err := checkStates(states); err != nil || len(states) == 0 || !Supervised() {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return send(ctx, join(states))
}

func checkStates(states []string) error {
	length := len(states) - 1
	for _, state := range states {
		state = strings.TrimSuffix(state, "\n")
		// systemd splits at carriage returns too, and drops a message with a NUL in it.
		if strings.IndexByte(state, '=') <= 0 || strings.ContainsAny(state, "\n\r\x00") {
			return fmt.Errorf("activation: state %q is not one line of the form NAME=value", state)
		}
		length += len(state)
	}
	if length > maxMessage {
		return fmt.Errorf("activation: a message of %d bytes is longer than the %d that systemd reads", length, maxMessage)
	}
	return nil
}

// join makes one message of states.
func join(states []string) string {
	lines := make([]string, len(states))
	for i, state := range states {
		lines[i] = strings.TrimSuffix(state, "\n")
	}
	return strings.Join(lines, "\n")
}

// Ready tells that the start, or a reload, is complete. A unit with Type=notify counts as started only then.
func Ready() error { return Notify("READY=1") }

// Reloading tells that the service reloads its configuration, or hands over to its next version. [Ready] ends that. The
// message has the time that Type=notify-reload (systemd 253) insists on.
func Reloading() error {
	if !Supervised() {
		return nil
	}
	return Notify("RELOADING=1", monotonicUsec())
}

// Stopping tells that the service has begun to stop.
func Stopping() error { return Notify("STOPPING=1") }

// Status shows a line of text in systemctl status, until the next one; "" takes it away. The text may be anything: control
// characters, newlines above all, and what is not UTF-8 become spaces, and what systemd would not read is cut off.
func Status(text string) error {
	if !Supervised() {
		return nil
	}
	return Notify(status(text))
}

func status(text string) string {
	const name = "STATUS="
	const room = maxMessage - len(name)
	text = text[:min(len(text), room)]
	// A byte that is no character, or is left of one that was cut through, becomes one byte, so the text does not grow.
	return name + strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text))
}

// MainPID makes another process the main one of the service, one that belongs to the unit. With NotifyAccess=main, the
// default of Type=notify, it is the process that was the main one until then which has to say so; from then on systemd
// ignores that one, and listens to the other.
func MainPID(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("activation: %d cannot be the pid of the main process", pid)
	}
	return Notify("MAINPID=" + strconv.Itoa(pid))
}

// Extend asks for at least d more, from now on, for the start, stop or run that systemd limits (TimeoutStartSec,
// TimeoutStopSec, RuntimeMaxSec). It counts in microseconds; what is no full one is rounded up. To keep extending, ask
// again before d is over.
func Extend(d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("activation: a timeout cannot be extended by %v", d)
	}
	usec := d / time.Microsecond
	if d%time.Microsecond > 0 {
		usec++
	}
	return Notify("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(int64(usec), 10))
}

// Barrier returns when systemd has read all that was sent before (sd_notify_barrier(3), systemd 246). A process that sends
// something and ends needs it: systemd cannot tell the unit of a process that is gone, and ignores its messages. So does
// whoever passes on the right to send, see [MainPID].
//
// Where ctx ends first, its error is returned, and what was sent stays sent.
func Barrier(ctx context.Context) error {
	if !Supervised() {
		return nil
	}
	return barrier(ctx)
}

// notifyAddress checks NOTIFY_SOCKET, and gives it in the form that package net wants.
func notifyAddress() (string, error) {
	address := os.Getenv(socketVariable)
	switch {
	case strings.HasPrefix(address, "vsock"): // vsock:2:1234, vsock-stream:..., from a virtual machine to its host
		return "", fmt.Errorf("activation: %s=%q: only Unix sockets can be notified: %w", socketVariable, address, errors.ErrUnsupported)
	case len(address) < 2 || address[0] != '/' && address[0] != '@':
		return "", fmt.Errorf("activation: %s=%q is neither an absolute path nor an abstract socket (@name)", socketVariable, address)
	case len(address) > 107: // sun_path, and the NUL at its end
		return "", fmt.Errorf("activation: %s=%q is longer than the 107 bytes of a Unix socket's address", socketVariable, address)
	}
	return address, nil
}
