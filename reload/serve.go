package reload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/berth-go/berth/activation"
)

// Serve is [Upgrader.Serve] of the Upgrader of this process; of a nil one where [New] was not called, or failed.
func Serve(ctx context.Context, server Server, listeners ...net.Listener) error {
	return current.Load().Serve(ctx, server, listeners...)
}

// Serve is the whole life of a server, on one or more listeners, in one call. It says that this process is ready (see
// [Upgrader.Ready]), and returns when the server has ended: nil after a stop or an upgrade, else why it failed. The program
// should end then, and no longer use the Upgrader, which is closed.
//
//   - SIGHUP upgrades, as [Upgrader.Upgrade] does.
//   - After an upgrade the server drains. The new version accepts; this one answers what it has, and tells HTTP/1 clients by
//     `Connection: close`, HTTP/2 clients by GOAWAY to come again. Connections end when they have been told. Those that do
//     not speak, and hijacked and raw ones, have until Config.Drain. Where the new version crashes while HTTP/1 clients are
//     still to be told, this one goes on; later, and with other servers than an [*http.Server], it has closed its listeners.
//   - SIGTERM, SIGINT and the end of ctx stop it: no new connections, what is in flight is finished, until Config.Drain. A second
//     SIGINT ends it at once. The server's own Shutdown or Close stops it too.
//   - systemd is told: READY, RELOADING, MAINPID, STOPPING and STATUS, so that Type=notify works with NotifyAccess=main.
//     A new version is a child of systemd, as the first is. Once it is the main process, its end is the unit's to
//     act on (Restart=), also while this one drains.
//
// With a nil Upgrader, as on Windows, there are no upgrades and SIGHUP does what it does without; that is logged by
// slog.Default. Nothing else may call Notify of os/signal for these signals with an effect on the program's life.
func (u *Upgrader) Serve(ctx context.Context, server Server, listeners ...net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("reload: Serve needs a listener")
	}
	s := &service{upgrader: u, server: drainerOf(server), log: slog.Default(), ceiling: (&Config{}).drain(), linger: linger, done: make(chan error, len(listeners))}
	var upgraded chan *successor
	stops, upgrades := make(chan os.Signal, 16), make(chan os.Signal, 1)
	signal.Notify(stops, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stops)
	if u == nil {
		s.log.LogAttrs(ctx, slog.LevelInfo, "upgrades are off: there is no Upgrader")
	} else {
		s.log, s.ceiling, s.notice = u.log, u.config.drain(), u.config.Notice
		u.mu.Lock()
		if u.serving != nil {
			u.mu.Unlock()
			return errors.New("reload: Serve runs already: one call serves all listeners")
		}
		u.serving = make(chan *successor, 1)
		upgraded = u.serving
		u.mu.Unlock()
		signal.Notify(upgrades, upgradeSignals...)
		defer signal.Stop(upgrades)
	}
	s.stops, s.upgrades = stops, upgrades

	for _, ln := range listeners {
		s.gates = append(s.gates, newGate(ln))
	}
	if u != nil {
		u.mu.Lock()
		u.gates = s.gates
		if u.held {
			holdAll(u.gates...)
		}
		u.mu.Unlock()
	}
	for _, g := range s.gates {
		go func() { s.done <- s.server.serve(g) }()
	}
	err := s.live(ctx, upgraded)
	return errors.Join(err, u.Close())
}

// A service is one call of Serve.
type service struct {
	upgrader *Upgrader
	server   drainer
	log      *slog.Logger
	ceiling  time.Duration
	notice   time.Duration
	linger   time.Duration
	gates    []*gate
	stops    <-chan os.Signal
	upgrades <-chan os.Signal // apart, since a storm of them fills the channel, and what does not fit is lost
	done     chan error       // of each listener, when it is served no more
}

// live serves until something ends it.
func (s *service) live(ctx context.Context, upgraded <-chan *successor) error {
	ready := make(chan error, 1)
	becoming, cancel := context.WithCancel(ctx)
	became := make(chan struct{})
	go func() {
		defer close(became)
		ready <- s.becomeServing(becoming)
	}()
	defer func() {
		cancel()
		<-became // a stop interrupts it
	}()
	for {
		select {
		case err := <-s.done:
			s.done <- nil // each is waited for once
			s.notice = 0  // it serves no more
			return errors.Join(s.failed(err), s.stop(ctx, "the server ended"))
		case err := <-ready:
			ready = nil
			if err != nil {
				return errors.Join(err, s.stop(ctx, "not ready"))
			}
		case sig := <-s.upgrades:
			s.log.LogAttrs(ctx, slog.LevelInfo, "upgrade asked for", slog.String("signal", sig.String()))
			s.upgrader.request()
		case sig := <-s.stops:
			return s.stop(ctx, sig.String())
		case <-ctx.Done():
			return s.stop(ctx, ctx.Err().Error())
		case <-s.server.ended():
			return s.stop(ctx, "the server was shut down")
		case next := <-upgraded:
			if s.handOver(ctx, next) {
				return nil
			}
		}
	}
}

