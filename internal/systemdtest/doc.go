// Package systemdtest runs the real systemd in tests, as the manager of a user, without being pid 1 and without touching
// the one that may run the machine. It needs Linux, root, unshare, nsenter, and Debian's package systemd.
package systemdtest
