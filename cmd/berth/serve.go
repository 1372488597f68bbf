package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/listener/health"
	"github.com/berth-go/berth/strategy"
)

const (
	tokenVariable = "BERTH_SERVE_TOKEN"
	leastToken    = 16 // characters
)

// serveAddress is where berth serve listens where nobody says where, and serveOthers where that is taken.
const serveAddress = "127.0.0.1:7460"

var serveOthers = strategy.Range{First: 7461, Last: 7469}

func newServe(c console) *cobra.Command {
	var asJSON bool
	var stateDir, address, tokenFile string
	var details bool
	var origins, hosts []string
	cmd := &cobra.Command{
		Use:   "serve [RANGE...]",
		Short: "Show the ports of this machine as a page, and as JSON for probes",
		Long: `Serve prints an address, and shows there who has which port: as a page to a browser, which follows what happens, and as
JSON to everybody else (/api/health/openapi.json describes it). It stops nobody, and changes nothing. It ends by SIGTERM or
Ctrl-C. Without a range it shows ` + defaultRanges + `; a question may be about any port.

It listens on ` + serveAddress + ` or, where that is taken, on one of the nine ports after it; or on a socket that systemd passes
under the name berth-serve. With --address it listens there or not at all.

Every user of this machine can ask a loopback address. Any other address needs a token of at least 16 characters, in the
file --token-file or in ` + tokenVariable + `. Where there is one, every request needs it but those of the probes /livez and
/readyz: as "Authorization: Bearer TOKEN", or as the password that a browser asks for. It goes over the wire as it is, so put a
server with TLS before it.

Without --details a process is told by its pid and name alone. Environments are never told.`,
		Example: "  berth serve\n  berth serve --details 1-9999\n  berth serve --address :7460 --token-file /etc/berth/token",
	}
	flags := cmd.Flags()
	flags.StringVar(&address, "address", "", "`host:port` to listen on (default: "+serveAddress+", or a port after it)")
	flags.StringVar(&tokenFile, "token-file", "", "`file` with the token that requests need (default: "+tokenVariable+", else none)")
	flags.BoolVar(&details, "details", false, "tell the user, executable, directory, arguments and unit of processes")
	flags.StringArrayVar(&origins, "origin", nil, "`origin` of web pages that may read the answers, such as https://status.example.com; may be repeated")
	flags.StringArrayVar(&hosts, "host", nil, "`name` under which a proxy on this machine asks; may be repeated")
	addStateDir(flags, &stateDir)
	addJSON(flags, &asJSON)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ranges, err := parsePortRanges(args)
		if err != nil {
			return err
		}
		token, err := c.token(tokenFile)
		if err != nil {
			return err
		}
		o := health.Options{
			Machine: true, Ranges: ranges, StateDir: c.stateDir(stateDir), Origins: origins, Hosts: hosts, Logger: c.logger(),
			Watch: true, Details: func(*http.Request) bool { return details },
		}
		c.warnOfRecords(o.StateDir)
		ln, err := c.listenForServe(cmd.Context(), address, o.StateDir, token != "")
		if err != nil {
			return err
		}
		monitor := health.Handler(o)
		at := serveJSON{URL: urlOf(ln.Addr()), Address: ln.Addr().String(), PID: os.Getpid(), Token: token != ""}
		if asJSON {
			err = c.writeJSON(at)
		} else {
			_, err = fmt.Fprintln(c.stdout, "berth serves", at.URL)
		}
		if err != nil {
			return errors.Join(err, ln.Close(), monitor.Close())
		}
		return serveMonitor(cmd.Context(), ln, monitor, token)
	}
	return cmd
}

type serveJSON struct {
	URL     string `json:"url"`
	Address string `json:"address"`
	PID     int    `json:"pid"`
	Token   bool   `json:"token"`
}

// token is the secret that requests need, "" none. It is no argument, which every user of the machine could read.
func (c console) token(file string) (string, error) {
	text, from := c.getenv(tokenVariable), tokenVariable
	if file != "" {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		text, from = string(content), file
		if strings.TrimSpace(text) == "" {
			text = " " // which is too short: no file means no token, and an empty one is an error
		}
	}
	if text == "" {
		return "", nil
	}
	token := strings.TrimSpace(text)
	if len(token) < leastToken {
		return "", fmt.Errorf("the token of %s has fewer than %d characters: write one with head -c 24 /dev/urandom | base64", from, leastToken)
	}
	return token, nil
}

// listenForServe listens on an address, "" the usual one. An address that other machines can reach needs a token.
func (c console) listenForServe(ctx context.Context, address, stateDir string, guarded bool) (*listener.Listener, error) {
	cfg := listener.Config{Name: "berth-serve", StateDir: stateDir, Logger: c.logger()}
	if address == "" {
		address = serveAddress
		cfg.Strategy = strategy.Staging(serveOthers)
	}
	ln, err := cfg.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// What a name stands for, and what systemd passed, is known now. Nothing has been accepted.
	if at, ok := ln.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() && !guarded {
		return nil, errors.Join(fmt.Errorf("%s can be reached from other machines: set %s or --token-file, or listen on 127.0.0.1", at, tokenVariable), ln.Close())
	}
	return ln, nil
}

// urlOf is what to tell a browser on this machine.
func urlOf(addr net.Addr) string {
	at, ok := addr.(*net.TCPAddr)
	switch {
	case !ok:
		return addr.Network() + ":" + addr.String()
	case at.IP.IsUnspecified():
		return fmt.Sprintf("http://localhost:%d/", at.Port)
	}
	return "http://" + at.String() + "/"
}

// serveMonitor serves until ctx ends.
func serveMonitor(ctx context.Context, ln net.Listener, monitor *health.Monitor, token string) error {
	const (
		header = 10 * time.Second // a request takes no longer
		answer = 30 * time.Second // nor its answer; a stream has a deadline of its own
		idle   = 2 * time.Minute
		grace  = 5 * time.Second
	)
	server := &http.Server{
		Handler: guard(token, monitor), ReadTimeout: header, WriteTimeout: answer, IdleTimeout: idle, MaxHeaderBytes: 16 << 10,
	}
	failed := make(chan error, 1) // after a stop nobody reads it
	go func() { failed <- server.Serve(ln) }()
	_ = activation.Ready() // a unit that does not hear of it fails, and says so
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	_ = activation.Stopping()
	monitor.Upgrade("stopping", 0, nil) // ends the streams
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if server.Shutdown(stopping) != nil {
		_ = server.Close() // who does not take the answer in that time goes without
	}
	return errors.Join(err, ln.Close(), monitor.Close())
}

// guard lets requests pass that have the token; with "" all. The probes, and what asks whether it may ask, need none.
func guard(token string, h http.Handler) http.Handler {
	if token == "" {
		return h
	}
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			_, given, _ = r.BasicAuth()
		}
		have := sha256.Sum256([]byte(given)) // of one length, whatever was given
		free := r.Method == http.MethodOptions || r.URL.Path == "/livez" || r.URL.Path == "/readyz"
		if free || subtle.ConstantTimeCompare(want[:], have[:]) == 1 {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="berth", charset="UTF-8"`)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintln(w, `{"error":"a token is needed: send it as Authorization: Bearer TOKEN, or as the password"}`)
	})
}
