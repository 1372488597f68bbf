package main

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// Two runs have one executable, by which the rules take them for the same program where no record tells their services
// apart. Yet the run of another program is not stopped.
func TestKnowing(t *testing.T) {
	self := proc.Self()
	p := &program{argv: []string{"npm", "start"}}
	run := func(dir string, args ...string) strategy.Holder {
		return strategy.Holder{PID: os.Getpid(), Executable: self.Executable, Dir: dir, Args: append([]string{"berth", "run"}, args...), Ours: true}
	}
	stranger := strategy.Holder{PID: 1 << 30, Executable: "/usr/bin/python3", Address: "127.0.0.1:3000"}
	child := stranger
	child.Ours = true
	for name, test := range map[string]struct {
		holder strategy.Holder
		stop   bool
	}{
		"the same":                    {run(self.Dir, "--", "npm", "start"), true},
		"the same, with flags":        {run(self.Dir, "--port", "3000", "npm", "start"), true},
		"the same, elsewhere":         {run("/elsewhere", "npm", "start"), false},
		"another program":             {run(self.Dir, "npm", "test"), false},
		"another with more":           {run(self.Dir, "npm", "start", "--port"), false},
		"no program":                  {run(self.Dir), false},
		"a program of an earlier one": {child, true},
		"a stranger":                  {stranger, false},
	} {
		failure := strategy.Failure{
			Network: "tcp", Requested: ":3000", Address: ":3000", Err: syscall.EADDRINUSE,
			Diagnose: func() strategy.Diagnosis {
				return strategy.Diagnosis{Holders: []strategy.Holder{test.holder}, Complete: true}
			},
		}
		s := p.knowing(strategy.Development(), listener.Config{StateDir: t.TempDir()})
		reclaim, stops := s.Decide(failure).(strategy.Reclaim)
		require.Equal(t, test.stop, stops, name)
		if stops { // and it is asked once more just before the signal
			require.True(t, reclaim.Allow(test.holder), name)
			require.False(t, reclaim.Allow(stranger), name)
		}
	}
	// Who allows more is not held back by this.
	s := p.knowing(strategy.Aggressive{Allow: strategy.AnyOfMine}, listener.Config{})
	reclaim, _ := s.Decide(strategy.Failure{Network: "tcp", Err: syscall.EADDRINUSE, Diagnose: func() strategy.Diagnosis {
		return strategy.Diagnosis{Holders: []strategy.Holder{stranger}, Complete: true}
	}}).(strategy.Reclaim)
	require.NotNil(t, reclaim.Allow)
	require.True(t, reclaim.Allow(stranger))
}

func TestDescends(t *testing.T) {
	self := proc.Self()
	parent, err := proc.Get(os.Getppid())
	require.NoError(t, err)
	require.True(t, descends(self.PID, self.PID, self.Start))
	require.True(t, descends(self.PID, parent.PID, parent.Start))
	require.False(t, descends(parent.PID, self.PID, self.Start))
	require.False(t, descends(self.PID, parent.PID, parent.Start-1), "another process had the pid")
	require.False(t, descends(1<<30, self.PID, self.Start))
	require.False(t, descends(0, self.PID, self.Start))
}

func TestServiceName(t *testing.T) {
	name := func(argv ...string) string { return (&program{argv: argv}).serviceName() }
	require.Equal(t, name("npm", "start"), name("npm", "start"))
	require.NotEqual(t, name("npm", "start"), name("npm", "test"))
	require.NotEqual(t, name("npm", "a b"), name("npm", "a", "b"))
	here := name("/usr/bin/npm")
	require.Regexp(t, `^npm-[0-9a-f]{8}$`, here)
	t.Chdir(t.TempDir())
	require.NotEqual(t, here, name("/usr/bin/npm"))
}

func TestStatusOf(t *testing.T) {
	require.Equal(t, 0, exitStatus(nil))
	require.Equal(t, statusFailed, exitStatus(errors.New("it cannot be waited for")))
	require.Equal(t, statusNotFound, startStatus(&os.PathError{Op: "exec", Path: "x", Err: syscall.ENOENT}))
	require.Equal(t, statusNotExecutable, startStatus(&os.PathError{Op: "exec", Path: "x", Err: syscall.EACCES}))
}
