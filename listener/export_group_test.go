package listener

import "time"

// SetQuiet changes how long nothing has come to a socket that a group closes, and gives a function that undoes it.
func SetQuiet(d time.Duration) (undo func()) {
	before := quiet
	quiet = d
	return func() { quiet = before }
}
