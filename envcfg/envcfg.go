//go:generate go test -run TestGenerated . -update

// Package envcfg configures a listener from the environment: the same program stops its stale copy on a developer's
// machine, moves to another port in staging, and fails at once in production.
//
//	func main() {
//		ctx := context.Background()
//		ln, err := envcfg.Listen(ctx) // PORT, APP_ENV ...
//		if err != nil {
//			log.Fatal(err) // environment variable PORT="http": the port is not a number; use ...
//		}
//		http.Serve(ln, handler)
//	}
//
// docs/environment.md lists the variables; [Settings], printed, says what each of them is and where that comes from:
//
//	settings, err := envcfg.Load(os.Environ())
//	if err != nil {
//		return err
//	}
//	fmt.Print(settings)
//	settings.Config.Sources = []listener.Source{upgrader} // see package reload
//	ln, err := settings.Listen(ctx)
//
// A variable that is empty counts as unset. Spaces around a value do not count.
//
// Where two variables contradict each other, this wins: TEST_MODE_ENABLED=true over everything, BERTH_RECLAIM=never over
// BERTH_STRATEGY, BERTH_STRATEGY over what APP_ENV implies, and LISTEN_ADDRESS over HOST and PORT. What is set and has no
// effect is marked in the printed settings and logged by Listen.
package envcfg

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// Settings is what the environment says. It may be changed before it is used; the Variables do not follow.
type Settings struct {
	Environment Environment
	Network     string          // "tcp" or "unix"
	Address     string          // for Config.Listen: "127.0.0.1:3000", "/run/web.sock", "fd:web"
	Config      listener.Config // Sources is nil: sockets come from systemd or are bound. Logger is never nil.
	Origins     []string        // from which pages may read the health endpoints: "https://app.example.com"; nil: none
	Drain       time.Duration   // for reload.Config.Drain: how long connections have to finish; less than 0: not at all
	Variables   []Variable      // every one that Load knows, in the order of the documentation
}

// A Variable is one that Load knows, as it takes effect.
type Variable struct {
	Name    string // with the prefix, where that is the one that counts
	Value   string // "" where it is unset and has no default
	Source  string // "environment", "default", "implied by APP_ENV" or by another variable or the prefix
	Note    string // why it is not what somebody might expect: "no effect, LISTEN_ADDRESS is set"; else ""
	Meaning string
}

const (
	fromEnvironment = "environment"
	fromDefault     = "default"
)

// Load reads the variables in environ, which has the form of [os.Environ]; of several with one name the last counts, as
// for [os/exec.Cmd]. It looks at nothing else: no file, no name server, no interface.
//
// An error is an [*Error], which lists every variable that is wrong, and every variable with a name so near to that of
// one which is not set that it is probably meant to be it: PROT for PORT.
func Load(environ []string) (Settings, error) { return Loader{}.Load(environ) }

// Listen does what the environment of the process says: Load and [Settings.Listen].
func Listen(ctx context.Context) (*listener.Listener, error) { return Loader{}.Listen(ctx) }

// A Loader reads the variables of one service where several share an environment. The zero Loader is that of [Load] and
// [Listen].
type Loader struct {
	// Prefix stands before the names, "API_" for API_PORT. A variable that is not set with the prefix is looked for
	// without it, so that APP_ENV serves all services; but not PORT, LISTEN_ADDRESS, BERTH_NAME and BERTH_PORT_FILE,
	// which no two services can share. Without BERTH_NAME, the name is the prefix in lower case: "api".
	Prefix string
}

// Listen is like the function [Listen].
func (l Loader) Listen(ctx context.Context) (*listener.Listener, error) {
	settings, err := l.Load(os.Environ())
	if err != nil {
		return nil, err
	}
	return settings.Listen(ctx)
}

