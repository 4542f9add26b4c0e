package docs_test

import (
	"regexp"
	"strings"
	"testing"
)

// These lists are complete by promise, and are easily forgotten when something is added.

func TestReadmeListsEveryRPC(t *testing.T) {
	r := checkout(t)
	rpc := regexp.MustCompile(`(?m)^  rpc (\w+)\(`)
	found := 0
	for name := range r.files {
		if !strings.HasPrefix(name, "proto/keysvc/v1/") {
			continue
		}
		for _, method := range rpc.FindAllStringSubmatch(r.read(name), -1) {
			found++
			row := regexp.MustCompile(`(?m)^\| [^|]*\b` + method[1] + `\b[^|]* \|`)
			if !row.MatchString(r.read("README.md")) {
				t.Errorf("README.md: the table of RPCs lacks %s of %s", method[1], name)
			}
		}
	}
	if found < 10 {
		t.Errorf("%d RPCs were found; the test looks for another form", found)
	}
}

func TestContributingExplainsEveryMakeTarget(t *testing.T) {
	r := checkout(t)
	if len(r.targets) < 10 {
		t.Errorf("%d targets were found; the test looks for another form", len(r.targets))
	}
	for name := range r.targets {
		if !strings.Contains(r.read("CONTRIBUTING.md"), "\n| `make "+name+"` | ") {
			t.Errorf("CONTRIBUTING.md: the table of targets lacks make %s", name)
		}
	}
}

func TestEveryDirectDependencyHasItsReasonInADR0006(t *testing.T) {
	r := checkout(t)
	const page = "docs/adr/0006-libraries.md"
	required := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`) // an indirect one has a comment behind it
	found := 0
	for _, file := range []string{"go.mod", "test/go.mod"} {
		for _, module := range required.FindAllStringSubmatch(r.read(file), -1) {
			name := strings.TrimPrefix(module[1], "github.com/")
			if name == "scribe-mail/keysvc" {
				continue
			}
			found++
			if !strings.Contains(r.read(page), name) {
				t.Errorf("%s: no line for %s, which %s requires", page, module[1], file)
			}
		}
	}
	if found < 10 {
		t.Errorf("%d requirements were found; the test looks for another form", found)
	}
}

// TestSizingNamesMeasurementsOfPerformance: the figures of docs/sizing.md that are marked *P* are those of
// docs/performance.md.
func TestSizingNamesMeasurementsOfPerformance(t *testing.T) {
	r := checkout(t)
	marked := regexp.MustCompile(`\*P\*\s((?:` + "`[^`]+`" + `(?:, )?)+)`)
	found := 0
	for _, names := range marked.FindAllStringSubmatch(r.read("docs/sizing.md"), -1) {
		for _, name := range strings.Split(names[1], ", ") {
			if name == "" {
				continue
			}
			found++
			if !strings.Contains(r.read("docs/performance.md"), "\n| "+name+" | ") {
				t.Errorf("docs/sizing.md: docs/performance.md has no measurement %s", name)
			}
		}
	}
	if found < 15 {
		t.Errorf("%d measurements were found; the page has another form", found)
	}
}

func TestRecipeForAnAuthorityHasTheStepsThatTheGameDayPlays(t *testing.T) {
	r := checkout(t)
	_, recipe, found := strings.Cut(r.read("docs/tls.md"), "\n### Replacing an authority\n")
	if !found {
		t.Fatal("docs/tls.md has no recipe for replacing an authority")
	}
	recipe, _, _ = strings.Cut(recipe, "\n### ")
	_, played, _ := strings.Cut(r.read("test/gameday/faults.go"), "\nfunc certificates(")
	played, _, _ = strings.Cut(played, "\n}\n")
	steps := regexp.MustCompile(`d\.say\("(\d\. )(.*?)"\)`).FindAllStringSubmatch(played, -1)
	if len(steps) < 4 {
		t.Fatalf("%d steps were found; the test looks for another form", len(steps))
	}
	for _, step := range steps {
		line := step[1] + "**" + strings.ToUpper(step[2][:1]) + step[2][1:] + ".**"
		_, rest, found := strings.Cut(recipe, "\n"+line)
		if !found {
			t.Fatalf("docs/tls.md: the recipe for replacing an authority lacks %q, or has it too early", line)
		}
		recipe = rest
	}
}
