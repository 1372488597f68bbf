package envcfg_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/envcfg"
	"github.com/berth-go/berth/internal/testneed"
	"github.com/berth-go/berth/listener"
)

// service is the environment of one service on 127.0.0.1, of which a test starts several runs.
func service(t *testing.T, environ ...string) []string {
	return append([]string{"HOST=127.0.0.1", "BERTH_STATE_DIR=" + t.TempDir()}, environ...)
}

// with is the environment and more.
func with(environ []string, more ...string) []string {
	return append(append([]string(nil), environ...), more...)
}

// portOf is the port in what a process says when it is ready: "bound 127.0.0.1:3000".
func portOf(t *testing.T, said string) string {
	t.Helper()
	_, address, _ := strings.Cut(said, " ")
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	return port
}

func requireRuns(t *testing.T, p *process) {
	t.Helper()
	select {
	case <-p.exited:
		require.FailNow(t, "the process was stopped")
	default:
	}
}

// In development the newest start of a program has the port.
func TestDevelopmentReclaims(t *testing.T) {
	environ := service(t, "APP_ENV=dev")
	first := start(t, with(environ, "PORT=0"))
	port := portOf(t, first.says(t, "ready"))
	second := start(t, with(environ, "PORT="+port))
	require.Equal(t, "reclaimed 127.0.0.1:"+port, second.says(t, "ready"))
	first.exit(t)
}

// A stranger stays, and the program moves.
func TestDevelopmentMoves(t *testing.T) {
	held, port := hold(t)
	p := start(t, service(t, "APP_ENV=dev", "PORT="+port, "PORT_RANGES=0"))
	require.Regexp(t, `^fallback 127\.0\.0\.1:`, p.says(t, "ready"))
	require.NotNil(t, held.Addr())
}

func TestStagingMoves(t *testing.T) {
	environ := service(t, "APP_ENV=staging")
	first := start(t, with(environ, "PORT=0"))
	port, err := strconv.Atoi(portOf(t, first.says(t, "ready")))
	require.NoError(t, err)
	from, to := max(1024, port-50), min(65535, port+50)
	second := start(t, with(environ, "PORT="+strconv.Itoa(port), "PORT_RANGES="+strconv.Itoa(from)+"-"+strconv.Itoa(to)))
	said := second.says(t, "ready")
	require.Regexp(t, `^fallback `, said)
	moved, err := strconv.Atoi(portOf(t, said))
	require.NoError(t, err)
	require.GreaterOrEqual(t, moved, from)
	require.LessOrEqual(t, moved, to)
	requireRuns(t, first)
}

// In production, and where nothing says what the environment is, a taken port is an error with its holder.
func TestProductionFails(t *testing.T) {
	for name, more := range map[string][]string{
		"production": {"APP_ENV=prod", "PORT_RANGES=0"},
		"unset":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			environ := service(t)
			first := start(t, with(environ, "PORT=0"))
			port := portOf(t, first.says(t, "ready"))
			second := start(t, with(environ, append(more, "PORT="+port)...))
			require.Contains(t, second.says(t, "failed"), "held by "+filepath.Base(os.Args[0])[:10])
			second.exit(t)
			require.Equal(t, 1, second.ProcessState.ExitCode())
			requireRuns(t, first)
		})
	}
}

// BERTH_STRATEGY overrides what APP_ENV implies, in its order.
func TestStrategyWaits(t *testing.T) {
	held, port := hold(t)
	p := start(t, service(t, "PORT="+port, "BERTH_STRATEGY=wait,fallback", "BERTH_WAIT=5m", "PORT_RANGES=0", "BERTH_LOG=debug"))
	p.logs(t, "retry after")
	require.NoError(t, held.Close())
	require.Equal(t, "bound 127.0.0.1:"+port, p.says(t, "ready"))
}

func TestStrategyWaitEnds(t *testing.T) {
	_, port := hold(t)
	p := start(t, service(t, "PORT="+port, "BERTH_STRATEGY=wait,fallback", "BERTH_WAIT=1ms", "PORT_RANGES=0"))
	require.Regexp(t, `^fallback `, p.says(t, "ready"))
	p = start(t, service(t, "PORT="+port, "BERTH_STRATEGY=wait", "BERTH_WAIT=1ms"))
	require.Contains(t, p.says(t, "failed"), "listen tcp 127.0.0.1:"+port)
}

// Another service of the same user is stopped only where BERTH_RECLAIM=mine says so.
func TestReclaimMine(t *testing.T) {
	environ := service(t, "BERTH_STRATEGY=reclaim")
	first := start(t, with(environ, "PORT=0", "BERTH_NAME=one"))
	port := portOf(t, first.says(t, "ready"))
	environ = with(environ, "PORT="+port, "BERTH_NAME=two")
	ours := start(t, environ)
	ours.says(t, "failed")
	never := start(t, with(environ, "BERTH_RECLAIM=never", "BERTH_NAME=one"))
	never.says(t, "failed")
	requireRuns(t, first)
	mine := start(t, with(environ, "BERTH_RECLAIM=mine"))
	require.Equal(t, "reclaimed 127.0.0.1:"+port, mine.says(t, "ready"))
	first.exit(t)
}

