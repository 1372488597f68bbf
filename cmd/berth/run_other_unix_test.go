//go:build unix && !linux

package main

// dieTogether: the program ends with a run that is killed.
const dieTogether = false
