//go:build darwin || freebsd

package proc

import (
	"sync"

	"golang.org/x/sys/unix"
)

var bootID = sync.OnceValue(func() string {
	for _, name := range [...]string{"kern.bootsessionuuid", "kern.boot_id"} { // macOS, FreeBSD
		if id, err := unix.Sysctl(name); err == nil {
			return id
		}
	}
	return ""
})
