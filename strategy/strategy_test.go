package strategy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/strategy"
)

var (
	// As package net gives it.
	inUse        error = &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	noPermission error = &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EACCES)}
	notAvailable error = &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}
	tooManyFiles error = &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)}
)

func rangeOf(first, last uint16) strategy.Range { return strategy.Range{First: first, Last: last} }

func TestFailFast(t *testing.T) {
	for _, err := range []error{inUse, noPermission, notAvailable, nil} {
		require.Equal(t, strategy.Fail{}, strategy.FailFast{}.Decide(strategy.Failure{Err: err}))
	}
	require.Equal(t, strategy.Fail{}, strategy.Production().Decide(strategy.Failure{Err: inUse}))
}

func TestWait(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		wait    strategy.Wait
		err     error
		elapsed time.Duration
		want    strategy.Action
	}{
		"first":                    {strategy.Wait{For: time.Second, Every: 30 * ms}, inUse, 0, strategy.Retry{After: 30 * ms}},
		"default pause":            {strategy.Wait{For: time.Second}, inUse, 0, strategy.Retry{After: 100 * ms}},
		"negative pause":           {strategy.Wait{For: time.Second, Every: -1}, inUse, 0, strategy.Retry{After: 100 * ms}},
		"clipped at the end":       {strategy.Wait{For: time.Second, Every: 30 * ms}, inUse, 990 * ms, strategy.Retry{After: 10 * ms}},
		"exactly what is left":     {strategy.Wait{For: time.Second, Every: 30 * ms}, inUse, 970 * ms, strategy.Retry{After: 30 * ms}},
		"shorter than a pause":     {strategy.Wait{For: 5 * ms}, inUse, 0, strategy.Retry{After: 5 * ms}},
		"one nanosecond":           {strategy.Wait{For: time.Second}, inUse, time.Second - 1, strategy.Retry{After: 1}},
		"over":                     {strategy.Wait{For: time.Second}, inUse, time.Second, nil},
		"long over":                {strategy.Wait{For: time.Second}, inUse, time.Hour, nil},
		"zero value":               {strategy.Wait{}, inUse, 0, strategy.Retry{After: 100 * ms}},
		"zero value for ever":      {strategy.Wait{}, inUse, 1000 * time.Hour, strategy.Retry{After: 100 * ms}},
		"negative is for ever":     {strategy.Wait{For: -1, Every: ms}, inUse, 1000 * time.Hour, strategy.Retry{After: ms}},
		"address of no interface":  {strategy.Wait{For: time.Second}, notAvailable, 0, strategy.Retry{After: 100 * ms}},
		"forbidden":                {strategy.Wait{For: time.Second}, noPermission, 0, nil},
		"out of descriptors":       {strategy.Wait{}, tooManyFiles, 0, nil},
		"no error":                 {strategy.Wait{}, nil, 0, nil},
		"taken, wrapped once more": {strategy.Wait{}, fmt.Errorf("it is: %w", inUse), 0, strategy.Retry{After: 100 * ms}},
	} {
		got := c.wait.Decide(strategy.Failure{Err: c.err, Elapsed: c.elapsed})
		require.Equal(t, c.want, got, name)
	}
}

// attempt is the listener's loop in small: it tells how often bind was called, and the action that ended it.
func attempt(s strategy.Strategy, f strategy.Failure, bind func(n int) error) (binds int, last strategy.Action) {
	begin := time.Now()
	for {
		binds++
		if f.Err = bind(binds); f.Err == nil {
			return binds, last
		}
		f.Elapsed = time.Since(begin)
		switch last = s.Decide(f); action := last.(type) {
		case strategy.Retry:
			time.Sleep(action.After)
		case strategy.Run:
			if err := action.Do(context.Background()); err != nil {
				return binds, last
			}
		default:
			return binds, last
		}
		f.History = append(f.History, last)
	}
}

