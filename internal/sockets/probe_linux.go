package sockets

// Netlink tells why sock_diag(7) does not answer here, nil where it does. Some sandboxes allow no netlink; then the tables in
// /proc/net have to do.
func Netlink() error {
	return netlinkTable(query{network: "tcp", v4: true, first: 1, last: 1}, func(*Socket) {})
}
