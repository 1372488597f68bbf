package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// A Kind is what happened.
type Kind string

// What happens to the service's listeners; see the constants of the same names in package listener.
const (
	Conflict Kind = "conflict"
	Reclaim  Kind = "reclaim"
	LockWait Kind = "lock wait"
	Bound    Kind = "bound"    // listener.Obtained: Event.Origin tells how
	Fallback Kind = "fallback" // the same, on another port than the one that was asked for
	Failed   Kind = "failed"
	Reserved Kind = "reserved"
	Released Kind = "released" // also of a reservation that was not used
)

// What becomes of the service's process; see the constants Event* in package reload.
const (
	Ready         Kind = "ready"
	Upgrading     Kind = "upgrading"
	Upgraded      Kind = "upgraded"
	UpgradeFailed Kind = "upgrade failed"
	Draining      Kind = "draining"
	Resumed       Kind = "resumed"
	Stopping      Kind = "stopping"
	Stopped       Kind = "stopped"
)

// What two looks at the ports of the machine differ by. Ports of this process do not count, nor do those that a client's
// connection has. What comes and goes between two looks is not seen.
const (
	Taken      Kind = "taken"
	Freed      Kind = "freed"
	Changed    Kind = "changed"     // another state, or other processes
	HolderGone Kind = "holder gone" // freed by a process that left its record: it crashed, or was killed
)

// An Event is something that happened to a port, or to the process that serves it. It tells everything: what of it somebody may see
// is decided where it is sent.
type Event struct {
	Kind      Kind
	Time      time.Time
	Level     slog.Level        // Info, Warn for what a person should know, Error for what has failed
	Text      string            // one line for people, which names processes by pid and command alone
	Name      string            // of the service; "": none
	Network   string            // "": it is not about a socket
	Requested string            // address that was asked for; "": does not apply
	Address   string            // that is taken, or was obtained; "": none
	Origin    listener.Origin   // of Bound, Fallback, Reserved and Released
	Holders   []strategy.Holder // who is in the way, or was stopped or avoided; of the machine's ports who has it, or had it
	Took      time.Duration     // 0: does not apply
	Err       error             // nil: none
}

// Event takes what a [listener.Config] tells: assign it to its OnEvent. It says what the service listens on. Where an address is
// taken it finds out by whom, which takes milliseconds.
func (m *Monitor) Event(e listener.Event) {
	told := Event{
		Time: e.Time, Level: slog.LevelInfo, Name: e.Name, Network: e.Network, Requested: e.Requested, Address: e.Address,
		Origin: e.Origin, Holders: e.Stopped, Took: e.Elapsed, Err: e.Err,
	}
	what := e.Network + " " + e.Requested
	switch e.Kind {
	case listener.Conflict:
		told.Kind, told.Level, told.Text = Conflict, slog.LevelWarn, what+" is taken"
		if e.Diagnose != nil {
			told.Holders = e.Diagnose().Holders
		}
		if len(told.Holders) > 0 {
			told.Text += " by " + who(told.Holders)
		}
	case listener.Reclaim:
		told.Kind, told.Level, told.Text = Reclaim, slog.LevelWarn, who(e.Stopped)+" was stopped to get "+what
		if e.Err != nil {
			told.Text = "who has " + what + " was not stopped"
		}
	case listener.LockWait:
		told.Kind, told.Text = LockWait, "waited for the lock of "+what
		if e.Err != nil {
			told.Level, told.Text = slog.LevelWarn, "somebody else has the lock of "+what
		}
	case listener.Obtained:
		m.service.obtained(e)
		told.Kind, told.Text, told.Holders = Bound, fmt.Sprintf("%s is served (%s)", what, e.Origin.Kind), e.Origin.InTheWay
		if e.Origin.Kind == listener.Fallback {
			told.Kind, told.Level, told.Text = Fallback, slog.LevelWarn, what+" was taken: "+e.Address+" is served instead"
		}
	case listener.Failed:
		told.Kind, told.Level, told.Text = Failed, slog.LevelError, what+" is not served: it could not be obtained"
	case listener.Reserved:
		told.Kind, told.Text = Reserved, e.Network+" "+e.Address+" is reserved"
	case listener.Released:
		told.Kind, told.Text = Released, e.Network+" "+e.Address+" is served no more"
		if !m.service.released(e) {
			told.Text = e.Network + " " + e.Address + " is reserved no more"
		}
	default:
		return // of a later version of package listener
	}
	m.emit(told)
}

