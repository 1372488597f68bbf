package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
)

// passedSockets is how many listening sockets a process of this experiment gets, as from systemd.
const passedSockets = 20

// activatedExperiment takes passed sockets over, by their addresses, in a process that has just started.
var activatedExperiment = experiment{name: "Activated", title: "Listen on a socket that systemd passed, each of 20", prepare: func(l *lab) ([]row, error) {
	var files []*os.File
	var addresses []string
	for range passedSockets {
		ln, err := net.Listen("tcp", at(0))
		if err != nil {
			return nil, err
		}
		l.later(func() { _ = ln.Close() })
		file, err := ln.(*net.TCPListener).File()
		if err != nil {
			return nil, err
		}
		l.later(func() { _ = file.Close() })
		files = append(files, file)
		addresses = append(addresses, ln.Addr().String())
	}
	by := func(name, by string) contestant {
		return contestant{name, func() (outcome, error) {
			p, err := spawn("", role{Do: doTake, By: by, Address: strings.Join(addresses, " ")}, files...)
			if err != nil {
				return outcome{}, err
			}
			defer p.end()
			took, err := time.ParseDuration(p.line)
			return outcome{took: took}, err
		}}
	}
	bare := by("net.FileListener", "")
	return []row{
		{
			name: "environment=read", text: "`listener.Listen`, after the first look at the environment", goal: timesBare(1.5),
			ours: by("berth", byBerth), bare: bare,
		},
		{
			name: "environment=unread", text: "the same with a 20th of that look", goal: timesBare(1.5),
			ours: by("berth", byBerthCold), bare: bare,
		},
	}, nil
}}

// take takes over every passed socket and prints how long each took.
func (r role) take() error {
	addresses := strings.Fields(r.Address)
	taken := make([]net.Listener, len(addresses))
	if r.By == byBerth {
		if _, err := activation.FromEnv(); err != nil {
			return err
		}
	}
	begin := time.Now()
	for i, address := range addresses {
		var err error
		if r.By == "" {
			taken[i], err = fromFile(3 + i)
		} else {
			taken[i], err = listener.Listen("tcp", address)
		}
		if err != nil {
			return err
		}
	}
	took := time.Since(begin) / time.Duration(len(addresses))
	for i, address := range addresses {
		if at := taken[i].Addr().String(); at != address {
			return fmt.Errorf("%s was asked for, and %s taken", address, at)
		}
	}
	fmt.Println(took)
	return nil
}

// fromFile is all that there is to do where the number of the descriptor is known.
func fromFile(fd int) (net.Listener, error) {
	file := os.NewFile(uintptr(fd), "")
	ln, err := net.FileListener(file)
	_ = file.Close() // the listener has a duplicate
	return ln, err
}
