package strategy

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode"
)

// A Diagnosis tells who holds an address.
type Diagnosis struct {
	Holders []Holder

	// Complete means that nothing remained unknown: each socket in the way has its process in Holders, or every process
	// could be inspected. Without it an empty list means nothing.
	Complete bool
}

// String is one line: the holders, "nobody" or "unknown".
func (d Diagnosis) String() string {
	switch {
	case len(d.Holders) > 0:
		texts := make([]string, len(d.Holders))
		for i, h := range d.Holders {
			texts[i] = h.String()
		}
		return strings.Join(texts, ", ")
	case d.Complete:
		return "nobody"
	}
	return "unknown"
}

// A Holder is a process that has a socket which keeps an address from being bound. What could not be found out is the
// zero value, UID excepted.
type Holder struct {
	PID        int    // 0: the kernel shows the socket but not whose it is
	UID        int    // effective; where PID is 0, of who made the socket; -1: unknown
	User       string // name of UID, or its number
	Command    string // short name
	Executable string // path
	Dir        string // working directory
	Args       []string
	Started    time.Time

	Address string // of its socket, as the kernel reports it: "127.0.0.1:3000", "[::]:3000", "/run/app.sock"
	State   string // "listening", "bound" (without listening) or "connected" (an ephemeral port of a client)

	Unit      string // systemd service that manages it, from the cgroup: "nginx.service"
	UserUnit  bool   // Unit is one of the user's own service manager: systemctl --user
	Container string // container that it runs in, from the cgroup

	// Of a process that has reserved the address (listener.Config.Reserve): it accepts nothing on it yet.
	Reserved bool
	Service  string    // for which it is reserved; "": it has no name
	Until    time.Time // when the reservation ends by itself; zero: nothing says so

	Ours    bool   // by default it may be stopped: an earlier run of this program, or an orphan of one
	Newer   bool   // started after this process; the newest start wins
	Refusal string // why it must never be stopped; "": no rule forbids it
}

// String is one line: "python3 (pid 4242, user alice, in /home/alice/web)".
func (h Holder) String() string {
	switch {
	case h.PID == 0 && h.User == "" && h.State == "connected":
		return "a closed connection"
	case h.PID == 0 && h.User == "":
		return "a process that cannot be seen"
	case h.PID == 0:
		return "a process of user " + printable(h.User) + " that cannot be seen"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (pid %d", cmp.Or(printable(h.Command), "a process"), h.PID)
	for _, part := range []struct{ name, value string }{
		{"user ", h.User}, {"unit ", h.Unit}, {"container ", shortID(h.Container)}, {"in ", h.Dir},
	} {
		if part.value != "" {
			b.WriteString(", " + part.name + printable(part.value))
		}
	}
	if h.Reserved {
		b.WriteString(", reserved")
		if h.Service != "" {
			b.WriteString(" for " + printable(h.Service))
		}
		if !h.Until.IsZero() {
			b.WriteString(" until " + h.Until.Format(time.TimeOnly))
		}
	}
	return b.String() + ")"
}

// printable is text that does nothing to a terminal and stays on its line: a process chooses its own name and directory.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// shortID is a container's id as its tools print it: twelve digits.
func shortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// LogValue is what a person wants to see in a log: who, where, and whether it may be stopped.
func (h Holder) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Int("pid", h.PID)}
	for _, a := range []struct{ key, value string }{
		{"command", h.Command}, {"user", h.User}, {"dir", h.Dir}, {"address", h.Address}, {"state", h.State},
		{"unit", h.Unit}, {"container", shortID(h.Container)}, {"refusal", h.Refusal},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	if !h.Started.IsZero() {
		attrs = append(attrs, slog.Time("started", h.Started))
	}
	if h.Reserved {
		attrs = append(attrs, slog.Bool("reserved", true))
	}
	return slog.GroupValue(append(attrs, slog.Bool("ours", h.Ours))...)
}
