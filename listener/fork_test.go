package listener_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

func init() { roles["forker"] = playForker }

// playForker is "config" by a server that starts subprocesses all the time.
func playForker(r role) error {
	ln, err := r.listen()
	if err != nil {
		return err
	}
	for range 2 {
		go func() {
			for exec.Command("/bin/true").Run() == nil {
			}
		}()
	}
	return r.serve(ln)
}

// Between fork and exec a child holds the sockets of its parent. It is newer than the newcomer, and runs the same
// program, so it looks like a newer start, to which an older one gives way.
func TestAChildBetweenForkAndExecIsNoNewerStart(t *testing.T) {
	forker := role{Do: "forker", Network: "tcp", Address: "127.0.0.1:0", Strategy: "aggressive", StateDir: "/dev/null/none"}
	old := play(t, forker)
	forker.Address = old.ready(t)
	for range 30 {
		fresh := play(t, forker)
		require.Equal(t, forker.Address, fresh.ready(t))
		require.NoError(t, old.exit(t))
		old = fresh
	}
}
