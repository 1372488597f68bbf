package envcfg

import (
	"fmt"
	"strings"

	"github.com/berth-go/berth/internal/printable"
)

// Error is why Load failed: every variable that is wrong, in the order of the documentation, then those with a misspelt
// name. Its text has a line for each.
type Error struct{ Variables []*VariableError }

// Error has a line for each variable.
func (e *Error) Error() string {
	lines := make([]string, len(e.Variables))
	for i, v := range e.Variables {
		lines[i] = v.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the Variables.
func (e *Error) Unwrap() []error {
	errs := make([]error, len(e.Variables))
	for i, v := range e.Variables {
		errs[i] = v
	}
	return errs
}

// VariableError says what is wrong with one variable.
type VariableError struct {
	Name    string // as it stands in the environment, with the prefix
	Value   string // whole, but for user and password in a URL
	Reason  string // what is wrong
	Remedy  string // what would be right, in words
	Example string // an accepted assignment: "PORT=8080"
}

// Error is one line.
func (e *VariableError) Error() string {
	return printable.Text(fmt.Sprintf("environment variable %s=%q: %s; %s, for example %s", e.Name, shorten(e.Value), e.Reason, e.Remedy, e.Example))
}

// shorten keeps a line readable whatever somebody put into a variable.
func shorten(value string) string {
	const limit = 100
	if len(value) <= limit {
		return value
	}
	return strings.ToValidUTF8(value[:limit], "") + "..."
}

// redact hides what stands before the @ of a URL.
func redact(value string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(value, "://")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		b.WriteString("://")
		authority := rest
		if end := strings.IndexAny(rest, "/?#,"); end >= 0 {
			authority = rest[:end]
		}
		if at := strings.LastIndexByte(authority, '@'); at >= 0 {
			b.WriteString("xxxxx")
			rest = rest[at:]
		}
		value = rest
	}
}
