package strategy

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// An Action is what to do after a failed bind: one of [Retry], [Rebind], [Reclaim], [Run] and [Fail].
type Action interface {
	action()
	String() string // one line, for logs
}

// Retry binds the same address again.
type Retry struct {
	After time.Duration // pause before it; 0: at once
}

// Rebind binds the first free one of other ports of the same host. Ports known to be busy are passed over without an
// attempt. The action failed when none of them could be bound; then the strategy is asked again.
type Rebind struct {
	Ports []Range // tried in order
}

// Reclaim stops every process that holds the address, or none of them: where one may not be stopped, stopping the
// others would free nothing. Then the same address is bound again.
type Reclaim struct {
	Allow func(Holder) bool // asked for each holder just before the signal; nil: [Holder].Ours
	Grace time.Duration     // between asking and killing; 0: 5 s; less than 0: kill at once
}

// Run calls a function, then binds the same address again; for example `docker stop web`. An error ends the attempt.
type Run struct {
	Name string // for logs and History
	Do   func(context.Context) error
}

// Fail gives up.
type Fail struct {
	Advice string // one sentence for the error; "": what follows from the diagnosis
}

func (Retry) action()   {}
func (Rebind) action()  {}
func (Reclaim) action() {}
func (Run) action()     {}
func (Fail) action()    {}

// String is one line for logs.
func (a Retry) String() string {
	if a.After <= 0 {
		return "retry"
	}
	return fmt.Sprintf("retry after %v", a.After)
}

// String is one line for logs.
func (a Rebind) String() string {
	texts := make([]string, len(a.Ports))
	for i, r := range a.Ports {
		texts[i] = r.String()
	}
	return "rebind to " + strings.Join(texts, ",")
}

// String is one line for logs.
func (a Reclaim) String() string { return "reclaim" }

// String is one line for logs.
func (a Run) String() string { return "run " + a.Name }

// String is one line for logs.
func (a Fail) String() string {
	if a.Advice == "" {
		return "fail"
	}
	return "fail: " + a.Advice
}
