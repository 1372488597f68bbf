package envcfg_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/envcfg"
	"github.com/berth-go/berth/strategy"
)

func load(t *testing.T, environ ...string) envcfg.Settings {
	t.Helper()
	settings, err := envcfg.Load(environ)
	require.NoError(t, err)
	return settings
}

// variable is how one of them took effect.
func variable(t *testing.T, settings envcfg.Settings, name string) envcfg.Variable {
	t.Helper()
	i := slices.IndexFunc(settings.Variables, func(v envcfg.Variable) bool { return v.Name == name })
	require.GreaterOrEqual(t, i, 0, "no variable %s", name)
	return settings.Variables[i]
}

// wrong is what Load says of an environment that it refuses.
func wrong(t *testing.T, environ ...string) []*envcfg.VariableError {
	t.Helper()
	settings, err := envcfg.Load(environ)
	var e *envcfg.Error
	require.ErrorAs(t, err, &e, "%q", environ)
	require.Equal(t, envcfg.Settings{}, settings)
	return e.Variables
}

func TestDefaults(t *testing.T) {
	settings := load(t)
	require.Equal(t, envcfg.Production, settings.Environment)
	require.Equal(t, "tcp", settings.Network)
	require.Equal(t, ":3000", settings.Address)
	require.Equal(t, strategy.Chain(strategy.FailFast{}), settings.Config.Strategy)
	require.Nil(t, settings.Config.Sources)
	require.Empty(t, settings.Config.Name)
	require.Empty(t, settings.Config.StateDir)
	require.Empty(t, settings.Config.PortFile)
	require.Same(t, slog.Default(), settings.Config.Logger)
	require.Empty(t, settings.Origins)
	require.Equal(t, 30*time.Second, settings.Drain)
}

// Load reads what it is given and nothing else.
func TestNotTheProcess(t *testing.T) {
	t.Setenv("PORT", "4000")
	require.Equal(t, ":3000", load(t).Address)
}

func TestEnviron(t *testing.T) {
	for name, environ := range map[string][]string{
		"empty":                    {"PORT=", "HOST=  "},
		"the last one counts":      {"PORT=1", "PORT=3000"},
		"empty after all":          {"PORT=http", "PORT="},
		"not an assignment":        {"PORT", "=C:=C:\\", "=", ""},
		"spaces":                   {"PORT= 3000\t"},
		"a file made on Windows":   {"PORT=3000\r"},
		"others are not looked at": {"PATH=/bin", "LISTEN_PID=x", "LISTEN_FDS=9", "BERTH_SOMETHING=1"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, ":3000", load(t, environ...).Address)
		})
	}
}

func TestAddress(t *testing.T) {
	for _, c := range []struct{ environ, network, address string }{
		{"PORT=0", "tcp", ":0"},
		{"PORT=65535", "tcp", ":65535"},
		{"HOST=127.0.0.1", "tcp", "127.0.0.1:3000"},
		{"HOST=0.0.0.0", "tcp", "0.0.0.0:3000"},
		{"HOST=::1", "tcp", "[::1]:3000"},
		{"HOST=[::1] PORT=80", "tcp", "[::1]:80"},
		{"HOST=fe80::1%eth0", "tcp", "[fe80::1%eth0]:3000"},
		{"HOST=localhost", "tcp", "localhost:3000"},
		{"HOST=web_1.internal.", "tcp", "web_1.internal.:3000"},
		{"LISTEN_ADDRESS=:8080", "tcp", ":8080"},
		{"LISTEN_ADDRESS=[fe80::1%eth0]:8080 HOST=10.0.0.1 PORT=1", "tcp", "[fe80::1%eth0]:8080"},
		{"LISTEN_ADDRESS=localhost:0", "tcp", "localhost:0"},
		{"LISTEN_ADDRESS=unix:/run/web.sock PORT=1", "unix", "/run/web.sock"},
		{"LISTEN_ADDRESS=unix:///run/web.sock", "unix", "/run/web.sock"},
		{"LISTEN_ADDRESS=unix:web.sock", "unix", "web.sock"},
		{"LISTEN_ADDRESS=unix:@web", "unix", "@web"},
		{"LISTEN_ADDRESS=fd:web", "tcp", "fd:web"},
		{"LISTEN_ADDRESS=fd:3", "tcp", "fd:3"},
		{"LISTEN_ADDRESS=unix:fd:web", "unix", "fd:web"},
	} {
		t.Run(c.environ, func(t *testing.T) {
			settings := load(t, strings.Fields(c.environ)...)
			require.Equal(t, c.network, settings.Network)
			require.Equal(t, c.address, settings.Address)
		})
	}
}

