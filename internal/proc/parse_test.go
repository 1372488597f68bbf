package proc

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const statTail = " 1 3391 2320 0 -1 4194304 102 0 0 0 0 0 0 0 20 0 1 0 88401 3133440 392 18446744073709551615\n"

func TestParseStat(t *testing.T) {
	want := func(comm string) stat {
		return stat{comm: comm, state: 'S', ppid: 1, flags: 4194304, threads: 1, start: 88401}
	}
	for _, comm := range []string{"cat", "a b", "od) S 7 (", ")", "((", "x\ny", "", "\xff)"} {
		t.Run(comm, func(t *testing.T) {
			s, err := parseStat([]byte("3394 (" + comm + ") S" + statTail))
			require.NoError(t, err)
			require.Equal(t, want(comm), s)
		})
	}
	kthread, err := parseStat([]byte("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 8 0 0 1 0\n"))
	require.NoError(t, err)
	require.True(t, kthread.kernel())
	require.False(t, want("").kernel())

	for _, bad := range []string{"", "1", "1 (a", "1 a) S", ")(", "1 (a) S 1", "1 (a) SS" + statTail, "1 (a) S x" + statTail,
		"1 (a) S" + strings.Replace(statTail, "88401", "-1", 1)} {
		_, err := parseStat([]byte(bad))
		require.Error(t, err, "%q", bad)
	}
}

func TestStatStates(t *testing.T) {
	require.True(t, stat{state: 'Z', threads: 1}.dead())
	require.True(t, stat{state: 'X'}.dead())
	require.False(t, stat{state: 'Z', threads: 2}.dead(), "only the first thread has ended")
	require.False(t, stat{state: 'S', threads: 1}.dead())
	require.True(t, stat{state: 'T'}.stopped())
	require.False(t, stat{state: 't'}.stopped())
}

func TestParseStatus(t *testing.T) {
	const text = "Name:\ta\\nUid: 7\nTgid:\t42\nPid:\t43\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t5\t5\t5\n"
	require.Equal(t, status{tgid: 42, ruid: 1000, euid: 1001}, parseStatus([]byte(text)))
	require.Equal(t, status{tgid: -1, ruid: -1, euid: -1}, parseStatus(nil))
	require.Equal(t, status{tgid: -1, ruid: -1, euid: -1}, parseStatus([]byte("Uid:\t1\nTgid\n")))
	require.Equal(t, status{tgid: -1, ruid: -1, euid: 3}, parseStatus([]byte("Tgid: 99999999999\nUid:\t-1\t3\n")))
}

func TestParseCmdline(t *testing.T) {
	for text, want := range map[string][]string{
		"":                              nil,
		"a\x00b c\x00":                  {"a", "b c"},
		"a\x00\x00":                     {"a", ""},
		"a\x00\x00b\x00\x00":            {"a", "", "b", ""},
		"a\x00b\x00\x00\x00":            {"a", "b", "", ""},
		"title":                         {"title"},
		"nginx: master\x00\x00\x00\x00": {"nginx: master"},
		"\x00":                          {""},
	} {
		require.Equal(t, want, parseCmdline([]byte(text)), "%q", text)
	}
}

func TestParseCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	other := strings.Repeat("fedcba9876543210", 4)
	const user = "/user.slice/user-1000.slice/user@1000.service"
	tests := []struct{ name, text, unit, container string }{
		{"empty", "", "", ""},
		{"garbage", "x\n::\n1\n", "", ""},
		{"root", "0::/\n", "", ""},
		{"service", "0::/system.slice/nginx.service\n", "nginx.service", ""},
		{"no newline", "0::/system.slice/nginx.service", "nginx.service", ""},
		{"template", "0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service", ""},
		{"user service", "0::" + user + "/app.slice/web.service\n", "web.service", ""},
		{"below a service", "0::/system.slice/docker.service/foo\n", "docker.service", ""},
		{"colon", "0::/system.slice/a:b.service\n", "a:b.service", ""},
		{"login", "0::/user.slice/user-1000.slice/session-2.scope\n", "", ""},
		{"terminal", "0::" + user + "/app.slice/app-gnome-terminal-123.scope\n", "", ""},
		{"terminal tab", "0::" + user + "/app.slice/app-org.gnome.Terminal.slice/vte-spawn-x.scope\n", "", ""},
		{"below a scope", "0::" + user + "/app.slice/tmux.scope/x\n", "", ""},
		{"slice below a service", "0::" + user + "/app.slice\n", "", ""},
		{"user manager", "0::" + user + "/init.scope\n", "user@1000.service", ""},
		{"pid 1", "0::/init.scope\n", "init.scope", ""},
		{"deleted", "0::/system.slice/old.service (deleted)\n", "old.service", ""},
		{"v1", "12:pids:/system.slice/a.service\n1:name=systemd:/system.slice/b.service\n", "b.service", ""},
		{"hybrid", "9:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n", "a.service", ""},
		{"hybrid, not by systemd", "9:name=systemd:/\n4:memory:/process/8febecb783a80007ec37a6efe5d8668a\n0::/\n", "", ""},

		{"docker v1", "4:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id + "\n", "", id},
		{"any controller", "9:name=systemd:/\n4:memory:/docker/" + id + "\n0::/\n", "", id},
		{"docker", "0::/system.slice/docker-" + id + ".scope\n", "", id},
		{"docker in docker", "0::/docker/" + id + "/docker/" + other + "\n", "", other},
		{"below docker", "0::/docker/" + id + "/init\n", "", id},
		{"systemd in docker", "0::/system.slice/docker-" + id + ".scope/system.slice/web.service\n", "web.service", id},
		{"buildkit", "0::/docker/buildkit/k2x8jm3p4w5v6u7t8s9r0q1ab\n", "", "k2x8jm3p4w5v6u7t8s9r0q1ab"},
		{"buildkit, systemd", "0::/system.slice/docker-k2x8jm3p4w5v6u7t8s9r0q1ab.scope\n", "", "k2x8jm3p4w5v6u7t8s9r0q1ab"},
		{"cri", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice/cri-containerd-" + id + ".scope\n", "", id},
		{"kubepods", "3:cpu:/kubepods/burstable/pod1-2/" + id + "\n", "", id},
		{"containerd v1", "1:name=systemd:/system.slice/containerd.service/kubepods-podx.slice:cri-containerd:" + id + "\n", "containerd.service", id},
		{"podman", "0::" + user + "/user.slice/libpod-" + id + ".scope/container\n", "", id},
		{"podman cgroupfs", "0::/libpod_parent/libpod-" + id + "\n", "", id},
		{"podman split", "0::/system.slice/web.service/libpod-payload-" + id + "\n", "web.service", id},
		{"conmon", "0::" + user + "/user.slice/libpod-conmon-" + id + ".scope\n", "", id},
		{"crio", "0::/kubepods.slice/crio-" + id + ".scope\n", "", id},
		{"ecs", "4:memory:/ecs/task/" + id + "\n", "", id},
		{"lxc", "4:memory:/lxc/web\n", "", "web"},
		{"lxc payload", "0::/lxc.payload.web/system.slice/x.service\n", "x.service", "web"},
		{"lxc monitor", "0::/lxc.monitor.web\n", "", "web"},
		{"nspawn", "0::/machine.slice/machine-web.scope/payload\n", "", "web"},
		{"nspawn service", "0::/machine.slice/systemd-nspawn@web.service/payload\n", "systemd-nspawn@web.service", "web"},
		{"machine of a person", "0::" + user + "/app.slice/machine-web.scope\n", "", ""},
		{"compose", "0::" + user + "/app.slice/docker-compose.scope\n", "", ""},
		{"63 digits", "0::/docker/" + id[1:] + "\n", "", ""},
		{"65 digits", "0::/x/0" + id + "\n", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			unit, container := parseCgroup([]byte(test.text))
			require.Equal(t, test.unit, unit)
			require.Equal(t, test.container, container)
		})
	}
}

