package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/berth-go/berth/listener"
)

// programs are what the test binary can be in a script. A test file adds its own.
var programs = map[string]func(){
	"berth": main,
	"serve": func() { os.Exit(serve()) },
}

func TestMain(m *testing.M) { testscript.Main(m, programs) }

// The scripts are in testdata/script. Beside the commands of testscript they have those of scriptCommands, berth, and
// serve, a server for berth to find. Each has a state directory of its own in BERTH_STATE_DIR.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("BERTH_STATE_DIR", filepath.Join(env.WorkDir, "state"))
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Setenv("NO_COLOR", "")
			env.Values[startedKey{}] = map[string]*started{}
			return nil
		},
		Cmds: scriptCommands,
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("condition %q is unknown", name)
		},
	})
}

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"port":     scriptPort,
	"start":    scriptStart,
	"seen":     scriptSeen,
	"ended":    scriptEnded,
	"alive":    scriptAlive,
	"signal":   scriptSignal,
	"exits":    scriptExits,
	"validate": scriptValidate,
}

// deadline bounds every wait in these tests. It is only reached when something is broken.
const deadline = 30 * time.Second

// given are the ports that some script has.
var given sync.Map

// port VARIABLE...: ports that nobody has, side by side in the order of the variables. They are outside of the ephemeral
// range, from which everything else that runs meanwhile takes its ports.
func scriptPort(ts *testscript.TestScript, _ bool, names []string) {
	first := freePorts(len(names))
	if first == 0 {
		ts.Fatalf("no free port")
	}
	for i, name := range names {
		ts.Setenv(name, strconv.Itoa(first+i))
	}
}

// freePorts finds so many ports in a row and returns the first.
func freePorts(count int) int {
search:
	for range 1000 {
		first := 20000 + rand.IntN(10000-count)
		for port := first; port < first+count; port++ {
			if _, taken := given.LoadOrStore(port, true); taken || !canBind(port) {
				continue search
			}
		}
		return first
	}
	return 0
}

func canBind(port int) bool {
	ln, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	ln.Close()
	conn, err := net.ListenPacket("udp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

type startedKey struct{}

// A started process ends with its script.
type started struct {
	*exec.Cmd
	exited chan struct{}

	mu     sync.Mutex
	stdout strings.Builder
	more   chan struct{} // a token where there is more on stdout, or its end
}

func processOf(ts *testscript.TestScript, name string) *started {
	p := ts.Value(startedKey{}).(map[string]*started)[name]
	if p == nil {
		ts.Fatalf("%s was not started", name)
	}
	return p
}

// start [-now] NAME COMMAND [ARGUMENT...]: starts a process and waits for its line "ready [key=value...]", unless -now says not
// to. Its pid becomes $NAME, each value $NAME_key. Its stdin stays open until the script ends.
func scriptStart(ts *testscript.TestScript, _ bool, args []string) {
	now := args[0] == "-now"
	if now {
		args = args[1:]
	}
	name, command := args[0], args[1:]
	cmd := exec.Command(command[0], command[1:]...)
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if candidate := filepath.Join(dir, command[0]); isExecutable(candidate) {
			cmd.Path, cmd.Err = candidate, nil
			break
		}
	}
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = os.Environ()
	for _, variable := range []string{"BERTH_STATE_DIR", "GORACE", "PATH", "HOME", "NO_COLOR", "TERM"} {
		cmd.Env = append(cmd.Env, variable+"="+ts.Getenv(variable))
	}
	// Not StdinPipe and StdoutPipe: children go on with both when the process has ended, and Wait closes them.
	input, stdin, err := os.Pipe()
	ts.Check(err)
	cmd.Stdin = input
	reader, writer, err := os.Pipe()
	ts.Check(err)
	cmd.Stdout = writer
	stderr, err := os.Create(ts.MkAbs(name + ".stderr"))
	ts.Check(err)
	cmd.Stderr = stderr
	ts.Check(cmd.Start())
	input.Close()
	writer.Close()
	stderr.Close()
	p := &started{Cmd: cmd, exited: make(chan struct{}), more: make(chan struct{}, 1)}
	go func() {
		_ = cmd.Wait() // the state says it
		close(p.exited)
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(reader)
	}()
	ts.Defer(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		<-p.exited
		reader.Close()
		<-read
	})
	ts.Value(startedKey{}).(map[string]*started)[name] = p
	ts.Setenv(name, strconv.Itoa(cmd.Process.Pid))
	if now {
		return
	}
	line, ok := p.seen(regexp.MustCompile(`(?m)^ready.*\n`))
	if !ok {
		ts.Fatalf("%s is not ready: %s%s", name, p.output(), ts.ReadFile(name+".stderr"))
	}
	for _, field := range strings.Fields(line)[1:] {
		key, value, _ := strings.Cut(field, "=")
		ts.Setenv(name+"_"+key, value)
	}
}

