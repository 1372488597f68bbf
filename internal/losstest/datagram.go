package losstest

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Datagram sends datagrams, one at a time, and waits for the answer of [Echo].
func Datagram(c *client) {
	conn, err := net.Dial(c.Network, c.Address)
	if err != nil {
		c.lost(1, "dial", err)
		return
	}
	defer conn.Close()
	answer := make([]byte, 1024)
	for n := 0; !c.over(); n++ {
		c.pause()
		err := conn.SetDeadline(time.Now().Add(patience))
		sent := strconv.Itoa(n)
		if err == nil {
			_, err = conn.Write([]byte(sent))
		}
		var size int
		if err == nil {
			size, err = conn.Read(answer)
		}
		pid, got, _ := strings.Cut(string(answer[:size]), " ")
		if err == nil && got != sent {
			err = fmt.Errorf("%q came back as %q", sent, got)
		}
		if err != nil {
			c.lost(1, "datagram", err)
			return
		}
		c.answered(pidOf(pid))
	}
}

// Echo answers datagrams, until reading fails: by the read deadline of conn, it ends without losing one that it has read.
func Echo(conn net.PacketConn) error {
	buffer := make([]byte, 1024)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo([]byte(strconv.Itoa(os.Getpid())+" "+string(buffer[:n])), from); err != nil {
			return err
		}
	}
}
