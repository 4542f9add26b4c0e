package strictyaml_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/strictyaml"
)

var form = strictyaml.Form{MaxBytes: 4096, Expected: "name and size"}

// thing is what the documents of these tests are about.
type thing struct {
	name  string
	size  int
	old   bool
	parts []string
	place string
}

// read reads a thing; it demands a name, and a size of 1 to 9.
func read(text string, form strictyaml.Form) (thing, error) {
	root, mistakes := strictyaml.Parse("t.yaml", []byte(text), form)
	fields := root.Mapping("name", "size", "old", "parts", "at")
	var read thing
	if root.Present() && fields["name"].Text() == "" {
		mistakes.Add("name", "is missing or empty")
	}
	read.name = fields["name"].Text()
	read.size, _ = fields["size"].Number()
	if fields["size"].Present() && (read.size < 1 || read.size > 9) {
		mistakes.Add("size", "is %d, allowed are 1 to 9", read.size)
	}
	read.old, _ = fields["old"].Bool()
	read.parts = fields["parts"].Texts()
	read.place = fields["at"].Mapping("place")["place"].Text()
	return read, mistakes.Err()
}

func TestParseReadsValues(t *testing.T) {
	got, err := read("# a comment\nname: n\nsize: 7\nold: true\nparts:\n- a\n- \"5\"\nat: {place: here}\n", form)
	want := thing{name: "n", size: 7, old: true, parts: []string{"a", "5"}, place: "here"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestParseRefusesWhatWasNotMeant(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"an unknown field":            {"name: n\nnam: m\n", `t.yaml:2:1: document: has an unknown field "nam", allowed are name, size, old, parts, at`},
		"an unknown nested field":     {"name: n\nat:\n  plaice: m\n", `t.yaml:3:3: at: has an unknown field "plaice", allowed are place`},
		"a repeated field":            {"name: n\nsize: 1\nname: m\n", `t.yaml:3:1: document: has name twice, allowed is once`},
		"a missing field":             {"size: 1\n", `t.yaml:1:1: name: is missing or empty`},
		"a number for a text":         {"name: 12\n", `t.yaml:1:7: name: is the number "12", allowed is text, in quotes where YAML would take it for something else`},
		"a text for a number":         {"name: n\nsize: \"1\"\n", `t.yaml:2:7: size: is the text "1", allowed is a whole number in plain decimal digits`},
		"a number with a zero first":  {"name: n\nsize: 07\n", `t.yaml:2:7: size: is "07", allowed is a whole number in plain decimal digits of at most 10 digits`},
		"a number that is too long":   {"name: n\nsize: 12345678901\n", `t.yaml:2:7: size: is "12345678901", allowed is a whole number in plain decimal digits of at most 10 digits`},
		"a number against a rule":     {"name: n\nsize:   10\n", `t.yaml:2:9: size: is 10, allowed are 1 to 9`},
		"a word for a boolean":        {"name: n\nold: yes\n", `t.yaml:2:6: old: is the text "yes", allowed is true or false`},
		"a boolean in capitals":       {"name: n\nold: TRUE\n", `t.yaml:2:6: old: is "TRUE", allowed is true or false`},
		"null":                        {"name: n\nold:\n", `t.yaml:2:5: old: is empty, allowed is true or false`},
		"a text for a list":           {"name: n\nparts: a\n", `t.yaml:2:8: parts: is the text "a", allowed is a list`},
		"a number in a list of texts": {"name: n\nparts: [a, 1]\n", `t.yaml:2:12: parts[1]: is the number "1", allowed is text, in quotes where YAML would take it for something else`},
		"a list for the document":     {"- name\n", `t.yaml:1:1: document: is a list, allowed is a mapping of name, size, old, parts, at`},
		"an alias":                    {"name: n\nparts: [a, *p]\n", "t.yaml:1: document: is not valid YAML here or further down (unknown anchor 'p' referenced), allowed is one YAML document"},
		"an anchor and its alias": {"name: &n n\nparts: [*n]\n", `t.yaml:1:7: name: has a tag or an anchor, allowed is neither
t.yaml:2:9: parts[0]: is a YAML alias, allowed is text, in quotes where YAML would take it for something else`},
		"a merge key":       {"name: n\nat:\n  <<: {place: here}\n", `t.yaml:3:3: at: has an unknown field "<<", allowed are place`},
		"a tag":             {"name: !!str n\n", `t.yaml:1:7: name: has a tag or an anchor, allowed is neither`},
		"a tag of no sense": {"name: !secret n\n", `t.yaml:1:7: name: is a value of type "!secret", allowed is text, in quotes where YAML would take it for something else`},
		"a tag of a list":   {"name: n\nparts: !many [a]\n", `t.yaml:2:8: parts: is a value of type "!many", allowed is a list`},
		"an anchor at a field": {"&a name: n\n", `t.yaml:1:1: document: has a tag or an anchor at the field name, allowed is neither
t.yaml:1:1: name: is missing or empty`},
		"a second document":   {"name: n\n---\nname: m\n", "t.yaml:2:1: document: has a second YAML document here, allowed is one"},
		"a broken second one": {"name: n\n---\n[\n", "t.yaml:3: document: is not valid YAML here or further down (did not find expected node content), allowed is one YAML document"},
		"broken YAML":         {"name: n\n\tsize: 1\n", "t.yaml:2: document: is not valid YAML here or further down (found a tab character that violates indentation), allowed is one YAML document"},
		"no UTF-8":            {"name: n\n# caf\xe9\n", "t.yaml:2: document: is not valid UTF-8, allowed is UTF-8 only"},
		"no text":             {"", "t.yaml:1: document: is empty, allowed is one YAML document with name and size"},
		"comments alone":      {"# nothing\n", "t.yaml:1: document: is empty, allowed is one YAML document with name and size"},
		"too many bytes":      {strings.Repeat("#", 4097), "t.yaml:1: document: has 4097 bytes, allowed are up to 4096"},
		"deep nesting":        {"name: " + strings.Repeat("[", 32) + strings.Repeat("]", 32) + "\n", "t.yaml:1:38: document: is nested deeper here than the 32 levels that are allowed"},
		"endless nesting":     {strings.Repeat("[", 4096), "t.yaml:1: document: is not valid YAML here or further down (did not find expected node content), allowed is one YAML document"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(test.text, form); err == nil || err.Error() != test.want {
				t.Errorf("got\n%v\nwant\n%s", err, test.want)
			}
		})
	}
}