func TestEnvironment(t *testing.T) {
	for want, texts := range map[envcfg.Environment][]string{
		envcfg.Development: {"development", "dev", "develop", "devel", "local", "DEV", "Development"},
		envcfg.Staging:     {"staging", "stage", "stg", "Staging"},
		envcfg.Production:  {"production", "prod", "prd", "live", "PROD"},
	} {
		for _, text := range texts {
			settings := load(t, "APP_ENV="+text)
			require.Equal(t, want, settings.Environment, text)
			require.Equal(t, string(want), variable(t, settings, "APP_ENV").Value)
		}
	}
}

// Test is no environment without the test mode, since it can mean two things.
func TestEnvironmentTest(t *testing.T) {
	settings := load(t, "APP_ENV=testing", "TEST_MODE_ENABLED=1")
	require.Equal(t, envcfg.Test, settings.Environment)
	require.Equal(t, "test", variable(t, settings, "APP_ENV").Value)
	require.Equal(t, "true", variable(t, settings, "TEST_MODE_ENABLED").Value)
	for _, environ := range [][]string{{"APP_ENV=test"}, {"APP_ENV=test", "TEST_MODE_ENABLED=false"}} {
		list := wrong(t, environ...)
		require.Len(t, list, 1)
		require.Equal(t, "APP_ENV", list[0].Name)
		require.Contains(t, list[0].Reason, "TEST_MODE_ENABLED=true")
	}
}

func TestStrategy(t *testing.T) {
	byDefault := strategy.Fallback{Ranges: []strategy.Range{{First: 3000, Last: 3010}, {First: 8000, Last: 8010}, {First: 9000, Last: 9010}}}
	anyPort := strategy.Fallback{Ranges: []strategy.Range{{First: 0, Last: 0}}}
	for _, c := range []struct {
		environ string
		want    []strategy.Strategy
		value   string // of BERTH_STRATEGY
		source  string
	}{
		{"APP_ENV=development", []strategy.Strategy{strategy.Aggressive{Grace: 5 * time.Second}, byDefault, strategy.FailFast{}}, "reclaim,fallback,failfast", "implied by APP_ENV"},
		{"APP_ENV=staging", []strategy.Strategy{byDefault, strategy.FailFast{}}, "fallback,failfast", "implied by APP_ENV"},
		{"APP_ENV=production PORT=80", []strategy.Strategy{strategy.FailFast{}}, "failfast", "implied by APP_ENV"},
		{"BERTH_STRATEGY=fallback PORT=80", []strategy.Strategy{byDefault}, "fallback", "environment"},
		{"APP_ENV=dev BERTH_STRATEGY=failfast", []strategy.Strategy{strategy.FailFast{}}, "failfast", "environment"},
		{"BERTH_STRATEGY=Wait,Fallback,Reclaim BERTH_WAIT=2s PORT_RANGES=7-8 BERTH_GRACE=1m", []strategy.Strategy{
			strategy.Wait{For: 2 * time.Second}, strategy.Fallback{Ranges: []strategy.Range{{First: 7, Last: 8}}}, strategy.Aggressive{Grace: time.Minute},
		}, "Wait,Fallback,Reclaim", "environment"},
		{"BERTH_STRATEGY=wait", []strategy.Strategy{strategy.Wait{For: 10 * time.Second}}, "wait", "environment"},
		{"BERTH_STRATEGY=reclaim BERTH_GRACE=0", []strategy.Strategy{strategy.Aggressive{Grace: -1}}, "reclaim", "environment"},
		{"APP_ENV=dev BERTH_RECLAIM=never", []strategy.Strategy{byDefault, strategy.FailFast{}}, "fallback,failfast", "implied by APP_ENV"},
		{"BERTH_STRATEGY=reclaim BERTH_RECLAIM=never", []strategy.Strategy{strategy.FailFast{}}, "failfast", "environment"},
		{"APP_ENV=staging BERTH_RECLAIM=mine", []strategy.Strategy{byDefault, strategy.FailFast{}}, "fallback,failfast", "implied by APP_ENV"},
		{"TEST_MODE_ENABLED=true", []strategy.Strategy{anyPort, strategy.FailFast{}}, "fallback,failfast", "implied by TEST_MODE_ENABLED"},
		{"TEST_MODE_ENABLED=1 APP_ENV=dev BERTH_STRATEGY=reclaim BERTH_RECLAIM=mine PORT_RANGES=7-8", []strategy.Strategy{anyPort, strategy.FailFast{}}, "fallback,failfast", "implied by TEST_MODE_ENABLED"},
	} {
		t.Run(c.environ, func(t *testing.T) {
			settings := load(t, strings.Fields(c.environ)...)
			require.Equal(t, strategy.Chain(c.want...), settings.Config.Strategy)
			row := variable(t, settings, "BERTH_STRATEGY")
			require.Equal(t, c.value, row.Value)
			require.Equal(t, c.source, row.Source)
		})
	}
}

