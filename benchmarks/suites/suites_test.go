//go:build unix

package suites

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	// What the suites need beyond their own packages, for go.mod.
	_ "github.com/valyala/fasthttp"
	_ "google.golang.org/grpc/interop"
)

var complete = flag.Bool("complete", false, "run every suite")

// limit bounds one run of one suite.
const limit = 3 * time.Minute

// An exception is a test that cannot hold with a variant. It is left out, and shown to fail when it is run alone: what
// holds after all does not stay in the list.
type exception struct {
	with, test string
	why        string
}

// A suite is the tests of a package.
type suite struct {
	pkg    string
	always bool     // else only with -complete
	not    []string // variants that it cannot do with
	except []exception
}

// What makes tests fail that know package net too well.
const (
	listenerType = "it asserts that the listener is a *net.TCPListener; a program says listener.As[*net.TCPListener](ln)"
	connType     = "it asserts that the connection is a *net.TCPConn; a program asks for what it needs of that"
	errorType    = "it lists the types that package net has in an OpError; ours is a *listener.Error"
	secondClose  = "it closes a listener twice and wants an error; ours repeats its first result"
)

// variants are what net.Listen is replaced by; see berthListen.
var variants = []string{"listen", "config", "middleware"}

var suites = []suite{
	{pkg: "net", always: true, not: []string{"config", "middleware"}, except: []exception{ // it is full of its own types
		{"listen", "TestListenError/unix_/path/to/somewhere", errorType},
		{"listen", "TestListenError/unixpacket_/path/to/somewhere", errorType},
	}},
	{pkg: "net/http", always: true, except: []exception{
		{"config", "TestLinuxSendfile", listenerType},
		{"middleware", "TestLinuxSendfile", listenerType},
		{"middleware", "TestHijackAfterCloseNotifier/h1", connType},
	}},
	{pkg: "net/http/httptest", always: true},
	{pkg: "net/http/httputil", always: true, except: []exception{
		{"middleware", "TestReverseProxyWebSocketHalfTCP", connType},
	}},
	{pkg: "net/http/cgi"},
	{pkg: "net/rpc", always: true},
	{pkg: "net/smtp", always: true},
	{pkg: "crypto/tls", always: true},
	{pkg: "log/syslog"},
	{pkg: "github.com/valyala/fasthttp", always: true, except: []exception{
		{"middleware", "TestRevertPull1233", connType},
	}},
	{pkg: "google.golang.org/grpc", always: true, except: []exception{
		{"config", "Test/StopBeforeServe", secondClose},
		{"middleware", "Test/StopBeforeServe", secondClose},
	}},
	{pkg: "google.golang.org/grpc/internal/transport", always: true, except: []exception{
		{"middleware", "Test/TCPUserTimeout", "grpc sets TCP_USER_TIMEOUT for its keep-alive on a *net.TCPConn, and does without elsewhere"},
	}},
	{pkg: "google.golang.org/grpc/test", always: true},
	{pkg: "google.golang.org/grpc/credentials"},
	{pkg: "google.golang.org/grpc/encoding"},
	{pkg: "google.golang.org/grpc/interop"},
	{pkg: "google.golang.org/grpc/orca"},
	{pkg: "google.golang.org/grpc/reflection/test"},
	{pkg: "google.golang.org/grpc/stats"},
}

func TestSuites(t *testing.T) {
	b := newBuilder(t)
	for _, s := range suites {
		if !s.always && !*complete {
			continue
		}
		t.Run(s.pkg, func(t *testing.T) {
			binary := b.build(t, s.pkg)
			for _, variant := range variants {
				if slices.Contains(s.not, variant) {
					continue
				}
				t.Run(variant, func(t *testing.T) {
					t.Parallel()
					s.check(t, binary, variant)
				})
			}
		})
	}
}

