//go:build unix

package reload

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-go/berth/internal/descriptor"
)

// While a new version starts, what it writes goes through a pipe to this process, which passes it on and remembers the
// last lines: they tell why a start failed. The pipe must not outlive that: when this process ends, writing to it
// would kill the new one. So the new process gets, beside the end to write to, the end to read from and what was
// standard output before; when it leads, or its parent has died, it goes back to that, and passes on itself what others
// still write to the pipe (programs that it has started by then).

const (
	streamTarget = "target" // what the descriptor was before
	streamReader = "reader" // the end of the pipe to read from
)

// A stream is standard output or error of a process that starts, or both where they are one.
type stream struct {
	of             []int // 1, 2 or both
	target         *os.File
	reader, writer *os.File
}

// A capture is what a process that starts writes.
type capture struct {
	streams []stream
	tail    tail
	copying sync.WaitGroup
	copied  chan struct{} // closed when nothing is copied any more
}

// newCapture makes the pipes. A standard stream that cannot go through one goes to the new process as it is.
func newCapture() (*capture, error) {
	c := &capture{copied: make(chan struct{})}
	for i, target := range []*os.File{os.Stdout, os.Stderr} {
		info, err := target.Stat()
		if err != nil || descriptor.Nonblocking(int(target.Fd())) { // closed; or the new process could not go back to it
			continue
		}
		if len(c.streams) == 1 {
			if first, err := c.streams[0].target.Stat(); err == nil && os.SameFile(first, info) {
				c.streams[0].of = append(c.streams[0].of, i+1)
				continue
			}
		}
		reader, writer, err := os.Pipe()
		if err != nil {
			c.close()
			return nil, err
		}
		c.streams = append(c.streams, stream{[]int{i + 1}, target, reader, writer})
	}
	return c, nil
}

// files are what the new process needs to go back.
func (c *capture) files() ([]passed, error) {
	var files []passed
	for _, s := range c.streams {
		// Not the reader itself: exec would make it blocking for both.
		reader, err := descriptor.Duplicate(s.reader, "reader")
		if err != nil {
			closePassed(files)
			return nil, err
		}
		files = append(files, passed{label{Stream: streamReader, Of: s.of[0]}, reader})
		for _, of := range s.of {
			target, err := descriptor.Duplicate(s.target, "target")
			if err != nil {
				closePassed(files)
				return nil, err
			}
			files = append(files, passed{label{Stream: streamTarget, Of: of}, target})
		}
	}
	return files, nil
}

// of is what the new process has as its descriptor fd.
func (c *capture) of(fd int) *os.File {
	for _, s := range c.streams {
		for _, of := range s.of {
			if of == fd {
				return s.writer
			}
		}
	}
	return []*os.File{os.Stdin, os.Stdout, os.Stderr}[fd]
}

// start passes on what is written, once the new process has the pipes.
func (c *capture) start() {
	for _, s := range c.streams {
		_ = s.writer.Close() // the new process has it
		c.copying.Go(func() { _, _ = io.Copy(io.MultiWriter(&c.tail, lenient{s.target}), s.reader) })
	}
	go func() {
		c.copying.Wait()
		close(c.copied)
	}()
}

// leave stops reading. What is in the pipes is for the new process to pass on.
func (c *capture) leave() {
	for _, s := range c.streams {
		_ = s.reader.Close()
	}
	c.settle()
}

// settle waits for what is being passed on; not for ever: whoever reads the standard output may have stopped to.
func (c *capture) settle() {
	const patience = 200 * time.Millisecond
	select {
	case <-c.copied:
	case <-time.After(patience):
	}
}

// finish passes on what is left of a process that has ended. Something that it started may have the pipes open still.
func (c *capture) finish() {
	const patience = 100 * time.Millisecond
	for _, s := range c.streams {
		_ = s.reader.SetReadDeadline(time.Now().Add(patience))
	}
	c.settle()
	c.leave()
}

// close is for a process that did not start.
func (c *capture) close() {
	if c == nil {
		return
	}
	for _, s := range c.streams {
		_ = s.reader.Close()
		_ = s.writer.Close()
	}
}

// An output is the other side: how this process goes back to what standard output and error were before.
type output struct {
	targets map[int]*os.File
	readers map[int]*os.File
	once    sync.Once
}

func (o *output) add(l label, file *os.File) {
	if o.targets == nil {
		o.targets, o.readers = map[int]*os.File{}, map[int]*os.File{}
	}
	if l.Stream == streamTarget {
		o.targets[l.Of] = file
	} else {
		o.readers[l.Of] = file
	}
}

// restore goes back. What is in the pipes by then is passed on before it returns, so that lines stay in their order; it
// leaves a goroutine for each pipe that something else still writes to.
func (o *output) restore() {
	o.once.Do(func() {
		for fd, target := range o.targets {
			_ = descriptor.Redirect(fd, target) // where this fails, the pipe is passed on to itself at worst
			_ = target.Close()
		}
		for fd, reader := range o.readers {
			target := lenient{[]*os.File{os.Stdin, os.Stdout, os.Stderr}[fd]}
			_, _ = io.Copy(target, pending{reader})
			go func() {
				_, _ = io.Copy(target, reader)
				_ = reader.Close()
			}()
		}
	})
}

// A pending reader reads what is there, and ends where it would have to wait.
type pending struct{ pipe *os.File }

func (p pending) Read(b []byte) (n int, err error) {
	raw, err := p.pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	readErr := raw.Read(func(fd uintptr) (done bool) {
		n, err = 0, io.EOF
		if descriptor.Nonblocking(int(fd)) {
			n, err = syscall.Read(int(fd), b)
		}
		return true
	})
	if n <= 0 {
		return 0, io.EOF // empty, or nothing more will come
	}
	return n, readErr
}

// A lenient writer goes on where the one inside fails: whoever writes to the pipe must not be held up.
type lenient struct{ io.Writer }

func (w lenient) Write(p []byte) (int, error) {
	_, _ = w.Writer.Write(p)
	return len(p), nil
}

// A tail remembers the last lines that were written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const limit = 4 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if excess := len(t.text) - limit; excess > 0 {
		t.text = append(t.text[:0], t.text[excess:]...)
	}
	return len(p), nil
}

// lines are the last ones, without those that are empty.
func (t *tail) lines() []string {
	const limit = 20
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(t.text) {
		if text := strings.TrimRight(string(line), "\r\n"); text != "" {
			lines = append(lines, text)
		}
	}
	return lines[max(0, len(lines)-limit):]
}
