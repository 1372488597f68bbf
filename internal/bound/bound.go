// Package bound makes sockets that have an address and do nothing with it yet.
//
// Package net always listens on what it binds. A socket of this package is bound without SO_REUSEADDR, so that nobody else
// can have the address, whatever options he sets, and does not listen, so that connections to it are refused:
//
//	s, err := bound.Open(bound.Kind{Network: "tcp", V6: true})
//	...
//	err = s.Bind(netip.MustParseAddrPort("[::]:3000"))
//	...
//	err = s.Serve()             // now it is what net.Listen makes
//	file, err := s.File("web")  // for net.FileListener
//
// A Bind that fails leaves the socket as it was, so one serves for many tries, each of which is one system call.
package bound

// A Kind is what a socket is made for.
type Kind struct {
	Network   string // "tcp" or "udp"
	V6        bool   // an IPv6 socket
	V6Only    bool   // which leaves IPv4 alone
	Multipath bool   // MPTCP where the system has it, for "tcp"
}
