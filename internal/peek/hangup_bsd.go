//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package peek

import "golang.org/x/sys/unix"

// macOS adds POLLHUP to that when the peer has sent its last; the others do so when both directions are shut.
const hangUp = unix.POLLIN
