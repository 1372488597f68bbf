package main

import (
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// reclaimExperiment takes an address over from a stale copy of a program that ends at once when asked: failed bind, find,
// terminate, listening again, all in a process that has just started, as the newcomer has.
var reclaimExperiment = experiment{name: "Reclaim", title: "Take-over from a stale copy that ends at once", prepare: func(l *lab) ([]row, error) {
	dir, err := l.dir(true)
	if err != nil {
		return nil, err
	}
	port, err := l.freePort()
	if err != nil {
		return nil, err
	}
	by := func(name, by, holder string) contestant {
		return contestant{name, func() (outcome, error) {
			return takeOver(role{Do: doReclaim, By: by, StateDir: dir, Address: at(port)}, holder)
		}}
	}
	var peers []contestant
	if _, err := exec.LookPath("fuser"); err == nil {
		peers = append(peers, by("fuser -k", byFuser, ""))
	}
	return []row{
		{
			name: "holder=recorded", text: "which has a record", goal: beyondBare(5 * ms),
			ours: by("berth", byBerth, byBerth), bare: by("kill+listen", "", ""), peers: peers,
		},
		{
			name: "holder=unrecorded", text: "which has no record", goal: beyondBare(5 * ms),
			ours: by("berth", byBerth, ""), bare: by("kill+listen", "", ""), peers: peers,
		},
	}, nil
}}

// takeOver starts a holder, then the process that takes over from it.
func takeOver(r role, by string) (outcome, error) {
	old, err := spawn("", role{Do: doHold, By: by, StateDir: r.StateDir, Address: r.Address})
	if err != nil {
		return outcome{}, err
	}
	defer old.end()
	r.PID = old.pid()
	newer, err := spawn("", r)
	if err != nil {
		return outcome{}, err
	}
	defer newer.end()
	took, err := time.ParseDuration(newer.line)
	if err != nil {
		return outcome{}, err
	}
	_ = old.Wait() // it was ended by a signal
	if status := old.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		return outcome{}, fmt.Errorf("the holder was not stopped by SIGTERM: %v", old.ProcessState)
	}
	return outcome{took: took}, nil
}
