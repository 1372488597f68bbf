//go:build unix

package reload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// A channel carries messages, and descriptors with them, to another process.
type channel struct {
	conn *net.UnixConn

	sending sync.Mutex

	// Of the one goroutine that receives:
	buffer []byte     // what came and is no whole line yet
	files  []*os.File // what came with it, and belongs to a line that is not read yet
}

// newChannel makes one end of a channel, and the other for a process that is started.
func newChannel() (*channel, *os.File, error) {
	syscall.ForkLock.RLock() // nothing that is started meanwhile inherits them
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	ours, err := openChannel(os.NewFile(uintptr(fds[0]), "control"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// openChannel takes over the file.
func openChannel(file *os.File) (*channel, error) {
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("control socket: is a %T", conn)
	}
	return &channel{conn: unix}, nil
}

// send writes a message, with at most one file.
func (c *channel) send(m message, file *os.File) error {
	if c == nil {
		return net.ErrClosed
	}
	m.Attached = file != nil
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if len(line) > maxMessage {
		return fmt.Errorf("control socket: a message of %d bytes is longer than %d", len(line), maxMessage)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	if file != nil {
		raw, err := file.SyscallConn() // Fd would make it blocking, for the other process too
		if err != nil {
			return err
		}
		var n int
		controlErr := raw.Control(func(fd uintptr) {
			n, _, err = c.conn.WriteMsgUnix(line, syscall.UnixRights(int(fd)), nil) // the rights go with the first byte
		})
		if err := errors.Join(controlErr, err); err != nil {
			return err
		}
		line = line[n:]
	}
	_, err = c.conn.Write(line)
	return err
}

// receive waits for the next message. The error is io.EOF where the other process has ended.
func (c *channel) receive() (message, *os.File, error) {
	for {
		if i := bytes.IndexByte(c.buffer, '\n'); i >= 0 {
			line := c.buffer[:i]
			m, err := parseMessage(line)
			c.buffer = c.buffer[i+1:]
			var file *os.File
			if err == nil && m.Attached && len(c.files) > 0 {
				file, c.files = c.files[0], c.files[1:]
			}
			return m, file, err
		}
		if len(c.buffer) > maxMessage {
			return message{}, nil, errMessage
		}
		if err := c.read(); err != nil {
			return message{}, nil, err
		}
	}
}

func (c *channel) read() error {
	data := make([]byte, 4<<10)
	rights := make([]byte, 1<<10)
	n, m, _, _, err := c.conn.ReadMsgUnix(data, rights)
	if err != nil {
		return err
	}
	c.buffer = append(c.buffer, data[:n]...)
	if m == 0 {
		return nil
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:m])
	if err != nil {
		return os.NewSyscallError("recvmsg", err)
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials, say
		}
		for _, fd := range fds {
			c.files = append(c.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return nil
}

func (c *channel) close() error {
	if c == nil {
		return nil
	}
	return c.conn.Close()
}
