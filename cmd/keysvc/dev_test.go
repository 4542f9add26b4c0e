package main_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var lastLine = regexp.MustCompile(`(?m)^Stop with Ctrl-C`)

// serveDev starts a server with --dev and waits until it has printed all that it prints.
func serveDev(t *testing.T, data, listen string, arguments ...string) *serving {
	t.Helper()
	s := serve(t, data, append([]string{"--dev", "--listen", listen}, arguments...)...)
	if _, err := s.stdout.await(s.ended, lastLine); err != nil {
		t.Fatalf("%v\n%s", err, s.stderr)
	}
	return s
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pasted returns the commands in the output of serve --dev: the indented lines that are no
// comments. A line that ends with a pipe is joined with the next.
func pasted(text string) []string {
	var commands []string
	open := false
	for line := range strings.Lines(text) {
		command, indented := strings.CutPrefix(line, "  ")
		if !indented || strings.HasPrefix(command, "#") {
			continue
		}
		if open {
			commands[len(commands)-1] += command
		} else {
			commands = append(commands, command)
		}
		open = strings.HasSuffix(strings.TrimSpace(command), "|")
	}
	return commands
}
