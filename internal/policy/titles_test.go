package policy

import (
	"reflect"
	"strings"
	"testing"
)

const titled = `version: 1
resources:
  - name: things
    title: "My \"things\": äöü"
    description: What there is
    actions: [read, write]
  - name: more
    actions: [read]
actions:
  - name: write
    title: Write
  - name: read
    description: "no"
roles:
  - name: boss
    scopes: ["*"]
`

func TestTitlesAreKept(t *testing.T) {
	p := mustParse(t, titled)
	if p.Resources[0].Title != `My "things": äöü` || p.Resources[0].Description != "What there is" || p.Resources[1].Title != "" {
		t.Errorf("got %+v", p.Resources)
	}
	if want := []Action{{Name: "write", Title: "Write"}, {Name: "read", Description: "no"}}; !reflect.DeepEqual(p.Actions, want) {
		t.Errorf("got %+v", p.Actions)
	}
	const want = `resources:
  - name: things
    title: "My \"things\": äöü"
    description: "What there is"
    actions:
      - read
      - write
  - name: more
    actions:
      - read
actions:
  - name: write
    title: "Write"
  - name: read
    description: "no"
roles:
`
	if !strings.Contains(string(p.Document()), want) {
		t.Errorf("got\n%s", p.Document())
	}
	if again := mustParse(t, string(p.Document())); !reflect.DeepEqual(again, p) || again.Digest() != p.Digest() {
		t.Errorf("%+v became %+v", p, again)
	}
}

// TestPolicyWithoutTitlesKeepsItsDigest: the digest is the one of Scribe's policy before there were
// titles.
func TestPolicyWithoutTitlesKeepsItsDigest(t *testing.T) {
	p := Default()
	p.Actions = nil
	for index := range p.Resources {
		p.Resources[index].Title, p.Resources[index].Description = "", ""
	}
	if got := p.Digest(); got != "sha256:4bc3d5c9cbf656084d6837f07ab214cbeab261255e2bc74dc3543c57d047cce4" {
		t.Errorf("got %s", got)
	}
	if p.TitlesDigest() != "" {
		t.Error("titles without titles")
	}
}

func TestEveryTitleChangesTheDigests(t *testing.T) {
	changes := []func(*Policy){
		func(*Policy) {},
		func(p *Policy) { p.Resources[0].Title = "x" },
		func(p *Policy) { p.Resources[0].Description = "x" },
		func(p *Policy) { p.Resources[1].Title = "x" },
		func(p *Policy) { p.Actions[0].Title = "x" },
		func(p *Policy) { p.Actions[0].Description = "x" },
		func(p *Policy) { p.Actions = p.Actions[:1] },
	}
	digests, titles := map[string]bool{}, map[string]bool{}
	for _, change := range changes {
		p := Default()
		change(p)
		digests[p.Digest()], titles[p.TitlesDigest()] = true, true
	}
	if len(digests) != len(changes) || len(titles) != len(changes) {
		t.Errorf("%d digests and %d of titles for %d policies", len(digests), len(titles), len(changes))
	}
}

func TestScribesPolicyHasATitleForEverything(t *testing.T) {
	p := Default()
	for _, resource := range p.Resources {
		if resource.Title == "" || resource.Description == "" {
			t.Errorf("%s has no title or description", resource.Name)
		}
	}
	if len(p.Actions) != 3 || p.Actions[0].Title != "Read" || p.Actions[1].Title != "Write" || p.Actions[2].Title != "Delete" {
		t.Errorf("got %+v", p.Actions)
	}
}

func TestTitlesAreChecked(t *testing.T) {
	const unseen = "has a control, invisible or other unprintable character, allowed are printable ones and the space"
	for _, test := range []struct {
		change func(*Policy)
		want   string
	}{
		{func(p *Policy) { p.Resources[0].Title = strings.Repeat("é", 64) }, ""},
		{func(p *Policy) { p.Resources[0].Title = strings.Repeat("é", 65) }, "resources[0].title: has 65 characters, allowed are up to 64"},
		{func(p *Policy) { p.Actions[1].Description = strings.Repeat("é", 256) }, ""},
		{func(p *Policy) { p.Actions[1].Description = strings.Repeat("é", 257) }, "actions[1].description: has 257 characters, allowed are up to 256"},
		{func(p *Policy) { p.Resources[1].Description = "a\nb" }, "resources[1].description: " + unseen},
		{func(p *Policy) { p.Resources[1].Title = "a\u202eb" }, "resources[1].title: " + unseen},
		{func(p *Policy) { p.Resources[1].Title = "\u3164" }, "resources[1].title: " + unseen},
		{func(p *Policy) { p.Resources[1].Title = "\u2800" }, "resources[1].title: " + unseen},
		{func(p *Policy) { p.Actions[0].Title = " x" }, "actions[0].title: begins or ends with a space, allowed are spaces inside"},
		{func(p *Policy) { p.Actions[0].Title = " " }, "actions[0].title: begins or ends with a space, allowed are spaces inside"},
		{func(p *Policy) { p.Actions[0].Title = "\xff" }, "actions[0].title: is not valid UTF-8, allowed is UTF-8 only"},
		{func(p *Policy) {
			p.Actions[0].Title = "scribe_ksk1_" + strings.Repeat("A", 16) + "_" + strings.Repeat("A", 35)
		}, "actions[0].title: holds what looks like a token, allowed are words for people"},
		{func(p *Policy) { p.Actions[0].Name = "fly" }, `actions[0].name: is "fly", but no resource has this action, allowed are those under resources`},
		{func(p *Policy) { p.Actions[1].Name = "read" }, `actions[1].name: is "read", as is actions[0].name already; each may be there once`},
		{func(p *Policy) { p.Actions[0].Name = "*" }, `actions[0].name: is "*", allowed are 1 to 64 characters of a-z, 0-9 and _, the first a letter`},
	} {
		p := Default()
		test.change(p)
		got := ""
		if err := p.Validate(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got\n%s\nwant\n%s", got, test.want)
		}
	}
}
