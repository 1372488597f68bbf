//go:build unix

package reload

import (
	"os"
	"syscall"
)

// upgradeSignals ask for an upgrade.
var upgradeSignals = []os.Signal{syscall.SIGHUP}
