//go:build !linux

package reload

import "syscall"

func (u *Upgrader) isChildOfSystemd() bool { return false }

func beSibling(*syscall.SysProcAttr) {}
