// Package middleware has what servers put around a listener: limits, rates and address rules, deadlines, PROXY protocol,
// TLS, several protocols on one port, metrics and logs. Each works alone on any [net.Listener], and in the Middleware of a
// listener.Config.
//
// All middlewares have one form: a struct whose zero fields have a useful meaning, with a method Wrap that puts it around a
// listener. Those that have something to show or to change later, or that several listeners may share, are used by pointer:
//
//	open := &middleware.Track{}
//	cfg := listener.Config{Middleware: []listener.Middleware{
//		middleware.Recover{}.Wrap,
//		(&middleware.Log{}).Wrap,
//		middleware.Backoff{Logger: slog.Default()}.Wrap,
//		open.Wrap,
//		(&middleware.Limit{Max: 10_000}).Wrap,
//		(&middleware.LimitPerIP{Max: 100}).Wrap,
//		middleware.Deadline{Idle: 5 * time.Minute}.Wrap,
//		middleware.Deny{Prefixes: bad}.Wrap,
//	}}
//
// # Order
//
// The first is outermost, and the innermost is asked first about a connection. In the example an address that is denied
// takes no place in LimitPerIP, one that has too many connections takes none in Limit, and what was refused was never open
// for Track. A refusal undoes what those further in have counted: they see the connection as closed. Who watches (Log, and a
// [Hook] with Refused) is told of every refusal, wherever it stands.
//
// # What it costs
//
// However many there are, connections get one wrapper, and none where nothing needs to know when a connection is closed:
// Rate, Allow, Deny, KeepAlive, Backoff, Recover, and Log without Sample leave the bare [*net.TCPConn]. Middleware of another
// make between two of these does not change that, but it may hide what it wraps.
//
// The wrapper embeds the [*net.TCPConn] or [*net.UnixConn] and has all its methods; io.Copy to, from and between such
// connections uses sendfile and splice as package net does. The exceptions are Unix sockets with a Deadline, and from a Unix
// socket into a TCP connection of package net's own type: there the bytes take the way through the program. Other
// connections, such as those of a listener of one's own, are wrapped with the methods of [net.Conn] alone. NetConn, as of
// [*tls.Conn], gives the connection inside.
//
// A [*tls.Conn] whose connection inside has a wrapper is handed out as it is, so that net/http speaks HTTP/2. That is so with
// TLS of this package; where it is done by a listener of one's own, something that wraps connections, such as a Track, has
// to stand further in.
//
// # Ends
//
// After Close, Accept gives [net.ErrClosed] at once, whatever it was waiting for. Connections that were handed out
// stay. A connection that its user never closes keeps its place for ever.
package middleware
