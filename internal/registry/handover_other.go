//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

var errUnsupported = fmt.Errorf("handing on a lock: %w on %s", errors.ErrUnsupported, runtime.GOOS)

func duplicate(fs.FileInfo, string) (*os.File, error) { return nil, errUnsupported }

func lockDescriptor(*os.File) error { return errUnsupported }

func unlockDescriptor(*os.File) error { return errUnsupported }
