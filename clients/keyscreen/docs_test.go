package keyscreen_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const manual = "../../docs/settings-screen.md"

// TestProgramOfTheDocsCompiles builds the program of docs/settings-screen.md as it stands there.
func TestProgramOfTheDocsCompiles(t *testing.T) {
	page, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(package main\n.*?)```").FindSubmatch(page)
	if program == nil {
		t.Fatal("the page has no program")
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, program[1], 0o600); err != nil {
		t.Fatal(err)
	}
	// go vet checks the types as well, and does not link.
	if text, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestDocsListEveryCustomProperty: the list is complete by promise.
func TestDocsListEveryCustomProperty(t *testing.T) {
	page, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	style, err := os.ReadFile("assets/keyscreen.css")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, property := range regexp.MustCompile(`(?m)^  (--keyscreen-[a-z-]+):`).FindAllStringSubmatch(string(style), -1) {
		found++
		if !strings.Contains(string(page), "`"+strings.TrimSuffix(property[1], "-background")) && !strings.Contains(string(page), "`"+property[1]+"`") {
			t.Errorf("%s: no line for %s", manual, property[1])
		}
	}
	if found < 20 {
		t.Errorf("%d properties were found; the test looks for another form", found)
	}
}