func TestParseAllowsNestingUpToTheLimit(t *testing.T) {
	text := "name: n\nparts: " + strings.Repeat("[", 31) + strings.Repeat("]", 31) + "\n"
	if _, err := read(text, form); err == nil || !strings.Contains(err.Error(), "parts[0]: is a list") {
		t.Errorf("got %v, want the mistake of the value, not of the depth", err)
	}
}

func TestParseAllowsAnEmptyTextIfTold(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n...\n"} {
		root, mistakes := strictyaml.Parse("t.yaml", []byte(text), strictyaml.Form{MaxBytes: 10, AllowEmpty: true})
		if root.Present() || root.Mapping("a") != nil || root.List() != nil || root.Line() != 0 || root.Column() != 0 || mistakes.Err() != nil {
			t.Errorf("%q: got %v", text, mistakes.Err())
		}
	}
}

func TestValueKnowsItsPosition(t *testing.T) {
	root, mistakes := strictyaml.Parse("t.yaml", []byte("a: 1\nb:\n  - x\n  -   y\n"), form)
	fields := root.Mapping("a", "b")
	y := fields["b"].List()[1]
	if fields["a"].Line() != 1 || fields["a"].Column() != 4 || y.Line() != 4 || y.Column() != 7 || mistakes.Len() != 0 {
		t.Errorf("a at %d:%d, y at %d:%d", fields["a"].Line(), fields["a"].Column(), y.Line(), y.Column())
	}
}

// TestRulesAreSilentAboutWhatCouldNotBeRead: a value of a wrong type is reported once, not
// again as a value that is missing.
func TestRulesAreSilentAboutWhatCouldNotBeRead(t *testing.T) {
	root, mistakes := strictyaml.Parse("t.yaml", []byte("a: [1]\nb: {c: 1}\n"), form)
	fields := root.Mapping("a", "b")
	fields["a"].Texts()
	fields["b"].Refuse("is no good")
	mistakes.Add("a[0]", "is missing")
	mistakes.Add("b.c", "is missing")
	if got := mistakes.Len(); got != 2 || !mistakes.AnyUnread("a") || !mistakes.AnyUnread("b") || mistakes.AnyUnread("c") {
		t.Errorf("got %d: %v", got, mistakes.Err())
	}
	mistakes.Add("a", "has one")
	if mistakes.Len() != 3 {
		t.Error("a mistake of the list is lost with that of an element")
	}
}

