package blind_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

var mutants = flag.String("mutants", "", "a regular expression: the mutants to try")

// mutant is a fault that the search must notice.
type mutant struct {
	// files are the changed files, by their names below the root.
	files map[string]string
	// test must fail, and where is a place in which it must find something.
	test, where string
}

// applied returns the mutants by their names.
func applied(t *testing.T, root string) map[string]mutant {
	t.Helper()
	patches, err := filepath.Glob("mutants/*.patch")
	if err != nil || len(patches) == 0 {
		t.Fatalf("no mutants, %v", err)
	}
	all, says := make(map[string]mutant), regexp.MustCompile(`(?m)^test: (Test\w+)\nwhere: (.+)$`)
	for _, path := range patches {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".patch")
		files, err := overlay.Apply(root, string(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		said := says.FindStringSubmatch(string(text))
		if said == nil {
			t.Fatalf("%s does not say which test must find something, and where", name)
		}
		all[name] = mutant{files, said[1], said[2]}
	}
	return all
}

// TestEveryMutantApplies: a mutant that no longer fits the product fails here.
func TestEveryMutantApplies(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	applied(t, root)
}

// TestEveryMutantIsNoticed runs the campaign with each mutant: the search must find a secret.
func TestEveryMutantIsNoticed(t *testing.T) {
	if *mutants == "" {
		t.Skip("make blind-mutants runs it")
	}
	onLinux(t)
	chosen, err := regexp.Compile(*mutants)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for name, mutant := range applied(t, root) {
		if !chosen.MatchString(name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			document := struct{ Replace map[string]string }{make(map[string]string)}
			for original, text := range mutant.files {
				copied := filepath.Join(folder, fmt.Sprintf("%d-%s", len(document.Replace), filepath.Base(original)))
				if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				document.Replace[filepath.Join(root, original)] = copied
			}
			encoded, err := json.Marshal(document)
			if err != nil {
				t.Fatal(err)
			}
			list := filepath.Join(folder, "overlay.json")
			if err := os.WriteFile(list, encoded, 0o600); err != nil {
				t.Fatal(err)
			}
			command := exec.CommandContext(t.Context(), "go", "test", ".", "-count=1", "-run", "^"+mutant.test+"$", "-validations", "300", "-keys", "30")
			command.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -overlay="+list) // go build reads it, too
			output, err := command.CombinedOutput()
			lines := regexp.MustCompile(`(?m)^.*: .+ has \d+ (?:secrets and \d+ tokens|digests)`).FindAllString(string(output), -1)
			noticed := slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, ": "+mutant.where+" has ") })
			if err == nil || !noticed {
				t.Fatalf("not noticed: %v\n%s", err, output)
			}
			t.Logf("noticed:\n%s", strings.Join(lines, "\n"))
		})
	}
}
