package envcfg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/sethvargo/go-envconfig"

	"github.com/berth-go/berth/strategy"
)

// values is what go-envconfig decodes into. What it has no type for is an encoding.TextUnmarshaler, whose errors are
// reasons: they follow the name and the value of a variable.
type values struct {
	Port        port        `env:"PORT"`
	Host        host        `env:"HOST"`
	Address     address     `env:"LISTEN_ADDRESS"`
	Environment Environment `env:"APP_ENV"`
	Ranges      ranges      `env:"PORT_RANGES"`
	Steps       steps       `env:"BERTH_STRATEGY"`
	Reclaim     reclaim     `env:"BERTH_RECLAIM"`
	Grace       grace       `env:"BERTH_GRACE"`
	Wait        span        `env:"BERTH_WAIT"`
	Name        string      `env:"BERTH_NAME"`
	StateDir    path        `env:"BERTH_STATE_DIR"`
	PortFile    path        `env:"BERTH_PORT_FILE"`
	Drain       grace       `env:"BERTH_DRAIN"`
	Log         logging     `env:"BERTH_LOG"`
	Origins     origins     `env:"FRONTEND_URL"`
	TestMode    bool        `env:"TEST_MODE_ENABLED"`
}

// decode sets the fields of the variables that are given, by their names without prefix, and says what is wrong with
// those that it could not decode. go-envconfig stops at the first error; which variable that is, the last look-up tells.
// So it goes on without it, until nothing is wrong with the rest.
func (v *values) decode(texts map[string]string) map[string]error {
	wrong := make(map[string]error)
	for name, text := range texts {
		if err := plausible(text); err != nil {
			wrong[name] = err
		}
	}
	for {
		var last string
		err := envconfig.ProcessWith(context.Background(), &envconfig.Config{
			Target: v,
			Lookuper: envconfig.LookuperFunc(func(key string) (string, bool) {
				last = key
				if text, ok := texts[key]; ok && wrong[key] == nil {
					return text, true
				}
				return "", false
			}),
			DefaultNoInit: true, // otherwise what is not found would be decoded from ""
		})
		if err == nil || wrong[last] != nil { // the latter would be a fault of ours
			return wrong
		}
		wrong[last] = reason(err)
	}
}

// reason is what a decoder said, without the name of the field in front.
func reason(err error) error {
	var number *strconv.NumError
	if errors.As(err, &number) { // the only field without a decoder of its own that can fail is a bool
		return errors.New("it is neither true nor false")
	}
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// plausible refuses what is a mistake in every variable.
func plausible(text string) error {
	switch first, last := text[0], text[len(text)-1]; {
	case len(text) > 1 && first == last && (first == '"' || first == '\''):
		return errors.New("the quotes are part of the value, as docker's --env-file leaves them: remove them")
	case strings.ContainsFunc(text, unicode.IsControl):
		return errors.New("it has a control character in it")
	}
	return nil
}

// An Environment is what APP_ENV says.
type Environment string

// Test stands only where TEST_MODE_ENABLED is true.
const (
	Development Environment = "development"
	Staging     Environment = "staging"
	Production  Environment = "production"
	Test        Environment = "test"
)

// UnmarshalText takes the names and their usual short forms, in any case.
func (e *Environment) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "development", "develop", "devel", "dev", "local":
		*e = Development
	case "staging", "stage", "stg":
		*e = Staging
	case "production", "prod", "prd", "live":
		*e = Production
	case "test", "testing":
		*e = Test
	default:
		return errors.New("it is no environment")
	}
	return nil
}

type port uint16

func (p *port) UnmarshalText(text []byte) error {
	n, err := parsePort(string(text))
	*p = port(n)
	return err
}

// parsePort takes digits. Names such as http depend on a file of the machine, and of a number that begins with 0 nobody
// knows whether a digit is missing.
func parsePort(text string) (uint16, error) {
	switch {
	case strings.HasPrefix(text, "tcp://"), strings.HasPrefix(text, "udp://"):
		return 0, errors.New("it is what Kubernetes sets for a Service of that name: rename the Service, or set enableServiceLinks: false")
	case text == "" || strings.ContainsFunc(text, func(r rune) bool { return r < '0' || '9' < r }):
		return 0, errors.New("the port is not a number")
	case len(text) > 1 && text[0] == '0':
		return 0, errors.New("the port begins with 0")
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, errors.New("the port is above 65535")
	}
	return uint16(n), nil
}

