package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/registry"
	"github.com/berth-go/berth/listener"
)

// A lease is a listener that is for another program.
//
// The program alone has the socket, once it runs: when it closes it, connections are refused as they should be, and whoever
// looks for the holder of the port, or stops it, finds the program and not this process as well, which would pass on a
// signal that the program got already. So the record names the program. The lock stays here: it is freed with this process,
// and with it the record goes.
//
// To get hold of the lock it stands among the sources of the listener, as the upgrader of package reload does.
type lease struct {
	stateDir string
	ln       *listener.Listener
	openLock func() (*os.File, error) // nil: there is none
	left     bool                     // the listener is to leave what it has to this process

	lock   *registry.Lock // nil: none, or the listener has it
	record registry.Record
}

// Take has nothing.
func (*lease) Take(string, string, string) (net.Listener, error) { return nil, fs.ErrNotExist }

// TakePacket has nothing.
func (*lease) TakePacket(string, string, string) (net.PacketConn, error) { return nil, fs.ErrNotExist }

// Keep needs nothing more: the listener is at hand.
func (*lease) Keep(string, string, string, syscall.Conn) error { return nil }

// InCharge tells the listener whether lock and record are its own to take away.
func (l *lease) InCharge() bool { return !l.left }

// OnCharge calls f once.
func (*lease) OnCharge(f func()) (cancel func()) {
	f()
	return func() {}
}

// KeepFile gets the lock.
func (l *lease) KeepFile(_ string, open func() (*os.File, error)) (forget func()) {
	l.openLock = open
	return func() {}
}

// TakeFile has nothing.
func (*lease) TakeFile(string) (*os.File, error) { return nil, fs.ErrNotExist }

func passedToUs() (*activation.Set, error) { return activation.FromEnv() }

// leave closes the listener and keeps lock and record. Without a lock, that is all.
func (l *lease) leave() error {
	address := l.ln.Addr().String()
	if l.openLock == nil {
		return l.ln.Close()
	}
	file, err := l.openLock()
	if err != nil {
		return errors.Join(err, l.ln.Close())
	}
	l.left = true
	closed := l.ln.Close()
	records, err := registry.Open(l.stateDir)
	if err == nil {
		l.lock, err = records.Adopt("tcp", address, file)
	} else {
		_ = file.Close() // and with it the lock
	}
	if err == nil {
		var entry registry.Entry
		if entry, err = records.Lookup("tcp", address); err == nil {
			l.record, err = entry.Record, entry.Err
		}
	}
	return errors.Join(err, closed)
}

// assign names the program in the record: it is what has the port. A program that has ended already is none.
func (l *lease) assign(pid int) error {
	if l.lock == nil || l.record.PID == 0 {
		return nil
	}
	p, err := proc.Get(pid)
	if err != nil {
		return nil
	}
	l.record.PID, l.record.Start, l.record.Started = pid, p.Start, p.Started
	l.record.Executable, l.record.Main, l.record.Dir = p.Executable, proc.MainPackage(pid), p.Dir
	return l.lock.Write(l.record)
}

// close gives up the port, with lock and record.
func (l *lease) close() error {
	err := l.ln.Close() // again, it repeats its result
	if l.lock != nil {
		err = errors.Join(err, l.lock.Release())
	}
	return err
}
