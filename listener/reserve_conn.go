package listener

import "syscall"

// SyscallConn gives access to the socket that is reserved, to set options of it; where several addresses are reserved, to
// the first that is left. It is not to be closed, bound or listened on.
func (r *Reservation) SyscallConn() (syscall.RawConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		for _, p := range r.parts {
			if !p.gone {
				return rawOf(p.raw(), p.addr)
			}
		}
	}
	return nil, r.endedLocked("raw-control")
}
