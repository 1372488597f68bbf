//go:build unix

package reload

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/descriptor"
	"github.com/berth-go/berth/internal/proc"
)

// A passed is a descriptor that goes to a new process.
type passed struct {
	label label
	file  *os.File
}

func closePassed(files []passed) {
	for _, f := range files {
		_ = f.file.Close()
	}
}

// A successor is a process that was started to go on with the sockets.
type successor struct {
	*channel
	cmd     *exec.Cmd
	pid     int
	ready   chan struct{} // closed when it has said that it is ready
	led     chan struct{} // closed when it has said that it leads
	heard   chan struct{} // closed when it can say nothing any more
	gone    chan struct{} // closed when it has ended
	exit    error         // how it ended; once gone is closed
	capture *capture

	// The successor reads the other end, and takes its end for that of this process: nothing else closes it.
	lifeline *os.File

	mu      sync.Mutex
	handle  *proc.Handle // nil: it had ended at once
	sibling bool         // systemd reaps it, whenever it likes
	alone   bool         // it leads, and what it has started is its own affair
	over    bool         // its process group may be another's
}

// launch starts cmd and takes over files. The new process leads a process group of its own, so that whatever it starts
// can be ended with it. Messages other than that it leads go to hear. The ExtraFiles of cmd, which stay the caller's, are
// sockets that package activation gives out in the new process.
func launch(cmd *exec.Cmd, files []passed, hello message, hear func(message, *os.File)) (_ *successor, err error) {
	s := &successor{cmd: cmd, ready: make(chan struct{}), led: make(chan struct{}), heard: make(chan struct{}), gone: make(chan struct{})}
	var readyReader, readyWriter, namesReader *os.File
	defer func() {
		_, _ = readyWriter.Close(), namesReader.Close() // only the new process needs them; nil where there are none yet
		closePassed(files)
		if err != nil {
			_ = readyReader.Close()
			s.capture.close()
			s.release()
		}
	}()

	if s.capture, err = newCapture(); err != nil {
		return nil, err
	}
	outputs, err := s.capture.files()
	if err != nil {
		return nil, err
	}
	files = append(files, outputs...)
	var control *os.File
	if s.channel, control, err = newChannel(); err != nil {
		return nil, err
	}
	files = append(files, passed{label{Control: true}, control})
	if readyReader, readyWriter, err = os.Pipe(); err != nil {
		return nil, err
	}
	if namesReader, s.lifeline, err = os.Pipe(); err != nil {
		return nil, err
	}

	// It has to fit into the pipe, since nobody reads yet: else a parent that dies would leave a child with sockets that it
	// does not know.
	if err = s.lifeline.SetWriteDeadline(time.Now().Add(time.Second)); err == nil {
		err = writeNames(s.lifeline, files)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the names of %d sockets and files do not fit into a pipe: hand on fewer", len(files))
	}
	if err == nil {
		hello.Do, hello.Version = doHello, protocol
		err = s.send(hello, nil)
	}
	if err == nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.capture.of(0), s.capture.of(1), s.capture.of(2)
		sockets := cmd.ExtraFiles
		cmd.ExtraFiles = []*os.File{readyWriter, namesReader}
		for _, f := range files {
			cmd.ExtraFiles = append(cmd.ExtraFiles, f.file)
		}
		if len(sockets) > 0 {
			const first = 3 // after the standard streams
			passed := descriptor.PassedVariable + "=" + strconv.Itoa(first+len(cmd.ExtraFiles))
			for _, f := range sockets {
				passed += ":" + f.Name()
			}
			cmd.Env = append(cmd.Env, passed)
			cmd.ExtraFiles = append(cmd.ExtraFiles, sockets...)
		}
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Setpgid = true
		if hello.Sibling {
			beSibling(cmd.SysProcAttr)
		}
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	s.pid, s.sibling = cmd.Process.Pid, hello.Sibling
	s.capture.start()
	if err := s.open(); err != nil {
		_, _ = cmd.Process.Kill(), cmd.Wait() // the failure is what counts
		return nil, err
	}
	go s.awaitReady(readyReader)
	go s.awaitEnd()
	go s.listen(hear)
	return s, nil
}