// check runs a suite, and what does not pass with net.Listen too.
func (s suite) check(t *testing.T, b binary, variant string) {
	except := slices.DeleteFunc(slices.Clone(s.except), func(e exception) bool { return e.with != variant })
	all := b.run(t, variant, "", pattern(except))
	t.Logf("%v", all)
	require.NotZero(t, all.calls, "net.Listen is not replaced")
	require.NotZero(t, all.count("pass"))
	require.False(t, all.crashed, "the tests did not come to an end:\n%s", all.tail)

	// A test that fails on a busy machine and then no more is upstream's matter. One of ours that fails now and then does
	// so in one of three.
	const times, many = 3, 5
	doubtful := all.innermost("fail", "skip")
	var bare outcome
	if len(doubtful) > 0 {
		bare = b.run(t, "net", pattern(doubtful), "")
	}
	var ours []exception
	for _, e := range doubtful {
		switch now := bare.status[e.test]; now {
		case "pass":
			t.Logf("%s: %s with ours, and passes with net.Listen\n%s", e.test, all.status[e.test], all.output[e.test])
			ours = append(ours, e)
		case "fail":
			t.Logf("fails with net.Listen too: %s\n%s", e.test, bare.output[e.test])
		case "":
			t.Errorf("%s does not run alone", e.test)
		}
	}
	require.LessOrEqual(t, len(ours), many, "so many are not by chance")
	for _, e := range ours {
		for range times {
			again := b.run(t, variant, pattern([]exception{e}), "")
			require.Equal(t, "pass", again.status[e.test], "%s:\n%s", e.test, again.output[e.test])
		}
	}

	for _, e := range except {
		alone := b.run(t, variant, pattern([]exception{e}), "")
		require.Equal(t, "fail", alone.status[e.test], "%s holds, or is there no more; it is an exception since %s", e.test, e.why)
	}
}

// The variants differ in what the suites are to see.
func TestVariants(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	require.NoError(t, os.WriteFile(calls, nil, 0o600))
	t.Setenv("BERTH_SUITE_CALLS", calls)
	t.Setenv("BERTH_SUITE_STATE", t.TempDir())
	t.Setenv("BERTH_SUITE", "net")
	require.Nil(t, berthListen())
	for i, variant := range variants {
		t.Setenv("BERTH_SUITE", variant)
		ln, err := berthListen()("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		client, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		conn, err := ln.Accept()
		require.NoError(t, err)
		_, bareListener := ln.(*net.TCPListener)
		_, bareConn := conn.(*net.TCPConn)
		require.Equal(t, variant == "listen", bareListener)
		require.Equal(t, variant != "middleware", bareConn)
		require.NoError(t, errors.Join(client.Close(), conn.Close(), ln.Close()))
		info, err := os.Stat(calls)
		require.NoError(t, err)
		require.EqualValues(t, i+1, info.Size())
	}
	t.Setenv("BERTH_SUITE", "nonsense")
	require.Panics(t, func() { berthListen() })
}

// pattern is for -test.run and -test.skip; "" for none.
func pattern(list []exception) string {
	var patterns []string
	for _, e := range list {
		patterns = append(patterns, "^"+strings.ReplaceAll(regexp.QuoteMeta(e.test), "/", "$/^")+"$")
	}
	return strings.Join(patterns, "|")
}

//go:embed hook.go
var hook string

// A builder compiles tests against a package net whose Listen asks a hook.
type builder struct {
	dir     string
	modfile string            // with the copies of modules: the build refuses an overlay in the module cache
	copies  map[string]string // by module
	overlay map[string]string
}

func newBuilder(t *testing.T) *builder {
	t.Helper()
	b := &builder{dir: t.TempDir(), copies: map[string]string{}, overlay: map[string]string{}}
	dial := filepath.Join(goCommand(t, "env", "GOROOT"), "src", "net", "dial.go")
	source, err := os.ReadFile(dial)
	require.NoError(t, err)
	const begin = "\nfunc Listen(network, address string) (Listener, error) {\n"
	require.Equal(t, 1, strings.Count(string(source), begin), "net.Listen looks different in this version of Go")
	b.overlay[dial] = b.file(t, "dial.go", strings.Replace(string(source), begin,
		"\nvar ListenHook func(network, address string) (Listener, error)\n"+begin+
			"\tif ListenHook != nil {\n\t\treturn ListenHook(network, address)\n\t}\n", 1))

	b.modfile = filepath.Join(b.dir, "go.mod")
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		b.file(t, name, string(text))
	}
	return b
}