// Whom a reclaim may stop is a function, which cannot be compared but asked.
func TestReclaim(t *testing.T) {
	stranger := strategy.Holder{PID: 4242}
	failure := strategy.Failure{
		Network: "tcp", Address: ":3000", Err: syscall.EADDRINUSE,
		Diagnose: func() strategy.Diagnosis {
			return strategy.Diagnosis{Holders: []strategy.Holder{stranger}, Complete: true}
		},
	}
	require.Nil(t, load(t, "BERTH_STRATEGY=reclaim").Config.Strategy.Decide(failure))
	require.Nil(t, load(t, "BERTH_STRATEGY=reclaim", "BERTH_RECLAIM=ours").Config.Strategy.Decide(failure))
	require.IsType(t, strategy.Reclaim{}, load(t, "BERTH_STRATEGY=reclaim", "BERTH_RECLAIM=Mine").Config.Strategy.Decide(failure))
	require.IsType(t, strategy.Fail{}, load(t, "BERTH_STRATEGY=reclaim", "BERTH_RECLAIM=never").Config.Strategy.Decide(failure))
}

func TestOrigins(t *testing.T) {
	for text, want := range map[string][]string{
		"https://app.example.com":                        {"https://app.example.com"},
		"https://app.example.com/":                       {"https://app.example.com"},
		"HTTPS://App.Example.com:443":                    {"https://app.example.com"},
		"http://localhost:80":                            {"http://localhost"},
		"http://localhost:443":                           {"http://localhost:443"},
		"http://[::1]:5173 , http://localhost:5173":      {"http://[::1]:5173", "http://localhost:5173"},
		"https://a.example,https://a.example:443":        {"https://a.example"},
		"https://xn--bcher-kva.example,http://127.0.0.1": {"https://xn--bcher-kva.example", "http://127.0.0.1"},
	} {
		require.Equal(t, want, load(t, "FRONTEND_URL="+text).Origins, text)
	}
}

func TestLog(t *testing.T) {
	for text, want := range map[string]struct {
		level slog.Level
		form  slog.Handler
	}{
		"debug":        {slog.LevelDebug, &slog.TextHandler{}},
		"json":         {slog.LevelInfo, &slog.JSONHandler{}},
		"info":         {slog.LevelInfo, &slog.TextHandler{}},
		"text,WARN":    {slog.LevelWarn, &slog.TextHandler{}},
		"warning":      {slog.LevelWarn, &slog.TextHandler{}},
		"error , json": {slog.LevelError, &slog.JSONHandler{}},
		"off":          {slog.LevelError + 1, slog.DiscardHandler},
	} {
		handler := load(t, "BERTH_LOG="+text).Config.Logger.Handler()
		require.IsType(t, want.form, handler, text)
		require.False(t, handler.Enabled(context.Background(), want.level-1), text)
		require.Equal(t, text != "off", handler.Enabled(context.Background(), want.level), text)
	}
}