func TestParseHidepid(t *testing.T) {
	require.False(t, parseHidepid(nil))
	require.False(t, parseHidepid([]byte("proc /proc proc rw,nosuid 0 0\n")))
	require.False(t, parseHidepid([]byte("proc /proc proc rw,hidepid=off 0 0\n")))
	require.False(t, parseHidepid([]byte("proc /proc proc rw,hidepid=0 0 0\nproc /chroot/proc proc hidepid=2 0 0\n")))
	require.True(t, parseHidepid([]byte("sysfs /sys sysfs rw 0 0\nproc /proc proc rw,gid=5,hidepid=invisible 0 0\n")))
	require.True(t, parseHidepid([]byte("proc /proc proc rw,hidepid=2 0 0\n")))
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint64{
		"socket:[1]": 1, "socket:[4294967295]": 4294967295, "socket:[18446744073709551609]": 18446744073709551609,
		"socket:[]": 0, "socket:[1": 0, "socket:1]": 0, "pipe:[1]": 0, "": 0, "socket:[x]": 0, "/tmp/socket:[1]": 0,
		"socket:[-1]": 0, "socket:[99999999999999999999999]": 0,
	} {
		inode, ok := socketInode([]byte(link))
		require.Equal(t, want != 0, ok, link)
		if ok {
			require.Equal(t, want, inode, link)
		}
	}
}

func TestSearch(t *testing.T) {
	require.True(t, newSearch(nil, false).ended(), "nothing is wanted")
	require.True(t, newSearch([]uint64{0}, false).ended(), "inode 0 is no socket")

	s := newSearch([]uint64{7, 5, 7, 0}, true)
	require.Equal(t, []uint64{5, 7}, s.wanted)
	require.False(t, s.add(7, 100))
	require.False(t, s.add(7, 99), "one holder is enough")
	require.True(t, s.add(5, 99))
	require.Equal(t, map[uint64][]int{5: {99}, 7: {100}}, s.result())

	s = newSearch([]uint64{5}, false)
	require.False(t, s.add(5, 1))
	require.False(t, s.add(5, 3), "there may always be another")
	require.Equal(t, map[uint64][]int{5: {3, 1}}, s.result())
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("3394 (cat) S" + statTail))
	f.Add([]byte("1 (a) b) (c) Z 0"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStat(text)
		if err != nil {
			require.Zero(t, s)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte("Name:\tx\nTgid:\t42\nUid:\t1\t2\t3\t4\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := parseStatus(text)
		for _, id := range []int{s.tgid, s.ruid, s.euid} {
			require.GreaterOrEqual(t, id, -1)
		}
		parseCmdline(text)
		parseHidepid(text)
	})
}

func FuzzParseCgroup(f *testing.F) {
	f.Add([]byte("9:name=systemd:/a.slice/b.service\n0::/machine.slice/machine-x.scope\n"))
	f.Add([]byte("0::/docker/" + strings.Repeat("a", 64)))
	f.Fuzz(func(t *testing.T, text []byte) {
		unit, container := parseCgroup(text)
		require.False(t, strings.ContainsAny(unit+container, "/\n"))
		require.True(t, unit == "" || unit == "init.scope" || strings.HasSuffix(unit, ".service"))
	})
}

func FuzzSocketInode(f *testing.F) {
	f.Add([]byte("socket:[12]"))
	f.Fuzz(func(t *testing.T, link []byte) {
		socketInode(link)
		number(link)
	})
}
