//go:build unix

package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/berth-go/berth/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// A count is of calls.
type count struct {
	mu       sync.Mutex
	answered int
	lost     []error
	pids     map[string]bool
}

func (c *count) call(pid string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.lost = append(c.lost, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
	default:
		c.answered++
		c.pids[pid] = true
	}
}

// connect makes a client that never tries again of itself.
// lingerless leaves no ports in TIME_WAIT behind, where they would be in the way of other tests.
func lingerless(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return conn, err
}

func connect(address string) (*grpc.ClientConn, grpc_testing.TestServiceClient, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithContextDialer(lingerless))
	if err != nil {
		return nil, nil, err
	}
	return conn, grpc_testing.NewTestServiceClient(conn), nil
}

func unary(ctx context.Context, client grpc_testing.TestServiceClient) (pid string, err error) {
	const body = "what is sent"
	answer, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: []byte(body)}}, grpc.WaitForReady(false))
	if err == nil && string(answer.GetPayload().GetBody()) != body {
		err = fmt.Errorf("it came back as %q", answer.GetPayload().GetBody())
	}
	return answer.GetHostname(), err
}

// stream says a few words, with a pause after each, and has each sent back.
func stream(ctx context.Context, client grpc_testing.TestServiceClient, words int, pause time.Duration) error {
	call, err := client.FullDuplexCall(ctx, grpc.WaitForReady(false))
	if err != nil {
		return err
	}
	for i := range words {
		word := fmt.Sprint("word ", i)
		if err := call.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte(word)}}); err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
		answer, err := call.Recv()
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
		if string(answer.GetPayload().GetBody()) != word {
			return fmt.Errorf("%s came back as %q", word, answer.GetPayload().GetBody())
		}
		time.Sleep(pause)
	}
	if err := call.CloseSend(); err != nil {
		return err
	}
	if _, err := call.Recv(); err == nil {
		return fmt.Errorf("%d words, and one more comes back", words)
	}
	return nil
}

// No call is lost in an upgrade: neither one of a moment, nor a stream that has begun before it, on connections that are
// kept and on new ones.
func TestNoCallIsLost(t *testing.T) {
	const upgrades = 200
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir()) // for locks and records
	p := exampletest.Start(t, "-addr", "127.0.0.1:0")
	newest, address := p.Serving(t)

	ctx, cancel := context.WithTimeout(context.Background(), 20*exampletest.Timeout)
	defer cancel()
	over := make(chan struct{})
	var clients sync.WaitGroup
	counts := map[string]*count{}
	begin := func(name string, n int, client func() (do func() (pid string, err error), end func())) {
		c := &count{pids: map[string]bool{}}
		counts[name] = c
		for range n {
			clients.Go(func() {
				do, end := client()
				defer end()
				for {
					select {
					case <-over:
						return
					default:
						c.call(do())
					}
				}
			})
		}
	}
	kept := func(do func(grpc_testing.TestServiceClient) (string, error)) func() (func() (string, error), func()) {
		return func() (func() (string, error), func()) {
			conn, client, err := connect(address)
			if err != nil {
				return func() (string, error) { return "", err }, func() {}
			}
			return func() (string, error) { return do(client) }, func() { _ = conn.Close() }
		}
	}
	begin("unary", 8, kept(func(client grpc_testing.TestServiceClient) (string, error) {
		time.Sleep(time.Millisecond)
		return unary(ctx, client)
	}))
	begin("streams", 8, kept(func(client grpc_testing.TestServiceClient) (string, error) {
		return "", stream(ctx, client, 5, 5*time.Millisecond)
	}))
	begin("a connection for each call", 4, func() (func() (string, error), func()) {
		return func() (string, error) {
			conn, client, err := connect(address)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			return unary(ctx, client)
		}, func() {}
	})

	for range upgrades {
		require.NoError(t, syscall.Kill(newest, syscall.SIGHUP))
		next, again := p.Serving(t)
		require.NotEqual(t, newest, next)
		require.Equal(t, address, again)
		newest = next
		p.Until(t, "msg=stopped ")
	}
	close(over)
	clients.Wait()
	for name, c := range counts {
		t.Logf("%s: %d answered by %d processes, %d lost", name, c.answered, len(c.pids), len(c.lost))
		require.Empty(t, c.lost, name)
		require.Positive(t, c.answered, name)
	}
	require.Greater(t, len(counts["unary"].pids), upgrades/2)
	require.NoError(t, syscall.Kill(newest, syscall.SIGTERM))
	require.Zero(t, p.Exit(t))
}

// A stream that does not end is ended where the time for it is over, and the version with it.
func TestTheCeiling(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	p := exampletest.Start(t, "-addr", "127.0.0.1:0", "-drain", "50ms")
	first, address := p.Serving(t)
	conn, client, err := connect(address)
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), exampletest.Timeout)
	defer cancel()
	call, err := client.FullDuplexCall(ctx)
	require.NoError(t, err)
	require.NoError(t, call.Send(&grpc_testing.StreamingOutputCallRequest{}))
	_, err = call.Recv()
	require.NoError(t, err)

	require.NoError(t, syscall.Kill(first, syscall.SIGHUP))
	second, _ := p.Serving(t)
	_, err = call.Recv()
	require.Error(t, err)
	require.NoError(t, ctx.Err())
	p.Until(t, `msg="stopped before all was finished"`)
	pid, err := unary(ctx, client)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(second), pid)
}
