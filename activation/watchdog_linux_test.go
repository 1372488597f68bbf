package activation_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/activation"
)

func setWatchdog(t testing.TB, usec, pid string) {
	t.Helper()
	t.Setenv("WATCHDOG_USEC", usec)
	t.Setenv("WATCHDOG_PID", pid)
}

// beat is how many messages came since the last time, all of the watchdog.
func (m *manager) beat(t testing.TB) int {
	t.Helper()
	synctest.Wait()
	all := m.pending(t)
	for _, text := range all {
		require.Equal(t, "WATCHDOG=1", text)
	}
	return len(all)
}

// watch runs Watchdog with an interval of 20 s in a bubble, at whose time 0 the first check is made.
func watch(t *testing.T, healthy func(context.Context) error, test func(m *manager, stop func() error)) {
	t.Helper()
	m := supervised(t)
	setWatchdog(t, "20000000", strconv.Itoa(os.Getpid()))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result := make(chan error, 1)
		go func() { result <- activation.Watchdog(ctx, healthy) }()
		test(m, func() error {
			cancel()
			synctest.Wait() // at once
			select {
			case err := <-result:
				return err
			default:
				return errors.New("it does not return")
			}
		})
	})
}

func TestWatchdogBeats(t *testing.T) {
	watch(t, nil, func(m *manager, stop func() error) {
		require.Equal(t, 1, m.beat(t), "at once")
		time.Sleep(10*time.Second - 1)
		require.Equal(t, 0, m.beat(t))
		time.Sleep(time.Nanosecond)
		require.Equal(t, 1, m.beat(t), "after half the interval")
		time.Sleep(100 * time.Second)
		require.Equal(t, 10, m.beat(t))
		require.NoError(t, stop())
		time.Sleep(time.Hour)
		require.Equal(t, 0, m.beat(t))
	})
}

func TestWatchdogUnhealthy(t *testing.T) {
	var sick atomic.Bool
	var checks atomic.Int32
	watch(t, func(context.Context) error {
		checks.Add(1)
		if sick.Load() {
			return errors.New("out of order")
		}
		return nil
	}, func(m *manager, stop func() error) {
		require.Equal(t, 1, m.beat(t))
		sick.Store(true)
		time.Sleep(30 * time.Second)
		require.Equal(t, 0, m.beat(t))
		require.EqualValues(t, 4, checks.Load(), "it goes on asking")
		sick.Store(false)
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, m.beat(t), "and says so when all is well again")
		require.NoError(t, stop())
	})
}

// A check is told when it takes too long. One that cares lets the next one be made, one that does not gets no message.
func TestWatchdogSlow(t *testing.T) {
	var hang atomic.Bool
	var release chan struct{} // of the bubble
	watch(t, func(ctx context.Context) error {
		if hang.Load() {
			<-release
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}, func(m *manager, stop func() error) {
		release = make(chan struct{})
		start := time.Now()
		time.Sleep(5 * time.Second)
		require.Equal(t, 0, m.beat(t), "its context has ended, after %v", time.Since(start))
		hang.Store(true)
		time.Sleep(time.Hour)
		require.Equal(t, 0, m.beat(t))
		hang.Store(false)
		close(release)
		require.Equal(t, 1, m.beat(t))
		require.NoError(t, stop(), "in the middle of a check, whose context ends")
		require.Equal(t, 0, m.beat(t))
	})
}

// No two messages are an interval or more apart, however long healthy checks take.
func TestWatchdogSlowButHealthy(t *testing.T) {
	times := 0
	watch(t, func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		require.True(t, ok)
		if times++; times%2 == 0 {
			time.Sleep(time.Until(deadline) - 1)
		}
		return ctx.Err()
	}, func(m *manager, stop func() error) {
		for range 20 {
			time.Sleep(16 * time.Second) // > 10 + 5
			require.NotZero(t, m.beat(t))
		}
		require.NoError(t, stop())
	})
}

// What cannot be sent is tried again.
func TestWatchdogRetries(t *testing.T) {
	watch(t, nil, func(m *manager, stop func() error) {
		require.Equal(t, 1, m.beat(t))
		name := os.Getenv("NOTIFY_SOCKET")
		require.NoError(t, os.Rename(name, name+".away"))
		time.Sleep(10 * time.Second)
		require.Equal(t, 0, m.beat(t))
		require.NoError(t, os.Rename(name+".away", name))
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, m.beat(t))
		require.NoError(t, stop())
	})
	watch(t, nil, func(m *manager, stop func() error) {
		require.Equal(t, 1, m.beat(t))
		require.NoError(t, os.Remove(os.Getenv("NOTIFY_SOCKET")))
		time.Sleep(10 * time.Second)
		require.Equal(t, 0, m.beat(t))
		require.ErrorIs(t, stop(), os.ErrNotExist)
	})
}

func TestWatchdogNone(t *testing.T) {
	m := supervised(t)
	never := func(context.Context) error { t.Error("nobody asked"); return nil }
	for _, none := range []struct{ usec, pid string }{{"", ""}, {"", strconv.Itoa(os.Getpid())}, {"1000000", "1"}} {
		setWatchdog(t, none.usec, none.pid)
		require.NoError(t, activation.Watchdog(t.Context(), never))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	setWatchdog(t, "1000000", "")
	require.NoError(t, activation.Watchdog(ended, never))
	for _, bad := range []struct{ usec, pid string }{
		{"abc", ""}, {"0", ""}, {"-1", ""}, {"1.5", ""}, {"1000000", "me"}, {"9223372036854775807", ""}, {"9223372036854776", ""},
		{"18446744073709551615", ""}, {"18446744073709552", ""}, {"99999999999999999999", ""},
	} {
		setWatchdog(t, bad.usec, bad.pid)
		err := activation.Watchdog(t.Context(), never)
		require.ErrorContains(t, err, "WATCHDOG_USEC=\""+bad.usec+"\"")
	}
	require.Empty(t, m.pending(t))
	require.Equal(t, "99999999999999999999", os.Getenv("WATCHDOG_USEC"), "it stays")

	// As short as can be.
	ctx, cancel := context.WithCancel(t.Context())
	setWatchdog(t, "1", "")
	done := make(chan error)
	go func() { done <- activation.Watchdog(ctx, nil) }()
	for range 20 {
		require.Equal(t, "WATCHDOG=1", m.text(t))
	}
	cancel()
	for err := error(nil); ; {
		select {
		case err = <-done:
			if err != nil { // of the last message, for which there was a quarter of a microsecond
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			return
		default:
			m.pending(t)
		}
	}
}
