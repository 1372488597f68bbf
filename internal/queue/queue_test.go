package queue

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/internal/registry"
)

const waitVariable = "BERTH_TEST_QUEUE"

// The test binary joins the queue in the variable, and leaves it when its input ends.
func TestMain(m *testing.M) {
	if path := os.Getenv(waitVariable); path != "" {
		p, err := Join(path)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("joined")
		_, _ = io.Copy(io.Discard, os.Stdin)
		p.Leave()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// waiter starts a process that waits. It returns when that has its place.
func waiter(t *testing.T, path string) (cmd *exec.Cmd, leave func()) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), waitVariable+"="+path, "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "joined", strings.TrimSpace(line))
	leave = sync.OnceFunc(func() { // the test may call it at its end
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		leave()
	})
	return cmd, leave
}

func line(t testing.TB) string { return filepath.Join(t.TempDir(), "queue") }

func enter(t testing.TB, path string) *Place {
	t.Helper()
	p, err := Join(path)
	require.NoError(t, err)
	return p
}

// become waits until the place is the first one.
func become(t testing.TB, p *Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !p.First() {
		_, err := p.Wait(ctx, 30*time.Second) // so long that only an event ends it in time
		require.NoError(t, err)
	}
}

func TestInOrder(t *testing.T) {
	path := line(t)
	require.NoDirExists(t, path)
	var places []*Place
	for range 20 {
		places = append(places, enter(t, path))
	}
	require.Equal(t, 20, Length(path))
	for i, p := range places {
		require.True(t, p.First())
		for _, behind := range places[i+1:] {
			require.False(t, behind.First())
		}
		p.Leave()
	}
	require.NoDirExists(t, path, "the last one takes the directory away")
	require.Zero(t, Length(path))
}

func TestWhoLeavesWakesTheNext(t *testing.T) {
	path := line(t)
	_, leave := waiter(t, path)
	second := enter(t, path)
	defer second.Leave()
	require.False(t, second.First())
	go leave()
	become(t, second)
}

func TestWhoDiesHoldsUpNobody(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere it is noticed when the time is up")
	}
	path := line(t)
	first, _ := waiter(t, path)
	middle, _ := waiter(t, path)
	last := enter(t, path)
	require.False(t, last.First())
	require.NoError(t, middle.Process.Kill())
	_, _ = middle.Process.Wait()
	require.False(t, last.First())
	require.NoError(t, first.Process.Kill())
	become(t, last)
	last.Leave()
	require.NoDirExists(t, path, "nothing is left of those who died")
}

func TestWatchSeesWhatEndsInADirectory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("inotify")
	}
	state, err := registry.Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	lock, err := state.Lock("tcp", "127.0.0.1:3000")
	require.NoError(t, err)
	p := enter(t, state.PathOf("queue"))
	defer p.Leave()
	require.True(t, p.Watches())
	require.NoError(t, p.Watch(state.Path()))
	changed, err := p.Wait(context.Background(), 0)
	require.NoError(t, err)
	require.False(t, changed)
	require.NoError(t, lock.Release())
	changed, err = p.Wait(context.Background(), 30*time.Second)
	require.NoError(t, err)
	require.True(t, changed)
}

// If those who look woke each other, they would never rest.
func TestLooksAreNoChanges(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("inotify")
	}
	path := line(t)
	first, second, third := enter(t, path), enter(t, path), enter(t, path)
	for _, p := range []*Place{first, second, third} {
		defer p.Leave()
		_, err := p.Wait(context.Background(), 0) // that of those who came
		require.NoError(t, err)
	}
	require.True(t, first.First())
	require.False(t, second.First())
	require.False(t, third.First())
	for _, p := range []*Place{first, second, third} {
		changed, err := p.Wait(context.Background(), time.Millisecond)
		require.NoError(t, err)
		require.False(t, changed)
	}
}

func TestWaitEnds(t *testing.T) {
	p := enter(t, line(t))
	defer p.Leave()
	for _, watching := range []bool{true, false} {
		if !watching && p.watch != nil {
			p.watch.close()
			p.watch = nil
		}
		changed, err := p.Wait(context.Background(), time.Millisecond)
		require.NoError(t, err)
		require.False(t, changed)
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Millisecond, cancel)
		_, err = p.Wait(ctx, 30*time.Second)
		require.ErrorIs(t, err, context.Canceled)
		_, err = p.Wait(ctx, 30*time.Second)
		require.ErrorIs(t, err, context.Canceled)
		_, err = p.Wait(context.Background(), time.Millisecond)
		require.NoError(t, err, "a context that ended does not count for the next")
	}
}

// Whatever is done to the directory, nobody waits for ever.
func TestDirectoryIsRemovedUnderneath(t *testing.T) {
	path := line(t)
	first, second := enter(t, path), enter(t, path)
	require.NoError(t, os.RemoveAll(path))
	require.True(t, first.First())
	require.True(t, second.First(), "the order is lost")
	third := enter(t, path)
	require.True(t, third.First())
	for _, p := range []*Place{first, second, third} {
		_, err := p.Wait(context.Background(), time.Millisecond)
		require.NoError(t, err)
		p.Leave()
	}
	require.NoDirExists(t, path)
}

func TestHostileFiles(t *testing.T) {
	path := line(t)
	require.NoError(t, os.Mkdir(path, 0o700))
	for _, name := range []string{"ticket-", "ticket--1", "ticket-99999999999999999999", "ticket-2147483648", "ticket-01", "other"} {
		require.NoError(t, os.WriteFile(filepath.Join(path, name), nil, 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(path, "ticket-3"), 0o700))
	p := enter(t, path)
	require.Equal(t, 4, p.number)
	require.True(t, p.First())
	p.Leave()
	require.NoError(t, os.WriteFile(filepath.Join(path, name(registry.MaxNumber-1)), nil, 0o600))
	_, err := Join(path)
	require.ErrorContains(t, err, "remove it")
}

func TestNoDirectory(t *testing.T) {
	path := line(t)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := Join(path)
	require.ErrorContains(t, err, "is not a directory")
}

func TestManyJoinAtOnce(t *testing.T) {
	path := line(t)
	const n = 50
	joined := make(chan *Place, n)
	for range n {
		go func() {
			p, err := Join(path)
			if err != nil {
				t.Error(err)
			}
			joined <- p
		}()
	}
	numbers := map[int]bool{}
	var places []*Place
	for range n {
		p := <-joined
		require.NotNil(t, p)
		require.False(t, numbers[p.number], "a number is given twice")
		numbers[p.number] = true
		places = append(places, p)
	}
	for _, p := range places {
		p.Leave()
	}
	require.NoDirExists(t, path)
}
