package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/holder"
)

// A process chooses its own name and directory: neither acts on a terminal, nor moves a column.
func TestTable(t *testing.T) {
	rows := table{
		cells("PORT", "COMMAND", "DIRECTORY"),
		{{"3000", plain}, {"\x1b[2Jé\n", red}, {"", plain}},
	}
	require.Equal(t, []string{
		"PORT  COMMAND  DIRECTORY",
		"3000  ?[2Jé?   -",
	}, rows.lines(false, 0))
	require.Equal(t, []string{
		"\x1b[1mPORT\x1b[0m  \x1b[1mCOMMAND\x1b[0m  \x1b[1mDIRECTORY\x1b[0m",
		"3000  \x1b[31m?[2Jé?\x1b[0m   -",
	}, rows.lines(true, 0))
	for columns := 1; columns < 30; columns++ {
		for i, line := range rows.lines(false, columns) {
			whole := rows.lines(false, 0)[i]
			require.LessOrEqual(t, len([]rune(line)), columns)
			require.True(t, strings.HasPrefix(whole, line), "%q of %q", line, whole)
		}
	}
}

// The sum stays in sight, and nothing scrolls.
func TestInPlace(t *testing.T) {
	var lines []string
	for i := range 20 {
		lines = append(lines, fmt.Sprint("line ", i))
	}
	lines = append(lines, "sum")
	for height := 4; height < 30; height++ {
		shown := strings.Split(strings.TrimSuffix(inPlace(lines, height), "\x1b[J"), "\n")
		require.Less(t, len(shown)-1, height) // the cursor stands below the last one
		require.Equal(t, "sum\x1b[K", shown[len(shown)-2])
		if height <= len(lines) {
			require.Equal(t, fmt.Sprintf("... %d more\x1b[K", len(lines)-height+2), shown[len(shown)-3])
		}
	}
	require.Equal(t, len(lines), strings.Count(inPlace(lines, 0), "\n"), "the height is unknown")
}

func TestAge(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": -time.Hour, "119s": 2*time.Minute - 1, "2m": 2 * time.Minute, "119m": 2*time.Hour - 1, "2h": 2 * time.Hour,
		"47h": 48*time.Hour - 1, "2d": 48 * time.Hour,
	} {
		require.Equal(t, want, age(d))
	}
}

// Of several failures, an error counts before a refusal.
func TestJoined(t *testing.T) {
	refused := &explained{"refused", &holder.RefusedError{}}
	for _, test := range []struct {
		failures []error
		status   int
	}{
		{[]error{refused}, statusRefused},
		{[]error{refused, refused}, statusRefused},
		{[]error{refused, errors.New("failed\x1b")}, statusFailed},
	} {
		err := joined(test.failures)
		var status *statusError
		require.ErrorAs(t, err, &status)
		require.Equal(t, test.status, status.status)
		require.Equal(t, len(test.failures), strings.Count(err.Error(), "\n")+1)
		require.NotContains(t, err.Error(), "\x1b")
	}
}

func TestLogger(t *testing.T) {
	var stderr bytes.Buffer
	log := console{stderr: &stderr}.logger()
	log.With("pid", 1).WithGroup("x").Warn("stopping web", slog.Int("pid", 1))
	log.Debug("nobody wants to know")
	require.Equal(t, "berth: stopping web\n", stderr.String())
}
