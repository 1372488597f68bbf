//go:build unix

package reload_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/reload"
)

func init() { roles["steered"] = playSteered }

// playSteered does what it is asked for by HTTP, and else what playHTTP does.
func playSteered(p *played) error {
	var charges atomic.Int32
	defer p.upgrader.OnCharge(func() { charges.Add(1) })()
	usr := make(chan os.Signal, 8)
	signal.Notify(usr, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for sig := range usr {
			p.say("got %v", sig)
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%d %s", os.Getpid(), p.Version)
	})
	mux.HandleFunc("/charge", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%v %d", p.upgrader.InCharge(), charges.Load())
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if text := r.FormValue("for"); text != "" {
			ctx, cancel = context.WithTimeout(ctx, duration(text))
			defer cancel()
		}
		p.say("asks")
		err := p.upgrader.Upgrade(ctx)
		var failed *reload.UpgradeError
		is := errors.As(err, &failed)
		fmt.Fprintf(w, "%v|%v", is, err)
		if is {
			fmt.Fprintf(w, "|%v|%v|%v", failed.PID != 0, errors.Is(err, context.DeadlineExceeded), failed.Output)
		}
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
	})
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) {
		go panic("no more")
		select {}
	})
	mux.HandleFunc("/close", func(w http.ResponseWriter, r *http.Request) {
		i, _ := strconv.Atoi(r.FormValue("i"))
		fmt.Fprint(w, p.listeners[i].Close())
	})
	mux.HandleFunc("/environ", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Join(os.Environ(), "\n"))
	})
	mux.HandleFunc("/orphan", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, exec.Command("sh", "-c", "exec sleep 600 >/dev/null 2>&1 & exit 0").Run())
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) { // until the client ends it
		p.say("streams")
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, os.Getpid())
	})
	serving := p.listeners
	if p.Config.Bare { // the others are the program's own affair
		serving = serving[:1]
	}
	err := p.upgrader.Serve(context.Background(), &http.Server{Handler: mux}, serving...)
	p.say("ended %v", err)
	return err
}

// steer asks for a path and returns what is answered.
func steer(t testing.TB, address, path string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + path)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return string(text)
}

// poke asks for a path that the process does not survive.
func poke(t testing.TB, address, path string) {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	_, err := client.Get("http://" + address + path) //nolint:bodyclose // there is none
	require.Error(t, err)
}

// A supervised is a line whose first process is the supervisor.
type supervised struct {
	*line
	house
	role    role
	address string
	child   int // leads
}

func supervise(t *testing.T, change func(*role), more ...func(*exec.Cmd)) *supervised {
	t.Helper()
	h := newHouse(t)
	r := h.role()
	r.Do, r.Supervise, r.Pause = "steered", true, time.Millisecond
	if change != nil {
		change(&r)
	}
	s := &supervised{line: begin(t, r, more...), house: h, role: r}
	_, addresses := s.said("listens")
	s.address, _, _ = strings.Cut(addresses, " ")
	s.child, _ = s.said("ready")
	return s
}

func (s *supervised) pid() int { return s.cmd.Process.Pid }

// becomes is the version that leads next, once it owns all.
func (s *supervised) becomes(t *testing.T) (before int) {
	t.Helper()
	before = s.child
	s.child, _ = s.said("ready")
	require.NotEqual(t, before, s.child)
	s.owner(t, s.child, s.address)
	return before
}

// upgraded is becomes after an upgrade, when the version before has ended.
func (s *supervised) upgraded(t *testing.T) {
	t.Helper()
	before := s.child
	s.child, _ = s.said("ready")
	s.saidBy(t, before, "ended <nil>")
	s.owner(t, s.child, s.address)
}

// overlaps is becomes while the version before drains: an idle connection to it hears so.
func (s *supervised) overlaps(t *testing.T, idle net.Conn) (before int) {
	t.Helper()
	before = s.child
	s.child, _ = s.said("ready")
	in := bufio.NewReader(idle)
	for closes := false; !closes; {
		require.NoError(t, idle.SetDeadline(time.Now().Add(patience)))
		_, err := io.WriteString(idle, "GET / HTTP/1.1\r\nHost: server\r\n\r\n")
		require.NoError(t, err)
		answer, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, answer.Body)
		require.NoError(t, err)
		closes = answer.Close
	}
	s.owner(t, s.child, s.address)
	return before
}

// streams has a request that goes on until the caller writes one byte more, and an idle connection.
func (s *supervised) streams(t *testing.T) (conn, idle net.Conn) {
	t.Helper()
	conn, idle = dial(t, s.address), dial(t, s.address)
	_, err := io.WriteString(conn, "POST /stream HTTP/1.1\r\nHost: server\r\nContent-Length: 1\r\n\r\n")
	require.NoError(t, err)
	s.said("streams")
	requestOn(t, idle, "/")
	return conn, idle
}

