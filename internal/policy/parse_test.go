package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const minimal = `version: 1
resources:
  - name: things
    actions: [read, write]
roles:
  - name: boss
    scopes: ["*"]
  - name: nobody
    scopes: []
`

func mustParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestParseReportsEveryMistake reads testdata/errors/NAME.yaml and compares the error of
// Parse with NAME.txt.
func TestParseReportsEveryMistake(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(strings.TrimSuffix(file, ".yaml") + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			p, err := Parse("p.yaml", text)
			if err == nil || p != nil {
				t.Fatalf("accepted: %+v", p)
			}
			if got := err.Error() + "\n"; got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// TestParseRefusesTheWholeText has the texts that cannot well be kept as files.
func TestParseRefusesTheWholeText(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "p.yaml:1: document: is empty, allowed is one YAML document with version, resources and roles"},
		{"null", "---\n...\n", "p.yaml:1: document: is empty, allowed is one YAML document with version, resources and roles"},
		{"comment", "# nothing\n", "p.yaml:1: document: is empty, allowed is one YAML document with version, resources and roles"},
		{"not UTF-8", "version: 1\n# caf\xe9\n", "p.yaml:2: document: is not valid UTF-8, allowed is UTF-8 only"},
		{"large", minimal + strings.Repeat("#", 1<<20), fmt.Sprintf("p.yaml:1: document: has %d bytes, allowed are up to 1048576", len(minimal)+1<<20)},
	} {
		_, err := Parse("p.yaml", []byte(test.text))
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
	if _, err := Parse("p.yaml", []byte(minimal+strings.Repeat("#", 1<<20-len(minimal)))); err != nil {
		t.Errorf("1 MiB exactly: %v", err)
	}
	if _, err := Parse("", nil); err == nil || !strings.HasPrefix(err.Error(), "policy:1: ") {
		t.Errorf("without a filename: got %v", err)
	}
}

func TestParseListsAtMost100Mistakes(t *testing.T) {
	text := minimal + strings.Repeat("x: 1\n", 100)
	var list Errors
	// 100 mistakes are all shown; in place of the 101st there is a note.
	if _, err := Parse("p.yaml", []byte(text)); !errors.As(err, &list) || len(list) != 100 {
		t.Errorf("100 mistakes: got %d", len(list))
	}
	if _, err := Parse("p.yaml", []byte(text+"x: 1\n")); !errors.As(err, &list) || len(list) != 101 || list[100].Error() != "p.yaml:109: document: has more mistakes than the 100 shown" {
		t.Errorf("101 mistakes: got %d, %v", len(list), list[len(list)-1])
	}
}

func TestParseRefusesDeepNesting(t *testing.T) {
	if deep := strings.Repeat("[", 1<<20); !fails(deep) || !fails(strings.Repeat("{a: ", 1<<18)) || !fails(strings.Repeat("- ", 1<<19)) {
		t.Error("nesting is accepted")
	}
}

func fails(text string) bool {
	_, err := Parse("p.yaml", []byte(text))
	return err != nil
}

func FuzzParse(f *testing.F) {
	f.Add(scribe)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse("p.yaml", text)
		if err != nil {
			var list Errors
			if p != nil || !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("got %v, %#v", p, err)
			}
			for _, mistake := range list {
				if mistake.Line < 1 || mistake.Field == "" || mistake.Problem == "" || strings.ContainsAny(mistake.Error(), "\n\r\x00") {
					t.Fatalf("not a good message: %q", mistake.Error())
				}
			}
			if !slices.IsSortedFunc(list, func(a, b *Error) int { return a.Line - b.Line }) {
				t.Fatalf("not in order: %v", err)
			}
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("Parse accepts what Validate refuses: %v", err)
		}
		again, err := Parse("again.yaml", p.Document())
		if err != nil {
			t.Fatalf("%v in\n%s", err, p.Document())
		}
		if !reflect.DeepEqual(again, p) || again.Digest() != p.Digest() {
			t.Fatalf("%+v became %+v", p, again)
		}
		for _, role := range p.Roles {
			scopes, ok := p.RoleScopes(role.Name)
			if !ok || !slices.IsSorted(scopes) {
				t.Fatalf("RoleScopes(%q): %q, %v", role.Name, scopes, ok)
			}
			for _, scope := range scopes {
				if !p.HasScope(scope) {
					t.Fatalf("%s has %s, which is not in the catalogue", role.Name, scope)
				}
			}
		}
	})
}
