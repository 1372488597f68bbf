//go:build linux

package listener_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

func init() {
	roles["reclaim many"] = role.playReclaimMany
}

// descriptors are the open files of this process, without the one that reads the directory.
func descriptors() (map[string]string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	open := map[string]string{}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open[e.Name()] = to
		}
	}
	return open, nil
}

func TestNoLeak(t *testing.T) {
	const cycles = 100
	ctx := context.Background()
	held := listenPlain(t, "tcp", "127.0.0.1:0")
	heldPort := portOf(t, held.Addr())
	dir, state := shortDir(t), t.TempDir()
	path := filepath.Join(dir, "s")
	inUse := func(err error) error {
		if !errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("expected a taken address: %w", err)
		}
		_ = err.Error() // with the diagnosis
		return nil
	}
	broken := errors.New("broken")
	for name, cycle := range map[string]func() error{
		"tcp": func() error {
			cfg := &listener.Config{StateDir: state, PortFile: filepath.Join(dir, "port")}
			return closed(cfg.Listen(ctx, "tcp", "127.0.0.1:0"))
		},
		"unix": func() error { return closed((&listener.Config{StateDir: state}).Listen(ctx, "unix", path)) },
		"udp": func() error {
			return closed((&listener.Config{StateDir: state}).ListenPacket(ctx, "udp", "127.0.0.1:0"))
		},
		"unixgram": func() error { return closed((&listener.Config{StateDir: state}).ListenPacket(ctx, "unixgram", path)) },
		"without state": func() error {
			return closed((&listener.Config{StateDir: "/dev/null"}).Listen(ctx, "tcp", "127.0.0.1:0"))
		},
		"with connections": func() error {
			ln, err := (&listener.Config{StateDir: state}).Listen(ctx, "tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer ln.Close()
			client, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			defer client.Close()
			return closed(ln.Accept())
		},
		"all": func() error {
			all, err := (&listener.Config{StateDir: state}).ListenAll(ctx, "tcp", "127.0.0.1:0", "127.0.0.1:0")
			for _, ln := range all {
				err = errors.Join(err, ln.Close())
			}
			return err
		},
		"plain, taken": func() error { return inUse(closed(listener.Listen("tcp", held.Addr().String()))) },
		"taken": func() error {
			return inUse(closed((&listener.Config{StateDir: state}).Listen(ctx, "tcp", held.Addr().String())))
		},
		"aggressive, refused": func() error {
			cfg := &listener.Config{StateDir: state, Strategy: strategy.Aggressive{Allow: strategy.AnyOfMine}}
			return inUse(closed(cfg.Listen(ctx, "tcp", held.Addr().String())))
		},
		"reclaim, refused": func() error {
			cfg := &listener.Config{StateDir: state, Strategy: &script{actions: []strategy.Action{strategy.Reclaim{Allow: func(strategy.Holder) bool { return true }}}}}
			return inUse(closed(cfg.Listen(ctx, "tcp", held.Addr().String())))
		},
		"all but one": func() error {
			_, err := (&listener.Config{StateDir: state}).ListenAll(ctx, "tcp", "127.0.0.1:0", held.Addr().String())
			return inUse(err)
		},
		"fallback": func() error {
			cfg := &listener.Config{StateDir: state, Strategy: strategy.Staging(ports(heldPort, heldPort), strategy.Range{})}
			return closed(cfg.Listen(ctx, "tcp", held.Addr().String()))
		},
		"fallback to nowhere": func() error {
			cfg := &listener.Config{StateDir: state, Strategy: strategy.Staging(ports(heldPort, heldPort))}
			return inUse(closed(cfg.Listen(ctx, "tcp", held.Addr().String())))
		},
		"wait, canceled": func() error {
			ctx, cancel := context.WithCancel(ctx)
			s := strategy.Func(func(strategy.Failure) strategy.Action { cancel(); return strategy.Retry{After: time.Hour} })
			return inUse(closed((&listener.Config{StateDir: state, Strategy: s}).Listen(ctx, "tcp", held.Addr().String())))
		},
		"wait, deadline": func() error {
			ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			err := closed((&listener.Config{StateDir: state, Strategy: strategy.Wait{}}).Listen(ctx, "tcp", held.Addr().String()))
			if !errors.Is(err, context.DeadlineExceeded) { // on a busy machine before the first bind
				return fmt.Errorf("expected the deadline: %w", err)
			}
			return nil
		},
		"stale socket file": func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Close(fd)); err != nil {
				return err
			}
			return closed((&listener.Config{StateDir: state}).Listen(ctx, "unix", path))
		},
		"port file that cannot be written": func() error {
			cfg := &listener.Config{StateDir: state, PortFile: "/dev/null/port"}
			if err := closed(cfg.Listen(ctx, "tcp", "127.0.0.1:0")); !errors.Is(err, syscall.ENOTDIR) {
				return fmt.Errorf("expected no directory: %w", err)
			}
			return nil
		},
		"keeper that fails": func() error {
			keeps := keeper{&source{take: nothing}, func(string, string, string, syscall.Conn) error { return broken }}
			cfg := &listener.Config{StateDir: state, Sources: []listener.Source{keeps}}
			if err := closed(cfg.Listen(ctx, "tcp", "127.0.0.1:0")); !errors.Is(err, broken) {
				return err
			}
			return nil
		},
		"malformed": func() error {
			if closed((&listener.Config{StateDir: state}).Listen(ctx, "tcp", "nonsense")) == nil {
				return errors.New("it is malformed")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, cycle()) // what is made once: the poller of the runtime
			before, err := descriptors()
			require.NoError(t, err)
			goroutines := goleak.IgnoreCurrent()
			for range cycles {
				require.NoError(t, cycle())
			}
			after, err := descriptors()
			require.NoError(t, err)
			// What an earlier test left to the garbage collector may go meanwhile.
			require.LessOrEqual(t, len(after), len(before), "before: %v\nafter: %v", before, after)
			goleak.VerifyNone(t, goroutines)
			require.Empty(t, filesIn(t, state))
			require.Empty(t, filesIn(t, dir))
		})
	}
}

// playReclaimMany takes every address from who holds it, then tells what it has open.
func (r role) playReclaimMany() error {
	cfg, err := r.config()
	if err != nil {
		return err
	}
	take := func(address string) error {
		ln, err := cfg.Listen(context.Background(), r.Network, address)
		if err != nil {
			return err
		}
		if ln.Origin().Kind != listener.Reclaimed {
			return fmt.Errorf("%s was %v", address, ln.Origin().Kind)
		}
		return ln.Close()
	}
	addresses := strings.Fields(r.Address)
	if err := take(addresses[0]); err != nil {
		return err
	}
	before, err := descriptors()
	if err != nil {
		return err
	}
	goroutines := goleak.IgnoreCurrent()
	for _, address := range addresses[1:] {
		if err := take(address); err != nil {
			return err
		}
	}
	after, err := descriptors()
	if err != nil {
		return err
	}
	if len(after) != len(before) {
		return fmt.Errorf("descriptors before: %v, after: %v", before, after)
	}
	if err := goleak.Find(goroutines); err != nil {
		return err
	}
	fmt.Println("ready", len(addresses))
	return nil
}

func TestNoLeakReclaim(t *testing.T) {
	var addresses []string
	for range 10 {
		addresses = append(addresses, play(t, role{Do: "plain", Network: "tcp", Address: "127.0.0.1:0"}).ready(t))
	}
	r := role{Do: "reclaim many", Network: "tcp", Address: strings.Join(addresses, " "), Strategy: "development", StateDir: t.TempDir()}
	require.Equal(t, "10", play(t, r).ready(t))
}
