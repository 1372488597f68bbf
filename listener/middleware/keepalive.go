package middleware

import (
	"net"
	"time"
)

// KeepAlive sets TCP keep-alive, by which the system finds out that the other side is gone, for each connection, also on
// sockets that another process has opened, which have forgotten what [net.ListenConfig] said. The zero value has the
// standard library's times. Connections that are not TCP are left alone. No connection is wrapped.
type KeepAlive struct {
	Off      bool          // no keep-alive
	Idle     time.Duration // silence before the first probe; zero means 15 s, negative the system's
	Interval time.Duration // between probes; zero means 15 s, negative the system's
	Count    int           // probes without an answer that end the connection; zero means 9, negative the system's
}

// Wrap puts it around a listener.
func (k KeepAlive) Wrap(ln net.Listener) net.Listener {
	config := net.KeepAliveConfig{Enable: !k.Off, Idle: k.Idle, Interval: k.Interval, Count: k.Count}
	return wrap(ln, part{admit: func(conn net.Conn, _ *shared) error {
		if tcp := tcpOf(conn); tcp != nil {
			_ = tcp.SetKeepAliveConfig(config) // fails where the client has reset it already, which the server will see
		}
		return nil
	}})
}

// tcpOf is the TCP connection inside, nil where there is none.
func tcpOf(conn net.Conn) *net.TCPConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
