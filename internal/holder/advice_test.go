package holder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/proc"
	"github.com/berth-go/berth/internal/sockets"
	"github.com/berth-go/berth/strategy"
)

func regexpQuote(text string) string { return regexp.QuoteMeta(text) }

func TestRemedy(t *testing.T) {
	self := proc.Self()
	other := fmt.Sprintf("kill %d", nowhere)
	if self.UID > 0 {
		other = fmt.Sprintf("stop pid %d as user postgres or root", nowhere)
	}
	id := strings.Repeat("0123456789abcdef", 4)
	tests := []struct {
		holder strategy.Holder
		want   string
	}{
		{strategy.Holder{PID: nowhere, UID: self.UID}, fmt.Sprintf("kill %d", nowhere)},
		{strategy.Holder{PID: nowhere, UID: -1}, fmt.Sprintf("kill %d", nowhere)},
		{strategy.Holder{PID: nowhere, UID: 123456789, User: "postgres"}, other},
		{strategy.Holder{PID: nowhere, State: "connected"}, "it ends with its connection; a port outside the ephemeral range cannot meet this"},
		{strategy.Holder{UID: 1000, State: "connected"}, "it ends with its connection; a port outside the ephemeral range cannot meet this"},
		{strategy.Holder{UID: -1, State: "connected"}, "the system keeps it for a minute after its end: try again later"},
		{strategy.Holder{UID: -1}, "run as root to see the process"},
		{strategy.Holder{UID: 26, User: "postgres"}, "run as root to see the process; it belongs to user postgres"},
		{strategy.Holder{PID: os.Getpid(), Unit: "x.service"}, "close or share the first listener of this process"},
		{strategy.Holder{PID: nowhere, Command: "docker-proxy", Unit: "docker.service", Address: "[::]:8080"}, "docker ps (or podman ps) --filter publish=8080 shows the container to stop"},
		{strategy.Holder{PID: nowhere, Container: id, Unit: "docker.service"}, "stop container 0123456789ab"},
		{strategy.Holder{PID: nowhere, Container: "web"}, "stop container web"},
		{strategy.Holder{PID: 1, Command: "systemd", Unit: "init.scope"}, "systemctl list-sockets shows the unit to stop"},
		{strategy.Holder{PID: nowhere, Unit: "nginx.service"}, "systemctl stop nginx"},
		{strategy.Holder{PID: nowhere, Command: "ControlCenter"}, "turn off AirPlay Receiver in System Settings > General > AirDrop & Handoff"},
		{strategy.Holder{PID: nowhere, UID: self.UID, Refusal: isAncestor + ": the shell"}, "choose another port"},
		{strategy.Holder{PID: 1, UID: self.UID}, "choose another port"},
	}
	for _, test := range tests {
		require.Equal(t, test.want, remedy(test.holder), "%+v", test.holder)
	}
}

func TestAdvice(t *testing.T) {
	tcp, unix := sockets.Target{Network: "tcp"}, sockets.Target{Network: "unix", Path: "/run/app.sock"}
	uid := proc.Self().UID
	a, b := strategy.Holder{PID: nowhere, UID: uid}, strategy.Holder{PID: nowhere + 1, UID: uid}
	kill := func(h strategy.Holder) string { return fmt.Sprintf("kill %d", h.PID) }
	inUse := os.NewSyscallError("bind", syscall.EADDRINUSE)
	tests := []struct {
		name      string
		target    sockets.Target
		err       error
		diagnosis strategy.Diagnosis
		want      []string
	}{
		{"held", tcp, inUse, strategy.Diagnosis{Holders: []strategy.Holder{a}, Complete: true}, []string{kill(a), "choose another port"}},
		{"held by several", tcp, inUse, strategy.Diagnosis{Holders: []strategy.Holder{a, b, a}}, []string{kill(a), kill(b), "choose another port"}},
		{"held for ever", tcp, inUse, strategy.Diagnosis{Holders: []strategy.Holder{{PID: 1, UID: uid}}}, []string{"choose another port"}},
		{"path held", unix, inUse, strategy.Diagnosis{Holders: []strategy.Holder{a}}, []string{kill(a), "choose another path"}},
		{"nobody", tcp, inUse, strategy.Diagnosis{Complete: true}, []string{"nobody holds it any more: try again"}},
		{"unknown", tcp, inUse, strategy.Diagnosis{}, []string{"run as root to see who holds it", "choose another port"}},
		{"privileged", tcp, syscall.EACCES, strategy.Diagnosis{}, []string{permissionAdvice}},
		{"path not permitted", unix, fs.ErrPermission, strategy.Diagnosis{}, []string{"the directory of the socket does not let this user write: choose another path"}},
		{"no such address", tcp, syscall.EADDRNOTAVAIL, strategy.Diagnosis{}, []string{"no interface of this machine has that address: choose one that `ip addr` shows, or none for all"}},
		{"no directory", unix, syscall.ENOENT, strategy.Diagnosis{}, []string{"the directory of the socket is missing: create it"}},
		{"descriptors", tcp, syscall.EMFILE, strategy.Diagnosis{}, []string{"the process is out of file descriptors: raise the limit (ulimit -n) or close some"}},
		{"other", tcp, errors.New("other"), strategy.Diagnosis{}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want, Advice(test.target, test.err, func() strategy.Diagnosis { return test.diagnosis }))
		})
	}
}