func TestWaitInTime(t *testing.T) {
	for name, c := range map[string]struct {
		wait    strategy.Wait
		free    time.Duration // when the address becomes free; 0: never
		binds   int
		elapsed time.Duration
	}{
		"until the end":          {strategy.Wait{For: time.Second, Every: 300 * time.Millisecond}, 0, 5, time.Second}, // 0, 300, 600, 900, 1000
		"until it is free":       {strategy.Wait{For: time.Minute, Every: time.Second}, 2500 * time.Millisecond, 4, 3 * time.Second},
		"free at the very end":   {strategy.Wait{For: time.Second, Every: 300 * time.Millisecond}, time.Second, 5, time.Second},
		"default pause":          {strategy.Wait{For: time.Second}, 0, 11, time.Second},
		"without end":            {strategy.Wait{Every: time.Minute}, 24 * time.Hour, 24*60 + 1, 24 * time.Hour},
		"pause longer than time": {strategy.Wait{For: time.Second, Every: time.Hour}, 0, 2, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				binds, last := attempt(c.wait, strategy.Failure{}, func(int) error {
					if c.free > 0 && time.Since(begin) >= c.free {
						return nil
					}
					return inUse
				})
				require.Equal(t, c.binds, binds)
				require.Equal(t, c.elapsed, time.Since(begin))
				if c.free == 0 {
					require.Nil(t, last)
				}
			})
		})
	}
}

// In a chain, what comes after Wait is asked when its time is over, and not before.
func TestWaitThenFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s := strategy.Chain(strategy.Wait{For: time.Second}, strategy.Fallback{}, strategy.FailFast{})
		binds, last := attempt(s, strategy.Failure{Address: "127.0.0.1:3000"}, func(int) error { return inUse })
		require.Equal(t, 11, binds)
		require.Equal(t, time.Second, time.Since(begin))
		require.Equal(t, strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}, last)
	})
}

func TestFallback(t *testing.T) {
	rebind := func(ranges ...strategy.Range) strategy.Action { return strategy.Rebind{Ports: ranges} }
	own := []strategy.Range{rangeOf(8000, 8010), rangeOf(9000, 9000)}
	for name, c := range map[string]struct {
		fallback strategy.Fallback
		failure  strategy.Failure
		want     strategy.Action
	}{
		"own ranges":                  {strategy.Fallback{Ranges: own}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000"}, rebind(own...)},
		"own ranges without a port":   {strategy.Fallback{Ranges: own}, strategy.Failure{Err: inUse}, rebind(own...)},
		"any port":                    {strategy.Fallback{Ranges: []strategy.Range{{}}}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000"}, rebind(strategy.Range{})},
		"next ten":                    {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000"}, rebind(rangeOf(3001, 3010))},
		"next ten, IPv6":              {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "[fe80::1%eth0]:3000"}, rebind(rangeOf(3001, 3010))},
		"next ten, all interfaces":    {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: ":3000", Requested: ":3000"}, rebind(rangeOf(3001, 3010))},
		"next ten, only requested":    {strategy.Fallback{}, strategy.Failure{Err: inUse, Requested: "localhost:3000"}, rebind(rangeOf(3001, 3010))},
		"next ten, name of a service": {strategy.Fallback{}, strategy.Failure{Err: inUse, Requested: "localhost:http", Address: "127.0.0.1:80"}, rebind(rangeOf(81, 90))},
		"clipped":                     {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:65530"}, rebind(rangeOf(65531, 65535))},
		"clipped to one":              {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:65534"}, rebind(rangeOf(65535, 65535))},
		"not clipped":                 {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:65525"}, rebind(rangeOf(65526, 65535))},
		"nothing above":               {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:65535"}, nil},
		"port 0":                      {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:0"}, nil},
		"no port":                     {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1"}, nil},
		"no address":                  {strategy.Fallback{}, strategy.Failure{Err: inUse}, nil},
		"forbidden":                   {strategy.Fallback{Ranges: own}, strategy.Failure{Err: noPermission, Address: "127.0.0.1:80"}, nil},
		"address of no interface":     {strategy.Fallback{Ranges: own}, strategy.Failure{Err: notAvailable, Address: "192.0.2.1:80"}, nil},
		"no error":                    {strategy.Fallback{Ranges: own}, strategy.Failure{Address: "127.0.0.1:80"}, nil},
		"unix":                        {strategy.Fallback{}, strategy.Failure{Network: "unix", Err: inUse, Requested: "/run/app.sock", Address: "/run/app.sock"}, nil},
		"unix, own ranges":            {strategy.Fallback{Ranges: own}, strategy.Failure{Network: "unix", Err: inUse, Requested: "/run/app.sock", Address: "/run/app.sock"}, nil},
		// A colon in a path is no port.
		"unix, looks like a port":                 {strategy.Fallback{}, strategy.Failure{Network: "unix", Err: inUse, Requested: "/run/app:3000", Address: "/run/app:3000"}, nil},
		"unixgram, looks like a port, own ranges": {strategy.Fallback{Ranges: own}, strategy.Failure{Network: "unixgram", Err: inUse, Requested: "/run/app:3000", Address: "/run/app:3000"}, nil},
		"once":                   {strategy.Fallback{Ranges: own}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(own...)}}, nil},
		"once, default":          {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(rangeOf(3001, 3010))}}, nil},
		"once, in a wider one":   {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(rangeOf(1, 65535))}}, nil},
		"once, in two parts":     {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(rangeOf(3001, 3004)), strategy.Retry{}, rebind(rangeOf(3005, 3010))}}, nil},
		"once, any port":         {strategy.Fallback{Ranges: []strategy.Range{{}}}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(strategy.Range{})}}, nil},
		"others were tried":      {strategy.Fallback{Ranges: own}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(rangeOf(1, 10))}}, rebind(own...)},
		"some of it were tried":  {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{rebind(rangeOf(3001, 3009))}}, rebind(rangeOf(3001, 3010))},
		"other actions before":   {strategy.Fallback{}, strategy.Failure{Err: inUse, Address: "127.0.0.1:3000", History: []strategy.Action{strategy.Retry{}, strategy.Reclaim{}, strategy.Run{}}}, rebind(rangeOf(3001, 3010))},
		"an empty range":         {strategy.Fallback{Ranges: []strategy.Range{rangeOf(10, 9)}}, strategy.Failure{Err: inUse}, rebind(rangeOf(10, 9))},
		"an empty range, tried":  {strategy.Fallback{Ranges: []strategy.Range{rangeOf(10, 9)}}, strategy.Failure{Err: inUse, History: []strategy.Action{rebind(rangeOf(10, 9))}}, nil},
		"everything, also tried": {strategy.Fallback{Ranges: []strategy.Range{rangeOf(1, 65535)}}, strategy.Failure{Err: inUse, History: []strategy.Action{rebind(rangeOf(1, 65535))}}, nil},
	} {
		require.Equal(t, c.want, c.fallback.Decide(c.failure), name)
		if c.want == nil { // where there is nothing to do, a random start changes nothing
			c.fallback.Spread = true
			require.Nil(t, c.fallback.Decide(c.failure), "%s, spread", name)
		}
	}
}

