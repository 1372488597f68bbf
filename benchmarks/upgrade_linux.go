package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"

	"github.com/berth-go/berth/internal/losstest"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/reload"
)

// upgradeExperiment is the time from the signal to the first answer of the new version, with nobody else asking. The programs
// differ in nothing but who hands over the socket.
var upgradeExperiment = experiment{name: "Upgrade", title: "The next version of a program takes over", prepare: func(l *lab) ([]row, error) {
	var failed error
	by := func(name, by string) contestant {
		v, err := l.startVersions(by, false)
		failed = errors.Join(failed, err)
		return contestant{name, func() (outcome, error) { return v.firstAnswer() }}
	}
	r := row{
		name: "to=first-answer", text: "signal to the first answer of the new process", goal: timesPeer(1.2),
		ours: by("berth", byBerth), bare: by("exec", byExec), peers: []contestant{by("tableflip", byTableflip)},
	}
	return []row{r}, failed
}}

// lossExperiment counts what clients lose while a program is replaced again and again.
var lossExperiment = experiment{name: "Loss", title: "Upgrades under load", table: func(ctx context.Context, l *lab) (finding, error) {
	var b strings.Builder
	lost := bars{text: "requests lost, an upgrade"}
	closed := bars{text: "idle connections closed unannounced, an upgrade"}
	b.WriteString("| | upgrades | answered | requests lost | an upgrade | idle connections closed | an upgrade | " +
		"resident, 3rd and last version | descriptors | goal | met |\n")
	b.WriteString("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |\n")
	for _, c := range []struct {
		name, by string
		upgrades int
		goal     bool
	}{
		{"berth", byBerth, l.upgrades, true},
		{"tableflip, program of its README", byTableflip, l.peerUpgrades, false},
		{"tableflip, its example with `Shutdown`", byShutdown, l.peerUpgrades, false},
	} {
		found, err := l.loss(ctx, c.by, c.upgrades)
		if err != nil {
			return finding{}, fmt.Errorf("%s: %w", c.name, err)
		}
		goal, met, kind := "", "", "peer"
		if c.goal {
			goal, met, kind = "nothing lost, no growth", "no", "ours"
			if found.met() {
				met = "yes"
			}
		}
		cells := append([]string{c.name}, found.cells()...)
		b.WriteString("| " + strings.Join(append(cells, goal, met), " | ") + " |\n")
		name, _, _ := strings.Cut(strings.ReplaceAll(c.name, "`", ""), ", program") // the README's is the plain one
		lost.bars = append(lost.bars, bar{name, kind, float64(found.lost()) / float64(found.upgrades), cells[4]})
		closed.bars = append(closed.bars, bar{name, kind, float64(found.clients.Closed) / float64(found.upgrades), cells[6]})
	}
	return finding{b.String(), []bars{lost, closed}}, nil
}}

// A loss is what became of the clients of one program, and of the program.
type loss struct {
	upgrades    int
	clients     losstest.Result
	early, late losstest.Footprint
}

// met allows for what the allocator does from one process to the next.
func (f loss) met() bool {
	return f.clients.Lost == 0 && len(f.late.Descriptors) <= len(f.early.Descriptors) && f.late.Resident < f.early.Resident*5/4
}

// lost is the requests without an answer.
func (f loss) lost() int { return f.clients.Lost - f.clients.Closed }

func (f loss) cells() []string {
	each := func(n int) string { return fmt.Sprintf("%.1f", float64(n)/float64(f.upgrades)) }
	requests := f.lost()
	return []string{
		strconv.Itoa(f.upgrades), strconv.Itoa(f.clients.Answered), strconv.Itoa(requests), each(requests),
		strconv.Itoa(f.clients.Closed), each(f.clients.Closed),
		fmt.Sprintf("%.1f, %.1f MiB", mebi(f.early.Resident), mebi(f.late.Resident)),
		fmt.Sprintf("%d, %d", len(f.early.Descriptors), len(f.late.Descriptors)),
	}
}

func mebi(bytes int) float64 { return float64(bytes) / (1 << 20) }