// streamed ends it, and requires who answers.
func streamed(t *testing.T, conn net.Conn, pid int) {
	t.Helper()
	_, err := io.WriteString(conn, "x")
	require.NoError(t, err)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(pid), string(text))
	require.NoError(t, conn.Close())
}

// stops ends it all in order.
func (s *supervised) stops(t *testing.T) {
	t.Helper()
	signalTo(t, s.pid(), syscall.SIGTERM)
	s.saidBy(t, s.child, "ended <nil>")
	require.NoError(t, s.cmd.Wait())
	s.empty(t)
}

func (s *supervised) saidBy(t *testing.T, pid int, what string) {
	t.Helper()
	by, _ := s.said(what)
	require.Equal(t, pid, by)
}

// code is the exit status of the supervisor.
func (s *supervised) code(t *testing.T) int {
	t.Helper()
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// All three ways to ask for an upgrade.
func TestSupervise(t *testing.T) {
	t.Parallel()
	s := supervise(t, nil)
	require.NotEqual(t, s.pid(), s.child)
	s.owner(t, s.child, s.address)
	require.Equal(t, "true 1", steer(t, s.address, "/charge"))
	for name, ask := range map[string]func(){
		"supervisor": func() { signalTo(t, s.pid(), syscall.SIGHUP) },
		"child":      func() { signalTo(t, s.child, syscall.SIGHUP) },
		"Upgrade":    func() { require.Equal(t, "false|<nil>", steer(t, s.address, "/upgrade")) },
	} {
		t.Log(name)
		ask()
		s.upgraded(t)
		require.Equal(t, "true 1", steer(t, s.address, "/charge"))
	}
	s.stops(t)
}

// The old version drains after the new one leads, which is in charge from then on. Meanwhile an upgrade waits its turn.
func TestSuperviseDrain(t *testing.T) {
	t.Parallel()
	s := supervise(t, nil)
	conn, idle := s.streams(t)
	signalTo(t, s.pid(), syscall.SIGHUP)
	first := s.overlaps(t, idle)
	signalTo(t, first, syscall.SIGHUP) // it drains
	signalTo(t, s.child, syscall.SIGHUP)
	s.owner(t, s.child, s.address)
	streamed(t, conn, first)
	s.saidBy(t, first, "ended <nil>")
	s.upgraded(t) // the two are one
	s.stops(t)
}

// Whatever goes wrong with a new version, the old one goes on and whoever asked hears why.
func TestSuperviseFailingUpgrade(t *testing.T) {
	t.Parallel()
	for fail, want := range map[string]string{
		"exit 7": "true|upgrade to .* failed, this version goes on: it ended before it was ready: exit status 7; its last line: \"the configuration is bad\"\\|true\\|false\\|.*the configuration is bad.*",
		"exit 0": "true|.*it ended without an error before it was ready.*",
		"panic":  "true|.*exit status 2.*\\|.*cannot go on.*",
		"hang":   "true|.*it was not ready within 2s.*\\|true\\|true\\|.*",
	} {
		t.Run(fail, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, func(r *role) { r.Reload.Timeout = 2 * time.Second })
			bad := s.role
			bad.Fail, bad.Child = fail, true
			s.next(bad)
			answer := steer(t, s.address, "/upgrade")
			require.Regexp(t, "(?s)^"+want, answer)
			_, left := s.said("child")
			grandchild, err := strconv.Atoi(left)
			require.NoError(t, err)
			dies(t, grandchild)
			s.owner(t, s.child, s.address)
			s.next(s.role)
			signalTo(t, s.pid(), syscall.SIGHUP)
			s.upgraded(t)
			s.stops(t)
		})
	}
}

// A version that is killed when it is about to lead: the other one is in charge again.
func TestSuperviseNewKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"said ready", "leads", "in charge"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, nil)
			bad := s.role
			bad.At = "kill " + step
			s.next(bad)
			require.Regexp(t, `true\|.*signal: killed`, steer(t, s.address, "/upgrade"))
			s.owner(t, s.child, s.address)
			charge := steer(t, s.address, "/charge")
			if step == "said ready" {
				require.Regexp(t, "true [12]", charge)
			} else {
				require.Equal(t, "true 2", charge)
			}
			s.next(s.role)
			signalTo(t, s.pid(), syscall.SIGHUP)
			s.upgraded(t)
			s.stops(t)
		})
	}
}

