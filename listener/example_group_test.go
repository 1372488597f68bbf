package listener_test

import (
	"context"
	"fmt"
	"net/http"

	"github.com/berth-go/berth/listener"
)

// Every member of a group is served. They have one address.
func ExampleConfig_ListenGroup() {
	var cfg listener.Config
	members, err := cfg.ListenGroup(context.Background(), "tcp", "127.0.0.1:0", 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	for _, ln := range members {
		go server.Serve(ln)
	}
	defer server.Close()
	fmt.Println(len(members), members[0].Addr().String() == members[1].Addr().String())

	resp, err := http.Get("http://" + members[0].Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)
	http.DefaultClient.CloseIdleConnections()
	// Output:
	// 2 true
	// 404
}
