//go:build unix

package reload

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/descriptor"
)

// A ward is a version under supervision.
type ward struct {
	*successor // of the supervisor's goroutine; nil until it runs

	cancel  context.CancelCauseFunc // gives up its start
	yielded chan int                // it has stepped back for this process
	resumed chan struct{}           // it leads again
	since   time.Time               // it leads
	told    bool                    // to stop

	mu     sync.Mutex
	estate map[string]kept // what it has given: the next version is to have that
}

type kept struct {
	label label
	held  descriptor.Held
}

// stop passes on what ends the program.
func (w *ward) stop(sig syscall.Signal) {
	if w.successor != nil {
		w.told = true
		w.signal(sig)
	}
}

func (w *ward) signal(sig syscall.Signal) {
	if w.successor == nil {
		return
	}
	w.successor.mu.Lock()
	defer w.successor.mu.Unlock()
	if !w.over {
		_ = syscall.Kill(w.pid, sig) // it is not reaped yet, so the pid is its own
	}
}

func (w *ward) keep(l *label, file *os.File) {
	if l == nil || file == nil {
		return
	}
	held, err := descriptor.Hold(file)
	if err != nil {
		return
	}
	w.forget(l)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.estate[l.encode()] = kept{*l, held}
}

func (w *ward) forget(l *label) {
	if l == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if k, ok := w.estate[l.encode()]; ok {
		_ = k.held.Close()
		delete(w.estate, l.encode())
	}
}

// files are duplicates of what the version has given.
func (w *ward) files() (files []passed, err error) {
	if w == nil {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.estate {
		file, err := k.held.File(k.label.encode())
		if err != nil {
			return files, err
		}
		files = append(files, passed{k.label, file})
	}
	return files, nil
}

// has tells whether the version has given this very socket.
func (w *ward) has(socket descriptor.Held) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.estate {
		if k.held.Same(socket) {
			return true
		}
	}
	return false
}

func (w *ward) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.estate {
		_ = k.held.Close()
	}
	clear(w.estate)
}

// yield has the version step back for another process, which the witness is of. One that has ended has done so.
func (w *ward) yield(ctx context.Context, pid int, witness *os.File) error {
	if w == nil || w.send(message{Do: doYield, PID: pid}, witness) != nil {
		return nil
	}
	for {
		select {
		case to := <-w.yielded:
			if to == pid { // else it is late, and what it was for has been given up
				return nil
			}
		case <-w.gone:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the old version, pid %d, does not step back: %w", w.pid, context.Cause(ctx))
		}
	}
}

// resume has the version lead again, and waits for that: a signal that follows may end it.
func (w *ward) resume() {
	select {
	case <-w.resumed: // late, from another time
	default:
	}
	if w.send(message{Do: doLead}, nil) != nil {
		return
	}
	const patience = 5 * time.Second
	select {
	case <-w.resumed:
	case <-w.gone:
	case <-time.After(patience):
	}
}
