package losstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// KeepAlive asks again and again on one connection, until the server says that it ends.
func KeepAlive(c *client) {
	c.visit(func(conn *conn) (again bool) {
		if err := conn.rest(c.thinking()); err != nil {
			c.closed(err)
			return false
		}
		if c.over() {
			return false
		}
		_, err := io.WriteString(conn, c.request("GET", ""))
		if err != nil {
			c.lost(1, "write", err)
			return false
		}
		return c.answer(conn, "")
	})
}

// NewConnection opens a connection for each request. Every other asks a moment later than it connects, as a browser's spare ones do.
func NewConnection(c *client) {
	late := false
	for !c.over() {
		c.pause()
		c.visit(func(conn *conn) (again bool) {
			if late = !late; late {
				if err := conn.rest(c.thinking()); err != nil {
					c.closed(err)
					return false
				}
			}
			if _, err := io.WriteString(conn, c.request("GET", "")); err != nil {
				c.lost(1, "write", err)
				return false
			}
			c.answer(conn, "")
			return false
		})
	}
}

// Upload posts what the server sends back, in pieces with a pause before each. It keeps its connection.
func Upload(c *client) {
	const pieces = 4
	piece := strings.Repeat("0123456789abcdef", 64)
	body := strings.Repeat(piece, pieces)
	c.visit(func(conn *conn) (again bool) {
		_, err := io.WriteString(conn, c.request("POST", fmt.Sprintf("Content-Length: %d\r\n", len(body))))
		for i := 0; i < pieces && err == nil; i++ {
			if err = conn.rest(c.thinking()); err == nil {
				_, err = io.WriteString(conn, piece)
			}
		}
		if err != nil {
			c.lost(1, "upload", err)
			return false
		}
		return c.answer(conn, body) && !c.over()
	})
}

// Pipeline sends three requests at once, and reads their answers then.
func Pipeline(c *client) {
	const requests = 3
	c.visit(func(conn *conn) (again bool) {
		if err := conn.rest(c.thinking()); err != nil {
			c.closed(err)
			return false
		}
		if _, err := io.WriteString(conn, strings.Repeat(c.request("GET", ""), requests)); err != nil {
			c.lost(requests, "write", err)
			return false
		}
		for i := range requests {
			if !c.answer(conn, "") {
				c.told(requests - i - 1)
				return false
			}
		}
		return !c.over()
	})
}

// Hijack has the server change to another protocol, in which it says a few lines, each sent back. Then it closes.
func Hijack(c *client) {
	c.pause()
	c.visit(func(conn *conn) (again bool) {
		_, err := io.WriteString(conn, c.request("GET", "Connection: Upgrade\r\nUpgrade: "+echo+"\r\n"))
		if err != nil {
			c.lost(1, "write", err)
			return false
		}
		response, err := http.ReadResponse(conn.in, nil)
		if err == nil && response.StatusCode != http.StatusSwitchingProtocols {
			err = errors.New(response.Status)
		}
		if err != nil {
			c.lost(1, "upgrade", err)
			return false
		}
		for i := range 3 {
			err := conn.rest(c.thinking())
			line := fmt.Sprintln("line", i)
			if err == nil {
				_, err = io.WriteString(conn, line)
			}
			var got string
			if err == nil {
				got, err = conn.in.ReadString('\n')
			}
			if err == nil && got != line {
				err = fmt.Errorf("%q came back as %q", line, got)
			}
			if err != nil {
				c.lost(1, "upgraded connection", err)
				return false
			}
		}
		c.answered(PIDOf(response.Header))
		return false
	})
}

// visit opens a connection and closes it when do is done with it.
func (c *client) visit(do func(*conn) (again bool)) {
	conn, ok := c.dial()
	if !ok {
		return
	}
	defer conn.Close()
	for do(conn) {
		if err := conn.expect(); err != nil {
			c.lost(1, "deadline", err)
			return
		}
	}
}

func (c *client) pause() {
	select {
	case <-time.After(c.thinking()):
	case <-c.ctx.Done():
	}
}

func (c *client) request(method, fields string) string {
	return method + " /?" + waitParameter + "=" + c.Wait.String() + " HTTP/1.1\r\nHost: localhost\r\n" + fields + "\r\n"
}

// answer reads the answer to a request that was sent, and counts it. It tells whether the connection goes on; where it does
// not, the server has said so or the request is lost.
func (c *client) answer(conn *conn, body string) (more bool) {
	response, err := http.ReadResponse(conn.in, nil)
	var got []byte
	if err == nil {
		got, err = io.ReadAll(response.Body)
	}
	if err != nil {
		c.lost(1, "answer", err)
		return false
	}
	if err := right(response.StatusCode, got, body); err != nil {
		c.lost(1, "answer", err)
		return false
	}
	c.answered(PIDOf(response.Header))
	return !response.Close
}

// right tells whether an answer is what Handler gives.
func right(status int, got []byte, posted string) error {
	if status != http.StatusOK {
		return fmt.Errorf("status %d: %.80q", status, got)
	}
	if want := expected(posted); !bytes.Equal(got, []byte(want)) {
		return fmt.Errorf("%d bytes that were not asked for: %.80q", len(got), got)
	}
	return nil
}

func pidOf(text string) int {
	pid, _ := strconv.Atoi(text) // 0: nobody of ours
	return pid
}