func TestTheRest(t *testing.T) {
	settings := load(t, "BERTH_NAME=my web", "BERTH_STATE_DIR=/run/web", "BERTH_PORT_FILE=port", "BERTH_DRAIN=1m30s")
	require.Equal(t, "my web", settings.Config.Name)
	require.Equal(t, "/run/web", settings.Config.StateDir)
	require.Equal(t, "port", settings.Config.PortFile)
	require.Equal(t, 90*time.Second, settings.Drain)
	require.Negative(t, load(t, "BERTH_DRAIN=0s").Drain)
}

// Every kind of bad value is refused with what is wrong, on one line, with an example that is accepted.
func TestBadValues(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for _, c := range []struct{ name, value, reason string }{
		{"PORT", "http", "not a number"},
		{"PORT", "-1", "not a number"},
		{"PORT", "+80", "not a number"},
		{"PORT", "0x50", "not a number"},
		{"PORT", "80 81", "not a number"},
		{"PORT", "８０", "not a number"},
		{"PORT", "080", "begins with 0"},
		{"PORT", "00", "begins with 0"},
		{"PORT", "65536", "above 65535"},
		{"PORT", strings.Repeat("9", 40), "above 65535"},
		{"PORT", "tcp://10.0.0.1:80", "Kubernetes"},
		{"PORT", `"3000"`, "quotes"},
		{"PORT", "'3000'", "quotes"},
		{"PORT", long, "not a number"},
		{"HOST", "http://localhost", "URL"},
		{"HOST", "localhost:3000", "has a port"},
		{"HOST", "[::1]:3000", "has a port"},
		{"HOST", "*", "all interfaces"},
		{"HOST", ":::1", "no IPv6"},
		{"HOST", "[localhost]", "no valid name"},
		{"HOST", "256.0.0.1", "no IPv4"},
		{"HOST", "127.0.0.01", "no IPv4"},
		{"HOST", "a b", "no valid name"},
		{"HOST", "-a", "no valid name"},
		{"HOST", "a..b", "no valid name"},
		{"HOST", "bücher.example", "no valid name"},
		{"HOST", strings.Repeat("x", 64), "no valid name"},
		{"HOST", long, "longer than 253"},
		{"HOST", "a\x00b", "control character"},
		{"HOST", "a\x1b[31mb", "control character"},
		{"LISTEN_ADDRESS", "3000", "port alone"},
		{"LISTEN_ADDRESS", "localhost", "missing port"},
		{"LISTEN_ADDRESS", "::1:3000", "too many colons"},
		{"LISTEN_ADDRESS", "localhost:http", "not a number"},
		{"LISTEN_ADDRESS", "localhost:", "not a number"},
		{"LISTEN_ADDRESS", ":080", "begins with 0"},
		{"LISTEN_ADDRESS", "a b:80", "no valid name"},
		{"LISTEN_ADDRESS", "http://localhost:80", "URL"},
		{"LISTEN_ADDRESS", "/run/web.sock", "put unix: before it"},
		{"LISTEN_ADDRESS", "unix:", "path is missing"},
		{"LISTEN_ADDRESS", "unix:@", "path is missing"},
		{"LISTEN_ADDRESS", "unix:~/web.sock", "~"},
		{"LISTEN_ADDRESS", "unix:/" + long, "bytes"},
		{"LISTEN_ADDRESS", "fd:", "name of a socket"},
		{"LISTEN_ADDRESS", "fd:a:b", "name of a socket"},
		{"LISTEN_ADDRESS", "unix:fd:", "name of a socket"},
		{"APP_ENV", "prodution", "no environment"},
		{"PORT_RANGES", "3010-3000", "3000-3010"},
		{"PORT_RANGES", "3000-", "not a port number"},
		{"PORT_RANGES", "3000,,3001", "empty"},
		{"BERTH_STRATEGY", "kill", `"kill" is no strategy`},
		{"BERTH_STRATEGY", "wait,", `"" is no strategy`},
		{"BERTH_STRATEGY", "wait,wait", "twice"},
		{"BERTH_STRATEGY", "failfast,wait", "after failfast"},
		{"BERTH_RECLAIM", "yours", "none of the three"},
		{"BERTH_GRACE", "5", "unit is missing"},
		{"BERTH_GRACE", "-5s", "below 0"},
		{"BERTH_GRACE", "soon", "no duration"},
		{"BERTH_WAIT", "0s", "is 0"},
		{"BERTH_WAIT", "9999999h", "no duration"},
		{"BERTH_DRAIN", "-1s", "below 0"},
		{"BERTH_NAME", "a\nb", "control character"},
		{"BERTH_STATE_DIR", "~/state", "~"},
		{"BERTH_PORT_FILE", "~", "~"},
		{"BERTH_LOG", "verbose", "neither a level nor a form"},
		{"BERTH_LOG", "debug,info", "one too many"},
		{"BERTH_LOG", "json,text", "one too many"},
		{"BERTH_LOG", "debug,", "neither a level nor a form"},
		{"FRONTEND_URL", "*", "every page"},
		{"FRONTEND_URL", "null", "every page"},
		{"FRONTEND_URL", "app.example.com", "http:// or https://"},
		{"FRONTEND_URL", "ftp://a.example", "http:// or https://"},
		{"FRONTEND_URL", "https://", "http:// or https://"},
		{"FRONTEND_URL", "https:app", "http:// or https://"},
		{"FRONTEND_URL", "https://a.example/app", "ends after host and port"},
		{"FRONTEND_URL", "https://a.example?", "ends after host and port"},
		{"FRONTEND_URL", "https://a.example#", "ends after host and port"},
		{"FRONTEND_URL", "https://a.example:", "port is missing"},
		{"FRONTEND_URL", "https://a.example:0443", "begins with 0"},
		{"FRONTEND_URL", "https://a.example,", "empty"},
		{"FRONTEND_URL", "https://*.example", "no valid name"},
		{"FRONTEND_URL", "https://u:secret@a.example", "no user and no password"},
		{"TEST_MODE_ENABLED", "yes", "neither true nor false"},
	} {
		t.Run(c.name+"="+c.value[:min(len(c.value), 40)], func(t *testing.T) {
			list := wrong(t, c.name+"="+c.value)
			require.Len(t, list, 1)
			require.Equal(t, c.name, list[0].Name)
			require.Contains(t, list[0].Reason, c.reason)
			text := list[0].Error()
			require.NotContains(t, text, "\n")
			require.NotContains(t, text, "secret")
			require.Less(t, len(text), 500)
			require.Contains(t, text, list[0].Example)
			_, err := envcfg.Load([]string{list[0].Example})
			require.NoError(t, err)
		})
	}
}

