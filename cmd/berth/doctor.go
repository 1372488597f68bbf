package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/inspect"
	"github.com/berth-go/berth/strategy"
)

func newDoctor(c console) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Try everything on this machine",
		Long: `Doctor stages conflicts between processes of its own on free ports of 127.0.0.1, tries every remedy, looks at what became
of it, and cleans up. It stops no process that it did not start, and uses no state directory but one of its own.

It prints what passed, what failed, and what this machine cannot do, with the reason. The exit status is 1 where
something failed; what the machine cannot do is no failure.`,
		Example: "  berth doctor\n  berth doctor --json | jq .failed",
		Args:    cobra.NoArgs,
	}
	addJSON(cmd.Flags(), &asJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var report func(finding)
		if !asJSON {
			paint := c.palette(c.stdout)
			report = func(f finding) { fmt.Fprintln(c.stdout, f.line(paint)) }
		}
		d, err := examine(cmd.Context(), report)
		if err != nil {
			return err
		}
		if asJSON {
			err = c.writeJSON(d)
		} else {
			_, err = fmt.Fprintf(c.stdout, "\n%d passed, %d failed, %d not possible on this machine\n", d.Passed, d.Failed, d.Unable)
		}
		if err == nil && d.Failed > 0 {
			err = &statusError{status: statusFailed}
		}
		return err
	}
	return cmd
}

// What becomes of a check.
const (
	passed = "passed"
	failed = "failed"
	unable = "unable" // this machine cannot do it
)

// A finding is what became of one check.
type finding struct {
	Name         string `json:"name"`
	Status       string `json:"status"`
	Detail       string `json:"detail"`
	Milliseconds int64  `json:"milliseconds"`
}

func (f finding) line(paint palette) string {
	styles := map[string]style{passed: green, failed: red, unable: yellow}
	text := paint.paint(styles[f.Status], fmt.Sprintf("%-6s", f.Status)) + "  " + f.Name
	if f.Detail != "" {
		text += ": " + printable.Text(f.Detail)
	}
	return text
}

// A diagnosis is the document of doctor.
type diagnosis struct {
	System string    `json:"system"`
	Passed int       `json:"passed"`
	Failed int       `json:"failed"`
	Unable int       `json:"unable"`
	Checks []finding `json:"checks"`
}

// unableError says why this machine cannot do something.
type unableError string

func (e unableError) Error() string { return string(e) }

// A clinic is where conflicts are staged.
type clinic struct {
	ctx context.Context // of one examination, which the clinic does not outlive
	dir string
}

// A check tells what it found. An error is a failure, an unableError none.
type check struct {
	name string
	do   func(*clinic) (detail string, err error)
}

var checks = []check{
	{"sockets of the kernel", (*clinic).socketTable},
	{"processes of others", (*clinic).processes},
	{"processes without a race", (*clinic).handles},
	{"state directory", (*clinic).stateDir},
	{"systemd", (*clinic).systemd},
	{"IPv6", (*clinic).ipv6},
	{"the holder of a port is named", (*clinic).holderNamed},
	{"a socket that does not listen is seen", (*clinic).boundSeen},
	{"production fails at once and says who", (*clinic).failsFast},
	{"staging moves to another port", (*clinic).fallsBack},
	{"waiting for a port ends when it is free", (*clinic).waits},
	{"development stops a stale server", (*clinic).reclaims},
	{"a stubborn one is killed after its grace", (*clinic).kills},
	{"a child with the socket is stopped too", (*clinic).stopsHeirs},
	{"another service is never stopped", (*clinic).sparesServices},
	{"a parent is never stopped", (*clinic).sparesParents},
	{"a newer start is never stopped", (*clinic).sparesNewer},
	{"a killed server leaves nothing in the way", (*clinic).survivesKill},
	{"the file of a dead Unix socket is replaced", (*clinic).replacesSocketFile},
	{"many starts at once get a port each", (*clinic).manyStarts},
	{"an upgrade under load loses nothing", (*clinic).upgrades},
}

// examine does all checks, and reports each when it is done, where report is not nil. An error says that ctx ended.
func examine(ctx context.Context, report func(finding)) (diagnosis, error) {
	d := diagnosis{System: runtime.GOOS + "/" + runtime.GOARCH, Checks: []finding{}}
	for _, check := range checks {
		begin := time.Now()
		f := finding{Name: check.name, Status: passed}
		dir, err := os.MkdirTemp("", "berth-doctor-")
		if err == nil {
			f.Detail, err = check.do(&clinic{ctx, filepath.Join(dir, "state")})
			err = errors.Join(err, os.RemoveAll(dir))
		}
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		var cannot unableError
		switch {
		case errors.As(err, &cannot):
			f.Status, f.Detail = unable, err.Error()
			d.Unable++
		case err != nil:
			f.Status, f.Detail = failed, err.Error()
			d.Failed++
		default:
			d.Passed++
		}
		f.Milliseconds = time.Since(begin).Milliseconds()
		d.Checks = append(d.Checks, f)
		if report != nil {
			report(f)
		}
	}
	return d, nil
}

