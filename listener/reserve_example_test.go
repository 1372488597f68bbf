//go:build unix

package listener_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/berth-go/berth/listener"
)

// A service has its port before it is ready to serve: it can tell others, and nobody takes it meanwhile.
func ExampleConfig_Reserve() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // to get ready in
	defer cancel()
	cfg := listener.Config{Name: "web"}
	r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0") // or "localhost:3000-3010", "tcp+udp", ...
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	_, err = net.Listen("tcp", r.Addr().String())
	fmt.Println("taken:", errors.Is(err, syscall.EADDRINUSE))
	_, err = net.Dial("tcp", r.Addr().String())
	fmt.Println("refused:", errors.Is(err, syscall.ECONNREFUSED))

	ln, err := r.Listen() // on the same socket
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	fmt.Println("the same address:", ln.Addr().String() == r.Addr().String())
	// Output:
	// taken: true
	// refused: true
	// the same address: true
}

// A child gets the socket itself. From then on connections wait for it.
func ExampleReservation_Command() {
	ctx := context.Background()
	cfg := listener.Config{Name: "web"}
	r, err := cfg.Reserve(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	cmd := r.Command(ctx, "sh", "-c", "echo sockets: $LISTEN_FDS, name: $LISTEN_FDNAMES")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// sockets: 1, name: web
}
