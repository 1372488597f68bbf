package reload

import (
	"context"
	"fmt"

	"github.com/cloudflare/tableflip"
)

// A parent is the process that handed over to this one.
type parent struct {
	flip    *tableflip.Upgrader
	channel *channel // nil: a program that uses tableflip itself
	hello   message
	output  output
	lead    chan struct{} // closed when this process is to lead
	again   bool          // once lead is closed: one more upgrade was asked for
	retired *successor    // supervised: who leads instead; of the goroutine that listens
	gone    chan struct{} // closed when it has ended
}

// greet reads the first message, which is there already, and listens for more.
func (p *parent) greet() error {
	if p.channel == nil {
		return nil
	}
	m, _, err := p.channel.receive()
	if err != nil {
		return fmt.Errorf("the old version: %w", err)
	}
	if m.Do != doHello || m.Version < 1 {
		return fmt.Errorf("the old version: %w: %q %d", errMessage, m.Do, m.Version)
	}
	p.hello = m
	return nil
}

// watch does what the parent says, and notices its end. It returns then, or with Close.
func (p *parent) watch(u *Upgrader) {
	ended, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer close(p.gone)
		_ = p.flip.WaitForParent(ended) // how it ended is its own affair
	}()
	if p.channel == nil {
		close(p.lead) // a program that uses tableflip itself says nothing
		select {
		case <-p.gone:
		case <-u.closing:
		}
		return
	}
	defer p.channel.close()
	for {
		m, file, err := p.channel.receive()
		if file != nil {
			_ = file.Close() // nobody sends a descriptor this way
		}
		if err != nil {
			break
		}
		switch m.Do {
		case doLead:
			p.doLead(m.Again)
		case doUpgrade:
			u.request()
		case doRetire:
			p.retired = &successor{gone: make(chan struct{})}
			u.retire(p.retired)
			_ = p.channel.send(message{Do: doRetire}, nil) // where this fails the loop ends
		case doUpgraded:
			u.upgraded(m)
		}
	}
	// It has ended, or this process has called Close. The output goes back before anything is written to the pipe, which
	// nobody reads now.
	p.output.restore()
	select {
	case <-u.closing:
		return
	default:
	}
	p.doLead(false)
	select {
	case <-p.gone:
	case <-u.closing:
	}
}

func (p *parent) doLead(again bool) {
	if p.retired != nil { // the one that led instead has ended
		close(p.retired.gone)
		p.retired = nil
		return
	}
	select {
	case <-p.lead:
	default:
		p.again = again
		close(p.lead)
	}
}
