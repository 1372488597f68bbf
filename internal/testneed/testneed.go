// Package testneed is for tests that need more than Go: root, a command, a kernel that lets them.
package testneed

import (
	"os"
	"testing"
)

// That skips the test where what it needs is not available. In continuous integration, where the variable CI is set, the
// test fails instead: nobody would see there that it does not run.
func That(t testing.TB, available bool, what string) {
	t.Helper()
	if available {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}
