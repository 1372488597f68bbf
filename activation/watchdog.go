package activation

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Watchdog keeps systemd from restarting the service (WatchdogSec=), for as long as healthy returns nil. It asks at once,
// and then at half the interval that systemd wants to hear from the service in, until ctx ends. It runs in the caller's
// goroutine, and healthy too.
//
//	go activation.Watchdog(ctx, func(ctx context.Context) error { return db.PingContext(ctx) })
//
// After a check that fails nothing is sent. That alone ends nothing: when the next one succeeds in time, the service lives
// on, and otherwise systemd ends it, and starts it again where the unit says so (Restart=on-watchdog). A check that hangs
// counts as failed: its context ends after a quarter of the interval, and a check that does not care keeps the others from
// being made. The error of a check goes nowhere; a check whose failure should be in a log or in [Status] puts it there. A nil
// healthy means healthy.
//
// Watchdog returns nil when ctx ends, and at once where no watchdog is asked for: when unsupervised, when WATCHDOG_USEC is
// not set, or when WATCHDOG_PID is the pid of another process. When WATCHDOG_USEC, WATCHDOG_PID or NOTIFY_SOCKET is
// malformed, it returns an error at once. A message that cannot be sent is tried again in the next half interval; the error
// is returned if the last one before ctx ended was such.
func Watchdog(ctx context.Context, healthy func(context.Context) error) error {
	if !Supervised() {
		return nil
	}
	interval, err := watchdogInterval()
	if err != nil || interval == 0 {
		return err
	}
	if _, err := notifyAddress(); err != nil {
		return err
	}
	// At least a microsecond is asked for, and a ticker wants something positive.
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if check(ctx, healthy, interval/4) == nil && ctx.Err() == nil {
			err = ping(ctx, interval/4)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return err
}

// check asks once. Checks that succeed take more or less of a quarter of the interval and begin at every half, so less than
// the interval goes by between two messages.
func check(ctx context.Context, healthy func(context.Context) error, limit time.Duration) error {
	if healthy == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return healthy(ctx)
}

// ping tells systemd. What ends with the caller's context is no error.
func ping(parent context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	if err := send(ctx, "WATCHDOG=1"); err != nil && parent.Err() == nil {
		return err
	}
	return nil
}

// watchdogInterval is 0 where this process has no watchdog.
func watchdogInterval() (time.Duration, error) {
	interval, err := watchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("activation: WATCHDOG_USEC=%q, WATCHDOG_PID=%q: %w", os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID"), err)
	}
	if interval == 0 {
		return 0, nil
	}
	// A number beyond what a Duration holds has wrapped around.
	usec := os.Getenv("WATCHDOG_USEC")
	if n, err := strconv.ParseInt(usec, 10, 64); err != nil || interval != time.Duration(n)*time.Microsecond || interval.Microseconds() != n {
		return 0, fmt.Errorf("activation: WATCHDOG_USEC=%q is out of range", usec)
	}
	return interval, nil
}
