package inspect_test

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/berth-go/berth/listener/inspect"
)

func ExamplePort() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()

	report, err := inspect.Port(context.Background(), "tcp", ln.Addr().(*net.TCPAddr).Port)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(report.State)
	for _, h := range report.Holders {
		fmt.Println(h.PID == os.Getpid(), h.State, h.Address == ln.Addr().String())
	}
	// Output:
	// in use
	// true listening true
}