func portsOf(ranges []strategy.Range) []int {
	var ports []int
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			ports = append(ports, port)
		}
	}
	return ports
}

func TestFallbackSpread(t *testing.T) {
	starts := map[int]int{}
	s := strategy.Fallback{Ranges: []strategy.Range{rangeOf(3000, 3007), rangeOf(9000, 9000), {}, rangeOf(65534, 65535)}, Spread: true}
	for range 2000 {
		action := s.Decide(strategy.Failure{Err: inUse, Address: "127.0.0.1:1"})
		ports := portsOf(action.(strategy.Rebind).Ports)
		require.Len(t, ports, 8+1+1+2)
		require.Equal(t, []int{9000, 0}, ports[8:10], "a range of one port stays, and the order of ranges too")
		first := ports[:8]
		starts[first[0]]++
		// A rotation: once around, each exactly once.
		for i, port := range first {
			require.Equal(t, 3000+(first[0]-3000+i)%8, port)
		}
		last := slices.Sorted(slices.Values(ports[10:]))
		require.Equal(t, []int{65534, 65535}, last)

		// It is the same fallback whatever the start was.
		require.Nil(t, s.Decide(strategy.Failure{Err: inUse, Address: "127.0.0.1:1", History: []strategy.Action{action}}))
	}
	// 2000 throws of an eight-sided die: the chance that one side shows less than 100 times is below 1e-25.
	require.Len(t, starts, 8)
	for start, n := range starts {
		require.Greater(t, n, 100, "start %d", start)
	}
	require.Equal(t, []strategy.Range{rangeOf(3000, 3007), rangeOf(9000, 9000), {}, rangeOf(65534, 65535)}, s.Ranges, "the strategy itself is not changed")
}

