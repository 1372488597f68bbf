package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/berth-go/berth/internal/printable"
	"github.com/berth-go/berth/listener/inspect"
)

func newHealth(c console) *cobra.Command {
	var asJSON bool
	var network, stateDir string
	cmd := &cobra.Command{
		Use:   "health PORT...",
		Short: "Tell whether a port is served as it should be, and what to do if not",
		Long: `Health says of each port who has it and, unless that is a service that berth has a true record of, what a person can do
about it. It binds nothing that is in use and stops nobody.

The exit status is 0 where every port is healthy, 1 where one is not, and 2 where nobody has one of the others.`,
		Example: "  berth health 3000\n  berth health --json 3000 8080",
		Args:    somePorts,
	}
	flags := cmd.Flags()
	addNetwork(cmd, &network, "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6")
	addStateDir(flags, &stateDir)
	addJSON(flags, &asJSON)

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ports, err := parsePorts(args)
		if err != nil {
			return err
		}
		o := inspect.Options{StateDir: c.stateDir(stateDir)}
		c.warnOfRecords(o.StateDir)
		reports, err := healthOf(cmd.Context(), o, network, ports)
		if err != nil {
			return err
		}
		status := healthStatus(reports)
		if asJSON {
			err = c.writeJSON(healthJSON{status == statusDone, portDocuments(reports)})
		} else {
			err = writeHealth(c.stdout, c.palette(c.stdout), reports)
		}
		if err != nil || status == statusDone {
			return err
		}
		return &statusError{status: status}
	}
	return cmd
}

// somePorts wants at least one argument, which names a port.
func somePorts(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("which port? Write for example: %s 3000", cmd.CommandPath())
	}
	return nil
}

type healthJSON struct {
	Healthy bool       `json:"healthy"`
	Ports   []portJSON `json:"ports"`
}

func healthOf(ctx context.Context, o inspect.Options, network string, ports []int) ([]inspect.Report, error) {
	reports := make([]inspect.Report, len(ports))
	for i, port := range ports {
		var err error
		if reports[i], err = o.Port(ctx, network, port); err != nil {
			return nil, err
		}
	}
	return reports, nil
}

// healthStatus is the exit status: the worst counts.
func healthStatus(reports []inspect.Report) int {
	status := statusDone
	for _, r := range reports {
		switch r.State {
		case inspect.Healthy:
		case inspect.Available:
			status = statusNothing
		default:
			return statusFailed
		}
	}
	return status
}

func writeHealth(w io.Writer, p palette, reports []inspect.Report) error {
	for _, r := range reports {
		text := p.paint(stateStyles[r.State], printable.Text(r.String()))
		if r.Service != "" {
			text += printable.Text(", service " + r.Service)
		}
		text += "\n"
		for _, note := range r.Records {
			text += "  " + printable.Text(note) + "\n"
		}
		for i, advice := range r.Recommendations {
			if r.State == inspect.Healthy {
				break // what it takes to get the port from a healthy service is no recommendation
			}
			lead := "  or: "
			if i == 0 {
				lead = "  do: "
			}
			text += lead + printable.Text(advice) + "\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}
