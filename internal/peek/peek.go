// Package peek looks at what a stream socket has received without taking it, so that whoever gets the connection
// afterwards reads all of it from the socket itself, by read, splice or whatever.
package peek

// A Look is shown what the socket has received and nobody has read. It is called when there is something, or when the peer
// sends no more. Final says that there will not be more to see, since the peer has ended or maxBytes are there; then it has
// seen enough, whatever it says. What it is shown is overwritten later.
type Look func(received []byte, final bool) (enough bool)
