package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-go/berth/internal/losstest"
)

// idleExperiment is what a connection costs that does nothing: memory of a server that waits in Read on each, and what is
// allocated for one from Accept to Close.
var idleExperiment = experiment{name: "Idle", title: "Memory of a connection", table: func(ctx context.Context, l *lab) (finding, error) {
	const rounds = 3
	type memory struct{ bytes, allocs float64 }
	found := map[string][]memory{}
	var names []string
	for _, w := range idleWrappers {
		names = append(names, w.name)
	}
	for round := range rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			if err := ctx.Err(); err != nil {
				return finding{}, err
			}
			bytes, allocs, err := idle(role{Do: doIdle, By: name}, l.idle)
			if err != nil {
				return finding{}, fmt.Errorf("%s: %w", name, err)
			}
			found[name] = append(found[name], memory{bytes, allocs})
		}
	}
	middle := func(name string, of func(memory) float64) float64 {
		all := slices.SortedFunc(slices.Values(found[name]), func(a, b memory) int { return cmp.Compare(of(a), of(b)) })
		return of(all[len(all)/2])
	}
	bytes := func(m memory) float64 { return m.bytes }
	allocs := func(m memory) float64 { return m.allocs }
	bare, bareAllocs := middle(names[0], bytes), middle(names[0], allocs)
	var b strings.Builder
	fmt.Fprintf(&b, "%d idle connections, medians of %d rounds.\n\n", l.idle, rounds)
	b.WriteString("| | bytes a connection | ratio | allocations from Accept to Close | beyond bare | goal | met |\n")
	b.WriteString("| --- | ---: | ---: | ---: | ---: | --- | --- |\n")
	group := bars{text: "bytes of an idle connection"}
	for i, w := range idleWrappers {
		size, count := middle(w.name, bytes), middle(w.name, allocs)
		goal, met, kind := "", "", "peer"
		switch {
		case i == 0:
			kind = "bare"
		case strings.HasPrefix(w.name, "berth"):
			kind = "ours"
			goal, met = fmt.Sprintf("%d more allocations", w.more), "no"
			if count-bareAllocs < float64(w.more)+0.5 {
				met = "yes"
			}
		}
		fmt.Fprintf(&b, "| %s | %.0f | %.2f | %.1f | %+.1f | %s | %s |\n", w.text, size, size/bare, count, count-bareAllocs, goal, met)
		group.bars = append(group.bars, bar{strings.ReplaceAll(w.text, "`", ""), kind, size, fmt.Sprintf("%.0f", size)})
	}
	return finding{b.String(), []bars{group}}, nil
}}

// idleWrappers are those whose connections are weighed, bare first.
var idleWrappers = []idleWrapper{
	{bareWrapper, "bare net", 0},
	{wrapper{"berth-none", func(ln net.Listener) net.Listener { return around(ln, unwrappedMiddleware()...) }}, "berth, `Deny`, `Backoff` and `Recover`", 0},
	{wrapper{"berth-all", stackWrapper.wrap}, "berth, all that leave the bytes alone", 1},
	{limitWrapper, "netutil.LimitListener", 0},
}

type idleWrapper struct {
	wrapper
	text string
	more int // allocations beyond bare that ours may have
}

// idle has a child hold connections, and gives the memory that it takes for each, and the allocations for each of as many
// that were opened and closed before.
func idle(r role, n int) (bytes, allocs float64, err error) {
	p, err := spawn("", r)
	if err != nil {
		return 0, 0, err
	}
	defer p.end()
	a := &acceptor{remote: &unix.SockaddrInet4{Port: portOf(p.address), Addr: [4]byte{127, 0, 0, 1}}}
	var fds []int
	closeAll := func() error {
		var errs []error
		for _, fd := range fds {
			errs = append(errs, unix.Close(fd))
		}
		fds = fds[:0]
		return errors.Join(errs...)
	}
	open := func() error {
		buf := make([]byte, 1)
		for range n {
			fd, err := a.connect()
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			if _, err := unix.Read(fd, buf); err != nil { // the server has it
				return err
			}
		}
		return nil
	}
	ask := func() (mallocs float64, resident int, err error) {
		if _, err := fmt.Fprintln(p.input, len(fds)); err != nil {
			return 0, 0, err
		}
		line, err := p.output.ReadString('\n')
		if err != nil {
			return 0, 0, err
		}
		if _, err := fmt.Sscan(line, &mallocs); err != nil {
			return 0, 0, err
		}
		f, err := losstest.FootprintOf(p.pid())
		return mallocs, f.Resident, err
	}
	measure := func() error {
		// What grows once for any number of connections is there before it counts.
		if err := errors.Join(open(), closeAll()); err != nil {
			return err
		}
		first, _, err := ask()
		if err != nil {
			return err
		}
		if err := errors.Join(open(), closeAll()); err != nil {
			return err
		}
		second, before, err := ask()
		if err != nil {
			return err
		}
		if err := open(); err != nil {
			return err
		}
		_, after, err := ask()
		bytes, allocs = float64(after-before)/float64(n), (second-first)/float64(n)
		return err
	}
	err = measure()
	return bytes, allocs, errors.Join(err, closeAll())
}

// idle serves connections by a goroutine each, which greets by a byte and then reads. Asked, it waits until it has as many as it
// is told, and says how much it has allocated ever, once nothing is left that could be freed.
func (r role) idle() error {
	i := slices.IndexFunc(idleWrappers, func(w idleWrapper) bool { return w.name == r.By })
	if i < 0 {
		return fmt.Errorf("wrapper %q is unknown", r.By)
	}
	base, err := net.Listen("tcp", r.Address)
	if err != nil {
		return err
	}
	ln := idleWrappers[i].wrap(base)
	var open atomic.Int64
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			open.Add(1)
			go func() {
				defer open.Add(-1)
				buf := []byte{1}
				_, _ = conn.Write(buf) // who is gone shows in Read
				_, _ = conn.Read(buf)
				_ = conn.Close()
			}()
		}
	}()
	fmt.Println(ln.Addr())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		want, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			return err
		}
		for open.Load() != want {
			time.Sleep(ms)
		}
		for range 3 { // what a finalizer holds goes with the next
			runtime.GC()
		}
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(m.Mallocs)
	}
	return ln.Close()
}