func TestFallbackSpreadOfEverything(t *testing.T) {
	s := strategy.Fallback{Ranges: []strategy.Range{rangeOf(1, 65535)}, Spread: true}
	for range 20 {
		ports := portsOf(s.Decide(strategy.Failure{Err: inUse}).(strategy.Rebind).Ports)
		slices.Sort(ports)
		require.Len(t, slices.Compact(ports), 65535)
		require.Equal(t, 1, ports[0])
	}
	s = strategy.Fallback{Spread: true}
	ports := portsOf(s.Decide(strategy.Failure{Err: inUse, Address: ":65530"}).(strategy.Rebind).Ports)
	require.ElementsMatch(t, []int{65531, 65532, 65533, 65534, 65535}, ports)
}

// diagnosed is a failure whose address these processes hold.
func diagnosed(holders ...strategy.Holder) strategy.Failure {
	return strategy.Failure{
		Network: "tcp", Requested: ":3000", Address: "[::]:3000", Err: inUse,
		Diagnose: func() strategy.Diagnosis { return strategy.Diagnosis{Holders: holders, Complete: true} },
	}
}

func after(f strategy.Failure, history ...strategy.Action) strategy.Failure {
	f.History = history
	return f
}

func TestAggressive(t *testing.T) {
	var (
		mine     = strategy.Holder{PID: 4242, Ours: true}
		other    = strategy.Holder{PID: 4243}
		refused  = strategy.Holder{PID: 4244, Ours: true, Refusal: "it is an ancestor"}
		newer    = strategy.Holder{PID: 4245, Ours: true, Newer: true, Refusal: "it is newer"}
		stranger = strategy.Holder{PID: 4246, Newer: true, Refusal: "it is newer"}
		unseen   = strategy.Holder{UID: -1}
		reclaim  = strategy.Reclaim{}
		withErr  = func(f strategy.Failure, err error) strategy.Failure { f.Err = err; return f }
		never    = func() strategy.Diagnosis { panic("the diagnosis is not needed and costs milliseconds") }
		nobody   = diagnosed()
		unknown  = strategy.Failure{Err: inUse, Diagnose: func() strategy.Diagnosis { return strategy.Diagnosis{} }}
		partly   = strategy.Failure{Err: inUse, Diagnose: func() strategy.Diagnosis { return strategy.Diagnosis{Holders: []strategy.Holder{mine}} }}
	)
	retries := func(n int) (own []strategy.Action) {
		for i := range n {
			own = append(own, strategy.Retry{After: time.Millisecond << i})
		}
		return own
	}
	waited := slices.Repeat([]strategy.Action{strategy.Retry{After: 100 * time.Millisecond}}, 1000)
	for name, c := range map[string]struct {
		failure strategy.Failure
		want    strategy.Action
	}{
		"ours":                          {diagnosed(mine), reclaim},
		"ours, several":                 {diagnosed(mine, mine), reclaim},
		"not ours":                      {diagnosed(other), nil},
		"one of them not ours":          {diagnosed(mine, other), nil},
		"one of them not ours, first":   {diagnosed(other, mine), nil},
		"a rule forbids it":             {diagnosed(refused), nil},
		"a rule forbids one of them":    {diagnosed(mine, refused), nil},
		"one cannot be seen":            {diagnosed(mine, unseen), nil},
		"known, others perhaps":         {partly, reclaim},
		"a newer copy":                  {diagnosed(newer), strategy.Fail{Advice: "a newer start of this program (pid 4245) has the address and this one gives way to it"}},
		"a newer copy among others":     {diagnosed(other, refused, newer), strategy.Fail{Advice: "a newer start of this program (pid 4245) has the address and this one gives way to it"}},
		"a newer stranger":              {diagnosed(stranger), nil},
		"nobody any more":               {nobody, strategy.Retry{After: time.Millisecond}},
		"nobody, asked again":           {after(nobody, retries(1)...), strategy.Retry{After: 2 * time.Millisecond}},
		"nobody, the last time":         {after(nobody, retries(9)...), strategy.Retry{After: 512 * time.Millisecond}},
		"nobody, again and again":       {after(nobody, retries(10)...), nil},
		"nobody, after a wait":          {after(nobody, waited...), strategy.Retry{After: time.Millisecond}},
		"nobody, other actions between": {after(nobody, strategy.Rebind{Ports: []strategy.Range{{}}}, strategy.Retry{After: time.Millisecond}), strategy.Retry{After: 2 * time.Millisecond}},
		"nobody that can be seen":       {unknown, nil},
		"second time":                   {after(diagnosed(mine), reclaim), reclaim},
		"third time":                    {after(diagnosed(mine), reclaim, strategy.Retry{}, reclaim), reclaim},
		"ten times":                     {after(diagnosed(mine), slices.Repeat([]strategy.Action{reclaim}, 10)...), nil},
		"ten times, newer":              {after(diagnosed(newer), slices.Repeat([]strategy.Action{reclaim}, 10)...), nil},
		"nothing can be known":          {strategy.Failure{Err: inUse}, nil},
		"forbidden":                     {withErr(diagnosed(mine), noPermission), nil},
		"forbidden, no diagnosis":       {strategy.Failure{Err: noPermission, Diagnose: never}, nil},
		"ten times, no diagnosis":       {strategy.Failure{Err: inUse, Diagnose: never, History: slices.Repeat([]strategy.Action{reclaim}, 10)}, nil},
		"address of no interface":       {withErr(diagnosed(mine), notAvailable), nil},
		"older failures of other kinds": {after(diagnosed(mine), strategy.Rebind{}, strategy.Run{}), reclaim},
	} {
		require.Equal(t, c.want, strategy.Aggressive{}.Decide(c.failure), name)
	}
}

