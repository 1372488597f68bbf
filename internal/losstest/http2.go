package losstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// HTTP2 has several requests at a time in flight on one connection, one of them an upload, until the server says that it ends.
func HTTP2(c *client) {
	conn, ok := c.dial("h2")
	if !ok {
		return
	}
	defer conn.Close()
	s := &session{client: c, conn: conn, frames: http2.NewFramer(conn, conn.in), open: map[uint32]*stream{}, next: 1}
	s.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.encoder = hpack.NewEncoder(&s.fields)
	_, err := io.WriteString(conn, http2.ClientPreface)
	if err == nil {
		err = s.frames.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	}
	if err != nil {
		c.lost(1, "preface", err)
		return
	}
	for !s.away {
		spoke, err := conn.listen(c.thinking())
		for ; spoke && err == nil; spoke = conn.in.Buffered() > 0 {
			err = s.read()
		}
		switch {
		case s.away || c.over():
			return
		case errors.Is(err, io.EOF):
			err = errClosed
			fallthrough
		case err != nil:
			c.closed(err)
			return
		}
		s.exchange()
	}
}

// A session is an HTTP/2 connection.
type session struct {
	*client
	conn    *conn
	frames  *http2.Framer
	encoder *hpack.Encoder
	fields  bytes.Buffer // into which it encodes

	next uint32
	open map[uint32]*stream
	away bool // the server has said that it ends
}

type stream struct {
	posted string
	status string
	pid    int
	got    []byte
}

// exchange sends some requests and reads until each is answered, told or lost.
func (s *session) exchange() {
	const requests = 4
	for i := range requests {
		posted := ""
		if i == 0 {
			posted = "what is posted"
		}
		// An error is one of the connection; reading gives its cause, which may be a GOAWAY.
		if err := s.send(posted); err != nil {
			break
		}
	}
	for len(s.open) > 0 {
		if err := s.read(); err != nil {
			s.away = true
			s.lost(len(s.open), "answer", err)
			return
		}
	}
	if err := s.conn.expect(); err != nil {
		s.away = true
		s.lost(1, "deadline", err)
	}
}

func (s *session) send(posted string) error {
	method := "GET"
	if posted != "" {
		method = "POST"
	}
	s.fields.Reset()
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"},
		{Name: ":path", Value: "/?" + waitParameter + "=" + s.Wait.String()},
	} {
		if err := s.encoder.WriteField(field); err != nil {
			return err
		}
	}
	id := s.next
	s.next += 2
	s.open[id] = &stream{posted: posted}
	err := s.frames.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: s.fields.Bytes(), EndHeaders: true, EndStream: posted == "",
	})
	if err == nil && posted != "" {
		err = s.frames.WriteData(id, true, []byte(posted))
	}
	return err
}

// read takes one frame. An error is one of the connection.
func (s *session) read() error {
	frame, err := s.frames.ReadFrame()
	if err != nil {
		return err
	}
	id := frame.Header().StreamID
	of := s.open[id]
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return s.frames.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return s.frames.WritePing(true, f.Data)
		}
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			return fmt.Errorf("GOAWAY: %v: %.80q", f.ErrCode, f.DebugData())
		}
		s.away = true
		for id := range s.open {
			if id > f.LastStreamID {
				delete(s.open, id)
				s.told(1)
			}
		}
	case *http2.RSTStreamFrame:
		if of == nil {
			return nil
		}
		delete(s.open, id)
		if s.away && f.ErrCode == http2.ErrCodeRefusedStream {
			s.told(1)
		} else {
			s.lost(1, "answer", fmt.Errorf("RST_STREAM: %v", f.ErrCode))
		}
	case *http2.MetaHeadersFrame:
		if of != nil {
			of.status = f.PseudoValue("status")
			for _, field := range f.RegularFields() {
				if field.Name == pidField {
					of.pid = pidOf(field.Value)
				}
			}
			s.end(id, f.StreamEnded())
		}
	case *http2.DataFrame:
		// The window of a stream is larger than any answer, that of the connection is not.
		if n := len(f.Data()); n > 0 {
			if err := s.frames.WriteWindowUpdate(0, uint32(n)); err != nil {
				return err
			}
		}
		if of != nil {
			of.got = append(of.got, f.Data()...)
			s.end(id, f.StreamEnded())
		}
	}
	return nil
}

func (s *session) end(id uint32, ended bool) {
	if !ended {
		return
	}
	of := s.open[id]
	delete(s.open, id)
	if err := right(pidOf(of.status), of.got, of.posted); err != nil {
		s.lost(1, "answer", err)
		return
	}
	s.answered(of.pid)
}
