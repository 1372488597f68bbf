package page_test

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener/health/page"
)

// inline is the content of the only element of this name.
func inline(t *testing.T, name string) string {
	t.Helper()
	found := regexp.MustCompile(`(?s)<`+name+`\b([^>]*)>(.*?)</`+name+`>`).FindAllSubmatch(page.HTML, -1)
	require.Len(t, found, 1)
	require.Empty(t, string(found[0][1]), "attributes")
	return string(found[0][2])
}

// The policy allows what the page contains, so that the page contains nothing else.
func TestPolicy(t *testing.T) {
	for _, name := range []string{"style", "script"} {
		sum := sha256.Sum256([]byte(inline(t, name)))
		require.Contains(t, page.Policy, name+"-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	require.NotContains(t, page.Policy, "unsafe")
	for _, directive := range []string{"default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
		require.Contains(t, strings.Split(page.Policy, "; "), directive)
	}
	require.NotRegexp(t, `(?i)<[^>]*\s(style|on[a-z]+)=`, string(page.HTML), "a browser would refuse it")
	require.NotRegexp(t, `(?i)(src|href|action)="?(https?:)?/`, string(page.HTML), "it is to be mounted anywhere, and to load nothing from elsewhere")
	require.NotContains(t, string(page.HTML), "/*s", "a part is missing")
}

// What the answers say, names of processes among it, never gets to be markup or code.
func TestTextOnly(t *testing.T) {
	require.NotRegexp(t, `innerHTML|outerHTML|insertAdjacentHTML|setHTML|createContextualFragment|DOMParser|document\.write|eval\(|new Function`,
		inline(t, "script"))
}