// The test mode stops nobody, not even an earlier run, and finds a port whatever else is set.
func TestTestMode(t *testing.T) {
	environ := service(t, "APP_ENV=dev")
	first := start(t, with(environ, "PORT=0"))
	port := portOf(t, first.says(t, "ready"))
	second := start(t, with(environ, "PORT="+port, "TEST_MODE_ENABLED=true", "BERTH_STRATEGY=reclaim", "BERTH_RECLAIM=mine", "PORT_RANGES="+port))
	require.Regexp(t, `^fallback `, second.says(t, "ready"))
	requireRuns(t, first)
}

func TestUnixSocket(t *testing.T) {
	testneed.That(t, runtime.GOOS != "windows", "Unix sockets as POSIX has them")
	dir, err := os.MkdirTemp("", "envcfg") // t.TempDir is too long a path for some systems
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "web.sock")
	p := start(t, service(t, "LISTEN_ADDRESS=unix:"+path, "PORT=1"))
	require.Equal(t, "bound "+path, p.says(t, "ready"))
	require.Contains(t, p.logs(t, "PORT"), "no effect, LISTEN_ADDRESS is set")
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	conn.Close()
}

// A path is as long as the system takes it, and not longer.
func TestSocketPathLength(t *testing.T) {
	testneed.That(t, runtime.GOOS != "windows", "Unix sockets as POSIX has them")
	dir, err := os.MkdirTemp("", "envcfg")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	longest := 0
	for length := len(dir) + 2; length < 200; length++ {
		path := dir + "/" + strings.Repeat("x", length-len(dir)-1)
		ln, bindErr := net.Listen("unix", path)
		if bindErr == nil {
			require.NoError(t, ln.Close())
			longest = length
		}
		_, err := envcfg.Load([]string{"LISTEN_ADDRESS=unix:" + path})
		require.Equal(t, bindErr == nil, err == nil, "%d bytes: %v, %v", length, bindErr, err)
	}
	require.Greater(t, longest, 90)
}

// fd:NAME is the socket that systemd, or whoever speaks its protocol, passed.
func TestPassedSocket(t *testing.T) {
	testneed.That(t, runtime.GOOS != "windows", "descriptors that a child inherits")
	held, port := hold(t)
	file, err := held.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()
	passed := service(t, "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
	require.Equal(t, "activated 127.0.0.1:"+port, start(t, with(passed, "LISTEN_ADDRESS=fd:web"), file).says(t, "ready"))
	require.Equal(t, "activated 127.0.0.1:"+port, start(t, with(passed, "BERTH_NAME=web"), file).says(t, "ready"))
	require.Contains(t, start(t, with(passed, "LISTEN_ADDRESS=fd:api"), file).says(t, "failed"), "no such socket was passed")
}

func TestPortFileAndLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	p := start(t, service(t, "PORT=0", "BERTH_PORT_FILE="+path, "BERTH_LOG=json", "BERTH_NAME=web"))
	said := p.says(t, "ready")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(said, "bound "), strings.TrimSpace(string(text)))
	var line struct{ Level, Name, Address string }
	require.NoError(t, json.Unmarshal([]byte(p.logs(t, "listening on")), &line))
	require.Equal(t, "INFO", line.Level)
	require.Equal(t, "web", line.Name)
}

// Nothing is bound, and everything that is wrong is said, in a bad environment.
func TestListenRefuses(t *testing.T) {
	p := start(t, service(t, "PORT=http", "BERTH_GRACE=soon"))
	text := p.says(t, "failed")
	require.Contains(t, text, `PORT="http"`)
	require.Contains(t, text, `BERTH_GRACE="soon"`)
}

func TestLoaderListen(t *testing.T) {
	t.Setenv("ENVCFG_TEST_PORT", "0")
	t.Setenv("ENVCFG_TEST_HOST", "127.0.0.1")
	t.Setenv("ENVCFG_TEST_APP_ENV", "production") // whatever that of the tester is
	t.Setenv("ENVCFG_TEST_BERTH_STATE_DIR", t.TempDir())
	loader := envcfg.Loader{Prefix: "ENVCFG_TEST_"}
	ln, err := loader.Listen(t.Context())
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.Equal(t, listener.Bound, ln.Origin().Kind)

	t.Setenv("ENVCFG_TEST_PORT", "http")
	ln, err = loader.Listen(t.Context())
	require.Nil(t, ln)
	var e *envcfg.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "ENVCFG_TEST_PORT", e.Variables[0].Name)
}
