package listener

import (
	"errors"
	"io/fs"
	"sync/atomic"

	"github.com/berth-go/berth/internal/registry"
)

// hold is what a socket has outside of itself.
type hold struct {
	origin         Origin
	removePortFile func(elsewhere bool) error // nil: there is none
	file           *socketFile                // nil: none that is ours to remove
	lock           *registry.Lock             // nil: none, or tenure has it
	tenure         *tenure                    // nil: no lineage
	released       func(error)                // nil: nobody wants to know
	joint          *joint                     // nil: the rest is of this socket alone
}

// close closes the socket and releases the rest. The files that lead to the socket go before it, so that who binds the
// address next keeps its own. Lock and record go after it: as long as the address is taken they say by whom. What another
// process of the lineage has by then stays.
func (h *hold) close(socket func() error) error {
	if h.joint != nil {
		return h.joint.close(socket)
	}
	elsewhere := h.tenure.end()
	var errs []error
	if h.removePortFile != nil {
		errs = append(errs, h.removePortFile(elsewhere))
	}
	if h.file != nil && !elsewhere {
		errs = append(errs, h.file.remove())
	}
	errs = append(errs, socket())
	if h.lock != nil {
		errs = append(errs, h.lock.Release())
	}
	if h.tenure != nil {
		errs = append(errs, h.tenure.release(elsewhere))
	}
	err := errors.Join(errs...)
	if h.released != nil {
		h.released(err)
	}
	return err
}

// setUnlink says whether the file of a Unix socket goes with it.
func (h *hold) setUnlink(unlink bool) {
	if h.joint != nil {
		h = &h.joint.hold
	}
	if h.file != nil {
		h.file.keep.Store(!unlink)
	}
}

// A socketFile is the file of a Unix socket that this process bound.
type socketFile struct {
	path string
	info fs.FileInfo
	keep atomic.Bool
}

func (f *socketFile) remove() error {
	if f.keep.Load() {
		return nil
	}
	return removeSame(f.path, f.info)
}
