package listener

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/storename"
)

// systemd is the Source of a Config that names none, or an activation.Set: what was passed to this process, and what an
// earlier run of the service stored (Config.Store).
type systemd struct {
	set       *activation.Set
	byAddress bool // the name says nothing
}

// passed is the sockets that systemd passed, nil where it passed none. An address such as "fd:http" asks for one of them,
// so then there is a source, which says that nothing was passed.
func passed(address string, byAddress bool) (Source, error) {
	set, err := activation.FromEnv()
	if err != nil {
		return nil, err
	}
	if set == nil && !strings.HasPrefix(address, "fd:") {
		return nil, nil
	}
	return systemd{set, byAddress}, nil
}

func (s systemd) Take(name, network, address string) (net.Listener, error) {
	return s.set.Take(s.nameOf(name), network, s.stored(name, network, address))
}

func (s systemd) TakePacket(name, network, address string) (net.PacketConn, error) {
	return s.set.TakePacket(s.nameOf(name), network, s.stored(name, network, address))
}

func (s systemd) nameOf(name string) string {
	if s.byAddress {
		return ""
	}
	return name
}

// stored is the address under which a socket can be taken that an earlier run stored for this request, perhaps with
// another port than the one asked for; else the address itself.
func (s systemd) stored(name, network, address string) string {
	if !storedAny() {
		return address
	}
	if key := storename.For(name, network, address); s.has(func(other string) bool { return other == key }) {
		return "fd:" + key
	}
	return address
}

// storedAny tells whether an earlier run stored anything: most did not, and then nothing has to be looked up.
var storedAny = sync.OnceValue(func() bool {
	set, _ := activation.FromEnv() // without an error: there is a systemd
	return systemd{set: set}.has(func(name string) bool { return strings.HasPrefix(name, storename.Prefix) })
})

// has tells whether a socket that nobody took yet has such a name.
func (s systemd) has(match func(name string) bool) bool {
	return slices.ContainsFunc(s.set.Unused(), func(socket activation.Socket) bool { return match(socket.Name) })
}

// store keeps a socket that was bound for the next run of the service.
func (a *attempt[S]) store(ctx context.Context, socket S) (stored bool) {
	if err := activation.Store(storename.For(a.config.Name, a.network, a.requested), socket); err != nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "the socket does not survive a restart of the service", slog.Any("error", err))
		return false
	}
	return activation.Supervised() // otherwise there is nobody to store anything
}

// unclaimed says once that systemd passed sockets which nobody asks for: a port that differs between the unit and the
// program is the usual mistake, and without a word the program would just bind another.
var unclaimed sync.Once

func (a *attempt[S]) warnUnclaimed(ctx context.Context, set *activation.Set) {
	if set == nil || !a.log.Enabled(ctx, slog.LevelWarn) {
		return
	}
	unused := set.Unused()
	if len(unused) == 0 {
		return
	}
	unclaimed.Do(func() {
		attrs := []slog.Attr{slog.String("network", a.network), slog.String("requested", a.requested)}
		if a.config.Name != "" {
			attrs = append(attrs, slog.String("name", a.config.Name))
		}
		for _, socket := range unused {
			attrs = append(attrs, slog.String("passed", socket.String()))
		}
		a.log.LogAttrs(ctx, slog.LevelWarn, "none of the sockets that systemd passed and nobody took yet is the one asked for: compare the socket unit with the program", attrs...)
	})
}

// takePassed is for Listen and ListenPacket, which have no Config.
func takePassed[S any](network, address string, take func(Source, string, string, string) (S, error)) (socket S, ok bool, err error) {
	source, err := passed(address, false)
	if err == nil {
		if source == nil {
			return socket, false, nil
		}
		if socket, err = take(source, "", network, address); err == nil {
			return socket, true, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return socket, false, nil
		}
	}
	return socket, false, &net.OpError{Op: "listen", Net: network, Err: &Error{Requested: address, Cause: err}}
}
