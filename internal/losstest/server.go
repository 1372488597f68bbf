package losstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	pidHeader     = "Server-Pid"
	pidField      = "server-pid" // the same in HTTP/2
	waitParameter = "wait"
	echo          = "echo" // the protocol to which Hijack changes
	greeting      = "the answer has two halves"
)

// Handler is what the server has to do: it sends back what is posted, else it has an answer of its own. The second half of it
// comes after the time that the request asks for. Every answer names the process.
func Handler() http.Handler {
	pid := strconv.Itoa(os.Getpid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		posted, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has gone
		}
		w.Header().Set(pidHeader, pid)
		if r.Header.Get("Upgrade") == echo {
			hijack(w)
			return
		}
		answer := expected(string(posted))
		half := len(answer) / 2
		if wait, _ := time.ParseDuration(r.FormValue(waitParameter)); wait > 0 {
			_, _ = io.WriteString(w, answer[:half]) // where it fails, so does what follows
			_ = http.NewResponseController(w).Flush()
			time.Sleep(wait)
			answer = answer[half:]
		}
		_, _ = io.WriteString(w, answer)
	})
}

// PIDOf is the process that gave an answer, by its header; 0 where that is nobody of ours.
func PIDOf(answer http.Header) int { return pidOf(answer.Get(pidHeader)) }

func expected(posted string) string {
	if posted != "" {
		return posted
	}
	return greeting
}

// hijack sends back what comes, until the client closes.
func hijack(w http.ResponseWriter) {
	conn, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	var head strings.Builder
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + echo + "\r\n")
	_ = w.Header().Write(&head) // a strings.Builder does not fail
	if _, err := io.WriteString(conn, head.String()+"\r\n"); err == nil {
		_, _ = io.Copy(conn, both.Reader)
	}
}

// ServerTLS is a server's configuration for HTTP/1 and HTTP/2, with a certificate that nobody signed.
func ServerTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}, nil
}
