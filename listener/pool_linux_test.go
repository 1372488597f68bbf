package listener_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPoolStateDirectoryFullOrReadOnly(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	for _, options := range []string{"size=4k,nr_inodes=1", "ro"} {
		t.Run(options, func(t *testing.T) {
			var log lockedBuffer
			p := pool(t, 3)
			p.Sticky, p.Config.Logger = true, slog.New(slog.NewTextHandler(&log, nil))
			p.Config.StateDir = mountAt(t, options)
			a, b, c := lease(t, p, "a"), lease(t, p, "b"), lease(t, p, "c")
			require.Len(t, map[int]bool{port(t, a.Addr()): true, port(t, b.Addr()): true, port(t, c.Addr()): true}, 3)
			require.Contains(t, log.String(), "the port is not remembered")
			p.Wait = 0
			go func() {
				for end := time.Now().Add(deadline); !strings.Contains(log.String(), "no queue for this pool") && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				b.Close()
			}()
			require.Equal(t, b.Addr(), lease(t, p, "d").Addr())
			require.Contains(t, log.String(), "no queue for this pool")
		})
	}
}