// What the machine can do.

func (*clinic) socketTable() (string, error) {
	if runtime.GOOS != "linux" {
		return "", unableError("this system shows the sockets of other users in part; a taken port may have a holder that is not seen")
	}
	if err := sockets.Netlink(); err != nil {
		return "", unableError("no netlink (" + err.Error() + "): /proc/net is read instead, which is slower and lacks sockets that do not listen")
	}
	return "sock_diag answers", nil
}

func (c *clinic) processes() (string, error) {
	if runtime.GOOS != "linux" {
		return "", nil
	}
	const nobodys = ^uint64(0)
	_, complete, err := proc.Holders(c.ctx, []uint64{nobodys}, false)
	switch {
	case err != nil:
		return "", err
	case !complete:
		hidden := "some processes are hidden from this user, so of their sockets berth names the user alone"
		if os.Geteuid() != 0 {
			hidden += "; as root it sees them"
		}
		return "", unableError(hidden)
	}
	return "every process can be inspected", nil
}

func (*clinic) handles() (string, error) {
	h, err := proc.Open(os.Getppid())
	if errors.Is(err, errors.ErrUnsupported) {
		return "", unableError("no handles for processes, so none is ever stopped: " + err.Error())
	}
	if err != nil {
		return "", nil //nolint:nilerror // another user's, or one of another namespace
	}
	return "a process is signalled through a handle, never by a number that may be another's", h.Close()
}

func (*clinic) stateDir() (string, error) {
	dir, err := registry.Open(registry.Default())
	if err != nil {
		return "", unableError("no locks and records: " + err.Error())
	}
	return dir.Path(), nil
}

func (*clinic) systemd() (string, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return "", unableError("this machine does not run systemd: no socket units, no descriptor store")
	}
	return "it runs", nil
}

func (*clinic) ipv6() (string, error) {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return "", unableError(err.Error())
	}
	return "", ln.Close()
}

// What berth does on it.

func (c *clinic) start(p part) (*helper, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	p.network = cmp.Or(p.network, "tcp")
	p.address = cmp.Or(p.address, "127.0.0.1:0")
	p.stateDir = c.dir
	return startHelper(p, nil)
}

// stale starts a holder, and who wants its port.
func (c *clinic) conflict(holder, wants part) (h, w *helper, err error) {
	if h, err = c.start(holder); err != nil {
		return nil, nil, err
	}
	wants.network, wants.address = holder.network, h.address
	if w, err = c.start(wants); err != nil {
		h.end()
		return nil, nil, err
	}
	return h, w, nil
}

func portOf(address string) int {
	_, text, _ := net.SplitHostPort(address)
	port, _ := strconv.Atoi(text) // of an address that the kernel gave
	return port
}

func (c *clinic) inspect(address string) (inspect.Report, error) {
	return inspect.Options{StateDir: c.dir}.Port(c.ctx, "tcp", portOf(address))
}

func holds(holders []strategy.Holder, pid int) bool {
	return slices.ContainsFunc(holders, func(h strategy.Holder) bool { return h.PID == pid })
}

func (c *clinic) holderNamed() (string, error) {
	h, err := c.start(part{})
	if err != nil {
		return "", err
	}
	defer h.end()
	begin := time.Now()
	report, err := c.inspect(h.address)
	took := time.Since(begin)
	if err != nil {
		return "", err
	}
	if !holds(report.Holders, h.pid()) {
		return "", fmt.Errorf("pid %d is not found: %v", h.pid(), report)
	}
	return fmt.Sprintf("pid %d, found in %v", h.pid(), took.Round(100*time.Microsecond)), nil
}

func (c *clinic) boundSeen() (string, error) {
	if runtime.GOOS == "windows" {
		return "", unableError("not on this system")
	}
	h, err := c.start(part{bound: true})
	if err != nil {
		return "", err
	}
	defer h.end()
	report, err := c.inspect(h.address)
	switch {
	case err != nil:
		return "", err
	case !holds(report.Holders, h.pid()) && !sockets.Exhaustive("tcp"):
		return "", unableError("that takes Linux 6.8 and netlink; here such a port is taken by a process that cannot be seen, and never free")
	case !holds(report.Holders, h.pid()) || report.State != inspect.Reserved:
		return "", fmt.Errorf("pid %d is not found: %v", h.pid(), report)
	}
	return "", nil
}

