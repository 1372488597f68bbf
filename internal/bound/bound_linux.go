package bound

import (
	"os"

	"golang.org/x/sys/unix"
)

func open(family, sotype, protocol int) (int, error) {
	return unix.Socket(family, sotype|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
}

func openMultipath(family int) (int, error) {
	return open(family, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
}

// nothing is a program of the packet filter that lets nothing through.
var nothing = unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}}

// deafen has the kernel throw away whatever comes. Where it cannot, datagrams wait for whoever serves the socket.
func deafen(fd int) {
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &nothing)
}

// undeafen takes back deafen. Without a filter it fails, and nothing is to be done.
func undeafen(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }

// exclude makes an address exclusive that was bound with SO_REUSEADDR. Who else has it in the same way now is told apart by a
// listen, of which the kernel lets one succeed, and with which it forgets that the port can be shared (tb->fastreuse in
// inet_csk_update_fastreuse). The socket hears nothing while it listens, and after the shutdown it is bound as before
// (inet_shutdown, tcp_disconnect).
func (s *Socket) exclude() error {
	deafen(s.fd)
	defer undeafen(s.fd)
	if err := unix.Listen(s.fd, 0); err != nil {
		return os.NewSyscallError("listen", err)
	}
	if err := s.reuse(false); err != nil {
		return err
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(s.fd, unix.SHUT_RDWR))
}