func TestAggressiveAllow(t *testing.T) {
	stranger := strategy.Holder{PID: 4243, Command: "python3"}
	refused := strategy.Holder{PID: 4244, Refusal: "it belongs to user postgres"}
	everybody := func(strategy.Holder) bool { return true }
	nobody := func(strategy.Holder) bool { return false }

	action := strategy.Aggressive{Allow: everybody, Grace: time.Minute}.Decide(diagnosed(stranger))
	require.IsType(t, strategy.Reclaim{}, action)
	require.Equal(t, time.Minute, action.(strategy.Reclaim).Grace)
	require.NotNil(t, action.(strategy.Reclaim).Allow, "the listener asks again, just before the signal")

	require.Nil(t, strategy.Aggressive{Allow: everybody}.Decide(diagnosed(refused)), "a refusal holds whatever Allow says")
	require.Nil(t, strategy.Aggressive{Allow: everybody}.Decide(diagnosed(stranger, refused)))
	require.Nil(t, strategy.Aggressive{Allow: nobody}.Decide(diagnosed(strategy.Holder{PID: 7, Ours: true})), "Allow can be narrower, too")

	mine := strategy.Aggressive{Allow: strategy.AnyOfMine}
	require.IsType(t, strategy.Reclaim{}, mine.Decide(diagnosed(stranger)))
	require.IsType(t, strategy.Reclaim{}, mine.Decide(diagnosed(stranger, strategy.Holder{PID: 7, Ours: true})))
	require.Nil(t, mine.Decide(diagnosed(refused)))
	require.Nil(t, mine.Decide(diagnosed(stranger, strategy.Holder{})), "one that cannot be seen")
	require.IsType(t, strategy.Fail{}, mine.Decide(diagnosed(strategy.Holder{PID: 8, Ours: true, Newer: true})))
}

func TestAnyOfMine(t *testing.T) {
	for want, holders := range map[bool][]strategy.Holder{
		true:  {{PID: 2}, {PID: 4242, Ours: true}, {PID: 4242, UID: 1000}},
		false: {{}, {PID: 1}, {PID: -1}, {PID: 4242, Refusal: "no"}, {PID: 4242, Ours: true, Refusal: "no"}},
	} {
		for _, h := range holders {
			require.Equal(t, want, strategy.AnyOfMine(h), "%+v", h)
		}
	}
}

