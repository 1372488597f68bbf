package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// firstFreeExperiment is a fallback over a range of which all but the last port are taken.
var firstFreeExperiment = experiment{name: "FirstFree", title: "The first free port of a range", prepare: func(l *lab) ([]row, error) {
	first, err := l.portRow(l.busy+1, l.busy)
	if err != nil {
		return nil, err
	}
	free := first + l.busy
	dir, err := l.dir(true)
	if err != nil {
		return nil, err
	}
	cfg := &listener.Config{
		StateDir: dir,
		Strategy: strategy.Fallback{Ranges: []strategy.Range{{First: uint16(first), Last: uint16(free)}}},
	}
	check := func(listen func() (net.Listener, error)) func() (outcome, error) {
		return timed(func() error {
			ln, err := listen()
			if err != nil {
				return err
			}
			if got := portOfListener(ln); got != free {
				return errors.Join(fmt.Errorf("got port %d, not %d", got, free), ln.Close())
			}
			return ln.Close()
		})
	}
	return []row{{
		name: fmt.Sprintf("busy=%d", l.busy), text: fmt.Sprintf("behind %d busy ones", l.busy), goal: atMost(ms),
		ours: contestant{"berth", check(func() (net.Listener, error) {
			return cfg.Listen(context.Background(), "tcp", at(first))
		})},
		bare: contestant{"net", check(func() (net.Listener, error) { return listenInOrder(first, free) })},
	}}, nil
}}

// listenInOrder is the usual loop: net.Listen until one succeeds.
func listenInOrder(first, last int) (net.Listener, error) {
	for port := first; ; port++ {
		ln, err := net.Listen("tcp", at(port))
		if err == nil || port == last || !errors.Is(err, syscall.EADDRINUSE) {
			return ln, err
		}
	}
}
