package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"
)

// stream sends events until the client goes, is too slow, or the service is over. All streams read the same history, so
// one that waits has no buffer.
func (m *Monitor) stream(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	_, turned := m.service.state() // asked before, so that none comes too late to hear of the end
	if why := m.admit(); why != "" {
		header.Set("Retry-After", "2")
		m.fail(w, http.StatusServiceUnavailable, why)
		return
	}
	defer m.leave()
	header.Set("Content-Type", "text/event-stream")
	header.Set("X-Accel-Buffering", "no") // nginx would hold them back
	if r.ProtoMajor == 1 {
		// Who asks again after an upgrade is to come by another connection: the new version has it.
		header.Set("Connection", "close")
	}
	if r.Method == http.MethodHead {
		return
	}
	control := http.NewResponseController(w)
	send := func(text []byte) bool {
		_ = control.SetWriteDeadline(time.Now().Add(m.patience)) // where it cannot be set the client's connection is not ours to end
		_, err := w.Write(text)
		return err == nil && control.Flush() == nil
	}

	hello, err := json.Marshal(helloJSON{PID: os.Getpid(), Interval: m.options.Interval.Seconds()})
	if err != nil {
		panic(err) // numbers
	}
	if !send(fmt.Appendf(nil, "retry: 1000\nevent: hello\ndata: %s\n\n", hello)) {
		return
	}
	details := m.details(r)
	ticks := time.NewTicker(m.heartbeat)
	defer ticks.Stop()
	number, fresh, over := m.events.seen(r.Header.Get("Last-Event-ID")), true, false
	for {
		messages, last, lost, more := m.events.after(number, details)
		if lost && !fresh {
			return // it is slower than what happens; when it asks again it gets what is remembered
		}
		for _, text := range messages {
			if !send(text) {
				return
			}
		}
		number, fresh = last, false
		if over {
			return
		}
		select {
		case <-more:
		case <-ticks.C:
			if !send([]byte(":\n\n")) {
				return
			}
		case <-turned:
			over = true // what has been told of it by now is sent still
		case <-r.Context().Done():
			return
		}
	}
}

// admit counts a stream in, or says why not.
func (m *Monitor) admit() (refusal string) {
	if current, _ := m.service.state(); current.over() {
		return "the process is " + string(current) + ": ask again, and the one that follows on it answers"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return "the handler is closed"
	case m.streams >= m.options.Streams:
		return fmt.Sprintf("%d streams are open, which is as many as may be: close one, or raise Options.Streams", m.streams)
	}
	m.streams++
	m.watchMore()
	return ""
}

func (m *Monitor) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.streams--
	m.watchLess()
}
