package activation

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseEnvironment(t *testing.T) {
	const pid = 42
	for _, c := range []struct {
		name            string
		pid, fds, names string
		want            plan
		err             string // a part of it
	}{
		{"nothing", "", "", "", plan{}, ""},
		{"one", "42", "1", "", plan{count: 1}, ""},
		{"two named", "42", "2", "a:b", plan{2, []string{"a", "b"}}, ""},
		{"same name twice", "42", "2", "a:a", plan{2, []string{"a", "a"}}, ""},
		{"empty names", "42", "3", "::", plan{3, []string{"", "", ""}}, ""},
		{"no pid", "", "1", "a", plan{1, []string{"a"}}, ""},
		{"none", "42", "0", "", plan{}, ""},
		{"leading zeros", "0042", "01", "", plan{count: 1}, ""},
		{"large", "42", "2000000000", "", plan{count: 2000000000}, ""},

		{"other pid", "43", "2", "a:b", plan{}, ""},
		{"other pid, bad names", "43", "2", "a", plan{}, ""},
		{"leftovers", "42", "", "a:b", plan{}, ""},
		{"leftovers that are no numbers", "x", "", "", plan{}, ""},

		{"negative count", "42", "-1", "", plan{}, `LISTEN_FDS="-1"`},
		{"count with a sign", "42", "+1", "", plan{}, `LISTEN_FDS="+1"`},
		{"count with a blank", "42", " 1", "", plan{}, `LISTEN_FDS=" 1"`},
		{"count is a word", "42", "one", "", plan{}, `LISTEN_FDS="one"`},
		{"count in hexadecimal", "42", "0x1", "", plan{}, `LISTEN_FDS="0x1"`},
		{"count too large for a descriptor", "42", "2147483645", "", plan{}, `LISTEN_FDS="2147483645"`},
		{"count too large for any number", "42", "99999999999999999999", "", plan{}, `LISTEN_FDS="99999999999999999999"`},
		{"count garbage for another process", "43", "x", "", plan{}, `LISTEN_FDS="x"`},
		{"pid is a word", "me", "2", "", plan{count: 2}, `LISTEN_PID="me"`},
		{"negative pid", "-42", "2", "", plan{count: 2}, `LISTEN_PID="-42"`},
		{"pid out of range", "4294967338", "2", "", plan{count: 2}, `LISTEN_PID="4294967338"`},
		{"too few names", "42", "2", "a", plan{count: 2}, `LISTEN_FDNAMES="a" has 1 name, LISTEN_FDS announces 2 descriptors`},
		{"too many names", "42", "1", "a:", plan{count: 1}, `LISTEN_FDNAMES="a:" has 2 names, LISTEN_FDS announces 1 descriptor;`},
		{"names of none", "42", "0", "a", plan{}, `LISTEN_FDNAMES="a"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseEnvironment(pid, c.pid, c.fds, c.names)
			require.Equal(t, c.want, got)
			if c.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "activation: ")
			require.ErrorContains(t, err, c.err)
			require.ErrorContains(t, err, "; ") // then the remedy
		})
	}
}

func TestPlanNames(t *testing.T) {
	require.Equal(t, "unknown", plan{count: 1}.name(0))
	require.Equal(t, "b", plan{2, []string{"a", "b"}}.name(1))
}

func FuzzParseEnvironment(f *testing.F) {
	f.Add("42", "2", "a:b")
	f.Add("", "1", "")
	f.Add("43", "1", "x")
	f.Add("x", "-1", ":")
	f.Add("42", "2147483644", "")
	f.Fuzz(func(t *testing.T, pid, fds, names string) {
		got, err := parseEnvironment(42, pid, fds, names)
		require.GreaterOrEqual(t, got.count, 0)
		require.Greater(t, int64(1)<<31, int64(firstFD)+int64(got.count))
		if err != nil {
			require.Nil(t, got.names)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		if got.names != nil {
			require.Len(t, got.names, got.count)
			require.Equal(t, names, strings.Join(got.names, ":"))
		}
		for i := range min(got.count, 10) {
			require.NotContains(t, got.name(i), ":")
		}
		if got.count > 0 {
			require.True(t, pid == "" || strings.TrimLeft(pid, "0") == "42", pid)
		}
	})
}