// Upgrade takes what package reload tells: assign it to reload.Config.OnEvent. It says whether the service is ready. Programs that
// live without that package may call it themselves: "stopping" before they turn the first connection away.
func (m *Monitor) Upgrade(event string, took time.Duration, err error) {
	e := Event{Kind: Kind(event), Time: time.Now(), Level: slog.LevelInfo, Name: m.options.Name, Took: took, Err: err}
	switch e.Kind {
	case Ready:
		e.Text = "the service accepts connections"
	case Upgrading:
		e.Text = "a new version is being started"
	case Upgraded:
		e.Text = "the new version leads"
	case UpgradeFailed:
		e.Level, e.Text = slog.LevelError, "no upgrade: this version goes on"
	case Draining:
		e.Text = "this version finishes what it has"
	case Resumed:
		e.Level, e.Text = slog.LevelWarn, "the new version has ended: this one serves again"
	case Stopping:
		e.Text = "the service is about to stop"
	case Stopped:
		e.Text = "the service has stopped"
	default:
		return // of a later version of package reload
	}
	m.emit(e) // before the streams end
	m.service.became(upgrade{e.Time, event, took, err})
}

// emit makes an event known.
func (m *Monitor) emit(e Event) {
	m.events.add(e)
	if m.options.OnEvent != nil {
		m.options.OnEvent(e)
	}
}

// who names processes in a line.
func who(holders []strategy.Holder) string {
	if len(holders) == 0 {
		return "nobody"
	}
	var texts []string
	for i, h := range holders {
		if i == 3 {
			texts = append(texts, fmt.Sprintf("%d more", len(holders)-i))
			break
		}
		texts = append(texts, strategy.Holder{PID: h.PID, Command: h.Command}.String()) // what else there is, is for some alone
	}
	return strings.Join(texts, ", ")
}

// errorText is what of an error somebody may see. Errors of packages listener and reload speak of holders, commands and output.
func errorText(err error, details bool) string {
	var number syscall.Errno
	switch {
	case err == nil:
		return ""
	case details:
		return err.Error()
	case errors.As(err, &number):
		return number.Error()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "it was given up"
	case errors.Is(err, net.ErrClosed):
		return net.ErrClosed.Error()
	}
	return "the log of the service says why"
}

// mostEvents are remembered, and mostHolders told with each. An event takes some hundred bytes without details, and at the very most
// 150 KiB with them, where every holder has the longest arguments.
const mostEvents, mostHolders = 256, 8

// A history is the last events, rendered, numbered from 1.
type history struct {
	epoch string // distinguishes the numbers of this process from those of others

	mu   sync.Mutex
	last uint64
	ring [mostEvents]message
	more chan struct{} // closed when there is one more
}

// A message is an event as it is sent, without details and with them.
type message [2][]byte

func (h *history) init(start time.Time) {
	h.epoch, h.more = strconv.FormatInt(start.UnixNano(), 36), make(chan struct{})
}

func (h *history) add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	id := h.epoch + "-" + strconv.FormatUint(h.last, 10)
	h.ring[h.last%mostEvents] = message{rendered(id, e, false), rendered(id, e, true)}
	close(h.more)
	h.more = make(chan struct{})
}

func rendered(id string, e Event, details bool) []byte {
	document := eventJSON{
		ID: id, Time: e.Time, Kind: string(e.Kind), Level: "info", Text: e.Text, Name: e.Name, Network: e.Network,
		Requested: e.Requested, Address: e.Address, Port: portOf(e.Address),
		Holders: holderDocuments(e.Holders[:min(len(e.Holders), mostHolders)], details), Took: max(e.Took, 0).Seconds(), Error: errorText(e.Err, details),
	}
	switch {
	case e.Level >= slog.LevelError:
		document.Level = "error"
	case e.Level >= slog.LevelWarn:
		document.Level = "warning"
	}
	if e.Origin.Kind != 0 {
		document.Origin = e.Origin.Kind.String()
	}
	text, err := json.Marshal(document)
	if err != nil {
		panic(err) // strings and numbers
	}
	return fmt.Appendf(nil, "id: %s\ndata: %s\n\n", id, text)
}

// seen is the number of the event with this id, 0 where it is of another process.
func (h *history) seen(id string) uint64 {
	epoch, text, ok := strings.Cut(id, "-")
	number, err := strconv.ParseUint(text, 10, 64)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !ok || err != nil || epoch != h.epoch || number > h.last {
		return 0
	}
	return number
}

// after are the messages that follow on a number, as far as they are remembered; lost tells whether some are not. More is
// closed when there is another one.
func (h *history) after(number uint64, details bool) (messages [][]byte, last uint64, lost bool, more <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := number + 1
	if h.last >= mostEvents && first <= h.last-mostEvents {
		first, lost = h.last-mostEvents+1, true
	}
	variant := 0
	if details {
		variant = 1
	}
	for n := first; n <= h.last; n++ {
		messages = append(messages, h.ring[n%mostEvents][variant])
	}
	return messages, h.last, lost, h.more
}