func (p *started) read(stdout io.Reader) {
	buffer := make([]byte, 4096)
	for {
		n, err := stdout.Read(buffer)
		p.mu.Lock()
		p.stdout.Write(buffer[:n])
		p.mu.Unlock()
		if err != nil {
			close(p.more)
			return
		}
		select {
		case p.more <- struct{}{}:
		default:
		}
	}
}

func (p *started) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String()
}

// seen waits for something on stdout.
func (p *started) seen(what *regexp.Regexp) (match string, ok bool) {
	timeout := time.After(deadline)
	for open := true; ; {
		if at := what.FindStringIndex(p.output()); at != nil {
			return p.output()[at[0]:at[1]], true
		}
		if !open {
			return "", false
		}
		select {
		case _, open = <-p.more:
		case <-timeout:
			return "", false
		}
	}
}

// seen NAME PATTERN: waits until it has written that.
func scriptSeen(ts *testscript.TestScript, _ bool, args []string) {
	p := processOf(ts, args[0])
	what, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	if _, ok := p.seen(what); !ok {
		ts.Fatalf("not seen:\n%s", p.output())
	}
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// ended NAME [HOW]: waits until it has ended. How is an exit status, or the name of the signal that ended it.
func scriptEnded(ts *testscript.TestScript, _ bool, args []string) {
	p := processOf(ts, args[0])
	select {
	case <-p.exited:
	case <-time.After(deadline):
		ts.Fatalf("%s does not end", args[0])
	}
	if len(args) < 2 {
		return
	}
	how := strconv.Itoa(p.ProcessState.ExitCode())
	if signal, ok := signalled(p.ProcessState); ok {
		how = signal
	}
	if how != args[1] {
		ts.Fatalf("%s ended by %s, not %s", args[0], how, args[1])
	}
}

// signalled is the signal that ended a process.
func signalled(state *os.ProcessState) (name string, ok bool) {
	status, ok := state.Sys().(interface {
		Signaled() bool
		Signal() syscall.Signal
	})
	if !ok || !status.Signaled() {
		return "", false
	}
	for name, signal := range signals {
		if signal == status.Signal() {
			return name, true
		}
	}
	return status.Signal().String(), true
}

// alive NAME: it has not ended.
func scriptAlive(ts *testscript.TestScript, _ bool, args []string) {
	select {
	case <-processOf(ts, args[0]).exited:
		ts.Fatalf("%s has ended", args[0])
	default:
	}
}

var signals = map[string]syscall.Signal{
	"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT,
}

// signal NAME SIGNAL: sends it, and after KILL waits for the end.
func scriptSignal(ts *testscript.TestScript, _ bool, args []string) {
	p := processOf(ts, args[0])
	ts.Check(p.Process.Signal(signals[args[1]]))
	if args[1] == "KILL" {
		<-p.exited
	}
}

// exits STATUS COMMAND [ARGUMENT...]: runs it like exec, and wants the exit status.
func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	have := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		have = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	ts.Logf("[stdout]\n%s[stderr]\n%s", ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	if have != want {
		ts.Fatalf("exit status %d, not %d", have, want)
	}
}

// validate NAME: stdout is one document by schema/NAME.json, with no field that is missing there.
func scriptValidate(ts *testscript.TestScript, _ bool, args []string) {
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(ts.ReadFile("stdout")))
	ts.Check(err)
	schema, err := strictSchema(args[0])
	ts.Check(err)
	ts.Check(schema.Validate(document))
}

