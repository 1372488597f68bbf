package listener

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/strategy"
)

// A process that even SIGKILL does not end is stuck in the kernel, which cannot be had on demand.
func TestWhoCouldNotBeEndedIsNotTriedAgain(t *testing.T) {
	begin := time.Now()
	a := attempt[net.Listener]{unstoppable: []strategy.Holder{{PID: 42, Started: begin}}}
	d := a.withoutHope(strategy.Diagnosis{Holders: []strategy.Holder{
		{PID: 42, Started: begin.Add(3 * time.Millisecond), Ours: true},
		{PID: 42, Started: begin.Add(time.Minute), Ours: true}, // another process, which got the pid
		{PID: 43, Started: begin, Ours: true},
		{PID: 42, Started: begin, Refusal: "a rule"},
	}})
	var refusals []string
	for _, h := range d.Holders {
		refusals = append(refusals, h.Refusal)
	}
	require.Equal(t, []string{"it could not be ended; choose another port", "", "", "a rule"}, refusals)
	require.Nil(t, strategy.Aggressive{}.Decide(strategy.Failure{
		Err: errInUse{}, Diagnose: func() strategy.Diagnosis { return d },
	}))
}

type errInUse struct{}

func (errInUse) Error() string        { return "in use" }
func (errInUse) Is(target error) bool { return isInUse(target) }