func TestChain(t *testing.T) {
	var asked []string
	answer := func(name string, action strategy.Action) strategy.Strategy {
		return strategy.Func(func(f strategy.Failure) strategy.Action {
			require.Equal(t, "127.0.0.1:3000", f.Address, "each gets the failure as it is")
			asked = append(asked, name)
			return action
		})
	}
	failure := strategy.Failure{Err: inUse, Address: "127.0.0.1:3000"}

	s := strategy.Chain(nil, answer("a", nil), answer("b", strategy.Retry{After: 1}), answer("c", strategy.Fail{}))
	require.Equal(t, strategy.Retry{After: 1}, s.Decide(failure))
	require.Equal(t, []string{"a", "b"}, asked, "the first opinion wins, and nobody is asked after it")

	require.Nil(t, strategy.Chain().Decide(failure))
	require.Nil(t, strategy.Chain(nil, nil).Decide(failure))
	require.Nil(t, strategy.Chain(answer("a", nil)).Decide(failure))
	nested := strategy.Chain(strategy.Chain(), strategy.Chain(answer("a", nil), strategy.Chain(answer("b", strategy.Fail{Advice: "x"}))))
	require.Equal(t, strategy.Fail{Advice: "x"}, nested.Decide(failure))

	// The chain is its own: what happens to the slice does not matter.
	parts := []strategy.Strategy{answer("a", strategy.Retry{})}
	s = strategy.Chain(parts...)
	parts[0] = answer("b", strategy.Fail{})
	require.Equal(t, strategy.Retry{}, s.Decide(failure))
}

func TestPresetsOwnTheirRanges(t *testing.T) {
	for name, preset := range map[string]func(...strategy.Range) strategy.Strategy{"development": strategy.Development, "staging": strategy.Staging} {
		ranges := []strategy.Range{rangeOf(8000, 8001)}
		s := preset(ranges...)
		ranges[0] = rangeOf(1, 2)
		got := s.Decide(strategy.Failure{Err: inUse, Address: ":3000"})
		require.Equal(t, strategy.Rebind{Ports: []strategy.Range{rangeOf(8000, 8001)}}, got, name)
	}
}

// A world of ports in which the actions are carried out as the listener does, without sockets and signals.
type world struct {
	holders   map[int][]strategy.Holder // by port
	forbidden map[int]bool
	immortal  map[int]bool // pids that something starts again
	stopped   []int
	diagnoses int
}

// listen gives the port obtained, or 0 and the advice.
func (w *world) listen(s strategy.Strategy, port int) (obtained int, advice string, history []strategy.Action) {
	begin := time.Now()
	for {
		f := strategy.Failure{
			Network: "tcp", Requested: fmt.Sprintf(":%d", port), Address: fmt.Sprintf("[::]:%d", port),
			Elapsed: time.Since(begin), History: slices.Clone(history),
			Diagnose: func() strategy.Diagnosis {
				w.diagnoses++
				return strategy.Diagnosis{Holders: w.holders[port], Complete: true}
			},
		}
		switch {
		case w.forbidden[port]:
			f.Err = noPermission
		case len(w.holders[port]) > 0:
			f.Err = inUse
		default:
			return port, "", history
		}
		action := s.Decide(f)
		switch action := action.(type) {
		case nil:
			return 0, "", history
		case strategy.Fail:
			return 0, action.Advice, history
		case strategy.Retry:
			time.Sleep(action.After)
		case strategy.Rebind:
			for _, p := range portsOf(action.Ports) {
				if len(w.holders[p]) == 0 && !w.forbidden[p] {
					return p, "", append(history, action)
				}
			}
		case strategy.Reclaim:
			for _, h := range w.holders[port] {
				w.stopped = append(w.stopped, h.PID)
			}
			w.holders[port] = slices.DeleteFunc(w.holders[port], func(h strategy.Holder) bool { return !w.immortal[h.PID] })
		}
		history = append(history, action)
		if len(history) > 100 {
			panic("the strategy does not come to an end")
		}
	}
}

