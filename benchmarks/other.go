//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "benchmarks: what is measured here (sock_diag, /proc, pidfds) is Linux's")
	os.Exit(1)
}