// A password that came into the wrong variable is not shown.
func TestNoPasswords(t *testing.T) {
	for _, environ := range []string{
		"FRONTEND_URL=https://a.example,https://user:secret@b.example/x,http://u@secret:secret@c",
		"BERTH_LOG=debug,postgres://user:secret@db",
		"BERTH_STRATEGY=postgres://user:secret@db",
		"BERTH_NAMEE=postgres://user:secret@db",
		"LISTEN_ADDRESS=postgres://user:secret@db",
	} {
		list := wrong(t, environ)
		require.NotContains(t, list[0].Error(), "secret")
		require.NotContains(t, list[0].Value, "secret")
	}
}

// All that is wrong is said at once, in the order of the documentation.
func TestEveryBadVariable(t *testing.T) {
	environ := []string{"TEST_MODE_ENABLED=maybe", "PORT=http", "BERTH_LOG=loud", "BERTH_WAIT=1", "HOST=*", "APP_ENV=production", "BERTH_STRATEYG=wait", "PORT_RANGE=1", "BERTH_NAMEE=a"}
	before := slices.Clone(environ)
	_, err := envcfg.Load(environ)
	require.Equal(t, before, environ)
	var names []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		var one *envcfg.VariableError
		require.ErrorAs(t, e, &one)
		names = append(names, one.Name)
	}
	require.Equal(t, []string{"PORT", "HOST", "BERTH_WAIT", "BERTH_LOG", "TEST_MODE_ENABLED", "BERTH_NAMEE", "BERTH_STRATEYG", "PORT_RANGE"}, names)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, len(names))
	require.Equal(t, `environment variable PORT="http": the port is not a number; use a number from 0 to 65535, for example PORT=8080`, lines[0])
	require.Equal(t, `environment variable BERTH_STRATEYG="wait": it is probably meant to be BERTH_STRATEGY, which is not set; `+
		`rename it, or where it is something else set BERTH_STRATEGY too, for example BERTH_STRATEGY=wait`, lines[6])
	var first *envcfg.VariableError
	require.True(t, errors.As(err, &first))
}

