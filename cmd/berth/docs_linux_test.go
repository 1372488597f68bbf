package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/cli.md")

const documentFile = "../../docs/cli.md"

// The reference in the documentation is what the commands say of themselves on Linux.
func TestGenerated(t *testing.T) {
	text, err := os.ReadFile(documentFile)
	require.NoError(t, err)
	const begin, end = "<!-- reference -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok)
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	want := before + begin + reference() + end + after
	if *update {
		require.NoError(t, os.WriteFile(documentFile, []byte(want), 0o644))
	}
	have, err := os.ReadFile(documentFile)
	require.NoError(t, err)
	require.True(t, want == string(have), "docs/cli.md is out of date: run go generate ./cmd/berth")
}

// documented are the commands that have something to say, without those that cobra adds.
func documented() []*cobra.Command {
	var commands []*cobra.Command
	for _, cmd := range newRoot(console{getenv: os.Getenv}).Commands() {
		if cmd.Runnable() && !cmd.Hidden {
			commands = append(commands, cmd)
		}
	}
	return commands
}

func reference() string {
	var b strings.Builder
	for _, cmd := range documented() {
		cmd.InitDefaultHelpFlag()
		_ = cmd.Flags().MarkHidden("help")
		fmt.Fprintf(&b, "\n### %s\n\n%s.\n\n```\n%s\n```\n\n%s\n", cmd.Name(), cmd.Short, cmd.UseLine(), cmd.Long)
		if flags := cmd.LocalFlags().FlagUsages(); flags != "" {
			fmt.Fprintf(&b, "\n```\n%s```\n", flags)
		}
		if cmd.Example != "" {
			fmt.Fprintf(&b, "\n```sh\n%s\n```\n", strings.ReplaceAll("\n"+cmd.Example, "\n  ", "\n")[1:])
		}
	}
	return b.String() + "\n"
}

// Every command says what it does, and has an example, and every flag has a meaning.
func TestHelp(t *testing.T) {
	commands := documented()
	require.NotEmpty(t, commands)
	for _, cmd := range commands {
		require.NotEmpty(t, cmd.Short, cmd.Name())
		require.NotEmpty(t, cmd.Long, cmd.Name())
		require.NotEmpty(t, cmd.Example, cmd.Name())
		for line := range strings.Lines(cmd.Long) {
			require.LessOrEqual(t, len(line), 130, "%s: %s", cmd.Name(), line)
		}
	}
}

// Each command with --json has a schema, which compiles and is in the documentation.
func TestSchemas(t *testing.T) {
	document, err := os.ReadFile(documentFile)
	require.NoError(t, err)
	for _, cmd := range documented() {
		if cmd.Flags().Lookup("json") == nil {
			continue
		}
		_, err := strictSchema(cmd.Name())
		require.NoError(t, err)
		text, err := os.ReadFile(filepath.Join("schema", cmd.Name()+".json"))
		require.NoError(t, err)
		var schema struct{ Title string }
		require.NoError(t, json.Unmarshal(text, &schema))
		require.Equal(t, "berth "+cmd.Name()+" --json", schema.Title)
		require.Contains(t, string(document), "(../cmd/berth/schema/"+cmd.Name()+".json)")
	}
}