// Load is like the function [Load].
func (l Loader) Load(environ []string) (Settings, error) {
	if runtime.GOOS == "windows" { // where Path and PATH are one
		l.Prefix = strings.ToUpper(l.Prefix)
	}
	env := parseEnviron(environ)
	found := make(table, len(variables))
	texts := make(map[string]string)
	for i, known := range variables {
		name, text := l.lookup(env, known.name, known.personal)
		found[i] = Variable{Name: name, Value: text, Source: fromEnvironment, Meaning: known.meaning}
		if text == "" {
			found[i].Value, found[i].Source = known.initial, fromDefault
		}
		if found[i].Value != "" {
			texts[known.name] = found[i].Value
		}
	}
	var v values
	reasons := v.decode(texts)
	if v.Environment == Test && !v.TestMode {
		reasons[varEnv] = errors.New("a test run is meant by some and a stage for testers by others: for a test run set " +
			found.of(varTestMode).Name + "=true as well")
	}
	var wrong []*VariableError
	for i, known := range variables {
		if reason := reasons[known.name]; reason != nil {
			name := found[i].Name
			wrong = append(wrong, &VariableError{
				Name: name, Value: redact(found[i].Value), Reason: redact(reason.Error()),
				Remedy: "use " + known.accepts, Example: name + "=" + known.example,
			})
		}
	}
	if wrong = append(wrong, l.misspelt(env, found)...); len(wrong) > 0 {
		return Settings{}, &Error{Variables: wrong}
	}
	return l.settings(v, found), nil
}

// lookup gives the name that counts and the value, "" where it is unset.
func (l Loader) lookup(env map[string]string, name string, personal bool) (found, text string) {
	if text = env[l.Prefix+name]; text == "" && !personal && env[name] != "" {
		return name, env[name]
	}
	return l.Prefix + name, text
}

// parseEnviron leaves out what is empty.
func parseEnviron(environ []string) map[string]string {
	env := make(map[string]string, len(environ))
	for _, entry := range environ {
		name, text, ok := strings.Cut(entry, "=")
		if !ok || name == "" { // Windows has "=C:=C:\\"
			continue
		}
		if runtime.GOOS == "windows" {
			name = strings.ToUpper(name)
		}
		if text = strings.TrimSpace(text); text != "" { // a file written on Windows leaves a \r
			env[name] = text
		} else {
			delete(env, name)
		}
	}
	return env
}

// misspelt finds variables that are probably meant to be ones that are not set.
func (l Loader) misspelt(env map[string]string, found table) []*VariableError {
	var wrong []*VariableError
	for i, known := range variables {
		if found[i].Source == fromEnvironment {
			continue
		}
		for candidate, text := range env {
			base, ok := strings.CutPrefix(candidate, l.Prefix)
			meant := l.Prefix + known.name
			if !ok && !known.personal {
				base, meant, ok = candidate, known.name, true
			}
			if !ok || !misspells(base, known.name) {
				continue
			}
			// Other programs have variables too. Names with BERTH are ours; of others the value has to fit as well.
			example := text
			if len(new(values).decode(map[string]string{known.name: text})) > 0 {
				if !strings.HasPrefix(known.name, "BERTH_") {
					continue
				}
				example = known.example
			}
			wrong = append(wrong, &VariableError{
				Name: candidate, Value: redact(text), Reason: "it is probably meant to be " + meant + ", which is not set",
				Remedy: "rename it, or where it is something else set " + meant + " too", Example: meant + "=" + shorten(redact(example)),
			})
		}
	}
	slices.SortFunc(wrong, func(a, b *VariableError) int { return strings.Compare(a.Name, b.Name) })
	return wrong
}

// A table has the variables in the order of the variables that are known.
type table []Variable

func (t table) of(name string) *Variable {
	return &t[slices.IndexFunc(variables, func(v variable) bool { return v.name == name })]
}

func (t table) isSet(name string) bool { return t.of(name).Source == fromEnvironment }

// imply says what takes effect in place of what a variable says.
func (t table) imply(name, value, by string) {
	v := t.of(name)
	if v.Source == fromEnvironment {
		v.Note = v.Value + " has no effect"
	}
	v.Value, v.Source = value, "implied by "+by
}

// idle marks what is set and has no effect.
func (t table) idle(why string, names ...string) {
	for _, name := range names {
		if t.isSet(name) {
			t.of(name).Note = "no effect, " + why
		}
	}
}

