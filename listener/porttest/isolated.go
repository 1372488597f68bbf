package porttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-go/berth/internal/netns"
)

// variable names the test that is isolated, in its process and those that it starts.
const variable = "BERTH_PORTTEST_ISOLATED"

func isolated() bool { return os.Getenv(variable) != "" }

func loopbackUp() error { return netns.LoopbackUp() }

func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// rerun runs the test in a namespace of its own. The error is errors.ErrUnsupported where there can be none.
func rerun(t *testing.T) error {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx := t.Context()
	args := arguments(os.Args[1:], t.Name())
	if deadline, ok := t.Deadline(); ok {
		// Before the deadline of this process, so that there is time to say what was printed.
		left := time.Until(deadline)
		limit := left - min(left/10, 5*time.Second)
		args = append([]string{"-test.timeout=" + limit.String()}, args...)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit+min(left/20, time.Second))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second // what it left behind may have its output open
	// The process is killed with the thread that started it, so that it does not outlive this one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := netns.Start(cmd); err != nil {
		return err
	}
	failed := cmd.Wait()
	verdict := verdictOf(output.String(), t.Name())
	switch {
	case failed != nil:
		t.Fatalf("in a network namespace of its own: %v\n%s", failed, output.String())
	case verdict == "SKIP":
		t.Skipf("in a network namespace of its own:\n%s", output.String())
	case verdict != "PASS":
		return fmt.Errorf("the test did not run in a network namespace of its own: does TestMain run the tests?\n%s", output.String())
	case testing.Verbose():
		t.Logf("in a network namespace of its own:\n%s", output.String())
	}
	return nil
}

// verdictOf is what the output of a verbose run says of a test: PASS, FAIL, SKIP, or nothing.
func verdictOf(output, name string) string {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		for _, verdict := range []string{"PASS", "FAIL", "SKIP"} {
			if strings.HasPrefix(line, "--- "+verdict+": "+name+" (") {
				return verdict
			}
		}
	}
	return ""
}

// own are the flags of package testing that rerun sets itself, or that are for one process alone: which tests, and what is
// written to files.
var own = regexp.MustCompile(`^-?-test\.(run|skip|bench|fuzz|fuzz[a-z]+|list|v|count|timeout|parallel|paniconexit0|failfast|shuffle|[a-z]*profile|trace|gocoverdir|testlogfile|outputdir|artifacts)(=|$)`)

// boolean are those of them that take no value from the next argument.
var boolean = regexp.MustCompile(`^-?-test\.(v|paniconexit0|failfast|fuzzworker|artifacts)$`)

// arguments are those of a process that runs one test and nothing else.
func arguments(args []string, name string) []string {
	// The name of a subtest has a slash between its parts, and the flag one between the patterns.
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	chosen := []string{"-test.run=" + strings.Join(parts, "/"), "-test.v=true", "-test.count=1", "-test.paniconexit0"}
	for i := 0; i < len(args); i++ {
		if args[i] == "--" || !strings.HasPrefix(args[i], "-") {
			return append(chosen, args[i:]...)
		}
		if !own.MatchString(args[i]) {
			chosen = append(chosen, args[i])
			continue
		}
		if !strings.Contains(args[i], "=") && !boolean.MatchString(args[i]) {
			i++ // its value
		}
	}
	return chosen
}
