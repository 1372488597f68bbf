//go:build linux

package browsertest

// PID is that of Chromium.
func PID(b *Browser) int { return b.pid }
