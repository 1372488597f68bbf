package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/berth-go/berth/listener/health"
)

// An alert is what a person should know. Text is the field that Slack and Mattermost show.
type alert struct {
	Text    string    `json:"text"`
	Kind    string    `json:"kind"`
	Service string    `json:"service,omitempty"`
	Address string    `json:"address,omitempty"`
	PID     int       `json:"pid"`
	Time    time.Time `json:"time"`
}

// alerts posts alerts to a webhook, in their order. What happens does not wait for that: when the webhook is slow, they
// queue, and when there are too many, they are dropped. A nil *alerts posts none.
type alerts struct {
	url      string
	patience time.Duration      // how long one post may take, and all that are left at the end
	cancel   context.CancelFunc // of what is being posted
	done     chan struct{}      // no more are being posted

	mu     sync.Mutex // held to send on the queue, or to close it
	queue  chan alert
	closed bool
}

func startAlerts(url string, patience time.Duration) *alerts {
	if url == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &alerts{url: url, patience: patience, cancel: cancel, done: make(chan struct{}), queue: make(chan alert, 100)}
	go a.post(ctx)
	return a
}

// close posts what is left.
func (a *alerts) close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.closed = true
	close(a.queue)
	a.mu.Unlock()
	defer time.AfterFunc(a.patience, a.cancel).Stop()
	<-a.done
	a.cancel()
}

// event is for health.Options.OnEvent, which hears of the listeners, of upgrades, and of the ports of the machine.
func (a *alerts) event(e health.Event) {
	if e.Level < slog.LevelWarn {
		return
	}
	text := e.Text
	if e.Err != nil && e.Kind != health.Conflict { // which says no more than that
		text += ": " + e.Err.Error()
	}
	a.alert(alert{Text: text, Kind: string(e.Kind), Service: e.Name, Address: e.Address, Time: e.Time})
}

// alert queues one. It does not wait.
func (a *alerts) alert(one alert) {
	if a == nil {
		return
	}
	one.PID = os.Getpid()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	select {
	case a.queue <- one:
	default:
		slog.Warn("too many alerts, one is dropped", "text", one.Text)
	}
}

func (a *alerts) post(ctx context.Context) {
	defer close(a.done)
	for one := range a.queue {
		if err := a.deliver(ctx, one); err != nil {
			slog.Warn("an alert could not be posted", "text", one.Text, "error", err)
		}
	}
}

func (a *alerts) deliver(ctx context.Context, one alert) error {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	body, err := json.Marshal(one)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Close = true // they are rare
	response, err := http.DefaultClient.Do(request)
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return failed.Err // without the URL, which is a secret
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answers %s", response.Status)
	}
	return nil
}
