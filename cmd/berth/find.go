package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/strategy"
)

func newFind(c console) *cobra.Command {
	var asJSON bool
	var network, host string
	cmd := &cobra.Command{
		Use:   "find [RANGE]",
		Short: "Print a port that can be bound",
		Long: `Find binds the ports of the range one after the other, prints the first that it gets, and frees it. Without a range it
tries ` + defaultRanges + `; 0 is any free port. Where none can be bound the exit status is 2.

Whoever else looks for a port may get the same one before you bind it. Berth run binds, and passes the socket.`,
		Example: "  berth find\n  PORT=$(berth find 8000-8100) ./server",
		Args:    cobra.MaximumNArgs(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&host, "host", "", "`address` or name to bind (default: all interfaces)")
	addNetwork(cmd, &network, "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6")
	addJSON(flags, &asJSON)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ranges, err := parseRanges(args)
		if err != nil {
			return err
		}
		found, err := findPort(cmd.Context(), network, host, ranges)
		if err != nil {
			return err
		}
		if asJSON {
			return c.writeJSON(found)
		}
		_, err = fmt.Fprintln(c.stdout, found.Port)
		return err
	}
	return cmd
}

type findJSON struct {
	Network string `json:"network"`
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// findPort binds one port after the other until it gets one, and frees that.
func findPort(ctx context.Context, network, host string, ranges []strategy.Range) (findJSON, error) {
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	var last error
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			if err := ctx.Err(); err != nil {
				return findJSON{}, err
			}
			at, err := bind(ctx, network, net.JoinHostPort(host, strconv.Itoa(port)))
			if err == nil {
				return findJSON{network, at.String(), int(at.Port())}, nil
			}
			if called := (*os.SyscallError)(nil); !errors.As(err, &called) || errors.Is(err, syscall.EADDRNOTAVAIL) {
				return findJSON{}, fmt.Errorf("%w: name another --host or --network", err) // no port would help
			}
			last = err
		}
	}
	texts := make([]string, len(ranges))
	for i, r := range ranges {
		texts[i] = r.String()
	}
	return findJSON{}, &statusError{statusNothing,
		fmt.Errorf("no port of %s can be bound (%w): name another range, or 0 for any port", strings.Join(texts, ","), last)}
}

// bind binds an address for a moment, and tells which it was.
func bind(ctx context.Context, network, address string) (netip.AddrPort, error) {
	var lc net.ListenConfig
	var socket io.Closer
	var addr net.Addr
	if strings.HasPrefix(network, "udp") {
		conn, err := lc.ListenPacket(ctx, network, address)
		if err != nil {
			return netip.AddrPort{}, err
		}
		socket, addr = conn, conn.LocalAddr()
	} else {
		ln, err := lc.Listen(ctx, network, address)
		if err != nil {
			return netip.AddrPort{}, err
		}
		socket, addr = ln, ln.Addr()
	}
	if err := socket.Close(); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(addr.String())
}
