// Package printable keeps text that others chose from doing things to a terminal.
package printable

import (
	"strings"
	"unicode"
)

// Text stays on its line and in its column: what cannot be printed is a question mark. Processes choose their names and
// directories themselves, and names of variables can have anything in them too.
func Text(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
