package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/reload"
	"github.com/berth-go/berth/strategy"
)

// doctor and demo stage conflicts between real processes. Those are this program in the part of a server: the rules know
// a stale server as an earlier run of the same program, and the newest start wins, so both who holds a port and who wants it
// have to be processes of their own. A helper ends with its stdin, so none outlives who started it.

const helperCommand = "helper"

// patience bounds a wait for a helper.
const patience = 20 * time.Second

// A part is what a helper plays.
type part struct {
	network    string
	address    string
	strategy   string // "": net.Listen, without berth
	name       string
	stateDir   string
	grace      time.Duration
	stubborn   bool // does not end by SIGTERM
	heir       bool // has a child with the socket
	inherited  bool // is that child
	bound      bool // does not listen
	supervised bool // is upgraded by SIGHUP
}

func (p part) args() []string {
	args := []string{
		helperCommand, "--network=" + p.network, "--address=" + p.address, "--strategy=" + p.strategy, "--name=" + p.name,
		"--state-dir=" + p.stateDir, "--grace=" + p.grace.String(),
	}
	for name, set := range map[string]bool{
		"stubborn": p.stubborn, "heir": p.heir, "inherited": p.inherited, "bound": p.bound, "supervised": p.supervised,
	} {
		if set {
			args = append(args, "--"+name)
		}
	}
	return args
}

func newHelper(c console) *cobra.Command {
	var p part
	cmd := &cobra.Command{
		Use: helperCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.play(cmd.Context(), c) },
	}
	flags := cmd.Flags()
	flags.StringVar(&p.network, "network", "tcp", "")
	flags.StringVar(&p.address, "address", "", "")
	flags.StringVar(&p.strategy, "strategy", "", "")
	flags.StringVar(&p.name, "name", "", "")
	flags.StringVar(&p.stateDir, "state-dir", "", "")
	flags.DurationVar(&p.grace, "grace", 0, "")
	flags.BoolVar(&p.stubborn, "stubborn", false, "")
	flags.BoolVar(&p.heir, "heir", false, "")
	flags.BoolVar(&p.inherited, "inherited", false, "")
	flags.BoolVar(&p.bound, "bound", false, "")
	flags.BoolVar(&p.supervised, "supervised", false, "")
	return cmd
}

// play listens, says "ready PID ADDRESS ORIGIN", and serves until it is told to end.
func (p part) play(ctx context.Context, c console) error {
	if p.stubborn {
		signal.Ignore(syscall.SIGTERM)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, c.stdin) // until who started it has ended
		cancel()
	}()
	if p.supervised {
		return p.playUpgraded(ctx, c)
	}
	addr, origin, closer, err := p.listen(ctx, c)
	if err != nil {
		return err
	}
	defer closer.Close()
	if p.heir {
		child, err := startHelper(part{network: p.network, inherited: true, stubborn: p.stubborn}, closer)
		if err != nil {
			return err
		}
		defer child.end()
		origin += " " + strconv.Itoa(child.pid())
	}
	if ln, ok := closer.(net.Listener); ok {
		server := &http.Server{Handler: losstest.Handler(), ReadHeaderTimeout: patience}
		go func() { _ = server.Serve(ln) }() // until ln is closed
	}
	if _, err := fmt.Fprintln(c.stdout, "ready", os.Getpid(), addr, origin); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (p part) listen(ctx context.Context, c console) (_ net.Addr, origin string, _ io.Closer, err error) {
	var ln net.Listener
	switch {
	case p.bound:
		return bindOnly(p.address)
	case p.inherited:
		origin = listener.Inherited.String()
		ln, err = net.FileListener(os.NewFile(3, "socket"))
	case p.strategy == "":
		origin = "plain"
		ln, err = net.Listen(p.network, p.address)
	default:
		var obtained *listener.Listener
		if obtained, err = p.config(c).Listen(ctx, p.network, p.address); err == nil {
			ln, origin = obtained, obtained.Origin().Kind.String()
		}
	}
	if err != nil {
		return nil, "", nil, err
	}
	return ln.Addr(), origin, ln, nil
}

