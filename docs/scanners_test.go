package docs_test

import (
	"crypto/rand"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/token/tokentest"
)

// gitleaks is the program itself. `make scanners` builds it.
var gitleaks = flag.String("gitleaks", "", "path of gitleaks, which then has to find our tokens; empty tests its patterns alone")

// scanned returns a new token of a key and one of a caller, with the rule that finds each.
func scanned(t *testing.T) map[string]string {
	t.Helper()
	id, err := token.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := token.New("ab", id, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caller, err := token.NewCaller("scribe", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"keysvc-api-key": key.Reveal(), "keysvc-caller-token": caller.Reveal()}
}

func TestPatternsOfScannersAreThoseOfTheTokens(t *testing.T) {
	rules, err := os.ReadFile("scanners/gitleaks.toml")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^regex = '''(.*)'''$`).FindAllStringSubmatch(string(rules), -1)
	if len(found) != 2 || found[0][1] != token.Pattern || found[1][1] != token.CallerPattern {
		t.Errorf("gitleaks.toml has the patterns %q", found)
	}
}

func TestGitHubsPatternsFindTokensThatTouchOtherText(t *testing.T) {
	text, err := os.ReadFile("scanners/github.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Patterns []struct {
			Name   string
			Secret string `yaml:"secret format"`
			Before string `yaml:"before secret"`
			After  string `yaml:"after secret"`
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil || len(file.Patterns) != 2 {
		t.Fatalf("%d patterns, %v", len(file.Patterns), err)
	}
	tokens := scanned(t)
	for index, rule := range []string{"keysvc-api-key", "keysvc-caller-token"} {
		pattern := file.Patterns[index]
		whole := regexp.MustCompile("(?:" + pattern.Before + ")(" + pattern.Secret + ")(?:" + pattern.After + ")")
		for name, put := range tokentest.Surroundings {
			found := whole.FindStringSubmatch(put(tokens[rule]))
			if found == nil || !strings.HasSuffix(found[1], tokens[rule]) {
				t.Errorf("%s, %s: found %q", pattern.Name, name, found)
			}
		}
	}
}

// TestGitleaksFindsTokensThatTouchOtherText runs gitleaks, if -gitleaks names it.
func TestGitleaksFindsTokensThatTouchOtherText(t *testing.T) {
	if *gitleaks == "" {
		t.Skip("gitleaks is not run: `make scanners` builds it, and runs it here")
	}
	folder, report := t.TempDir(), filepath.Join(t.TempDir(), "report.json")
	wanted := make(map[string]string) // file to the rule
	for rule, secret := range scanned(t) {
		for name, put := range tokentest.Surroundings {
			file := filepath.Join(folder, rule+" "+name+".txt")
			if err := os.WriteFile(file, []byte(put(secret)), 0o600); err != nil {
				t.Fatal(err)
			}
			wanted[file] = rule
		}
	}
	scan := exec.CommandContext(t.Context(), *gitleaks, "dir", folder, "--config", "scanners/gitleaks.toml",
		"--report-format", "json", "--report-path", report, "--exit-code", "0", "--no-banner")
	if output, err := scan.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var findings []struct{ RuleID, File string }
	if err := json.Unmarshal(text, &findings); err != nil {
		t.Fatal(err)
	}
	for _, finding := range findings {
		if wanted[finding.File] == finding.RuleID {
			delete(wanted, finding.File)
		}
	}
	for file := range wanted {
		t.Errorf("nothing is found in %s", filepath.Base(file))
	}
	t.Logf("%d findings", len(findings))
}
