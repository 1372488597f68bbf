//go:build !linux

package sockets

// Exhaustive is false: the tables of these systems show the sockets of other users in part or not at all.
func Exhaustive(string) bool { return false }

// InodeOf is 0: only Linux names sockets by an inode that other processes can see.
func InodeOf(any) uint64 { return 0 }
