// Package losstest counts what clients lose while a server is replaced. Its clients speak the protocols themselves on raw
// connections and never try again, so that no retry hides a loss. It is for tests and benchmarks.
//
// Lost is:
//
//   - a connection that is refused, or ends in its TLS handshake;
//   - a request that was written, also in part, and not answered in full;
//   - a connection that the server closed or reset without having said so before: HTTP/1 by `Connection: close` in an answer,
//     HTTP/2 by GOAWAY. That nobody was asking anything at that moment is no excuse: the next request would have been lost;
//   - a datagram without an answer.
//
// Told is not lost: a request that the server has refused, in the words of its protocol, before it did anything with it. The client
// knows that and may ask again. Such are the requests of a pipeline after an answer with `Connection: close` (RFC 9112,
// 9.3.2), and the streams above the last one that a GOAWAY names (RFC 9113, 6.8), which come about where both cross on
// their way. They are counted apart, and the client goes on with another connection.
package losstest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// patience is how long a client waits for an answer before it is lost.
const patience = 30 * time.Second

// A Mix is clients that do the same.
type Mix struct {
	Name             string // of the result
	Client           Client // what each does
	Network, Address string
	TLS              bool          // HTTP/1 in TLS; HTTP/2 always is
	Clients          int           // how many
	Think            time.Duration // pause of a client before a request: anything up to this
	Wait             time.Duration // how long the server lets the rest of an answer wait; 0: not at all
}

// A Client does one thing, over and over: [KeepAlive] and so on.
type Client func(*client)

// A Result is what became of a mix.
type Result struct {
	Name     string
	Answered int         // requests answered in full
	Told     int         // requests that the server refused, and said so
	Lost     int         // see the package
	Closed   int         // of Lost: connections that ended when nothing was asked on them
	Reasons  []string    // of the first losses
	PIDs     map[int]int // requests that each process answered
}

func (r Result) String() string {
	text := fmt.Sprintf("%s: %d answered by %d processes, %d told to ask again, %d lost", r.Name, r.Answered, len(r.PIDs), r.Told, r.Lost)
	if r.Closed > 0 {
		text += fmt.Sprintf(", %d of them idle connections", r.Closed)
	}
	for _, reason := range r.Reasons {
		text += "\n\t" + reason
	}
	return text
}

// Results are those of all mixes.
type Results []Result

// Sum is the results of all mixes as one, without name, reasons and processes.
func (r Results) Sum() (sum Result) {
	for _, mix := range r {
		sum.Answered += mix.Answered
		sum.Told += mix.Told
		sum.Lost += mix.Lost
		sum.Closed += mix.Closed
	}
	return sum
}

func (r Results) String() string {
	var lines []string
	for _, mix := range r {
		lines = append(lines, mix.String())
	}
	return strings.Join(lines, "\n")
}

// A Load is clients at work.
type Load struct {
	cancel  context.CancelFunc
	clients sync.WaitGroup
	tallies []*tally
}

// Start lets all clients begin.
func Start(mixes ...Mix) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{cancel: cancel}
	for _, mix := range mixes {
		t := &tally{result: Result{Name: mix.Name, PIDs: map[int]int{}}}
		l.tallies = append(l.tallies, t)
		for range mix.Clients {
			l.clients.Go(func() {
				c := &client{Mix: mix, tally: t, ctx: ctx}
				for !c.over() {
					c.Client(c)
				}
			})
		}
	}
	return l
}

// Stop lets each client finish its request, and returns what all of them have seen.
func (l *Load) Stop() Results {
	l.cancel()
	l.clients.Wait()
	return l.Results()
}

// Results are those up to now.
func (l *Load) Results() Results {
	var all Results
	for _, t := range l.tallies {
		t.mu.Lock()
		r := t.result
		r.PIDs, r.Reasons = maps.Clone(r.PIDs), slices.Clone(r.Reasons)
		t.mu.Unlock()
		all = append(all, r)
	}
	return all
}

// A tally is what the clients of a mix count together.
type tally struct {
	mu     sync.Mutex
	result Result
}

func (t *tally) answered(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Answered++
	t.result.PIDs[pid]++
}

func (t *tally) told(requests int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Told += requests
}

func (t *tally) lose(requests, closed int, reason string) {
	const enough = 5
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Lost += requests + closed
	t.result.Closed += closed
	if len(t.result.Reasons) < enough {
		t.result.Reasons = append(t.result.Reasons, reason)
	}
}

// A client is one of a mix.
type client struct {
	Mix
	*tally
	ctx context.Context // ends when it is to stop
}

func (c *client) over() bool { return c.ctx.Err() != nil }

// lost counts losses.
func (c *client) lost(requests int, during string, err error) {
	c.lose(requests, 0, describe(during, err))
	c.calm()
}

// closed counts a connection on which nothing was asked.
func (c *client) closed(err error) {
	c.lose(0, 1, describe("idle", err))
	c.calm()
}

func describe(during string, err error) string {
	return fmt.Sprintf("%s: %s: %v", time.Now().Format("15:04:05.000"), during, err)
}

// calm keeps a client that has lost something from asking again at once: where nobody listens any more that would never end.
func (c *client) calm() {
	select {
	case <-time.After(10 * time.Millisecond):
	case <-c.ctx.Done():
	}
}

func (c *client) thinking() time.Duration {
	if c.Think <= 0 {
		return 0
	}
	return rand.N(c.Think)
}

// A conn is a connection of a client.
type conn struct {
	net.Conn
	in *bufio.Reader
}

// dial opens a connection, or counts a loss.
func (c *client) dial(protocols ...string) (*conn, bool) {
	dialer := net.Dialer{Timeout: patience}
	raw, err := dialer.Dial(c.Network, c.Address)
	if err != nil {
		c.lost(1, "dial", err)
		return nil, false
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		// Thousands of ports that stay in TIME_WAIT for a minute would disturb whatever runs beside it. A client closes when
		// it has read all that it will, so what a reset could take away is nothing.
		_ = tcp.SetLinger(0) // without it only that is lost
	}
	// One deadline for all that is written: after one that has passed, a TLS connection could not be written to any more.
	err = raw.SetDeadline(time.Now().Add(patience))
	if err == nil && (c.TLS || len(protocols) > 0) {
		secure := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
		raw, err = secure, secure.Handshake()
	}
	if err != nil {
		_ = raw.Close()
		c.lost(1, "handshake", err)
		return nil, false
	}
	return &conn{raw, bufio.NewReader(raw)}, true
}

var (
	errClosed = errors.New("the server closed the connection and had not said that it would")
	errSpoke  = errors.New("the server spoke without being asked")
)

// rest waits, and fails where the server closes the connection meanwhile, or says something.
func (c *conn) rest(pause time.Duration) error {
	spoke, err := c.listen(pause)
	switch {
	case errors.Is(err, io.EOF):
		return errClosed
	case err != nil:
		return err
	case spoke:
		return errSpoke
	}
	return nil
}

// listen waits until the server says something, at most that long.
func (c *conn) listen(pause time.Duration) (spoke bool, err error) {
	if pause <= 0 {
		return c.in.Buffered() > 0, nil
	}
	if err := c.SetReadDeadline(time.Now().Add(pause)); err != nil {
		return false, err
	}
	_, err = c.in.Peek(1)
	if spoke = err == nil; errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return spoke, errors.Join(err, c.expect())
}

// expect gives the next exchange its time.
func (c *conn) expect() error { return c.SetDeadline(time.Now().Add(patience)) }