// loss upgrades a program under every kind of client. Its footprint is that of versions which no client has met.
func (l *lab) loss(ctx context.Context, by string, upgrades int) (found loss, err error) {
	v, err := l.startVersions(by, true)
	if err != nil {
		return found, err
	}
	defer v.end()
	for range 3 {
		if err := v.upgrade(); err != nil {
			return found, err
		}
	}
	found.upgrades = upgrades
	if found.early, err = losstest.AtRest(v.newest, 0); err != nil {
		return found, err
	}
	load := losstest.Start(v.mixes()...)
	for range upgrades {
		// A program that does not drain leaves its clients no time to connect again.
		enough := load.Results().Sum().Answered + 100
		for end := time.Now().Add(10 * time.Second); load.Results().Sum().Answered < enough && err == nil; time.Sleep(ms) {
			if err = ctx.Err(); time.Now().After(end) {
				err = fmt.Errorf("the clients get no answers: %v", load.Results())
			}
		}
		if err == nil {
			err = v.upgrade()
		}
		if err != nil {
			break
		}
	}
	results := load.Stop()
	if err != nil {
		return found, err
	}
	found.clients = results.Sum()
	for _, mix := range results {
		if mix.Answered+mix.Lost == 0 {
			return found, fmt.Errorf("not at work: %v", mix)
		}
	}
	if err := v.upgrade(); err != nil {
		return found, err
	}
	found.late, err = losstest.AtRest(v.newest, len(found.early.Descriptors))
	return found, err
}

// versions are a program and what replaces it, one after the other.
type versions struct {
	*process
	newest int
	tcp    string
	tls    string // "" without
	unix   string // "" without
	said   []string
	over   sync.Once
}

// startVersions starts the first one. With all, it listens on TCP, in TLS and on a Unix socket.
func (l *lab) startVersions(by string, all bool) (*versions, error) {
	dir, err := l.dir(true)
	if err != nil {
		return nil, err
	}
	r := role{Do: doServe, By: by, StateDir: dir}
	if all {
		r.Socket = filepath.Join(dir, "s")
	}
	p, err := spawn("", r)
	if err != nil {
		return nil, err
	}
	v := &versions{process: p, said: []string{p.line}}
	l.later(v.end)
	addresses, err := v.await("ready")
	if err != nil {
		return nil, err
	}
	v.tcp = addresses[0]
	if all {
		v.tls, v.unix = addresses[1], r.Socket
	}
	return v, nil
}

// end ends all versions: they have one standard input.
func (v *versions) end() {
	v.over.Do(func() {
		_ = v.input.Close()
		_, _ = io.Copy(io.Discard, v.output) // until the last has ended
		end(v.Cmd)
	})
}

// await waits for a version to say something, and gives what comes after that and its pid. It becomes the newest where it is
// ready.
func (v *versions) await(what string) (rest []string, err error) {
	for {
		for i, line := range v.said {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != what {
				continue
			}
			v.said = append(v.said[:i], v.said[i+1:]...)
			if what == "ready" {
				v.newest, err = strconv.Atoi(fields[1])
			}
			return fields[2:], err
		}
		line, err := v.output.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("nobody is %s: %w", what, err)
		}
		if text, failed := strings.CutPrefix(line, "failed:"); failed {
			return nil, errors.New(strings.TrimSpace(text))
		}
		v.said = append(v.said, line)
	}
}

// upgrade has the newest version replaced, and waits until it has ended.
func (v *versions) upgrade() error {
	if err := syscall.Kill(v.newest, syscall.SIGHUP); err != nil {
		return err
	}
	return v.settle()
}

func (v *versions) settle() error {
	if _, err := v.await("ready"); err != nil {
		return err
	}
	_, err := v.await("ended")
	return err
}

func (v *versions) firstAnswer() (outcome, error) {
	old := v.newest
	begin := time.Now()
	if err := syscall.Kill(old, syscall.SIGHUP); err != nil {
		return outcome{}, err
	}
	for {
		// That one which is asked in the last moment of the old version gets no answer is another row's matter.
		pid, err := askWho(v.tcp)
		took := time.Since(begin)
		if err == nil && pid != old {
			return outcome{took: took}, v.settle()
		}
		if took > 10*time.Second {
			if err == nil {
				err = fmt.Errorf("pid %d still answers", pid)
			}
			return outcome{}, fmt.Errorf("no answer of a new version in %v: %w", took, err)
		}
	}
}

// askWho makes one request on a connection of its own.
func askWho(address string) (pid int, err error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return losstest.PIDOf(response.Header), nil
}

// mixes are the clients: 50 that keep their connections, and some of every other kind.
func (v *versions) mixes() []losstest.Mix {
	const think = 20 * ms
	mix := func(name string, client losstest.Client, network, address string, clients int, think, wait time.Duration) losstest.Mix {
		return losstest.Mix{Name: name, Client: client, Network: network, Address: address, Clients: clients, Think: think, Wait: wait}
	}
	inTLS := mix("TLS", losstest.KeepAlive, "tcp", v.tls, 4, think, 0)
	inTLS.TLS = true
	return []losstest.Mix{
		mix("keep-alive", losstest.KeepAlive, "tcp", v.tcp, 50, think, 0),
		mix("new connections", losstest.NewConnection, "tcp", v.tcp, 8, think, 0),
		mix("uploads", losstest.Upload, "tcp", v.tcp, 6, think/4, 0),
		mix("slow answers", losstest.KeepAlive, "tcp", v.tcp, 6, think/4, think),
		inTLS,
		mix("HTTP/2", losstest.HTTP2, "tcp", v.tls, 4, think, 0),
		mix("Unix socket", losstest.KeepAlive, "unix", v.unix, 8, think, 0),
	}
}

