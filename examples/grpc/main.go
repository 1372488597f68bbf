// Grpc is a gRPC server whose next version takes over without a call being lost.
//
//	go build -o server . && ./server -addr 127.0.0.1:50051
//	go build -o server . && kill -HUP $(pgrep -x server)     # in another terminal: the next version
//
// Calls in flight are finished by the version that has begun them, streams too, and clients are told to connect again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing" // a service that needs no generated code of this example's own

	"github.com/berth-go/berth/activation"
	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/reload"
)

// A graceful is a grpc.Server as a reload.Server: it has Serve, and Shutdown in these three lines. GracefulStop tells the
// clients by GOAWAY that they should connect again, and waits for the calls in flight. It knows no context, so Stop ends
// it where the time is over (reload.Config.Drain, or a second SIGINT).
type graceful struct{ *grpc.Server }

func (s graceful) Shutdown(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.Stop)()
	s.GracefulStop()
	return ctx.Err()
}

func main() {
	err := run(context.Background(), os.Args[1:], os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("grpc", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", ":50051", "`address` to listen on")
	drain := flags.Duration("drain", 0, "longest `time` for calls in flight after an upgrade; 0: half a minute")
	if err := flags.Parse(args); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(stderr, nil))

	upgrader, err := reload.New(reload.Config{Drain: *drain, Logger: logger})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // without upgrades it serves all the same
		return err
	}
	passed, err := activation.FromEnv()
	if err != nil {
		return err
	}
	// What the version before had comes first, then what systemd passed, then a bind.
	cfg := listener.Config{Name: "grpc", Sources: []listener.Source{upgrader, passed}, Logger: logger}
	ln, err := cfg.Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(server, service{})
	return upgrader.Serve(ctx, graceful{server}, ln)
}

// A service answers with its pid, and what it was sent.
type service struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (service) UnaryCall(_ context.Context, request *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Hostname: fmt.Sprint(os.Getpid()), Payload: request.GetPayload()}, nil
}

func (service) FullDuplexCall(stream grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) { // the client has said all
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: request.GetPayload()}); err != nil {
			return err
		}
	}
}
