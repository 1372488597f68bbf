//go:build unix && !linux

package main

import "syscall"

// endWithParent is for Linux. Elsewhere a program outlives a run that is killed; the next run of it may stop it.
func endWithParent(*syscall.SysProcAttr) {}