func TestMisspelt(t *testing.T) {
	for _, c := range []struct{ environ, meant string }{
		{"PROT=8080", "PORT=8080"},
		{"PORTT=8080", "PORT=8080"},
		{"POR=8080", "PORT=8080"},
		{"port=8080", "PORT=8080"},
		{"Host=localhost", "HOST=localhost"},
		{"HSOT=localhost", "HOST=localhost"},
		{"APPENV=dev", "APP_ENV=dev"},
		{"APP_EVN=dev", "APP_ENV=dev"},
		{"LISTEN_ADDRSES=:80", "LISTEN_ADDRESS=:80"},
		{"LISTEN_ADDRESSES=:80", "LISTEN_ADDRESS=:80"},
		{"PORT_RANGE=1-2", "PORT_RANGES=1-2"},
		{"BERTH_STRTAEGY=wait", "BERTH_STRATEGY=wait"},
		{"BERTH_STRATEGIE=what", "BERTH_STRATEGY=wait,fallback"}, // a name of ours, so the value need not fit
		{"BERTH_RECLAM=mine", "BERTH_RECLAIM=mine"},
		{"BERTHLOG=json", "BERTH_LOG=json"},
		{"TEST_MODE_ENABLE=true", "TEST_MODE_ENABLED=true"},
		{"FRONTEND_URI=https://a.example", "FRONTEND_URL=https://a.example"},
	} {
		t.Run(c.environ, func(t *testing.T) {
			list := wrong(t, c.environ)
			require.Len(t, list, 1)
			name, _, _ := strings.Cut(c.environ, "=")
			require.Equal(t, name, list[0].Name)
			require.Equal(t, c.meant, list[0].Example)

			// The right one beside it ends the doubt.
			_, err := envcfg.Load([]string{c.environ, c.meant})
			require.NoError(t, err)
		})
	}
}

// What usual environments have is nobody's typing error.
func TestUsualEnvironments(t *testing.T) {
	for name, text := range map[string]string{
		"words near PORT and HOST": "PORTS=1 POST=1 SORT=1 FORT=1 PART=1 PORE=1 SPORT=1 PORTA=1 EXPORT=1 REPORT=1 " +
			"HOSTS=db COST=db GHOST=db HOSE=db MOST=db LOST=db HOSTNAME=db HOSTTYPE=x86_64 HOSTFILE=hosts POT=tea PROT=tcp",
		"shell": "SHELL=/bin/bash PATH=/usr/bin PWD=/home/a OLDPWD=/ HOME=/home/a USER=a LOGNAME=a TERM=xterm LANG=C.UTF-8 LC_ALL=C SHLVL=1 _=/bin/env " +
			"EDITOR=vi PAGER=less LS_COLORS=x HISTFILE=x MAIL=/var/mail/a TZ=UTC DISPLAY=:0 XDG_RUNTIME_DIR=/run/user/1000 SSH_AUTH_SOCK=/tmp/x",
		"Kubernetes": "KUBERNETES_PORT=tcp://10.0.0.1:443 KUBERNETES_SERVICE_HOST=10.0.0.1 KUBERNETES_SERVICE_PORT=443 KUBERNETES_SERVICE_PORT_HTTPS=443 " +
			"WEB_PORT=tcp://10.0.0.2:80 WEB_SERVICE_PORT=80 WEB_PORT_80_TCP=tcp://10.0.0.2:80 WEB_PORT_80_TCP_ADDR=10.0.0.2 WEB_PORT_80_TCP_PROTO=tcp",
		"CI": "CI=true GITHUB_ACTIONS=true GITHUB_ENV=/x RUNNER_OS=Linux GITLAB_CI=true TRAVIS=true BUILD_ID=1 JOB_NAME=test NODE_NAME=a WORKSPACE=/w",
		"web programs": "NODE_ENV=production RAILS_ENV=production GO_ENV=production ENV=production ENVIRONMENT=production APP_NAME=a APP_KEY=a APP_URL=https://a.example APP_DEBUG=true " +
			"BACKEND_URL=https://a.example DATABASE_URL=postgres://a PGHOST=db PGPORT=5432 DB_HOST=db DB_PORT=5432 REDIS_HOST=r REDIS_PORT=6379 SMTP_HOST=m SMTP_PORT=25 " +
			"HTTP_PORT=80 ADMIN_PORT=81 METRICS_PORT=82 GRPC_PORT=83 DEBUG_PORT=84 FRONTEND_PORT=80 FRONTEND_SRC=a FRONTEND_DIR=a FRONTEND_UI=https://a.example TEST_MODE=1 LISTEN_ADDR=:80 LISTEN=:80 ADDR=:80",
		"systemd": "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=web NOTIFY_SOCKET=/run/x WATCHDOG_USEC=1 INVOCATION_ID=x JOURNAL_STREAM=8:1 STATE_DIRECTORY=/x RUNTIME_DIRECTORY=/x",
		"Heroku":  "DYNO=web.1 STACK=heroku-24 WEB_CONCURRENCY=2",
		"proxies": "http_proxy=http://p:3128 https_proxy=http://p:3128 no_proxy=localhost",
		"conda":   "CONDA_PREFIX=/c CONDA_DEFAULT_ENV=base HOST=x86_64-conda-linux-gnu",
		"berth":   "BERTH_TEST_ROLE=x BERTH_TOKEN=x BERTH_HOME=/x",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := envcfg.Load(strings.Fields(text))
			require.NoError(t, err)
		})
	}
}

