//go:build !(linux || darwin || freebsd)

package ephemeral

import "github.com/berth-go/berth/strategy"

// read: `netsh int ipv4 show dynamicport tcp` would tell on Windows, and takes a process; nearly nobody changes it.
func read() (strategy.Range, bool) { return strategy.Range{}, false }

func reserved() []strategy.Range { return nil }
