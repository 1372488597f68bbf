package envcfg

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write .env.example and docs/environment.md")

const (
	exampleFile  = "../.env.example"
	documentFile = "../docs/environment.md"
)

// What is made of the table of variables is up to date.
func TestGenerated(t *testing.T) {
	document, err := os.ReadFile(documentFile)
	require.NoError(t, err)
	for file, want := range map[string]string{
		exampleFile:  envExample(),
		documentFile: withTable(t, string(document)),
	} {
		if *update {
			require.NoError(t, os.WriteFile(file, []byte(want), 0o644))
		}
		have, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, want, string(have), "%s is out of date: run go generate ./envcfg", file)
	}
}

// Each assignment in .env.example is accepted, and a default changes nothing but the source.
func TestEnvExample(t *testing.T) {
	text, err := os.ReadFile(exampleFile)
	require.NoError(t, err)
	unset, err := Load(nil)
	require.NoError(t, err)
	seen := 0
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "#"), "=")
		if !ok {
			continue
		}
		require.Equal(t, variables[seen].name, name)
		settings, err := Load([]string{name + "=" + value})
		require.NoError(t, err)
		require.Equal(t, fromEnvironment, settings.Variables[seen].Source)
		if variables[seen].initial != "" {
			require.Equal(t, unset.Variables[seen].Value, settings.Variables[seen].Value)
			require.Equal(t, unset.Config.Strategy, settings.Config.Strategy)
			require.Equal(t, unset.Address, settings.Address)
		}
		seen++
	}
	require.Equal(t, len(variables), seen)
}

// Otherwise a variable that is right would be taken for another that is not set.
func TestNamesAreFarApart(t *testing.T) {
	for _, a := range variables {
		require.Less(t, len(a.name), longestName)
		for _, b := range variables {
			require.False(t, misspells(a.name, b.name), "%s and %s", a.name, b.name)
		}
	}
}

func envExample() string {
	var b strings.Builder
	b.WriteString(`# What envcfg reads from the environment. Copy this file to .env, take away the # before what you want to change, and
# give the file to whatever starts the program: berth does not read it by itself. docs/environment.md says more.
#
# A value stands as it is, without quotes. What stands here is the default, or an example where there is none.
`)
	for _, v := range variables {
		fmt.Fprintf(&b, "\n# %s. Accepts %s.", capital(v.meaning), v.accepts)
		if v.initial == "" {
			b.WriteString(" For example:")
		}
		fmt.Fprintf(&b, "\n#%s=%s\n", v.name, cmp.Or(v.initial, v.example))
	}
	return b.String()
}

// withTable puts the table into the place for it.
func withTable(t *testing.T, document string) string {
	const begin, end = "<!-- variables -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(document, begin)
	require.True(t, ok)
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	var b strings.Builder
	b.WriteString("| Variable | Default | Accepts | Meaning |\n| --- | --- | --- | --- |\n")
	for _, v := range variables {
		initial := ""
		if v.initial != "" {
			initial = "`" + v.initial + "`"
		}
		meaning := strings.TrimSpace(capital(v.meaning) + ". " + v.details)
		fmt.Fprintf(&b, "| `%s` | %s | %s, for example `%s` | %s |\n", v.name, initial, v.accepts, v.example, meaning)
	}
	return before + begin + b.String() + end + after
}

func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