func (c *clinic) failsFast() (string, error) {
	h, err := c.start(part{})
	if err != nil {
		return "", err
	}
	defer h.end()
	w, err := c.start(part{address: h.address, strategy: "production"})
	if err == nil {
		w.end()
		return "", fmt.Errorf("two processes listen on %s", h.address)
	}
	if !strings.Contains(err.Error(), "pid "+strconv.Itoa(h.pid())) {
		return "", fmt.Errorf("the error does not name pid %d: %w", h.pid(), err)
	}
	return "", nil
}

func (c *clinic) fallsBack() (string, error) {
	h, w, err := c.conflict(part{}, part{strategy: "staging"})
	if err != nil {
		return "", err
	}
	defer h.end()
	defer w.end()
	if w.origin != listener.Fallback.String() || w.address == h.address || !h.alive() {
		return "", fmt.Errorf("%s became %s (%s)", h.address, w.address, w.origin)
	}
	return fmt.Sprintf("%d became %d", portOf(h.address), portOf(w.address)), nil
}

func (c *clinic) waits() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	type result struct {
		w   *helper
		err error
	}
	done := make(chan result, 1)
	begin := time.Now()
	go func() {
		w, err := c.start(part{address: ln.Addr().String(), strategy: "wait"})
		done <- result{w, err}
	}()
	const busy = 200 * time.Millisecond
	select {
	case r := <-done:
		_ = ln.Close()
		if r.err == nil {
			r.w.end()
			r.err = errors.New("it did not wait")
		}
		return "", r.err
	case <-time.After(busy):
	}
	if err := ln.Close(); err != nil {
		return "", err
	}
	r := <-done
	if r.err != nil {
		return "", r.err
	}
	r.w.end()
	return fmt.Sprintf("after %v", time.Since(begin).Round(time.Millisecond)), nil
}

// reclaimed tells whether w has the port of h, and h has ended.
func reclaimed(h, w *helper) error {
	if w.origin != listener.Reclaimed.String() || w.address != h.address || !h.ended() {
		return fmt.Errorf("%s became %s (%s): %s", h.address, w.address, w.origin, w.stderr.String())
	}
	return nil
}

// spared tells whether w has moved away from h, which lives.
func spared(h, w *helper) error {
	if w.origin != listener.Fallback.String() || w.address == h.address || !h.alive() {
		return fmt.Errorf("%s became %s (%s): %s", h.address, w.address, w.origin, w.stderr.String())
	}
	return nil
}

func (c *clinic) reclaims() (string, error) {
	h, w, err := c.conflict(part{strategy: "development", name: "web"}, part{strategy: "development", name: "web"})
	if err != nil {
		return "", err
	}
	defer w.end()
	defer h.end()
	return fmt.Sprintf("pid %d gave way to pid %d", h.pid(), w.pid()), reclaimed(h, w)
}

func (c *clinic) kills() (string, error) {
	const grace = 300 * time.Millisecond
	begin := time.Now()
	h, w, err := c.conflict(part{strategy: "development", name: "web", stubborn: true}, part{strategy: "development", name: "web", grace: grace})
	if err != nil {
		return "", err
	}
	defer w.end()
	defer h.end()
	if took := time.Since(begin); took < grace && runtime.GOOS != "windows" { // which has no way to ask first
		return "", fmt.Errorf("it had %v of %v", took, grace)
	}
	return "", reclaimed(h, w)
}

func (c *clinic) stopsHeirs() (string, error) {
	if !passesSockets {
		return "", unableError("no child inherits a socket on this system")
	}
	h, w, err := c.conflict(part{strategy: "development", name: "web", heir: true, stubborn: true}, part{strategy: "development", name: "web", grace: 100 * time.Millisecond})
	if err != nil {
		return "", err
	}
	defer w.end()
	defer h.end()
	if err := reclaimed(h, w); err != nil {
		return "", err
	}
	if p, err := proc.Get(h.child); err == nil && !p.Zombie && p.PPID != os.Getpid() && slices.Contains(p.Args, "--inherited") {
		return "", fmt.Errorf("pid %d has the socket still", h.child)
	}
	return fmt.Sprintf("pid %d and its child, pid %d", h.pid(), h.child), nil
}

func (c *clinic) sparesServices() (string, error) {
	h, w, err := c.conflict(part{strategy: "development", name: "web"}, part{strategy: "development", name: "api"})
	if err != nil {
		return "", err
	}
	defer h.end()
	defer w.end()
	return "", spared(h, w)
}

func (c *clinic) sparesParents() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	w, err := c.start(part{address: ln.Addr().String(), strategy: "development"})
	if err != nil {
		return "", err
	}
	defer w.end()
	if w.address == ln.Addr().String() {
		return "", fmt.Errorf("two processes listen on %s", w.address)
	}
	return "", nil
}

