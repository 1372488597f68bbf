package main

import "syscall"

// endWithParent has the program asked to end when this process is killed, PR_SET_PDEATHSIG(2const): nothing is left that
// keeps the port.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }
