package holder

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// helperVariable makes the test binary another program: the helper of this name.
const helperVariable = "BERTH_HOLDER_TEST_HELPER"

// helpers are the programs that the test binary can be, with their arguments in os.Args[1:].
var helpers = map[string]func() int{}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperVariable); name != "" {
		os.Exit(helpers[name]())
	}
	goleak.VerifyTestMain(m)
}