func TestMistakesWithoutADocumentHaveNoPosition(t *testing.T) {
	var mistakes strictyaml.Mistakes
	if mistakes.Err() != nil || mistakes.AnyUnread("a") {
		t.Error("the zero Mistakes has some")
	}
	mistakes.Add("b.c", "is %d", 1)
	mistakes.Add("a", "is 2")
	err := mistakes.Err()
	var list strictyaml.Errors
	if !errors.As(err, &list) || len(list) != 2 || err.Error() != "b.c: is 1\na: is 2" {
		t.Errorf("got %v", err)
	}
	var first *strictyaml.Error
	if !errors.As(err, &first) || first != list[0] {
		t.Error("errors.As does not find the first mistake")
	}
}

func TestMistakesAreListedUpTo100(t *testing.T) {
	for _, test := range []struct{ mistakes, listed int }{{100, 100}, {101, 101}, {500, 101}} {
		_, err := read("name: n\n"+strings.Repeat("x: 1\n", test.mistakes), form)
		var list strictyaml.Errors
		if !errors.As(err, &list) || len(list) != test.listed {
			t.Fatalf("%d mistakes: %d are listed", test.mistakes, len(list))
		}
		if last := list[len(list)-1].Problem; (test.listed > 100) != (last == "has more mistakes than the 100 shown") {
			t.Errorf("%d mistakes: the last is %q", test.mistakes, last)
		}
	}
}

func TestQuoteCutsBetweenCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"a\n":                         `"a\n"`,
		strings.Repeat("a", 80):       `"` + strings.Repeat("a", 80) + `"`,
		strings.Repeat("a", 81):       `"` + strings.Repeat("a", 80) + `"…`,
		"a" + strings.Repeat("é", 40): `"a` + strings.Repeat("é", 39) + `"…`,
	} {
		if got := strictyaml.Quote(text); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzParse reads documents in every way there is: each mistake is one line with a position
// inside of the text, and the list is in the order of the text.
func FuzzParse(f *testing.F) {
	f.Add([]byte("name: n\nsize: 7\nold: true\nparts: [a, b]\nat: {place: here}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := read(string(text), form)
		if err == nil {
			return
		}
		var list strictyaml.Errors
		if !errors.As(err, &list) || len(list) == 0 || len(list) > 101 {
			t.Fatalf("got %#v", err)
		}
		lines := 1 + strings.Count(strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n").Replace(string(text)), "\n")
		for _, mistake := range list {
			if mistake.Line < 1 || mistake.Line > lines+1 || mistake.Column < 0 || mistake.Field == "" || mistake.Problem == "" {
				t.Fatalf("not a good position: %+v", mistake)
			}
			if strings.ContainsAny(mistake.Error(), "\n\r\x00") || len(mistake.Error()) > 1000 {
				t.Fatalf("not a good message: %q", mistake.Error())
			}
		}
		if !slices.IsSortedFunc(list, func(a, b *strictyaml.Error) int { return a.Line - b.Line }) {
			t.Fatalf("not in order: %v", err)
		}
	})
}

func ExampleParse() {
	root, mistakes := strictyaml.Parse("thing.yaml", []byte("name: 5\nsize: 12\nsizes: 1\n"), strictyaml.Form{MaxBytes: 1 << 20})
	fields := root.Mapping("name", "size")
	if fields["name"].Text() == "" {
		mistakes.Add("name", "is missing") // not said: it is there, but no text
	}
	if size, ok := fields["size"].Number(); ok && size > 9 {
		mistakes.Add("size", "is %d, allowed are up to 9", size)
	}
	fmt.Println(mistakes.Err())
	// Output:
	// thing.yaml:1:7: name: is the number "5", allowed is text, in quotes where YAML would take it for something else
	// thing.yaml:2:7: size: is 12, allowed are up to 9
	// thing.yaml:3:1: document: has an unknown field "sizes", allowed are name, size
}
