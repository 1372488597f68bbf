package proc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReapOrphans waits for children that have ended and that nobody else waits for: those which the kernel gives to process 1
// when their parents end. Those that are owned are left alone. waitid(2) shows one child at a time, so it stops at
// an owned one that has ended and is not waited for yet; call it again then.
func ReapOrphans(owned func(pid int) bool) {
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return
		}
		pid := childOf(&info)
		if pid == 0 || owned(pid) {
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			return
		}
	}
}

// childOf is si_pid, sigaction(2). It is the first member of a union that follows three ints and is aligned like a pointer.
func childOf(info *unix.Siginfo) int {
	const ints, align = 3 * unsafe.Sizeof(int32(0)), unsafe.Sizeof(uintptr(0))
	const offset = (ints + align - 1) / align * align
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), offset)))
}