func (p part) config(c console) *listener.Config {
	var chain []strategy.Strategy
	fallback := strategy.Fallback{Ranges: []strategy.Range{{First: 0, Last: 0}}} // the last resort
	if port := portOf(p.address); 0 < port && port < 1<<16-10 {
		fallback.Ranges = []strategy.Range{{First: uint16(port + 1), Last: uint16(port + 10)}, {First: 0, Last: 0}}
	}
	switch p.strategy {
	case "development":
		chain = []strategy.Strategy{strategy.Aggressive{Grace: p.grace}, fallback}
	case "staging":
		chain = []strategy.Strategy{fallback}
	case "wait":
		chain = []strategy.Strategy{strategy.Wait{For: patience, Every: 10 * time.Millisecond}}
	}
	return &listener.Config{Strategy: strategy.Chain(append(chain, strategy.FailFast{})...), Name: p.name, StateDir: p.stateDir, Logger: c.logger()}
}

// playUpgraded serves HTTP without losing a request when SIGHUP brings the next version.
func (p part) playUpgraded(ctx context.Context, c console) error {
	if code, over := reload.Supervise(ctx, reload.Config{}); over {
		return &statusError{status: code}
	}
	upgrader, err := reload.New(reload.Config{})
	if err != nil {
		return err
	}
	config := p.config(c)
	config.Sources = []listener.Source{upgrader}
	ln, err := config.Listen(ctx, p.network, p.address)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c.stdout, "ready", os.Getpid(), ln.Addr(), ln.Origin().Kind); err != nil {
		return err
	}
	server := &http.Server{Handler: losstest.Handler(), ReadHeaderTimeout: patience}
	return upgrader.Serve(context.WithoutCancel(ctx), server, ln)
}

// A helper is one at work.
type helper struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	said   chan string // lines that begin with "ready"
	gone   chan struct{}
	stderr lockedBuffer // all others

	address string
	origin  string
	version int // pid of who said last that it was ready
	child   int // pid of its heir; 0: none
}

// startHelper starts one, with a socket if not nil, and waits until it is ready.
func startHelper(p part, socket io.Closer) (*helper, error) {
	h := &helper{said: make(chan string, 16), gone: make(chan struct{})}
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h.cmd = &exec.Cmd{Path: path, Args: append([]string{os.Args[0]}, p.args()...), WaitDelay: time.Second}
	h.cmd.Env = withoutVariables(ownEnvironment(os.Environ()), "NOTIFY_SOCKET", "WATCHDOG_USEC")
	if socket != nil {
		file, err := socket.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return nil, err
		}
		defer file.Close()
		h.cmd.ExtraFiles = []*os.File{file}
	}
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // not StdoutPipe, which Wait closes; and one for both, so that what was said before is there before
	if err != nil {
		return nil, err
	}
	h.cmd.Stdout, h.cmd.Stderr = w, w
	err = h.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if !strings.HasPrefix(lines.Text(), "ready ") {
				_, _ = h.stderr.Write([]byte(lines.Text() + "\n")) // it does not fail
				continue
			}
			select {
			case h.said <- lines.Text():
			default: // nobody wants to know
			}
		}
	}()
	go func() {
		_ = h.cmd.Wait() // how it ended shows in what it said
		const rest = time.Second
		select {
		case <-read:
		case <-time.After(rest): // something that it started has the pipe
		}
		close(h.gone)
	}()
	if err := h.awaitReady(); err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

func (h *helper) awaitReady() error {
	late := time.After(patience)
	for {
		select {
		case line := <-h.said:
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[0] != "ready" {
				continue
			}
			h.version, _ = strconv.Atoi(fields[1])
			h.address, h.origin = fields[2], fields[3]
			if len(fields) > 4 {
				h.child, _ = strconv.Atoi(fields[4])
			}
			return nil
		case <-h.gone:
			return errors.New(strings.TrimSpace("a helper has ended: " + h.stderr.String()))
		case <-late:
			return fmt.Errorf("a helper is not ready after %v: %s", patience, h.stderr.String())
		}
	}
}

func (h *helper) pid() int { return h.cmd.Process.Pid }

func (h *helper) alive() bool {
	select {
	case <-h.gone:
		return false
	default:
		return true
	}
}

// ended waits for its end.
func (h *helper) ended() bool {
	select {
	case <-h.gone:
		return true
	case <-time.After(patience):
		return false
	}
}

// end ends it, and returns when it has.
func (h *helper) end() {
	_ = h.stdin.Close() // by which it ends
	select {
	case <-h.gone:
	case <-time.After(patience):
		h.kill()
	}
}

func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	<-h.gone
}

// A lockedBuffer is what a helper says on stderr.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
