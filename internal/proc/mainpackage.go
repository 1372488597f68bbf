package proc

import (
	"debug/buildinfo"
	"os"
	"runtime/debug"
	"sync"
)

// MainPackage returns the import path of the main package of the Go program that a process runs, as the Go command
// recorded it in the executable. It is "" where the process runs no Go program, or its executable cannot be read.
//
// A program that was built from named files ("go run main.go") has the path "command-line-arguments", whichever
// files these were: it identifies nothing. On Linux the executable is the file that runs, also where a rebuild has
// removed it; elsewhere it is what the path leads to now.
func MainPackage(pid int) string {
	if pid == os.Getpid() {
		return ownMainPackage()
	}
	path := executablePath(pid)
	if path == "" {
		return ""
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	return info.Path
}

// ownMainPackage parses what the linker left only once: it costs as much as several system calls.
var ownMainPackage = sync.OnceValue(func() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Path
	}
	return ""
})
