//go:build !unix

package descriptor

import "os"

// Void closes the file.
func Void(file *os.File) error { return file.Close() }