// settings puts together what was decoded.
func (l Loader) settings(v values, found table) Settings {
	found.of(varEnv).Value = string(v.Environment)
	found.of(varTestMode).Value = strconv.FormatBool(v.TestMode)
	if v.Name == "" && l.Prefix != "" {
		v.Name = strings.ToLower(strings.TrimRight(l.Prefix, "_"))
		found.imply(varName, v.Name, "the prefix")
	}
	network, address := "tcp", net.JoinHostPort(string(v.Host), strconv.Itoa(int(v.Port)))
	if v.Address != "" {
		network, address = v.Address.split()
		found.idle(found.of(varAddress).Name+" is set", varHost, varPort)
	}
	return Settings{
		Environment: v.Environment,
		Network:     network,
		Address:     address,
		Config: listener.Config{
			Strategy: v.strategy(found),
			Name:     v.Name,
			StateDir: string(v.StateDir),
			PortFile: string(v.PortFile),
			Logger:   v.Log.logger(),
		},
		Origins:   v.Origins,
		Drain:     v.Drain.duration(),
		Variables: found,
	}
}

// strategy decides what a taken port leads to.
func (v values) strategy(found table) strategy.Strategy {
	testMode := found.of(varTestMode).Name
	switch {
	case v.TestMode:
		v.Steps, v.Ranges, v.Reclaim = steps{stepFallback, stepFailFast}, ranges{{First: 0, Last: 0}}, reclaimNever
		found.imply(varStrategy, v.Steps.String(), testMode)
		found.imply(varRanges, "0", testMode)
		found.imply(varReclaim, string(v.Reclaim), testMode)
	case v.Steps == nil:
		v.Steps = map[Environment]steps{
			Development: {stepReclaim, stepFallback, stepFailFast},
			Staging:     {stepFallback, stepFailFast},
			Production:  {stepFailFast},
		}[v.Environment]
		found.imply(varStrategy, v.Steps.String(), found.of(varEnv).Name)
	}
	if v.Reclaim == reclaimNever && slices.Contains(v.Steps, stepReclaim) {
		v.Steps = slices.DeleteFunc(v.Steps, func(s step) bool { return s == stepReclaim })
		if len(v.Steps) == 0 {
			v.Steps = steps{stepFailFast}
		}
		row := found.of(varStrategy)
		row.Value, row.Note = v.Steps.String(), "without reclaim, "+found.of(varReclaim).Name+" is never"
	}
	without := func(s step, names ...string) {
		if !slices.Contains(v.Steps, s) {
			found.idle(found.of(varStrategy).Name+" has no "+string(s), names...)
		}
	}
	without(stepWait, varWait)
	without(stepReclaim, varGrace)
	without(stepFallback, varRanges)
	if v.Reclaim != reclaimNever {
		without(stepReclaim, varReclaim)
	}

	var parts []strategy.Strategy
	for _, s := range v.Steps {
		switch s {
		case stepWait:
			parts = append(parts, strategy.Wait{For: time.Duration(v.Wait)})
		case stepReclaim:
			part := strategy.Aggressive{Grace: v.Grace.duration()}
			if v.Reclaim == reclaimMine {
				part.Allow = strategy.AnyOfMine
			}
			parts = append(parts, part)
		case stepFallback:
			parts = append(parts, strategy.Fallback{Ranges: v.Ranges})
		case stepFailFast:
			parts = append(parts, strategy.FailFast{})
		}
	}
	return strategy.Chain(parts...)
}

// Listen is Config.Listen for the Network and the Address. It logs what is set in the environment and has no effect.
func (s Settings) Listen(ctx context.Context) (*listener.Listener, error) {
	for _, v := range s.Variables {
		if v.Note != "" && s.Config.Logger != nil {
			s.Config.Logger.LogAttrs(ctx, slog.LevelInfo, v.Name+": "+v.Note, slog.String("value", v.Value), slog.String("source", v.Source))
		}
	}
	return s.Config.Listen(ctx, s.Network, s.Address)
}

// String is a table of the Variables: name, value, source and meaning.
func (s Settings) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(cells ...string) {
		for i, cell := range cells {
			cells[i] = printable.Text(cell)
		}
		_, _ = w.Write([]byte(strings.Join(cells, "\t") + "\n")) // a strings.Builder does not fail
	}
	line("VARIABLE", "VALUE", "SOURCE", "MEANING")
	for _, v := range s.Variables {
		source := v.Source
		if v.Note != "" {
			source += " (" + v.Note + ")"
		}
		line(v.Name, cmp.Or(v.Value, "-"), source, v.Meaning)
	}
	_ = w.Flush() // nor here
	return b.String()
}

// LogValue has the value of each variable that has one.
func (s Settings) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, v := range s.Variables {
		if v.Value != "" {
			attrs = append(attrs, slog.String(v.Name, v.Value))
		}
	}
	return slog.GroupValue(attrs...)
}