func TestPresets(t *testing.T) {
	var (
		mine     = []strategy.Holder{{PID: 100, Ours: true}}
		stranger = []strategy.Holder{{PID: 200}}
		newer    = []strategy.Holder{{PID: 300, Ours: true, Newer: true, Refusal: "it is newer"}}
		mixed    = []strategy.Holder{{PID: 100, Ours: true}, {PID: 200}}
	)
	development, staging, production := strategy.Development(), strategy.Staging(), strategy.Production()
	eleven := map[int][]strategy.Holder{}
	for port := 3000; port <= 3010; port++ {
		eleven[port] = stranger
	}
	for name, c := range map[string]struct {
		strategy strategy.Strategy
		world    world
		want     int
		stopped  []int
		history  []strategy.Action
		advice   string
	}{
		"development: free":              {development, world{}, 3000, nil, nil, ""},
		"development: an earlier run":    {development, world{holders: map[int][]strategy.Holder{3000: mine}}, 3000, []int{100}, []strategy.Action{strategy.Reclaim{}}, ""},
		"development: a stranger":        {development, world{holders: map[int][]strategy.Holder{3000: stranger}}, 3001, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"development: both":              {development, world{holders: map[int][]strategy.Holder{3000: mixed}}, 3001, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"development: a stranger beside": {development, world{holders: map[int][]strategy.Holder{3000: stranger, 3001: mine}}, 3002, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"development: a newer copy": {
			development, world{holders: map[int][]strategy.Holder{3000: newer}}, 0, nil, nil,
			"a newer start of this program (pid 300) has the address and this one gives way to it",
		},
		"development: one that comes back": {
			development, world{holders: map[int][]strategy.Holder{3000: mine}, immortal: map[int]bool{100: true}}, 3001, slices.Repeat([]int{100}, 10),
			append(slices.Repeat([]strategy.Action{strategy.Reclaim{}}, 10), strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}), "",
		},
		"development: everything taken": {development, world{holders: eleven}, 0, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"development: forbidden":        {development, world{forbidden: map[int]bool{3000: true}}, 0, nil, nil, ""},
		"staging: free":                 {staging, world{}, 3000, nil, nil, ""},
		"staging: an earlier run":       {staging, world{holders: map[int][]strategy.Holder{3000: mine}}, 3001, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"staging: a newer copy":         {staging, world{holders: map[int][]strategy.Holder{3000: newer}}, 3001, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"staging: own ranges": {
			strategy.Staging(rangeOf(3000, 3000), rangeOf(8000, 8001)), world{holders: map[int][]strategy.Holder{3000: mine, 8000: mine}}, 8001, nil,
			[]strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3000, 3000), rangeOf(8000, 8001)}}}, "",
		},
		"staging: everything taken":    {staging, world{holders: eleven}, 0, nil, []strategy.Action{strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}}, ""},
		"staging: forbidden":           {staging, world{forbidden: map[int]bool{3000: true}}, 0, nil, nil, ""},
		"production: free":             {production, world{}, 3000, nil, nil, ""},
		"production: an earlier run":   {production, world{holders: map[int][]strategy.Holder{3000: mine}}, 0, nil, nil, ""},
		"production: a stranger":       {production, world{holders: map[int][]strategy.Holder{3000: stranger}}, 0, nil, nil, ""},
		"production: forbidden":        {production, world{forbidden: map[int]bool{3000: true}}, 0, nil, nil, ""},
		"nobody has an opinion at all": {strategy.Chain(), world{holders: map[int][]strategy.Holder{3000: mine}}, 0, nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, w := time.Now(), c.world
				if w.holders != nil {
					w.holders = map[int][]strategy.Holder{}
					for port, holders := range c.world.holders {
						w.holders[port] = slices.Clone(holders)
					}
				}
				got, advice, history := w.listen(c.strategy, 3000)
				require.Equal(t, c.want, got)
				require.Equal(t, c.stopped, w.stopped)
				require.Equal(t, c.history, history)
				require.Equal(t, c.advice, advice)
				require.Zero(t, time.Since(begin), "no time is lost")
				if !strings.HasPrefix(name, "development") {
					require.Zero(t, w.diagnoses, "who never stops anybody need not know who it is")
				}
			})
		})
	}
}

// A holder that left between bind and diagnosis costs some retries, which come to an end.
func TestDevelopmentPhantom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		f := strategy.Failure{Network: "tcp", Address: ":3000", Diagnose: func() strategy.Diagnosis { return strategy.Diagnosis{Complete: true} }}
		binds, last := attempt(strategy.Development(), f, func(int) error { return inUse })
		require.Equal(t, 11, binds)
		require.Equal(t, strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010)}}, last)
		require.Equal(t, 1023*time.Millisecond, time.Since(begin))

		binds, _ = attempt(strategy.Development(), f, func(n int) error {
			if n < 3 {
				return inUse
			}
			return nil
		})
		require.Equal(t, 3, binds)
	})
}