// The old version is killed while it hands over: the new one leads.
func TestSuperviseOldKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"yields", "yielded"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, func(r *role) { r.At = "kill " + step })
			r := s.role
			r.At = ""
			s.next(r)
			signalTo(t, s.pid(), syscall.SIGHUP)
			s.becomes(t)
			signalTo(t, s.pid(), syscall.SIGHUP)
			s.upgraded(t)
			s.stops(t)
		})
	}
}

// settles waits until a version is in charge, and requires that it owns all.
func (s *supervised) settles(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(s.house.pid)
		if err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(pid) {
			break
		}
		require.True(t, time.Now().Before(deadline), "%d is not in charge but %q: %v\n%s", pid, text, err, s.log)
	}
	s.owner(t, pid, s.address)
}

// The supervisor is killed at each step, alone, with the old version, or with the new one: one version serves, and goes on as
// if there had never been a supervisor.
func TestSuperviseKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"launched", "ready", "yielded", "told", "led"} {
		for _, with := range []string{"nobody", "old", "new"} {
			t.Run(step+" with "+with, func(t *testing.T) {
				t.Parallel()
				s := supervise(t, func(r *role) { r.Above = "stop " + step })
				old := s.child
				signalTo(t, s.pid(), syscall.SIGHUP)
				s.said("at " + step)
				all := []string{}
				for len(all) < 3 || !strings.Contains(all[2], "\n") { // standard error, which nothing keeps in step
					all = strings.Split(s.log.String(), "started the program\"")
				}
				next, err := strconv.Atoi(strings.Fields(all[2][strings.LastIndex(all[2][:strings.Index(all[2], "\n")], "pid=")+4:])[0])
				require.NoError(t, err)
				leads := next
				switch with {
				case "old":
					signalTo(t, old, syscall.SIGKILL)
					dies(t, old)
				case "new":
					signalTo(t, next, syscall.SIGKILL)
					dies(t, next)
					leads = old
				default:
					if step != "told" && step != "led" {
						leads = old
					}
				}
				require.NoError(t, s.cmd.Process.Kill())
				require.Error(t, s.cmd.Wait())
				if leads == old {
					dies(t, next)
				} else {
					dies(t, old)
				}
				s.child = leads
				s.settles(t, leads)

				signalTo(t, leads, syscall.SIGHUP)
				s.another(t, old, next)
				dies(t, leads)
				s.settles(t, s.child)
				third := s.child
				require.Equal(t, "false|<nil>", steer(t, s.address, "/upgrade"))
				s.another(t, old, next, third)
				dies(t, third)
				s.settles(t, s.child)
				signalTo(t, s.child, syscall.SIGTERM)
				dies(t, s.child)
				s.empty(t)
			})
		}
	}
}

// another waits until a version is ready that is none of these.
func (s *supervised) another(t *testing.T, known ...int) {
	t.Helper()
	for s.child = known[0]; slices.Contains(known, s.child); {
		s.child, _ = s.said("ready")
	}
}

// A program that crashes is started again. Meanwhile clients wait, and are not refused.
func TestSuperviseCrash(t *testing.T) {
	t.Parallel()
	s := supervise(t, func(r *role) { r.Pause = 50 * time.Millisecond })
	for _, crash := range []func(){
		func() { signalTo(t, s.child, syscall.SIGKILL) },
		func() { poke(t, s.address, "/panic") },
		func() { poke(t, s.address, "/exit?code=3") },
		func() { signalTo(t, s.child, syscall.SIGSEGV) },
	} {
		crash()
		dies(t, s.child)
		pid, _ := get(t, "tcp", s.address) // at once
		require.NotEqual(t, s.child, pid)
		pid, _ = get(t, "unix", s.socket)
		require.NotEqual(t, s.child, pid)
		s.becomes(t)
	}
	s.stops(t)
}

// Pauses grow, and after ten in a row it gives up, with the status of the last. Nothing blocks the next start.
func TestSuperviseGivesUp(t *testing.T) {
	t.Parallel()
	for name, crash := range map[string]func(*role){
		"before ready": func(r *role) { r.Fail = "exit 9" },
		"after":        func(r *role) { r.Do = "dies" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, func(r *role) { r.Pause = 2 * time.Millisecond })
			bad := s.role
			crash(&bad)
			s.next(bad)
			signalTo(t, s.child, syscall.SIGKILL)
			require.Equal(t, 9, s.code(t))
			var pauses []string
			for line := range strings.Lines(s.log.String()) {
				if _, rest, ok := strings.Cut(line, "starting the program again\" "); ok {
					pauses = append(pauses, strings.Fields(rest[strings.Index(rest, "in="):])[0])
				}
			}
			require.Equal(t, []string{"in=0s", "in=2ms", "in=4ms", "in=8ms", "in=16ms", "in=32ms", "in=64ms", "in=128ms", "in=200ms"}, pauses)
			require.NoFileExists(t, s.socket)
			_, err := net.Dial("tcp", s.address)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			s.startsAgain(t)
		})
	}
}