// What is set and has no effect is said.
func TestNotes(t *testing.T) {
	for _, c := range []struct{ environ, name, note string }{
		{"LISTEN_ADDRESS=:1 PORT=2", "PORT", "no effect, LISTEN_ADDRESS is set"},
		{"LISTEN_ADDRESS=:1 HOST=::1", "HOST", "no effect, LISTEN_ADDRESS is set"},
		{"LISTEN_ADDRESS=:1", "PORT", ""},
		{"BERTH_WAIT=1s", "BERTH_WAIT", "no effect, BERTH_STRATEGY has no wait"},
		{"BERTH_WAIT=1s BERTH_STRATEGY=wait", "BERTH_WAIT", ""},
		{"APP_ENV=stage BERTH_GRACE=1s", "BERTH_GRACE", "no effect, BERTH_STRATEGY has no reclaim"},
		{"APP_ENV=stage BERTH_RECLAIM=ours", "BERTH_RECLAIM", "no effect, BERTH_STRATEGY has no reclaim"},
		{"APP_ENV=stage BERTH_RECLAIM=never", "BERTH_RECLAIM", ""},
		{"APP_ENV=dev BERTH_RECLAIM=ours BERTH_GRACE=1s", "BERTH_GRACE", ""},
		{"APP_ENV=prod PORT_RANGES=1-2", "PORT_RANGES", "no effect, BERTH_STRATEGY has no fallback"},
		{"APP_ENV=dev BERTH_RECLAIM=never", "BERTH_STRATEGY", "without reclaim, BERTH_RECLAIM is never"},
		{"TEST_MODE_ENABLED=true BERTH_STRATEGY=wait", "BERTH_STRATEGY", "wait has no effect"},
		{"TEST_MODE_ENABLED=true PORT_RANGES=1-2", "PORT_RANGES", "1-2 has no effect"},
		{"TEST_MODE_ENABLED=true BERTH_RECLAIM=mine", "BERTH_RECLAIM", "mine has no effect"},
		{"TEST_MODE_ENABLED=true", "PORT_RANGES", ""},
	} {
		t.Run(c.environ+" "+c.name, func(t *testing.T) {
			settings := load(t, strings.Fields(c.environ)...)
			require.Equal(t, c.note, variable(t, settings, c.name).Note)
		})
	}
}