type host string

func (h *host) UnmarshalText(text []byte) error {
	name := string(text)
	if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") && strings.Contains(name, ":") {
		name = name[1 : len(name)-1]
	}
	*h = host(name)
	return checkHost(name)
}

// checkHost looks at the form of an address or name. Whether there is such a one only the bind can tell.
func checkHost(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	_, _, portErr := net.SplitHostPort(name)
	switch {
	case strings.Contains(name, "/"):
		return errors.New("it is a URL or a path, and no host")
	case portErr == nil:
		return errors.New("it has a port, which is what PORT is for")
	case name == "*":
		return errors.New("it is no address; all interfaces are what is used where there is no host")
	case strings.Contains(name, ":"):
		return errors.New("the host is no IPv6 address")
	case strings.Trim(name, "0123456789.") == "":
		return errors.New("the host is no IPv4 address")
	case len(name) > 253:
		return errors.New("the host name is longer than 253 bytes")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		// Underscores are not for hosts, and yet Docker's names have them.
		odd := strings.ContainsFunc(label, func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || '9' < r) && (r < 'a' || 'z' < r) && (r < 'A' || 'Z' < r)
		})
		if odd || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("the host is no valid name")
		}
	}
	return nil
}

// An address is "host:port", "fd:NAME", or "unix:" and a path or another "fd:NAME".
type address string

// split gives what listener takes.
func (a address) split() (network, text string) {
	if path, ok := strings.CutPrefix(string(a), "unix:"); ok {
		return "unix", path
	}
	return "tcp", string(a)
}

func (a *address) UnmarshalText(text []byte) error {
	whole := string(text)
	if strings.HasPrefix(whole, "unix://") { // the form of a URL
		whole = "unix:" + strings.TrimPrefix(whole, "unix://")
	}
	*a = address(whole)
	network, rest := a.split()
	if name, ok := strings.CutPrefix(rest, "fd:"); ok {
		if name == "" || strings.Contains(name, ":") {
			return errors.New("fd: needs the name of a socket, without a colon in it, or its number")
		}
		return nil
	}
	if network == "unix" {
		return checkSocketPath(rest)
	}
	return checkHostPort(rest)
}

func checkSocketPath(path string) error {
	const limit = len(syscall.RawSockaddrUnix{}.Path) - 1
	switch {
	case path == "" || path == "@":
		return errors.New("the path is missing")
	case len(path) > limit:
		return fmt.Errorf("the path has %d bytes, and the system takes %d", len(path), limit)
	}
	return checkPath(path)
}

