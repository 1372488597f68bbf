// Package page is the page that listener/health shows to people: one document, which loads nothing but the JSON and the events
// of the handler that serves it.
package page

import (
	"crypto/sha256"
	_ "embed" // for the three parts
	"encoding/base64"
	"strings"
)

//go:embed page.html
var skeleton string

//go:embed page.css
var style string

//go:embed page.js
var script string

// HTML is the document. It finds the handler below its own address, whatever prefix that has: a page at /ops or /ops/ asks
// /ops/api/health/ports.
var HTML = []byte(strings.NewReplacer("/*style*/", style, "/*script*/", script).Replace(skeleton))

// Policy is the Content-Security-Policy to serve it with: the style and the script that it contains, requests to its own
// origin, and nothing else.
var Policy = "default-src 'none'; style-src " + hash(style) + "; script-src " + hash(script) +
	"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// hash is what a policy allows an inline element of this text by.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