// writeNames writes what tableflip's side reads first.
func writeNames(w io.Writer, files []passed) error {
	var names [][]string
	for _, f := range files {
		names = append(names, []string{"fd", f.label.encode(), ""})
	}
	return gob.NewEncoder(w).Encode(names)
}

func (s *successor) awaitReady(pipe *os.File) {
	defer pipe.Close()
	const ready = 42 // tableflip's
	var b [1]byte
	if n, _ := pipe.Read(b[:]); n == 1 && b[0] == ready {
		close(s.ready)
	}
}

// listen hears what the process says, until it has ended.
func (s *successor) listen(hear func(message, *os.File)) {
	defer close(s.heard)
	leads := false
	for {
		m, file, err := s.receive()
		switch {
		case err != nil:
			return
		case m.Do == doLead && !leads:
			leads = true
			close(s.led)
		case hear != nil:
			hear(m, file)
		case file != nil:
			_ = file.Close()
		}
	}
}

// open gets hold of the process that was just started. One that systemd has reaped by now may have given its pid to another.
func (s *successor) open() error {
	handle, err := proc.Open(s.pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.cmd.Process.Signal(syscall.Signal(0)) != nil { // which asks the very process
		return handle.Close()
	}
	s.handle = handle
	return nil
}

// awaitEnd sees the end of the process before it is reaped, as long as its process group cannot be another's.
func (s *successor) awaitEnd() {
	if s.handle != nil {
		_ = s.handle.Wait(context.Background())
		defer s.handle.Close()
	}
	s.mu.Lock()
	if !s.alone {
		s.killLocked()
	}
	s.over = true
	s.mu.Unlock()
	if s.exit = s.cmd.Wait(); errors.Is(s.exit, syscall.ECHILD) {
		s.exit = errNotOurs
	}
	s.capture.finish()
	const patience = time.Second // something that it started may have the other end of the channel
	_ = s.conn.SetReadDeadline(time.Now().Add(patience))
	<-s.heard // what it has given is for the next
	close(s.gone)
}

// lead tells the process to take charge.
func (s *successor) lead() error {
	err := s.send(message{Do: doLead}, nil)
	if err == nil {
		return nil
	}
	// It has ended, and how says more than that nobody listens.
	select {
	case <-s.gone:
		return s.ended()
	case <-time.After(together):
		return fmt.Errorf("it does not listen: %w", err)
	}
}

// ended says how the process ended, which had not taken over.
func (s *successor) ended() error {
	if s.exit == nil {
		return errNotReady
	}
	return fmt.Errorf("it ended before it had taken over: %w", s.exit)
}

// letGo leaves the process alone: it leads.
func (s *successor) letGo() {
	s.capture.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = true
}

// kill ends the process, with all that it has started, and returns when it has ended.
func (s *successor) kill() {
	s.mu.Lock()
	s.alone = false
	s.killLocked()
	s.mu.Unlock()
	<-s.gone
}

func (s *successor) killLocked() {
	if s.over || s.handle == nil {
		return
	}
	err := s.handle.KillGroup()
	if errors.Is(err, errors.ErrUnsupported) && (!s.sibling || s.handle.Alive()) {
		_ = syscall.Kill(-s.pid, syscall.SIGKILL) // it is not reaped yet, so the group is its own
	}
}

// release closes what connects this process with one that has ended, or did not start.
func (s *successor) release() {
	_ = s.channel.close()
	if s.lifeline != nil {
		_ = s.lifeline.Close()
	}
}

// lines are the last ones that it wrote.
func (s *successor) lines() []string { return s.capture.tail.lines() }
