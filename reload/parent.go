package reload

import (
	"context"
	"fmt"
	"os"

	"github.com/cloudflare/tableflip"

	"github.com/berth-go/berth/internal/proc"
)

// testify says to the version before that this one leads. The end of this process says that it does no more.
func (p *parent) testify() {
	if p.witness != nil {
		_, _ = p.witness.Write([]byte{1}) // whoever listened may have ended
	}
}

// A parent is the process that handed over to this one.
type parent struct {
	flip    *tableflip.Upgrader
	channel *channel // nil: a program that uses tableflip itself
	hello   message
	output  output
	lead    chan struct{} // closed when this process is to lead
	orphan  chan struct{} // closed when this process is never to lead
	gone    chan struct{} // closed when it has ended, and all that follows from it is settled

	// Of the goroutine that watches:
	told    bool         // to lead
	old     *proc.Handle // supervised: who led when this process was started; nil: nobody
	next    *heir        // supervised: who leads instead, or is about to
	retired bool         // next leads

	witness *os.File // supervised: on which this process says to old that it leads; nil: nobody wants to know
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
	if m.PID > 0 {
		p.old, _ = proc.Open(m.PID) // where it fails, it has ended
	}
	return nil
}

// watch does what the parent says, and notices its end. It returns then, or with Close.
func (p *parent) watch(u *Upgrader) {
	waiting, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.flip.WaitForParent(waiting) // how it ended is its own affair
	}()
	if p.channel == nil {
		close(p.lead) // a program that uses tableflip itself says nothing
	} else {
		if p.hello.Supervised {
			go u.pruneSupervised()
		}
		p.listen(u)
		defer p.channel.close()
		// The output goes back before anything is written to the pipe, which nobody reads now.
		p.output.restore()
	}
	select {
	case <-u.closing:
		return
	default:
	}
	if p.channel != nil {
		p.bereaved(u)
	}
	select {
	case <-ended:
		close(p.gone)
	case <-u.closing:
	}
}

// listen does what the parent says, until it has ended or this process has called Close.
func (p *parent) listen(u *Upgrader) {
	for {
		m, file, err := p.channel.receive()
		if err != nil {
			return
		}
		switch m.Do {
		case doLead:
			if p.next == nil {
				p.doLead()
				continue
			}
			p.next.close() // it has failed
			p.next = nil
			u.takeBack()
			_ = p.channel.send(message{Do: doLead}, nil)
		case doUpgrade:
			u.request()
		case doYield:
			p.next = &heir{&successor{pid: m.PID, gone: make(chan struct{})}, file}
			u.charge.leave()
			u.hold(true)
			u.faults.reach("yields")
			_ = p.channel.send(m, nil) // where this fails the loop ends
			u.faults.reach("yielded")
		case doRetire:
			if p.next != nil && !p.retired {
				p.retired = true
				u.retire(p.next.successor)
			}
		case doUpgraded:
			u.upgraded(m)
		}
	}
}

// bereaved decides who leads when the parent has ended. Under a supervisor that may be another than this process.
func (p *parent) bereaved(u *Upgrader) {
	switch {
	case p.next != nil && !p.retired && !p.next.leads():
		p.next.close()
		p.next = nil
		u.takeBack()
	case p.next != nil:
		if !p.retired {
			p.retired = true
			u.retire(p.next.successor)
		}
		go p.next.follow()
	case !p.told && p.old != nil && lives(p.old):
		_ = p.witness.Close()
		close(p.orphan)
	default:
		p.doLead()
	}
}

// lives tells whether a process does that may have been killed together with another one.
func lives(h *proc.Handle) bool {
	ctx, cancel := context.WithTimeout(context.Background(), together)
	defer cancel()
	return h.Wait(ctx) != nil
}

func (p *parent) doLead() {
	if !p.told {
		p.told = true
		if p.old != nil {
			_ = p.old.Close()
		}
		close(p.lead)
	}
}
