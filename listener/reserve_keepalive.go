package listener

import "net"

// keepAlive gives accepted connections the keep-alive of a ListenConfig, which package net takes over with no socket. With the
// usual settings there is nothing to do.
func keepAlive(c net.ListenConfig) Middleware {
	config := c.KeepAliveConfig
	switch {
	case config.Enable:
	case c.KeepAlive == 0:
		return nil
	case c.KeepAlive > 0:
		config = net.KeepAliveConfig{Enable: true, Idle: c.KeepAlive}
	}
	return func(ln net.Listener) net.Listener {
		if tcp, ok := ln.(*net.TCPListener); ok {
			return &keptAlive{tcp, config}
		}
		return ln
	}
}

type keptAlive struct {
	*net.TCPListener
	config net.KeepAliveConfig
}

// Accept is that of package net, up to the keep-alive.
func (l *keptAlive) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	if l.config.Enable {
		_ = conn.SetKeepAliveConfig(l.config) // as package net, which serves the connection whatever comes of it
	} else {
		_ = conn.SetKeepAlive(false)
	}
	return conn, nil
}

// Unwrap is the listener inside.
func (l *keptAlive) Unwrap() net.Listener { return l.TCPListener }
