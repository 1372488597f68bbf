package activation

import (
	"math"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// fields is what systemd sees of a message: it splits it at both of these (NEWLINE in its strv_split).
func fields(message string) []string {
	return strings.FieldsFunc(message, func(r rune) bool { return r == '\n' || r == '\r' })
}

// Nothing that is passed as text is another assignment, and systemd takes what comes of it.
func FuzzStatus(f *testing.F) {
	for _, text := range []string{
		"", "serving on :3000", "a\nREADY=1", "a\r\nMAINPID=1", "\nSTOPPING=1\n", "a\x00b", "\xff\nFDSTORE=1", "é\u2028WATCHDOG=trigger",
		"\u0085\ufffd", "\xc3\xc3\xc3\xc3", "世界é😀", "==", "READY=1",
	} {
		f.Add(uint16(0), text)
		f.Add(uint16(maxMessage-10), text)
	}
	f.Fuzz(func(t *testing.T, before uint16, text string) {
		text = strings.Repeat("x", int(before)) + text // long inputs would slow the search down
		state := status(text)
		require.NoError(t, checkStates([]string{state}))
		message := join([]string{state})
		require.Equal(t, state, message)
		require.LessOrEqual(t, len(message), maxMessage)
		require.Equal(t, []string{message}, fields(message))
		require.True(t, strings.HasPrefix(message, "STATUS="))
		require.True(t, utf8.ValidString(message))
		require.NotContains(t, message, "\x00")
		if strings.TrimSpace(text) == text && len(text) < maxMessage/2 && utf8.ValidString(text) &&
			!strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			require.Equal(t, "STATUS="+text, message, "what is fine stays as it is")
		}
	})
}

// What Notify sends is as many assignments as it was given, in their order.
func FuzzNotify(f *testing.F) {
	f.Add("READY=1", "STATUS=a")
	f.Add("MONOTONIC_USEC=12\n", "RELOADING=1")
	f.Add("STATUS=a\nREADY=1", "X=")
	f.Add("=1", "X")
	f.Add("A=\r", "B=\x00")
	f.Fuzz(func(t *testing.T, first, second string) {
		states := []string{first, second}
		if checkStates(states) != nil {
			return
		}
		message := join(states)
		require.Equal(t, []string{strings.TrimSuffix(first, "\n"), strings.TrimSuffix(second, "\n")}, fields(message))
		require.LessOrEqual(t, len(message), maxMessage)
		require.NotContains(t, message, "\x00")
	})
}

func TestStatusText(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", ""},
		{"serving on :3000", "serving on :3000"},
		{"a\nREADY=1", "a READY=1"},
		{"a\r\nb", "a  b"},
		{"\n a \n", "a"},
		{"a\x00b\x1b[31m\u0085c\u2028d", "a b [31m c d"},
		{"caf\xe9 é 世", "caf  é 世"},
		{strings.Repeat("x", 5000), strings.Repeat("x", 4089)},
		{strings.Repeat("x", 4088) + "é", strings.Repeat("x", 4088)},
		{strings.Repeat("x", 4087) + "é", strings.Repeat("x", 4087) + "é"},
		{strings.Repeat("x", 4086) + "😀", strings.Repeat("x", 4086)},
	} {
		require.Equal(t, "STATUS="+test.want, status(test.text), "%q", test.text)
	}
}

func TestNotifyRefuses(t *testing.T) {
	for _, supervised := range []string{"", "/nowhere/at/all"} {
		t.Setenv(socketVariable, supervised)
		for _, state := range []string{"", "\n", "READY", "=1", "READY=1\nSTOPPING=1", "READY=1\n\n", "STATUS=a\r", "STATUS=\x00"} {
			err := Notify("STATUS=fine", state)
			require.ErrorContains(t, err, "is not one line of the form NAME=value", "%q", state)
		}
		require.ErrorContains(t, Notify("STATUS="+strings.Repeat("x", 4090)), "4097 bytes is longer than the 4096")
		require.ErrorContains(t, MainPID(0), "0 cannot be the pid")
		require.ErrorContains(t, MainPID(-1), "-1 cannot be the pid")
		require.ErrorContains(t, Extend(0), "cannot be extended by 0s")
		require.ErrorContains(t, Extend(-time.Second), "cannot be extended by -1s")
		for _, name := range []string{"", "a:b", "a\nREADY=1", "a\x7f", "é", "\xff", strings.Repeat("x", 256)} {
			require.ErrorContains(t, Store(name, nil), "cannot be the name of a socket", "%q", name)
			require.ErrorContains(t, Unstore(name), "cannot be the name of a socket", "%q", name)
		}
	}
	require.NoError(t, checkName(strings.Repeat("x", 255)))
	require.NoError(t, checkName(" web-1/~=[::1]@"[:9]))
}

// Nothing happens, and nothing is allocated, where nobody asked to be notified.
func TestUnsupervised(t *testing.T) {
	t.Setenv(socketVariable, "")
	t.Setenv("WATCHDOG_USEC", "nonsense")
	require.False(t, Supervised())
	for name, call := range map[string]func() error{
		"Notify":    func() error { return Notify() },
		"Ready":     Ready,
		"Reloading": Reloading,
		"Stopping":  Stopping,
		"Status":    func() error { return Status("a") },
		"MainPID":   func() error { return MainPID(1) },
		"Extend":    func() error { return Extend(math.MaxInt64) },
		"Barrier":   func() error { return Barrier(t.Context()) },
		"Watchdog":  func() error { return Watchdog(t.Context(), nil) },
		"Store":     func() error { return Store("a", os.Stdout) },
		"Unstore":   func() error { return Unstore("a") },
	} {
		require.NoError(t, call(), name)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_ = Ready()
		_ = Status("serving")
		_ = Barrier(t.Context())
		_ = Watchdog(t.Context(), nil)
	}))
}

func BenchmarkUnsupervised(b *testing.B) {
	b.Setenv(socketVariable, "")
	b.ReportAllocs()
	for b.Loop() {
		if err := Status("serving"); err != nil {
			b.Fatal(err)
		}
	}
}
