package listener_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"github.com/berth-go/berth/listener"
	"github.com/berth-go/berth/strategy"
)

// Services that do not care which port they have share a pool, and look each other up in their port files or records.
func ExamplePool() {
	ctx := context.Background()
	pool := listener.Pool{Host: "127.0.0.1", Ranges: []strategy.Range{{First: 12000, Last: 12099}}, Sticky: true}
	orders, err := pool.Lease(ctx, "orders") // nobody else can have the port from now on
	if err != nil {
		log.Fatal(err)
	}
	ln, err := orders.Listen()
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	status, err := pool.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, port := range status.Taken {
		if port.Port == ln.Addr().(*net.TCPAddr).Port {
			fmt.Println(port.Name, port.Holder.State)
		}
	}
	// Output: orders listening
}

// To have one worker more, the program is started once more.
func ExampleFleet() {
	fleet := listener.Fleet{Name: "worker", Pool: listener.Pool{Host: "127.0.0.1", Ranges: []strategy.Range{{First: 12100, Last: 12149}}}}
	first, err := fleet.Join(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer first.Close()
	second, err := fleet.Join(context.Background()) // of another process, usually
	if err != nil {
		log.Fatal(err)
	}
	defer second.Close()
	fmt.Println(first.Name(), first.Addr())   // worker-0 127.0.0.1:12100
	fmt.Println(second.Name(), second.Addr()) // worker-1 127.0.0.1:12101
}
