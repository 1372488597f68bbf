package registry

import "io/fs"

const (
	noFollow = 0
	nonBlock = 0

	// A locked byte can be neither read nor written through another handle, and gofrs/flock locks the first one
	// (LockFileEx), so the record starts behind it.
	recordOffset = 1
	// A file that is open cannot be removed.
	removeLocked = false
)

// The directory for temporary files is the user's own, protected by its access control list.
func ownedBy(fs.FileInfo, int) bool { return true }