// becomeServing waits until each listener is accepted from, so that a server that fails at once never becomes ready.
func (s *service) becomeServing(ctx context.Context) error {
	for _, g := range s.gates {
		select {
		case <-g.accepts():
		case <-ctx.Done():
			return nil // the stop is reported elsewhere
		}
	}
	if err := s.upgrader.Ready(); err != nil {
		return err
	}
	var on []string
	for _, g := range s.gates {
		on = append(on, g.Addr().String())
	}
	text := "serving on " + strings.Join(on, ", ")
	s.log.LogAttrs(ctx, slog.LevelInfo, text, slog.Int("pid", os.Getpid()))
	s.upgrader.event(EventReady, 0, nil)
	s.upgrader.tell(activation.Status(text))
	if s.upgrader != nil {
		s.upgrader.faults.reach("serving")
	}
	return nil
}

func (s *service) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("reload: the server failed: %w", err)
}

// handOver drains after an upgrade. It reports false where the successor has ended and this process serves again.
func (s *service) handOver(ctx context.Context, next *successor) (over bool) {
	begin := time.Now()
	s.log.LogAttrs(ctx, slog.LevelInfo, "draining", slog.Int("successor", next.pid), slog.Duration("at most", s.ceiling))
	s.upgrader.event(EventDraining, 0, nil)
	s.server.retire()
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.ceiling)
	defer cancel()
	telling, stopTelling := context.WithCancel(draining)
	defer stopTelling()
	spoken := make(chan struct{})
	go func() {
		defer close(spoken)
		// Half of the time, since who has a place under a limit may keep it until the shutdown that comes then.
		emptying, cancel := context.WithTimeout(telling, s.ceiling/2)
		emptyAll(emptying, s.gates)
		cancel()
		_ = s.server.spoken(telling) // whom it could not tell is closed below
	}()
	for waiting := true; waiting; {
		select {
		case <-spoken:
			waiting = false
		case <-next.gone:
			if next.exit == nil { // it was stopped, and so is the service
				waiting = false
				break
			}
			stopTelling()
			<-spoken
			s.server.resume()
			s.upgrader.resume(next)
			return false
		case <-ctx.Done():
			waiting = false
		case <-s.stops:
			waiting = false
		case <-s.upgrades:
			s.passOn(ctx)
		}
	}
	stopTelling()
	s.upgrader.finish()
	s.shut(draining, begin)
	return true
}

// passOn has the successor upgrade, who was asked for it through this process.
func (s *service) passOn(ctx context.Context) {
	if err := s.upgrader.Upgrade(ctx); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "an upgrade is lost that was asked for while this version drains", slog.Any("error", err))
	}
}

// linger is how long a stop waits for clients that are busy to hear that they are to come again, since perhaps a socket unit
// has the address, or another machine; and for those that a middleware has accepted to come to the point. Others would keep
// a developer waiting.
const linger = 250 * time.Millisecond

// stop ends the service.
func (s *service) stop(ctx context.Context, why string) error {
	begin := time.Now()
	s.upgrader.event(EventStopping, 0, nil)
	s.upgrader.halt()
	if s.upgrader.InCharge() {
		s.upgrader.tell(activation.Stopping())
		s.upgrader.tell(activation.Status("stopping: " + why))
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "stopping", slog.String("why", why), slog.Duration("notice", s.notice), slog.Duration("at most", s.ceiling))
	s.giveNotice()
	if s.upgrader != nil {
		s.upgrader.finish()
	}
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.ceiling)
	defer cancel()
	s.server.retire()
	lingering, cancelLinger := context.WithTimeout(draining, s.linger)
	_ = s.server.spoken(lingering)
	cancelLinger()
	lingering, cancelLinger = context.WithTimeout(draining, s.linger)
	if emptyAll(lingering, s.gates) {
		_ = s.server.spoken(lingering)
	}
	cancelLinger()
	s.shut(draining, begin)
	return nil
}

// giveNotice serves on until load balancers have had the time to hear of the stop.
func (s *service) giveNotice() {
	if s.notice <= 0 {
		return
	}
	timer := time.NewTimer(s.notice)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-s.stops:
			return
		case <-s.server.ended():
			return
		case <-s.upgrades: // too late for that
		}
	}
}

// shut finishes what is in flight, as long as ctx and whoever is at the terminal let it, and closes the rest.
func (s *service) shut(ctx context.Context, begin time.Time) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shut := make(chan error, 1)
	go func() { shut <- s.server.shutdown(ctx) }()
	var err error
	for waiting := true; waiting; {
		select {
		case err = <-shut:
			waiting = false
		case sig := <-s.stops:
			if sig == os.Interrupt { // by SIGTERM it stops already
				cancel()
			}
		case <-s.upgrades:
			s.passOn(ctx)
		}
	}
	open := s.server.close()
	for _, g := range s.gates {
		_ = g.Close() // a server may have left it
	}
	for range s.gates {
		if err := <-s.done; err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "a listener failed", slog.Any("error", err))
		}
	}
	took := time.Since(begin)
	s.upgrader.event(EventStopped, took, err)
	after := slog.Duration("after", took.Round(time.Millisecond))
	switch {
	case open > 0:
		s.log.LogAttrs(ctx, slog.LevelWarn, fmt.Sprintf("closed %d connections that were still open", open), after)
	case err != nil:
		s.log.LogAttrs(ctx, slog.LevelWarn, "stopped before all was finished", slog.Any("error", err), after)
	default:
		s.log.LogAttrs(ctx, slog.LevelInfo, "stopped", after)
	}
}
