package strategy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// In development an earlier run of the program is stopped; anybody else keeps the port, and the next free one is taken.
// Here it is the example itself that has it.
func ExampleDevelopment() {
	cfg := listener.Config{Strategy: strategy.Development(strategy.Range{First: 0, Last: 0})} // any free port
	first, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer first.Close()
	second, err := cfg.Listen(context.Background(), "tcp", first.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer second.Close()
	origin := second.Origin()
	fmt.Println(first.Origin().Kind, origin.Kind)
	fmt.Println("not stopped, as a rule forbids it:", origin.InTheWay[0].PID == os.Getpid(), origin.InTheWay[0].Refusal)
	// Output:
	// bound fallback
	// not stopped, as a rule forbids it: true it is this process itself; close or share the first listener of this process
}

// In staging nobody is stopped: several copies run beside each other.
func ExampleStaging() {
	cfg := listener.Config{Strategy: strategy.Staging(strategy.Range{First: 0, Last: 0})} // any free port
	first, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer first.Close()
	second, err := cfg.Listen(context.Background(), "tcp", first.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer second.Close()
	fmt.Println(first.Origin().Kind, second.Origin().Kind)
	fmt.Println(first.Addr().String() != second.Addr().String())
	// Output:
	// bound fallback
	// true
}

// In production a taken port is an error at once, which says who has it.
func ExampleProduction() {
	cfg := listener.Config{Strategy: strategy.Production()}
	first, err := cfg.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer first.Close()
	_, err = cfg.Listen(context.Background(), "tcp", first.Addr().String())
	fmt.Println(errors.Is(err, syscall.EADDRINUSE))
	var e *listener.Error
	if errors.As(err, &e) {
		fmt.Println(len(e.Diagnosis().Holders), e.Diagnosis().Holders[0].PID == os.Getpid())
	}
	// Output:
	// true
	// 1 true
}

// A strategy of one's own decides by what it is told.
func ExampleFunc() {
	onlyWait := strategy.Func(func(f strategy.Failure) strategy.Action {
		if errors.Is(f.Err, syscall.EADDRINUSE) {
			return strategy.Retry{After: 50_000_000}
		}
		return nil
	})
	fmt.Println(onlyWait.Decide(strategy.Failure{Err: syscall.EADDRINUSE}))
	fmt.Println(onlyWait.Decide(strategy.Failure{Err: syscall.EACCES}))
	// Output:
	// retry after 50ms
	// <nil>
}

func ExampleParseRanges() {
	ranges, err := strategy.ParseRanges("3000-3010, 8000, 3005-3020")
	fmt.Println(ranges, err)
	_, err = strategy.ParseRanges("3010-3000")
	fmt.Println(err)
	// Output:
	// [3000-3020 8000] <nil>
	// strategy: port range "3010-3000": the first port is above the last: write 3000-3010
}
