package listener

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-go/berth/internal/holder"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
)

const (
	// probeTimeout bounds the connection that finds out whether anybody serves a Unix socket. A live one answers or
	// refuses at once; its queue can be full.
	probeTimeout = time.Second
	// replaceTimeout bounds the wait for another process that is replacing the same file.
	replaceTimeout = time.Second
	replacePoll    = 2 * time.Millisecond
	// settleTime is how old the file of a socket has to be before it can be stale: longer than anybody takes between bind
	// and listen.
	settleTime = 50 * time.Millisecond
)

// removeStale removes the file of a Unix socket that nobody serves any more, and keeps the lock under which it did so.
// Where the state directory cannot be used it does without the lock; then two processes that start at the same instant
// could take away each other's file between the last look and the removal.
func (a *attempt[S]) removeStale(ctx context.Context, target sockets.Target) bool {
	if target.Path[0] == '@' {
		return false // abstract: there is no file, and the name goes with its last descriptor
	}
	for begin := time.Now(); time.Since(begin) < replaceTimeout; {
		info, stale := staleFile(ctx, target)
		if !stale {
			return false
		}
		// A socket that was just bound refuses too, until its owner listens, and in another network namespace, as a
		// container that shares the directory has, the kernel's table does not show it.
		if age := time.Since(info.ModTime()); 0 <= age && age < settleTime {
			if pause(ctx, replacePoll) != nil {
				return false
			}
			continue
		}
		if a.lock == nil && a.records != nil {
			lock, err := a.records.Lock(a.network, holder.AbsolutePath(target.Path))
			if errors.Is(err, registry.ErrHeld) { // somebody is about to bind it, or is being killed
				if pause(ctx, replacePoll) != nil {
					return false
				}
				continue
			}
			a.lock = lock // nil when the directory is of no use
		}
		// The file may have been replaced before the lock was ours.
		again, stale := staleFile(ctx, target)
		if !stale || !os.SameFile(info, again) || removeSame(target.Path, again) != nil {
			return false
		}
		a.log.LogAttrs(ctx, slog.LevelInfo, "removed the file of a Unix socket that nobody serves", slog.String("path", target.Path))
		return true
	}
	return false
}

// staleFile tells whether the path is a socket that nobody has open: a connection is refused, and the kernel's table,
// where it can be read, has no socket for it (one that is bound and does not listen yet refuses, too).
func staleFile(ctx context.Context, target sockets.Target) (fs.FileInfo, bool) {
	info, err := os.Lstat(target.Path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return nil, false
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, target.Network, target.Path)
	if err == nil {
		_ = conn.Close() // it only asked whether anybody is there
		return nil, false
	}
	if !isRefused(err) {
		return nil, false
	}
	open, err := sockets.InTheWay(target)
	if err == nil && len(open) > 0 {
		return nil, false
	}
	return info, true
}

// ownSocketFile makes the file of a Unix socket ours to remove. Package net would remove whatever has the name at Close,
// also the socket of somebody who replaced ours; and it leaves that of a datagram socket.
func ownSocketFile(socket any, addr net.Addr) *socketFile {
	unix, ok := addr.(*net.UnixAddr)
	if !ok || unix.Name == "" || unix.Name[0] == '@' {
		return nil
	}
	if ln, ok := socket.(*net.UnixListener); ok {
		ln.SetUnlinkOnClose(false)
	}
	path, err := filepath.Abs(unix.Name) // the working directory may be another at Close
	if err != nil {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	return &socketFile{path: path, info: info}
}