func TestFuncRun(t *testing.T) {
	failed := errors.New("no such container")
	runs := 0
	s := strategy.Func(func(strategy.Failure) strategy.Action {
		return strategy.Run{Name: "docker stop web", Do: func(context.Context) error {
			if runs++; runs < 3 {
				return nil
			}
			return failed
		}}
	})
	binds, last := attempt(s, strategy.Failure{}, func(int) error { return inUse })
	require.Equal(t, 3, binds)
	require.Equal(t, "docker stop web", last.(strategy.Run).Name)
}

func TestActionString(t *testing.T) {
	for want, action := range map[string]strategy.Action{
		"retry":                     strategy.Retry{},
		"retry after 1.5s":          strategy.Retry{After: 1500 * time.Millisecond},
		"rebind to 3001-3010,0":     strategy.Rebind{Ports: []strategy.Range{rangeOf(3001, 3010), {}}},
		"reclaim":                   strategy.Reclaim{Grace: time.Second},
		"run docker stop web":       strategy.Run{Name: "docker stop web"},
		"fail":                      strategy.Fail{},
		"fail: ask the other admin": strategy.Fail{Advice: "ask the other admin"},
	} {
		require.Equal(t, want, action.String())
	}
}

func TestHolderString(t *testing.T) {
	id := "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	for want, h := range map[string]strategy.Holder{
		"a process that cannot be seen":                           {},
		"a process of user postgres that cannot be seen":          {User: "postgres"},
		"a process (pid 7)":                                       {PID: 7},
		"python3 (pid 4242, user alice, in /home/alice/web)":      {PID: 4242, Command: "python3", User: "alice", Dir: "/home/alice/web"},
		"nginx (pid 80, user root, unit nginx.service, in /)":     {PID: 80, Command: "nginx", User: "root", Unit: "nginx.service", Dir: "/"},
		"web (pid 9, container 9f86d081884c)":                     {PID: 9, Command: "web", Container: id},
		"web (pid 9, container of-a-name-that-is-not-an-id-here)": {PID: 9, Command: "web", Container: "of-a-name-that-is-not-an-id-here"},
	} {
		require.Equal(t, want, h.String())
	}
}

func TestHolderLogValue(t *testing.T) {
	h := strategy.Holder{
		PID: 4242, Command: "python3", User: "alice", Dir: "/home/alice", Address: "[::]:3000", State: "listening", Refusal: "no",
		Ours: true, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	got := map[string]string{}
	for _, a := range h.LogValue().Group() {
		got[a.Key] = a.Value.String()
	}
	require.Equal(t, map[string]string{
		"pid": "4242", "command": "python3", "user": "alice", "dir": "/home/alice", "address": "[::]:3000", "state": "listening",
		"refusal": "no", "ours": "true", "started": h.Started.String(),
	}, got)
	require.Equal(t, []slog.Attr{slog.Int("pid", 0), slog.Bool("ours", false)}, strategy.Holder{}.LogValue().Group())
}

func TestDiagnosisString(t *testing.T) {
	require.Equal(t, "unknown", strategy.Diagnosis{}.String())
	require.Equal(t, "nobody", strategy.Diagnosis{Complete: true}.String())
	require.Equal(t, "a (pid 1), b (pid 2)", strategy.Diagnosis{Holders: []strategy.Holder{{PID: 1, Command: "a"}, {PID: 2, Command: "b"}}}.String())
}

// The package is pure: nothing but the standard library, and of that nothing that could listen, signal or run by itself.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{range .Imports}}{{.}}\n{{end}}", ".").Output()
	require.NoError(t, err)
	imports := strings.Fields(string(out))
	require.NotEmpty(t, imports)
	for _, path := range imports {
		require.NotContains(t, path, ".", "only the standard library")
		require.NotContains(t, []string{"os", "os/exec", "os/signal", "runtime", "log", "unsafe", "sync"}, path)
	}
	out, err = exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	require.NoError(t, err)
	require.Equal(t, []string{"github.com/berth-go/berth/strategy"}, strings.Fields(string(out)))
}
