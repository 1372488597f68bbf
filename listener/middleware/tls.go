package middleware

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"
)

// TLSConfig says how [NewTLS] makes connections secure.
type TLSConfig struct {
	// Files have the certificates. A client gets the first one that suits it, above all the name that it asks for (SNI);
	// the first of all where none does.
	Files []CertificateFiles

	// Config has all other settings. It is not changed. A panic in one of its functions refuses the connection where there is
	// a [Recover]. Without NextProtos, HTTP/2 and HTTP/1.1 are offered; for none, make
	// it empty and not nil. Certificates in it are tried after those of Files; what its GetCertificate gives comes before.
	// What its GetConfigForClient gives is used as it is: it can have [TLS.GetCertificate].
	Config *tls.Config

	// Check is how old what is known about Files may be when a handshake begins; then they are looked at again. Zero means
	// a second.
	Check time.Duration

	// Timeout is how long a handshake may take. Zero means 10 seconds.
	Timeout time.Duration

	// MaxPending is how many handshakes may go on at once. A client that is silent takes about 4 KiB of memory, and one that
	// is within a handshake about 32 KiB. With one more, the oldest is closed. Zero means 4096.
	MaxPending int

	// Lazy leaves the handshake to whoever gets the connection, with its first Read or Write, as [tls.NewListener] does.
	// Timeout and MaxPending mean nothing then.
	Lazy bool

	// Logger gets what became of new certificates: Info for those in use, Error for those that are not. Nil discards.
	Logger *slog.Logger
}

// TLS makes connections secure. Accept hands out a [*tls.Conn] after the handshake, which took place outside of Accept, so
// that a client that is slow or silent holds up nobody. [net/http.Server.Serve] speaks HTTP/2 on it.
//
// New certificates are used when their files have changed, without a restart; connections stay, and session tickets too. A
// certificate and a key that do not belong together, or cannot be read, change nothing, so they may be written one after
// another, or be exchanged as a directory.
//
//	secure, err := middleware.NewTLS(middleware.TLSConfig{Files: []middleware.CertificateFiles{{"cert.pem", "key.pem"}}})
//	cfg := listener.Config{Middleware: []listener.Middleware{secure.Wrap}}
//
// What Wrap gives has the methods Pending and SetDraining, as with [Proxy]. Middlewares further out know the connection as a *tls.Conn too, and do not hide it.
type TLS struct {
	settings     TLSConfig
	config       *tls.Config
	certificates *certificates
}

// NewTLS reads the certificates. An error is that of the first file that does not serve, or says that there is no certificate
// at all.
func NewTLS(c TLSConfig) (*TLS, error) {
	t := &TLS{settings: c}
	if t.settings.Logger == nil {
		t.settings.Logger = slog.New(slog.DiscardHandler)
	}
	if t.config = c.Config.Clone(); t.config == nil {
		t.config = &tls.Config{}
	}
	if t.config.NextProtos == nil {
		t.config.NextProtos = []string{"h2", "http/1.1"}
	}
	own := t.config.GetCertificate
	if len(c.Files) == 0 {
		if own == nil && len(t.config.Certificates) == 0 && t.config.GetConfigForClient == nil {
			return nil, errors.New("tls: there is no certificate; name its files in Files, or set one in Config")
		}
		return t, nil
	}
	var err error
	if t.certificates, err = loadCertificates(slices.Clone(c.Files), c.Check, t.settings.Logger); err != nil {
		return nil, err
	}
	inMemory := t.config.Certificates
	t.config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if own != nil {
			if certificate, err := own(hello); certificate != nil || err != nil {
				return certificate, err
			}
		}
		return t.certificates.choose(hello, inMemory), nil
	}
	// crypto/tls would ask for no other where the client names no server.
	t.config.Certificates = nil
	return t, nil
}

// GetCertificate is the certificate for a client, from Files: for a [tls.Config] of one's own. Without Files it gives nil.
func (t *TLS) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if t.certificates == nil {
		return nil, nil
	}
	return t.certificates.choose(hello, nil), nil
}

// Wrap puts TLS around a listener.
func (t *TLS) Wrap(ln net.Listener) net.Listener {
	if t.settings.Lazy {
		return &lazyTLS{listener: &listener{inner: ln, shared: newShared(ln)}, tls: t}
	}
	in := newIntake(t, ReasonTLS)
	in.maxBytes, in.slow = 1, true
	in.open(ln, orDefault(t.settings.Timeout, 10*time.Second), t.settings.MaxPending)
	return in
}

// secure makes a connection one of TLS. Inside is one with a core, to which middlewares further out attach, as they cannot
// wrap a *tls.Conn: net/http and others look for that type.
func (t *TLS) secure(conn net.Conn, since time.Time) *tls.Conn {
	conn, _ = withCore(conn, since)
	return tls.Server(conn, t.config)
}

// look waits for the first byte, since a goroutine within crypto/tls is larger.
func (t *TLS) look(_ *pending, received []byte, final bool) bool { return final || len(received) > 0 }

var (
	errLateHandshake = errors.New("tls: the handshake took too long")
	errPlainHTTP     = errors.New("tls: the client sent an HTTP request to an HTTPS server")
)

func (t *TLS) late(*pending) error { return errLateHandshake }

func (t *TLS) finish(p *pending) error {
	conn := t.secure(p.untouched(), p.since)
	var err error
	if p.in.stack.call(foreignPart, func() { err = conn.Handshake() }) {
		return panicRefusal
	}
	switch {
	case err == nil:
		p.out = conn
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	// As net/http does, whose part this is otherwise.
	if e := (tls.RecordHeaderError{}); errors.As(err, &e) && e.Conn != nil && looksLikeHTTP(e.RecordHeader) {
		_, _ = io.WriteString(e.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		return errPlainHTTP
	}
	return err
}

func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "PATCH", "DELET":
		return true
	}
	return false
}

// A lazyTLS leaves the handshake to the user of the connection.
type lazyTLS struct {
	*listener // without parts
	tls       *TLS
}

func (l *lazyTLS) Accept() (net.Conn, error) {
	conn, err := l.listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.tls.secure(conn, time.Now()), nil
}