func (b *builder) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(b.dir, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// directory is where the sources of a package are, in a copy if they are a module's.
func (b *builder) directory(t *testing.T, pkg string) (dir, name string) {
	t.Helper()
	var found struct {
		Dir, Name string
		Standard  bool
		Module    *struct{ Path, Dir string }
	}
	require.NoError(t, json.Unmarshal([]byte(goCommand(t, "list", "-json=Dir,Name,Standard,Module", pkg)), &found))
	if found.Standard {
		return found.Dir, found.Name
	}
	module := found.Module.Path
	if b.copies[module] == "" {
		b.copies[module] = filepath.Join(b.dir, "modules", module)
		require.NoError(t, os.CopyFS(b.copies[module], os.DirFS(found.Module.Dir)))
		goCommand(t, "mod", "edit", "-replace="+module+"="+b.copies[module], b.modfile)
	}
	return filepath.Join(b.copies[module], strings.TrimPrefix(found.Dir, found.Module.Dir)), found.Name
}

func (b *builder) build(t *testing.T, pkg string) binary {
	t.Helper()
	dir, name := b.directory(t, pkg)
	base := strings.ReplaceAll(pkg, "/", "_")
	_, body, ok := strings.Cut(hook, "\npackage suites\n")
	require.True(t, ok)
	added := b.file(t, base+"_hook.go", "package "+name+"_test\n"+body+"\nfunc init() { net.ListenHook = berthListen() }\n")
	overlay := maps.Clone(b.overlay)
	overlay[filepath.Join(dir, "zz_berth_hook_test.go")] = added
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	require.NoError(t, err)
	path := filepath.Join(b.dir, base+".test")
	goCommand(t, "test", "-c", "-vet=off", "-modfile="+b.modfile, "-overlay="+b.file(t, base+".json", string(text)), "-o", path, pkg)
	return binary{path: path, dir: dir}
}

func goCommand(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "go %s: %s", strings.Join(args, " "), &stderr)
	return strings.TrimSpace(string(out))
}

// A binary is the tests of one package.
type binary struct{ path, dir string }

// An outcome is what became of every test that was run.
type outcome struct {
	status  map[string]string // pass, fail or skip
	output  map[string][]byte
	tail    string // the last of the output
	calls   int64  // of what stands in for net.Listen
	took    time.Duration
	crashed bool // some tests were not run
}

// innermost are the tests with one of the statuses that are not above another one.
func (o outcome) innermost(statuses ...string) []exception {
	names := map[string]bool{}
	for name, status := range o.status {
		if slices.Contains(statuses, status) {
			names[name] = true
		}
	}
	for name := range maps.Clone(names) {
		for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
			delete(names, name[:i])
		}
	}
	var list []exception
	for _, name := range slices.Sorted(maps.Keys(names)) {
		list = append(list, exception{test: name})
	}
	return list
}

func (o outcome) count(status string) (n int) {
	for _, s := range o.status {
		if s == status {
			n++
		}
	}
	return n
}

func (o outcome) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped, %d calls, %.1fs", o.count("pass"), o.count("fail"), o.count("skip"), o.calls, o.took.Seconds())
}

func (b binary) run(t *testing.T, variant, run, skip string) outcome {
	t.Helper()
	scratch := t.TempDir()
	calls := filepath.Join(scratch, "calls")
	require.NoError(t, os.WriteFile(calls, nil, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), limit+time.Minute)
	defer cancel()
	// The long tests ask name servers and hosts on the Internet, which is no business of ours.
	args := []string{"tool", "test2json", b.path, "-test.short", "-test.v=test2json", "-test.timeout=" + limit.String()}
	if run != "" {
		args = append(args, "-test.run="+run)
	}
	if skip != "" {
		args = append(args, "-test.skip="+skip)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "BERTH_SUITE="+variant, "BERTH_SUITE_CALLS="+calls, "BERTH_SUITE_STATE="+filepath.Join(scratch, "state"))
	begin := time.Now()
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil {
		require.ErrorAs(t, err, &exit)
	}
	require.NoError(t, ctx.Err())
	const failed = 1 // of some test; a panic gives 2
	o := outcome{crashed: cmd.ProcessState.ExitCode() > failed, status: map[string]string{}, output: map[string][]byte{}, took: time.Since(begin)}
	info, err := os.Stat(calls)
	require.NoError(t, err)
	o.calls = info.Size()
	var last []string
	for reader := bufio.NewReader(bytes.NewReader(out)); ; {
		line, err := reader.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		var event struct{ Action, Test, Output string }
		require.NoError(t, json.Unmarshal(line, &event))
		switch event.Action {
		case "pass", "fail", "skip":
			if event.Test != "" { // it is of the whole
				o.status[event.Test] = event.Action
			}
		case "output":
			o.output[event.Test] = append(o.output[event.Test], event.Output...)
			last = append(last, event.Output)
		}
	}
	o.tail = strings.Join(last[max(0, len(last)-30):], "")
	return o
}
