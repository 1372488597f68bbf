package listener_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
)

// joinAs has a kin be an instance of a fleet.
func (r role) joinAs(k *kin) (opened []interface{ Close() error }, origins []string, err error) {
	p, err := r.pool()
	if err != nil {
		return nil, nil, err
	}
	p.Config.Sources, p.Config.PortFile = []listener.Source{k}, ""
	f := listener.Fleet{Name: r.Name, Pool: *p, Shared: r.Strategy == "shared"}
	i, err := f.Join(context.Background())
	if err != nil {
		return nil, nil, err
	}
	ln, err := i.Listen()
	if err != nil {
		return nil, nil, err
	}
	return []interface{ Close() error }{ln, i}, []string{i.Name(), ln.Origin().Kind.String(), ln.Addr().String()}, nil
}

// The number goes from version to version with the listener, and is never free in between.
func TestFleetUpgrade(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			f := fleet(t, 4)
			f.Shared, f.Name = shared, "web"
			r := fleetRole(f)
			r.Network = "fleet"
			fam, first := newFamily(t, r)
			f.Pool.Config.StateDir = filepath.Join(fam.dir, "state")
			var address string
			says := func(m *member, origin string) {
				t.Helper()
				var name, how, at string
				_, err := fmt.Sscan(m.ask(t, "listen"), &name, &how, &at)
				require.NoError(t, err)
				require.Equal(t, "web-0", name)
				require.Equal(t, origin, how)
				if address == "" {
					address = at
				}
				require.Equal(t, address, at)
			}
			says(first, "bound")
			require.Equal(t, 1, joinFleet(t, f).Number())

			second := fam.upgrade(t, first)
			says(second, "inherited")
			first.do(t, "step-back")
			second.do(t, "charge")
			first.do(t, "close")
			first.end(t)
			require.Equal(t, 2, joinFleet(t, f).Number(), "number 0 is the second version's")
			conn, err := net.Dial("tcp", address)
			require.NoError(t, err)
			require.NoError(t, conn.Close())

			third := fam.upgrade(t, second)
			says(third, "inherited")
			third.kill(t) // before it leads
			require.Equal(t, 3, joinFleet(t, f).Number())
			second.do(t, "close")
			if !shared {
				require.Equal(t, 0, joinFleet(t, f).Number())
				return
			}
			i := joinFleet(t, f)
			require.Equal(t, 0, i.Number())
			_, port, err := net.SplitHostPort(address)
			require.NoError(t, err)
			require.Equal(t, port, strconv.Itoa(i.Addr().(*net.TCPAddr).Port))
		})
	}
}
