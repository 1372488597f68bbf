package activation_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

const roleVariable = "BERTH_TEST_ROLE"

// roles are what a re-executed test binary can do instead of running tests. A test file adds its own in an init function.
var roles = map[string]func() error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVariable); name != "" {
		os.Unsetenv(roleVariable)
		do, ok := roles[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "role %q is unknown\n", name)
			os.Exit(2)
		}
		if err := do(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
