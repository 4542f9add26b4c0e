package blind_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/test/crash/overlay"
)

var mutants = flag.String("mutants", "", "a regular expression: the mutants to try")

// applied returns the files that each mutant changes, and the test that must fail with it.
func applied(t *testing.T, root string) (files map[string]map[string]string, tests map[string]string) {
	t.Helper()
	patches, err := filepath.Glob("mutants/*.patch")
	if err != nil || len(patches) == 0 {
		t.Fatalf("no mutants, %v", err)
	}
	files, tests = make(map[string]map[string]string), make(map[string]string)
	for _, path := range patches {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".patch")
		if files[name], err = overlay.Apply(root, string(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		test := regexp.MustCompile(`(?m)^test: (Test\w+)$`).FindStringSubmatch(string(text))
		if test == nil {
			t.Fatalf("%s does not say which test must fail", name)
		}
		tests[name] = test[1]
	}
	return files, tests
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
	files, tests := applied(t, root)
	noticed := regexp.MustCompile(`(?m)^.* has \d+ secrets and \d+ tokens`)
	for name, changed := range files {
		if !chosen.MatchString(name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			document := struct{ Replace map[string]string }{make(map[string]string)}
			for original, text := range changed {
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
			command := exec.CommandContext(t.Context(), "go", "test", ".", "-count=1", "-run", "^"+tests[name]+"$", "-validations", "300", "-keys", "30")
			command.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -overlay="+list) // go build reads it, too
			output, err := command.CombinedOutput()
			lines := noticed.FindAllString(string(output), -1)
			if err == nil || len(lines) == 0 {
				t.Fatalf("not noticed: %v\n%s", err, output)
			}
			t.Logf("noticed:\n%s", strings.Join(lines, "\n"))
		})
	}
}
