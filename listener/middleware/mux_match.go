package middleware

import (
	"bytes"
	"strings"
)

// MatchTLS matches what begins as a TLS ClientHello.
func MatchTLS(received []byte) Verdict {
	// Type handshake, version 3.0 to 3.4 (that of the record), a length, and in it the type ClientHello.
	for i, b := range received[:min(len(received), 6)] {
		ok := true
		switch i {
		case 0:
			ok = b == 22
		case 1:
			ok = b == 3
		case 2:
			ok = b <= 4
		case 3:
			ok = b <= 64 // of 2^14 bytes at most
		case 5:
			ok = b == 1
		}
		if !ok {
			return NoMatch
		}
	}
	return enoughOf(received, 6)
}

// http2Preface is what a client of HTTP/2 sends first, RFC 9113 3.4.
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// MatchHTTP2 matches HTTP/2 without TLS, by clients that know beforehand that the server speaks it.
func MatchHTTP2(received []byte) Verdict { return matchPrefix(received, http2Preface) }

// MatchPrefix matches what begins with one of the prefixes.
func MatchPrefix(prefixes ...string) Matcher {
	prefixes = append([]string(nil), prefixes...)
	return func(received []byte) Verdict {
		best := NoMatch
		for _, prefix := range prefixes {
			switch matchPrefix(received, prefix) {
			case Match:
				return Match
			case NeedMore:
				best = NeedMore
			}
		}
		return best
	}
}

func matchPrefix(received []byte, prefix string) Verdict {
	n := min(len(received), len(prefix))
	if string(received[:n]) != prefix[:n] {
		return NoMatch
	}
	return enoughOf(received, len(prefix))
}

func enoughOf(received []byte, size int) Verdict {
	if len(received) < size {
		return NeedMore
	}
	return Match
}

// maxMethod is how long the name of a method may be.
const maxMethod = 64

// MatchHTTP1 matches requests of HTTP/1, with any method. A target that begins with a slash is enough; where it is another,
// as of CONNECT and OPTIONS and with proxies, the version behind it counts, since many protocols begin with a word and a
// space.
func MatchHTTP1(received []byte) Verdict {
	space := bytes.IndexByte(received[:min(len(received), maxMethod+1)], ' ')
	method := received
	if space >= 0 {
		method = received[:space]
	}
	switch {
	case len(method) > maxMethod || bytes.IndexFunc(method, isNoToken) >= 0 || space == 0:
		return NoMatch
	case space < 0:
		return NeedMore
	}
	target := received[space+1:]
	if len(target) == 0 {
		return NeedMore
	}
	if target[0] == '/' {
		return Match
	}
	line, _, complete := bytes.Cut(target, []byte("\n"))
	i := bytes.IndexByte(line, ' ')
	switch {
	case i == 0:
		return NoMatch
	case i < 0 && complete:
		return NoMatch
	case i < 0:
		return NeedMore
	}
	if verdict := matchPrefix(line[i+1:], "HTTP/1."); verdict != NeedMore || !complete {
		return verdict
	}
	return NoMatch
}

// isNoToken tells what cannot be in the name of a method, RFC 9110 5.6.2.
func isNoToken(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	return r > 126 || !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}