func init() {
	roles["dies"] = func(p *played) error { // when it serves
		go func() {
			if p.upgrader.Ready() == nil {
				os.Exit(9)
			}
		}()
		return p.upgrader.Serve(context.Background(), &http.Server{}, p.listeners...)
	}
	roles["mortal"] = func(p *played) error { // is ended by the first signal
		p.say("waits")
		select {}
	}
}

// A program that cannot start at all ends the supervisor, with its status; and so does one that ends by itself.
func TestSuperviseStatus(t *testing.T) {
	t.Parallel()
	for fail, want := range map[string]int{"exit 7": 7, "exit 0": 0, "panic": 2, "hang": 1} {
		t.Run(fail, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			r := h.role()
			r.Supervise, r.Fail, r.Reload.Timeout = true, fail, 500*time.Millisecond
			s := supervised{line: begin(t, r)}
			require.Equal(t, want, s.code(t), "%s", s.log)
			require.NotContains(t, s.log.String(), "again")
		})
	}
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		s := supervised{line: begin(t, role{Do: "mortal", Supervise: true})}
		child, _ := s.said("waits")
		signalTo(t, child, syscall.SIGKILL)
		require.Equal(t, 128+9, s.code(t))
	})
	t.Run("no such program", func(t *testing.T) {
		t.Parallel()
		s := supervised{line: begin(t, role{Supervise: true, Reload: reloadConfig{Command: []string{"/nowhere"}}})}
		require.Equal(t, 127, s.code(t))
	})
	t.Run("no program", func(t *testing.T) {
		t.Parallel()
		s := supervised{line: begin(t, role{Supervise: true, Reload: reloadConfig{Command: []string{t.TempDir()}}})}
		require.Equal(t, 126, s.code(t))
	})
	t.Run("exit while it serves", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		poke(t, s.address, "/exit?code=0")
		require.Equal(t, 0, s.code(t))
		require.NoFileExists(t, s.socket)
	})
	t.Run("Command", func(t *testing.T) {
		t.Parallel()
		exe, err := os.Executable()
		require.NoError(t, err)
		s := supervise(t, func(r *role) { r.Reload.Command = []string{"env", "VIA=env", exe} })
		require.Contains(t, steer(t, s.address, "/environ"), "VIA=env")
		signalTo(t, s.child, syscall.SIGHUP)
		s.upgraded(t)
		s.stops(t)
	})
}

// Signals reach the program, once each, and end it as they would without a supervisor.
func TestSuperviseSignals(t *testing.T) {
	t.Parallel()
	t.Run("passed on", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2} {
			signalTo(t, s.pid(), sig)
			s.saidBy(t, s.child, "got "+sig.String())
		}
		signalTo(t, s.pid(), syscall.SIGINT)
		s.saidBy(t, s.child, "got interrupt")
		s.saidBy(t, s.child, "ended <nil>")
		require.Equal(t, 0, s.code(t))
		s.empty(t)
	})
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGQUIT: 2} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := supervised{line: begin(t, role{Do: "mortal", Supervise: true})}
			s.said("waits")
			signalTo(t, s.pid(), sig)
			require.Equal(t, want, s.code(t))
		})
	}
	t.Run("second interrupt", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		s.streams(t)
		signalTo(t, s.pid(), syscall.SIGINT)
		s.logged("msg=stopping")
		signalTo(t, s.pid(), syscall.SIGINT)
		s.saidBy(t, s.child, "ended <nil>")
		require.Equal(t, 0, s.code(t))
	})
	t.Run("during an upgrade", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		slow := s.role
		slow.Fail = "hang"
		s.next(slow)
		signalTo(t, s.pid(), syscall.SIGHUP)
		next, _ := s.said("hangs")
		s.stops(t)
		dies(t, next)
	})
	t.Run("while it steps back", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, func(r *role) { r.At = "wait yields" })
		r := s.role
		r.At = ""
		s.next(r)
		signalTo(t, s.pid(), syscall.SIGHUP)
		next, _ := s.said("listens")
		s.said("at yields")
		signalTo(t, s.pid(), syscall.SIGTERM)
		dies(t, next)
		signalTo(t, s.child, syscall.SIGUSR2)
		s.saidBy(t, s.child, "ended <nil>")
		require.Equal(t, 0, s.code(t))
		s.empty(t)
	})
	t.Run("in a pause", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, func(r *role) { r.Pause = 10 * time.Minute })
		bad := s.role
		bad.Fail = "exit 4"
		s.next(bad)
		signalTo(t, s.child, syscall.SIGKILL)
		s.logged("in=10m")
		signalTo(t, s.pid(), syscall.SIGTERM)
		require.Equal(t, 4, s.code(t))
	})
	t.Run("an upgrade in a pause", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, func(r *role) { r.Pause = 10 * time.Minute })
		bad := s.role
		bad.Fail = "exit 4"
		s.next(bad)
		signalTo(t, s.child, syscall.SIGKILL)
		s.logged("in=10m")
		s.next(s.role)
		signalTo(t, s.pid(), syscall.SIGHUP)
		s.becomes(t)
		s.stops(t)
	})
	t.Run("while it drains", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		conn, idle := s.streams(t)
		signalTo(t, s.pid(), syscall.SIGHUP)
		old := s.overlaps(t, idle)
		signalTo(t, s.pid(), syscall.SIGTERM)
		s.saidBy(t, s.child, "ended <nil>")
		streamed(t, conn, old)
		require.Equal(t, 0, s.code(t))
		s.empty(t)
	})
}

