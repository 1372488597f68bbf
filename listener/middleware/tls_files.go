package middleware

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// CertificateFiles are a certificate, with those in between it and the root behind it, and its key, as PEM. Both may be in
// one file.
type CertificateFiles struct {
	Certificate, Key string
}

// certificates are those of files. They are looked at again when they are asked for, so nothing runs beside.
type certificates struct {
	check   time.Duration
	log     *slog.Logger
	since   time.Time
	next    atomic.Int64 // when to look, after since
	looking sync.Mutex
	pairs   []pair // guarded by looking
	current atomic.Pointer[[]*tls.Certificate]
}

// A pair is the files of one certificate, and what was in them.
type pair struct {
	CertificateFiles
	found       [2]os.FileInfo
	young       bool // they were written just before, and again so soon would not show in their times
	content     [2][]byte
	certificate *tls.Certificate
	broken      string // what is wrong with the files; the certificate is an older one
}

func loadCertificates(files []CertificateFiles, check time.Duration, log *slog.Logger) (*certificates, error) {
	if check <= 0 {
		check = time.Second
	}
	c := &certificates{check: check, log: log, since: time.Now(), pairs: make([]pair, len(files))}
	c.next.Store(int64(check))
	for i, f := range files {
		c.pairs[i].CertificateFiles = f
		if err := c.pairs[i].load(); err != nil {
			return nil, err
		}
	}
	c.publish()
	return c, nil
}

func (c *certificates) publish() {
	list := make([]*tls.Certificate, len(c.pairs))
	for i := range c.pairs {
		list[i] = c.pairs[i].certificate
	}
	c.current.Store(&list)
}

// choose gives the first certificate that suits a client, and the very first where none does.
func (c *certificates) choose(hello *tls.ClientHelloInfo, more []tls.Certificate) *tls.Certificate {
	c.refresh()
	list := *c.current.Load()
	for _, certificate := range list {
		if hello.SupportsCertificate(certificate) == nil {
			return certificate
		}
	}
	for i := range more {
		if hello.SupportsCertificate(&more[i]) == nil {
			return &more[i]
		}
	}
	return list[0]
}

// refresh looks at the files where it is time to. One caller does; the others do not wait for him.
func (c *certificates) refresh() {
	if int64(time.Since(c.since)) < c.next.Load() || !c.looking.TryLock() {
		return
	}
	defer c.looking.Unlock()
	changed := false
	for i := range c.pairs {
		changed = c.refreshPair(&c.pairs[i]) || changed
	}
	if changed {
		c.publish()
	}
	c.next.Store(int64(time.Since(c.since) + c.check))
}

func (c *certificates) refreshPair(p *pair) (changed bool) {
	if p.broken == "" && !p.young && p.unchanged() {
		return false
	}
	before, wasBroken := p.certificate, p.broken
	err := p.load()
	attrs := []slog.Attr{slog.String("certificate", p.Certificate), slog.String("key", p.Key)}
	switch {
	case err != nil:
		p.broken = err.Error()
		if p.broken != wasBroken {
			c.log.LogAttrs(context.Background(), slog.LevelError, "the new certificate is not used, the old one stays", append(attrs, slog.Any("error", err))...)
		}
		return false
	case p.certificate != before:
		c.log.LogAttrs(context.Background(), slog.LevelInfo, "a new certificate is in use", append(attrs, slog.Time("expires", p.certificate.Leaf.NotAfter))...)
	case wasBroken != "":
		c.log.LogAttrs(context.Background(), slog.LevelInfo, "the certificate is again the one in use", attrs...)
	}
	return p.certificate != before
}

// unchanged tells whether the files are those that were read.
func (p *pair) unchanged() bool {
	now, err := p.stat()
	if err != nil {
		return false
	}
	for i, was := range p.found {
		if !os.SameFile(was, now[i]) || !was.ModTime().Equal(now[i].ModTime()) || was.Size() != now[i].Size() {
			return false
		}
	}
	return true
}

func (p *pair) stat() (found [2]os.FileInfo, err error) {
	for i, name := range []string{p.Certificate, p.Key} {
		if found[i], err = os.Stat(name); err != nil {
			return found, err
		}
	}
	return found, nil
}

// load reads the files. Where they do not serve, all stays as it was.
func (p *pair) load() error {
	broken := func(err error) error {
		return fmt.Errorf("tls: certificate %s with key %s: %w", p.Certificate, p.Key, err)
	}
	// Before they are read: what is written while they are read then shows later.
	found, err := p.stat()
	if err != nil {
		return broken(err)
	}
	var content [2][]byte
	for i, name := range []string{p.Certificate, p.Key} {
		if content[i], err = os.ReadFile(name); err != nil {
			return broken(err)
		}
	}
	if p.certificate == nil || !bytes.Equal(content[0], p.content[0]) || !bytes.Equal(content[1], p.content[1]) {
		certificate, err := tls.X509KeyPair(content[0], content[1])
		if err != nil {
			return broken(err)
		}
		p.certificate, p.content = &certificate, content
	}
	const coarse = 2 * time.Second // the times of some file systems
	p.found, p.broken = found, ""
	p.young = time.Since(found[0].ModTime()) < coarse || time.Since(found[1].ModTime()) < coarse
	return nil
}
