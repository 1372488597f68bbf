//go:build !linux

package tcpinfo

// Known tells whether Moved knows anything on this system.
const Known = false

func moved(uintptr) (uint64, bool) { return 0, false }
