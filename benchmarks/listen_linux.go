package main

import (
	"context"
	"net"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/berth-go/berth/listener"
)

// listenExperiment is the price that every start pays: one free port, bound and closed.
var listenExperiment = experiment{name: "Listen", title: "Listen and Close, a free port", prepare: func(l *lab) ([]row, error) {
	port, err := l.freePort()
	if err != nil {
		return nil, err
	}
	address := at(port)
	none, err := l.noDir()
	if err != nil {
		return nil, err
	}
	memory, err := l.dir(true)
	if err != nil {
		return nil, err
	}
	disk, err := l.dir(false)
	if err != nil {
		return nil, err
	}

	bare := contestant{"net", listenAndClose(func() (net.Listener, error) { return net.Listen("tcp", address) })}
	config := func(stateDir string) contestant {
		cfg := &listener.Config{StateDir: stateDir, Name: "benchmark"}
		return contestant{"berth", listenAndClose(func() (net.Listener, error) {
			return cfg.Listen(context.Background(), "tcp", address)
		})}
	}
	locked := func(dir string) []contestant {
		path := filepath.Join(dir, "peer.lock")
		return []contestant{{"net+flock", timed(func() error {
			lock := flock.New(path)
			if _, err := lock.TryLock(); err != nil {
				return err
			}
			ln, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			if err := ln.Close(); err != nil {
				return err
			}
			return lock.Unlock()
		})}}
	}
	return []row{
		{
			name: "with=nothing", text: "`listener.Listen`", goal: timesBare(1.0), bare: bare,
			ours: contestant{"berth", listenAndClose(func() (net.Listener, error) { return listener.Listen("tcp", address) })},
		},
		{
			name: "with=config", text: "`Config.Listen`, no state directory to be had", goal: timesBare(1.0),
			bare: bare, ours: config(none),
		},
		{
			name: "with=record-tmpfs", text: "`Config.Listen`, lock and record on a tmpfs", goal: timesBare(1.5),
			bare: bare, ours: config(memory), peers: locked(memory),
		},
		{
			name: "with=record-disk", text: "`Config.Listen`, lock and record on disk", goal: timesBare(1.5),
			bare: bare, ours: config(disk), peers: locked(disk),
		},
	}, nil
}}

func listenAndClose(listen func() (net.Listener, error)) func() (outcome, error) {
	return timed(func() error {
		ln, err := listen()
		if err != nil {
			return err
		}
		return ln.Close()
	})
}