func (c *clinic) sparesNewer() (string, error) {
	h, err := c.start(part{strategy: "development", name: "web"})
	if err != nil {
		return "", err
	}
	defer h.end()
	config := listener.Config{Strategy: strategy.Aggressive{Allow: strategy.AnyOfMine}, Name: "web", StateDir: c.dir}
	ln, err := config.Listen(c.ctx, "tcp", h.address)
	switch {
	case err == nil:
		return "", errors.Join(fmt.Errorf("pid %d, which was started later, has lost its port", h.pid()), ln.Close())
	case !errors.Is(err, syscall.EADDRINUSE) || !h.alive():
		return "", err
	}
	return "", nil
}

func (c *clinic) survivesKill() (string, error) {
	h, err := c.start(part{strategy: "production", name: "web"})
	if err != nil {
		return "", err
	}
	h.kill()
	w, err := c.start(part{address: h.address, strategy: "production", name: "web"})
	if err != nil {
		return "", err
	}
	w.end()
	records, err := registry.Existing(c.dir)
	if err != nil {
		return "", err
	}
	entries, err := records.Entries("", 0, 0)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is left", entries[0].Path)
	}
	return "", err
}

func (c *clinic) replacesSocketFile() (string, error) {
	path := filepath.Join(filepath.Dir(c.dir), "s") // the path of a socket is short
	h, err := c.start(part{network: "unix", address: path, strategy: "production"})
	if err != nil {
		return "", err
	}
	h.kill()
	if _, err := os.Lstat(path); err != nil {
		return "", unableError("this system leaves no such file")
	}
	w, err := c.start(part{network: "unix", address: path, strategy: "production"})
	if err != nil {
		return "", err
	}
	defer w.end()
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	return "", conn.Close()
}

func (c *clinic) manyStarts() (string, error) {
	const starts = 8
	first, err := c.start(part{strategy: "staging"})
	if err != nil {
		return "", err
	}
	defer first.end()
	type result struct {
		h   *helper
		err error
	}
	done := make(chan result, starts)
	for range starts {
		go func() {
			h, err := c.start(part{address: first.address, strategy: "staging"})
			done <- result{h, err}
		}()
	}
	addresses := map[string]bool{first.address: true}
	for range starts {
		r := <-done
		if r.err != nil {
			err = errors.Join(err, r.err)
			continue
		}
		defer r.h.end()
		if addresses[r.h.address] {
			err = errors.Join(err, fmt.Errorf("two processes listen on %s", r.h.address))
		}
		addresses[r.h.address] = true
	}
	return fmt.Sprintf("%d of them", starts), err
}

func (c *clinic) upgrades() (string, error) {
	if !passesSockets {
		return "", unableError("this system passes no sockets to the next version")
	}
	results, err := c.upgradeUnderLoad(2, 200*time.Millisecond, nil)
	if err != nil {
		return "", err
	}
	sum := results.Sum()
	if sum.Lost > 0 || sum.Answered == 0 {
		return "", errors.New(strings.ReplaceAll(results.String(), "\n\t", "; "))
	}
	return fmt.Sprintf("%d requests answered, %d lost", sum.Answered, sum.Lost), nil
}

// upgradeUnderLoad replaces a server so often while clients ask it, with a pause before each and at the end. Each upgrade is
// told.
func (c *clinic) upgradeUnderLoad(times int, pause time.Duration, upgraded func(pid int, soFar losstest.Results)) (losstest.Results, error) {
	h, err := c.start(part{strategy: "production", name: "web", supervised: true})
	if err != nil {
		return nil, err
	}
	defer h.end()
	const think = 5 * time.Millisecond
	load := losstest.Start(
		losstest.Mix{Name: "keep-alive", Client: losstest.KeepAlive, Network: "tcp", Address: h.address, Clients: 8, Think: think},
		losstest.Mix{Name: "new connections", Client: losstest.NewConnection, Network: "tcp", Address: h.address, Clients: 4, Think: think},
	)
	for range times {
		if err = sleep(c.ctx, pause); err != nil {
			break
		}
		if err = upgradeSignal(h); err != nil {
			break
		}
		if err = h.awaitReady(); err != nil {
			break
		}
		if err = answers(c.ctx, load, h.version); err != nil {
			break
		}
		if upgraded != nil {
			upgraded(h.version, load.Results())
		}
	}
	if err == nil {
		err = sleep(c.ctx, pause)
	}
	return load.Stop(), err
}

// answers waits until clients of every kind have had an answer from a process.
func answers(ctx context.Context, load *losstest.Load, pid int) error {
	const every = 10 * time.Millisecond
	for begin := time.Now(); time.Since(begin) < patience; {
		if !slices.ContainsFunc(load.Results(), func(r losstest.Result) bool { return r.PIDs[pid] == 0 }) {
			return nil
		}
		if err := sleep(ctx, every); err != nil {
			return err
		}
	}
	return fmt.Errorf("the new version, pid %d, does not answer everybody: %v", pid, load.Results())
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
