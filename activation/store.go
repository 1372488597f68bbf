package activation

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// Store has systemd keep a socket in the store of this service under a name, so that it stays open when the process ends,
// in a restart or a crash. The next process of the service gets it like any other socket from systemd: [FromEnv] finds it,
// by its name and its address. Connections that nobody accepted yet wait there, and are not lost. The caller keeps his
// descriptor, and closes it as usual. In the store a socket counts once: stored again it keeps its first name, and a full
// store refuses it. Several sockets can have the same name, which is up to 255 printable ASCII characters without a colon.
//
// The socket is a [net.Listener], [net.PacketConn], [net.Conn] or [*os.File]: any [syscall.Conn], or what wraps one and shows
// it by a method Unwrap.
//
// The unit needs FileDescriptorStoreMax=, and the store lasts while the unit is not stopped: systemctl restart and
// Restart= keep it, systemctl stop followed by start does not (but for FileDescriptorStorePreserve=yes, systemd 254).
// Where the store takes no more, the error says so and matches [errors.ErrUnsupported]: it is off (FileDescriptorStoreMax=0,
// the default) or full, or the unit's NotifyAccess= forbids this process to use it. systemd has no answer for that (only as
// of version 254 a variable, FDSTORE, that it is on), it ignores what it does not want; so Store has it keep one end of a
// socket pair first, watches whether the other end is told of a hang-up, and has that removed again. It waits for systemd, for
// milliseconds as a rule, and for half a minute at most.
//
// A stream that is connected leaves the store by itself when its peer ends it. Anything else stays until [Unstore]
// (FDPOLL=0), since systemd would drop a bound socket that does not listen yet, or has an error pending. The file of a
// stored Unix socket has to stay as well, so a [*net.UnixListener] no longer removes it when it is closed.
//
// When unsupervised Store does nothing and returns nil, but for a process that systemd has started from a unit that keeps
// nothing and wants no notifications: then it says that.
func Store(name string, socket any) error {
	if err := checkName(name); err != nil {
		return err
	}
	conn, ok := connOf(socket)
	if !ok {
		return fmt.Errorf("activation: %q is not stored: %T is no socket: %w", name, socket, errors.ErrUnsupported)
	}
	if err := store(name, conn); err != nil {
		return fmt.Errorf("activation: %q is not stored: %w", name, err)
	}
	return nil
}

// connOf finds the socket in what is one or wraps one.
func connOf(socket any) (syscall.Conn, bool) {
	for socket != nil {
		if conn, ok := socket.(syscall.Conn); ok {
			return conn, true
		}
		switch wrapper := socket.(type) {
		case interface{ Unwrap() net.Listener }:
			socket = wrapper.Unwrap()
		case interface{ Unwrap() net.PacketConn }:
			socket = wrapper.Unwrap()
		default:
			return nil, false
		}
	}
	return nil, false
}

// Unstore has systemd close what it keeps for this service under a name, also what came from the store when this process
// was started. Sockets that this process has are not touched.
func Unstore(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return Notify("FDSTOREREMOVE=1", "FDNAME="+name)
}

// checkName refuses what systemd does (fdname_is_valid), which would store the socket under the name "stored".
func checkName(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= 0x7f || r == ':' }) {
		return fmt.Errorf("activation: %q cannot be the name of a socket: "+
			"systemd wants 1 to 255 printable ASCII characters without a colon", name)
	}
	return nil
}