// Crashes in the middle of upgrades.
func TestSuperviseCrashDuringUpgrade(t *testing.T) {
	t.Parallel()
	t.Run("the old one while the new one starts", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		slow := s.role
		slow.Fail = "hang"
		s.next(slow)
		signalTo(t, s.pid(), syscall.SIGHUP)
		next, _ := s.said("hangs")
		signalTo(t, s.child, syscall.SIGKILL)
		s.logged("the program has ended")
		s.next(s.role)
		signalTo(t, next, syscall.SIGKILL)
		s.becomes(t)
		s.stops(t)
	})
	t.Run("the new one while the old one drains", func(t *testing.T) {
		t.Parallel()
		s := supervise(t, nil)
		conn, idle := s.streams(t)
		signalTo(t, s.pid(), syscall.SIGHUP)
		old := s.overlaps(t, idle)
		signalTo(t, s.child, syscall.SIGKILL)
		s.becomes(t)
		streamed(t, conn, old)
		s.saidBy(t, old, "ended <nil>")
		s.owner(t, s.child, s.address)
		s.stops(t)
	})
}

// An upgrade that nobody waits for any more is given up; one that is asked for meanwhile is made after.
func TestSuperviseUpgradeContext(t *testing.T) {
	t.Parallel()
	s := supervise(t, nil)
	slow := s.role
	slow.Fail = "hang"
	s.next(slow)
	require.Equal(t, "false|context deadline exceeded", steer(t, s.address, "/upgrade?for=300ms"))
	s.logged("context canceled")
	s.owner(t, s.child, s.address)

	first := make(chan string, 1)
	go func() { first <- steer(t, s.address, "/upgrade") }()
	s.said("hangs")
	next, _ := s.said("hangs")
	second := make(chan string, 1)
	s.said("asks")
	s.said("asks")
	go func() { second <- steer(t, s.address, "/upgrade") }()
	s.said("asks")
	s.next(s.role)
	signalTo(t, next, syscall.SIGKILL)
	require.Contains(t, <-first, "signal: killed")
	require.Equal(t, "false|<nil>", <-second)
	s.upgraded(t)
	s.stops(t)
}

// A socket that the program closes is given up by the supervisor too: for another bind at once, and for others in a moment.
func TestSuperviseClose(t *testing.T) {
	t.Parallel()
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprint(bare), func(t *testing.T) {
			t.Parallel()
			s := supervised{line: begin(t, role{
				Do: "steered", Supervise: true, Config: listenConfig{StateDir: t.TempDir(), Bare: true},
				Listen: []request{{"", "tcp", "127.0.0.1:0"}, {"", "tcp", "127.0.0.1:0"}},
			})}
			_, addresses := s.said("listens")
			s.child, _ = s.said("ready")
			stays, goes, _ := strings.Cut(addresses, " ")
			dial(t, goes).Close()
			require.Equal(t, "<nil>", steer(t, stays, "/close?i=1"))
			for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
				conn, err := net.Dial("tcp", goes)
				if err != nil {
					require.ErrorIs(t, err, syscall.ECONNREFUSED)
					break
				}
				conn.Close()
				require.True(t, time.Now().Before(deadline), "%s is still open", goes)
			}
			signalTo(t, s.pid(), syscall.SIGTERM)
			require.Equal(t, 0, s.code(t))
		})
	}
}