// strictSchema is a schema that takes no field which it does not describe. To others, fields may be added.
func strictSchema(name string) (*jsonschema.Schema, error) {
	files, err := filepath.Glob(filepath.Join("schema", "*.json"))
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		document, err := jsonschema.UnmarshalJSON(file)
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		closeObjects(document)
		if err := compiler.AddResource("https://schema.test/"+filepath.Base(path), document); err != nil {
			return nil, err
		}
	}
	return compiler.Compile("https://schema.test/" + name + ".json")
}

func closeObjects(schema any) {
	switch schema := schema.(type) {
	case map[string]any:
		if _, ok := schema["properties"]; ok {
			schema["additionalProperties"] = false
		}
		for _, v := range schema {
			closeObjects(v)
		}
	case []any:
		for _, v := range schema {
			closeObjects(v)
		}
	}
}

// share is a Control that lets others listen on the address; nil where the system has no such thing.
var share func(network, address string, conn syscall.RawConn) error

// serve is a server for berth to find: it listens, says "ready address=HOST:PORT", and ends by SIGTERM, or with its
// stdin.
func serve() int {
	address := flag.String("address", "127.0.0.1:0", "what to listen on")
	udp := flag.Bool("udp", false, "receive datagrams")
	record := flag.String("record", "", "listen through berth, under this name")
	heir := flag.Bool("heir", false, "a child inherits the socket; its pid is the value child")
	inherited := flag.Bool("inherited", false, "be the child: the socket is descriptor 3")
	stubborn := flag.Bool("stubborn", false, "ignore SIGTERM")
	reserve := flag.Bool("reserve", false, "reserve the address for an hour, and listen on nothing")
	hang := flag.Bool("hang", false, "accept nothing")
	shared := flag.Bool("shared", false, "others may listen on the address, who say so too")
	hup := flag.Bool("hup", false, "end by SIGHUP alone")
	flag.Parse()

	stop := make(chan os.Signal, 1)
	switch {
	case *stubborn:
		signal.Ignore(syscall.SIGTERM)
	case *hup:
		signal.Ignore(syscall.SIGTERM)
		signal.Notify(stop, syscall.SIGHUP)
	default:
		signal.Notify(stop, syscall.SIGTERM)
	}
	var lc net.ListenConfig
	if *shared {
		lc.Control = share
	}
	cfg := listener.Config{Net: lc, Name: *record, StateDir: os.Getenv("BERTH_STATE_DIR")}
	ctx := context.Background()
	if *udp {
		var conn net.PacketConn
		var err error
		if *record != "" {
			conn, err = cfg.ListenPacket(ctx, "udp", *address)
		} else {
			conn, err = lc.ListenPacket(ctx, "udp", *address)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer conn.Close()
		fmt.Printf("ready address=%s\n", conn.LocalAddr())
		return untilTold(stop)
	}
	if *reserve {
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		reservation, err := cfg.Reserve(ctx, "tcp", *address)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer reservation.Close()
		fmt.Printf("ready address=%s\n", reservation.Addr())
		return untilTold(stop)
	}
	var ln net.Listener
	var err error
	switch {
	case *inherited:
		ln, err = net.FileListener(os.NewFile(3, "socket"))
	case *record != "":
		ln, err = cfg.Listen(ctx, "tcp", *address)
	default:
		ln, err = lc.Listen(ctx, "tcp", *address)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer ln.Close()
	values := "address=" + ln.Addr().String()
	if *heir {
		child, err := startHeir(ln, *stubborn)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		values += " child=" + strconv.Itoa(child)
	}
	if !*hang {
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(conn, os.Getpid())
				conn.Close()
			}
		}()
	}
	fmt.Println("ready", values)
	return untilTold(stop)
}

func untilTold(stop chan os.Signal) int {
	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	select {
	case <-stop:
	case <-orphaned:
	}
	return 0
}

// startHeir starts a child with the socket, and waits until it can be signalled.
func startHeir(ln net.Listener, stubborn bool) (pid int, err error) {
	file, err := ln.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return 0, err
	}
	defer file.Close()
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, "-inherited")
	if stubborn {
		cmd.Args = append(cmd.Args, "-stubborn")
	}
	cmd.Args[0] = "serve" // by which the test binary knows what to be
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stdin = os.Stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, err = bufio.NewReader(stdout).ReadString('\n')
	return cmd.Process.Pid, err
}
