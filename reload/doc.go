// Package reload replaces a running server by its next version, and no client notices.
//
//	func main() {
//		ctx := context.Background()
//		upgrader, err := reload.New(reload.Config{})
//		if err != nil && !errors.Is(err, errors.ErrUnsupported) { // without, a nil upgrader serves
//			log.Fatal(err)
//		}
//		config := listener.Config{Sources: []listener.Source{upgrader}}
//		ln, err := config.Listen(ctx, "tcp", ":8080")
//		if err != nil {
//			log.Fatal(err)
//		}
//		if err := upgrader.Serve(ctx, &http.Server{Handler: handler}, ln); err != nil {
//			log.Fatal(err)
//		}
//	}
//
// `kill -HUP` starts the program anew, as it is then on disk. The new process gets the sockets of the old one, and says when it
// is ready. Only then the old one stops accepting; it tells its clients to come again, finishes what they have asked for,
// and ends. When the new one fails before, the old one goes on, and says why.
//
// # What is handed on
//
// Sockets are known by what they were asked for: network, address and name. A service that asked for port 3000 and had to
// move to 3001 stays there. What the new version does not ask for is closed, what it newly asks for is bound. With
// package listener all sockets of a group (listener.Config.ListenGroup) are handed on, and locks and records go with them, so
// that at each instant they name the process in charge; see [Upgrader.OnCharge] for what else only one process may do.
//
// # Under systemd
//
// Type=notify, NotifyAccess=main and ExecReload=/bin/kill -HUP $MAINPID is all that a unit needs; sockets may come from a socket
// unit. Sources: []listener.Source{upgrader, set} with the set of activation.FromEnv asks the old version first and then
// systemd.
//
// # In a terminal, an editor, a container
//
// An upgrade ends the process that was started first. Where somebody waits for that, as a shell does, or a container whose
// process 1 it is, [Supervise] stays in the foreground.
//
// # Limits
//
// Upgrades need descriptors that survive an exec, which Windows has not: there [New] gives errors.ErrUnsupported, and the
// nil [Upgrader] serves without them. A process has one Upgrader. Datagrams go to whichever version reads first, so
// a program stops reading a packet socket when [Upgrader.Done] is closed. Connections are not moved: one that the old
// version has stays with it until it ends, or until Config.Drain.
package reload
