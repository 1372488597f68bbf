package reload

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// A socketFile is the file of a Unix socket that this program bound. It survives upgrades and is removed at the last
// stop, if it is still the same.
type socketFile struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// newSocketFile is nil where the socket has no file.
func newSocketFile(addr net.Addr) *socketFile {
	unix, ok := addr.(*net.UnixAddr)
	if !ok || unix == nil || unix.Name == "" || unix.Name[0] == '@' {
		return nil
	}
	path, err := filepath.Abs(unix.Name) // the working directory may be another at the end
	if err != nil {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	device, inode := fileID(info)
	return &socketFile{path, device, inode}
}

// remove removes the file unless it is another one by now.
func (f socketFile) remove() error {
	info, err := os.Lstat(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	device, inode := fileID(info)
	if info.Mode().Type() != fs.ModeSocket || device != f.Device || inode != f.Inode {
		return nil
	}
	err = os.Remove(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