func checkHostPort(text string) error {
	name, number, err := net.SplitHostPort(text)
	var wrong *net.AddrError
	switch {
	case strings.Contains(text, "://"):
		return errors.New("it is a URL: leave out what is before and after host and port")
	case strings.ContainsAny(text, `/\`):
		return errors.New("it is a path: put unix: before it")
	case strings.Trim(text, "0123456789") == "":
		return errors.New("it is a port alone: put a colon before it, or set PORT")
	case errors.As(err, &wrong):
		return errors.New("it has " + wrong.Err)
	case name != "" && checkHost(name) != nil:
		return checkHost(name)
	}
	_, err = parsePort(number)
	return err
}

type ranges []strategy.Range

func (r *ranges) UnmarshalText(text []byte) (err error) {
	*r, err = strategy.ParseRanges(string(text))
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "strategy: "))
	}
	return nil
}

// A step is a part of a strategy.
type step string

const (
	stepWait     step = "wait"
	stepReclaim  step = "reclaim"
	stepFallback step = "fallback"
	stepFailFast step = "failfast"
)

type steps []step

func (s steps) String() string {
	texts := make([]string, len(s))
	for i, one := range s {
		texts[i] = string(one)
	}
	return strings.Join(texts, ",")
}

func (s *steps) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(strings.ToLower(string(text)), ",") {
		one := step(strings.TrimSpace(part))
		switch {
		case !slices.Contains(steps{stepWait, stepReclaim, stepFallback, stepFailFast}, one):
			return fmt.Errorf("%q is no strategy", shorten(string(one)))
		case slices.Contains(*s, one):
			return fmt.Errorf("%s stands there twice", one)
		case slices.Contains(*s, stepFailFast):
			return fmt.Errorf("%s comes after failfast, where nothing is tried any more", one)
		}
		*s = append(*s, one)
	}
	return nil
}

type reclaim string

const (
	reclaimOurs  reclaim = "ours"
	reclaimMine  reclaim = "mine"
	reclaimNever reclaim = "never"
)

func (r *reclaim) UnmarshalText(text []byte) error {
	*r = reclaim(strings.ToLower(string(text)))
	if !slices.Contains([]reclaim{reclaimOurs, reclaimMine, reclaimNever}, *r) {
		return errors.New("it is none of the three")
	}
	return nil
}

// A span is a duration above 0.
type span time.Duration

func (s *span) UnmarshalText(text []byte) error {
	d, err := parseDuration(string(text))
	if err == nil && d == 0 {
		err = errors.New("it is 0")
	}
	*s = span(d)
	return err
}

// A grace may be 0, which is less than 0 for those packages in which 0 is the default.
type grace time.Duration

func (g grace) duration() time.Duration {
	if g == 0 {
		return -1
	}
	return time.Duration(g)
}

func (g *grace) UnmarshalText(text []byte) error {
	d, err := parseDuration(string(text))
	*g = grace(d)
	return err
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil && strings.Trim(text, "0123456789") == "":
		return 0, errors.New("the unit is missing: s for seconds, m for minutes")
	case err != nil:
		return 0, errors.New("it is no duration, or too long a one")
	case d < 0:
		return 0, errors.New("it is below 0")
	}
	return d, nil
}

type path string

func (p *path) UnmarshalText(text []byte) error {
	*p = path(text)
	return checkPath(string(text))
}

func checkPath(path string) error {
	if path == "~" || strings.HasPrefix(path, "~/") {
		return errors.New("only shells know what ~ is: write the whole path")
	}
	return nil
}

type logging struct {
	set, off, json bool
	level          slog.Level
}

func (l *logging) UnmarshalText(text []byte) error {
	*l = logging{set: true}
	var level, form bool
	for part := range strings.SplitSeq(strings.ToLower(string(text)), ",") {
		seen := &level
		switch part = strings.TrimSpace(part); part {
		case "debug":
			l.level = slog.LevelDebug
		case "info":
			l.level = slog.LevelInfo
		case "warn", "warning":
			l.level = slog.LevelWarn
		case "error":
			l.level = slog.LevelError
		case "off":
			l.off = true
		case "text", "json":
			seen, l.json = &form, part == "json"
		default:
			return fmt.Errorf("%q is neither a level nor a form", shorten(part))
		}
		if *seen {
			return fmt.Errorf("%s is one too many of its kind", part)
		}
		*seen = true
	}
	return nil
}

func (l logging) logger() *slog.Logger {
	options := &slog.HandlerOptions{Level: l.level}
	switch {
	case !l.set:
		return slog.Default()
	case l.off:
		return slog.New(slog.DiscardHandler)
	case l.json:
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

type origins []string

func (o *origins) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(string(text), ",") {
		origin, err := parseOrigin(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		if !slices.Contains(*o, origin) {
			*o = append(*o, origin)
		}
	}
	return nil
}

// parseOrigin gives an origin as browsers send it: in lower case, without the usual port, without a slash at the end.
func parseOrigin(text string) (string, error) {
	switch text {
	case "":
		return "", errors.New("one of the origins is empty")
	case "*", "null":
		return "", fmt.Errorf("%s would let every page read them", text)
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" || u.Hostname() == "" {
		return "", errors.New("one of the origins does not begin with http:// or https:// and a host")
	}
	name, number := strings.ToLower(u.Hostname()), u.Port()
	switch {
	case u.User != nil:
		return "", errors.New("an origin has no user and no password")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return "", errors.New("an origin ends after host and port, without a path")
	case strings.HasSuffix(u.Host, ":"):
		return "", errors.New("the port is missing after the colon")
	case checkHost(name) != nil:
		return "", checkHost(name)
	}
	if number != "" {
		if _, err := parsePort(number); err != nil {
			return "", err
		}
	}
	if u.Scheme == "http" && number == "80" || u.Scheme == "https" && number == "443" {
		number = ""
	}
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if number != "" {
		name += ":" + number
	}
	return u.Scheme + "://" + name, nil
}
