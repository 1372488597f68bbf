//go:build unix && !linux

package descriptor

const mptcp = 0

// isProtocol takes the type's usual protocol for granted: not every system tells.
func isProtocol(int, int, int) bool { return true }
