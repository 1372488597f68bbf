package main

import (
	"errors"
	"io"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
	"github.com/soheilhy/cmux"

	"github.com/berth-go/berth/listener/middleware"
)

// frontDoorExperiment is the price of those who look at the first bytes of a connection: the client sends them at once.
var frontDoorExperiment = experiment{name: "FrontDoor", title: "A connection whose first bytes are looked at", prepare: func(l *lab) ([]row, error) {
	const (
		request = "GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n"
		header  = "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n"
	)
	var failed error
	by := func(name, sent string, seen int, wrap func(net.Listener) net.Listener) contestant {
		a, err := l.accept(wrapper{name, wrap}, func(conn net.Conn) error {
			if _, err := io.ReadFull(conn, make([]byte, seen)); err != nil {
				return err
			}
			_, err := conn.Write([]byte{1})
			return err
		})
		failed = errors.Join(failed, err)
		return contestant{name, timed(func() error { return a.exchange([]byte(sent)) })}
	}
	rows := []row{
		{
			name: "do=mux", text: "`Mux`, HTTP/1 beside TLS", goal: timesPeer(1.0),
			ours: by("berth", request, len(request), muxed), bare: by("net", request, len(request), bareWrapper.wrap),
			peers: []contestant{by("cmux", request, len(request), cmuxed)},
		},
		{
			name: "do=proxy", text: "`Proxy`, a header of version 1", goal: timesPeer(1.0),
			ours: by("berth", header+request, len(request), middleware.Proxy{Trusted: middleware.NewPrefixes(netip.MustParsePrefix(loopback + "/32"))}.Wrap),
			bare: by("net", header+request, len(header+request), bareWrapper.wrap),
			peers: []contestant{by("go-proxyproto", header+request, len(request), func(ln net.Listener) net.Listener {
				return &proxyproto.Listener{Listener: ln}
			})},
		},
	}
	return rows, failed
}}

// member is one listener of several on a port, whose Close closes all.
type member struct {
	net.Listener
	whole io.Closer
}

func (m member) Close() error { return m.whole.Close() }

func muxed(ln net.Listener) net.Listener {
	mux := &middleware.Mux{}
	mux.Match(middleware.MatchTLS)
	http := mux.Match(middleware.MatchHTTP1)
	return member{http, mux.Wrap(ln)}
}

func cmuxed(ln net.Listener) net.Listener {
	mux := cmux.New(ln)
	mux.Match(cmux.TLS())
	http := mux.Match(cmux.HTTP1())
	go func() { _ = mux.Serve() }() // ends with the listener
	return member{http, closeBoth{mux, ln}}
}

type closeBoth struct {
	mux cmux.CMux
	ln  net.Listener
}

func (c closeBoth) Close() error {
	c.mux.Close()
	return c.ln.Close()
}