// serve is the program, whoever hands over its sockets. It ends with its standard input, too.
func (r role) serve() error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	config, err := losstest.ServerTLS()
	if err != nil {
		return err
	}
	server := &http.Server{Handler: losstest.Handler(), TLSConfig: config}
	// Two addresses, since tableflip takes two listeners on one port 0 for one.
	addresses := [][2]string{{"tcp", "127.0.0.1:0"}}
	if r.Socket != "" {
		addresses = append(addresses, [2]string{"tcp", "127.0.0.2:0"}, [2]string{"unix", r.Socket})
	}
	listen := func(listen func(network, address string) (net.Listener, error)) (all []net.Listener, err error) {
		for i, a := range addresses {
			ln, err := listen(a[0], a[1])
			if err != nil {
				return nil, err
			}
			if i == 1 {
				ln = tls.NewListener(ln, config)
			}
			all = append(all, ln)
		}
		return all, nil
	}
	switch r.By {
	case byBerth:
		err = r.serveByBerth(server, listen)
	case byExec:
		err = serveByExec(server)
	default:
		err = serveByTableflip(server, listen, r.By == byShutdown)
	}
	if err == nil {
		fmt.Println("ended", os.Getpid())
	}
	return err
}

type listenAll func(func(network, address string) (net.Listener, error)) ([]net.Listener, error)

func sayReady(listeners []net.Listener) {
	line := fmt.Sprint("ready ", os.Getpid())
	for _, ln := range listeners {
		line += " " + ln.Addr().String()
	}
	fmt.Println(line)
}

func (r role) serveByBerth(server *http.Server, listen listenAll) error {
	upgrader, err := reload.New(reload.Config{})
	if err != nil {
		return err
	}
	config := listener.Config{Sources: []listener.Source{upgrader}, StateDir: r.StateDir}
	listeners, err := listen(func(network, address string) (net.Listener, error) {
		return config.Listen(context.Background(), network, address)
	})
	if err != nil {
		return err
	}
	var once sync.Once
	server.BaseContext = func(net.Listener) context.Context { // by now Serve takes signals
		go once.Do(func() {
			if upgrader.Ready() == nil {
				sayReady(listeners)
			}
		})
		return context.Background()
	}
	return upgrader.Serve(context.Background(), server, listeners...)
}

// serveByTableflip is the program of its README. Its http_example_test.go adds Shutdown.
func serveByTableflip(server *http.Server, listen listenAll, shutdown bool) error {
	upgrader, err := tableflip.New(tableflip.Options{})
	if err != nil {
		return err
	}
	defer upgrader.Stop()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		_ = upgrader.WaitForParent(context.Background()) // until then it refuses upgrades
		for range hangups {
			if err := upgrader.Upgrade(); err != nil {
				fmt.Println("failed:", err)
			}
		}
	}()
	listeners, err := listen(upgrader.Listen)
	if err != nil {
		return err
	}
	for _, ln := range listeners {
		go func() { _ = server.Serve(ln) }() // its end is that of the program
	}
	if err := upgrader.Ready(); err != nil {
		return err
	}
	sayReady(listeners)
	<-upgrader.Exit()
	if shutdown {
		return server.Shutdown(context.Background())
	}
	return nil
}

// serveByExec is the least that hands a socket over: the next version gets it as descriptor 3, and writes to 4 when it serves.
func serveByExec(server *http.Server) error {
	const handedOver = "BERTH_BENCHMARK_HANDED_OVER"
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var ln net.Listener
	var err error
	inherits := os.Getenv(handedOver) != ""
	if inherits {
		ln, err = net.FileListener(os.NewFile(3, "socket"))
	} else {
		ln, err = net.Listen("tcp", at(0))
	}
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(ln) }()
	if inherits {
		ready := os.NewFile(4, "ready")
		if _, err := ready.Write([]byte{1}); err != nil {
			return err
		}
		if err := ready.Close(); err != nil {
			return err
		}
	}
	sayReady([]net.Listener{ln})

	<-hangups
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), handedOver+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{socket, writer}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	_, err = reader.Read(make([]byte, 1))
	return err
}