func TestPrefix(t *testing.T) {
	environ := []string{"API_PORT=4000", "WEB_PORT=5000", "PORT=80", "HOST=127.0.0.1", "WEB_HOST=::1", "APP_ENV=staging", "API_APP_ENV=dev", "BERTH_NAME=all", "WEB_BERTH_NAME=front"}
	api, err := envcfg.Loader{Prefix: "API_"}.Load(environ)
	require.NoError(t, err)
	web, err := envcfg.Loader{Prefix: "WEB_"}.Load(environ)
	require.NoError(t, err)
	other, err := envcfg.Loader{Prefix: "OTHER_"}.Load(environ)
	require.NoError(t, err)

	require.Equal(t, "127.0.0.1:4000", api.Address)
	require.Equal(t, "[::1]:5000", web.Address)
	require.Equal(t, "127.0.0.1:3000", other.Address, "PORT is not for several services")
	require.Equal(t, envcfg.Development, api.Environment)
	require.Equal(t, envcfg.Staging, web.Environment)
	require.Equal(t, "api", api.Config.Name)
	require.Equal(t, "implied by the prefix", variable(t, api, "API_BERTH_NAME").Source)
	require.Equal(t, "front", web.Config.Name)
	require.Equal(t, "environment", variable(t, web, "APP_ENV").Source)
	require.Equal(t, "implied by API_APP_ENV", variable(t, api, "API_BERTH_STRATEGY").Source)
}

func TestPrefixErrors(t *testing.T) {
	for environ, want := range map[string]struct{ name, example string }{
		"A_PORT=tcp://10.0.0.1:80": {"A_PORT", "A_PORT=8080"},
		"A_PROT=80":                {"A_PROT", "A_PORT=80"},
		"A_APP_EVN=dev":            {"A_APP_EVN", "A_APP_ENV=dev"},
		"APP_EVN=dev":              {"APP_EVN", "APP_ENV=dev"},
		"APP_ENV=x":                {"APP_ENV", "APP_ENV=development"},
	} {
		_, err := envcfg.Loader{Prefix: "A_"}.Load([]string{environ})
		var e *envcfg.Error
		require.ErrorAs(t, err, &e, environ)
		require.Len(t, e.Variables, 1)
		require.Equal(t, want.name, e.Variables[0].Name)
		require.Equal(t, want.example, e.Variables[0].Example)
	}
	_, err := envcfg.Loader{Prefix: "A_"}.Load([]string{"B_PORT=80", "PROT=80", "PORT=http"})
	require.NoError(t, err, "these are another's")
}

func TestString(t *testing.T) {
	text := load(t, "PORT=8080", "APP_ENV=dev", "BERTH_NAME=a\u202eb", "BERTH_WAIT=1s").String()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	require.Len(t, lines, 17)
	column := strings.Index(lines[0], "SOURCE")
	for _, line := range lines {
		require.GreaterOrEqual(t, len([]rune(line)), column)
		require.Equal(t, byte(' '), line[column-1], line)
	}
	require.Regexp(t, `(?m)^VARIABLE +VALUE +SOURCE +MEANING$`, text)
	require.Regexp(t, `(?m)^PORT +8080 +environment +port to listen on`, text)
	require.Regexp(t, `(?m)^HOST +- +default +address`, text)
	require.Regexp(t, `(?m)^APP_ENV +development +environment +`, text)
	require.Regexp(t, `(?m)^BERTH_STRATEGY +reclaim,fallback,failfast +implied by APP_ENV +`, text)
	require.Regexp(t, `(?m)^BERTH_WAIT +1s +environment \(no effect, BERTH_STRATEGY has no wait\) +`, text)
	require.Regexp(t, `(?m)^BERTH_NAME +a\?b +environment`, text)
	require.Equal(t, text, fmt.Sprint(load(t, "PORT=8080", "APP_ENV=dev", "BERTH_NAME=a\u202eb", "BERTH_WAIT=1s")))
}

func TestLogValue(t *testing.T) {
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("started", "settings", load(t, "PORT=8080"))
	require.Contains(t, b.String(), "settings.PORT=8080")
	require.Contains(t, b.String(), "settings.APP_ENV=production")
	require.NotContains(t, b.String(), "settings.HOST")
}

// A program that imports envcfg links go-envconfig and nothing else that listener does not link.
func TestLean(t *testing.T) {
	modules := func(pkg string) []string {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", pkg).Output()
		require.NoError(t, err)
		list := strings.Fields(string(out))
		slices.Sort(list)
		return slices.Compact(list)
	}
	want := append(modules("../listener"), "github.com/sethvargo/go-envconfig")
	slices.Sort(want)
	require.Equal(t, want, modules("."))
}
