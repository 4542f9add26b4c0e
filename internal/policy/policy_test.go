package policy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// scribeScopes is the catalogue of the design, spelled out.
var scribeScopes = []string{
	"assets:delete", "assets:read", "assets:write",
	"emails:delete", "emails:read", "emails:write",
	"financial_documents:read",
	"folders:delete", "folders:read", "folders:write",
	"integrations:read",
	"marketing_campaigns:delete", "marketing_campaigns:read", "marketing_campaigns:write",
	"signatures:delete", "signatures:read", "signatures:write",
	"smart_fields:delete", "smart_fields:read", "smart_fields:write",
	"teammates:delete", "teammates:read", "teammates:write",
}

var managerScopes = []string{
	"assets:delete", "assets:read", "assets:write",
	"emails:delete", "emails:read", "emails:write",
	"folders:delete", "folders:read", "folders:write",
	"integrations:read",
	"marketing_campaigns:delete", "marketing_campaigns:read", "marketing_campaigns:write",
	"signatures:delete", "signatures:read", "signatures:write",
	"smart_fields:delete", "smart_fields:read", "smart_fields:write",
	"teammates:delete", "teammates:read", "teammates:write",
}

// defaultDigest changes only if Scribe's policy or the canonical form changes. Do not change
// the canonical form: every stored policy would look changed.
const defaultDigest = "sha256:e4da585f89f3f6015c63632959f050e111d34cf00dbf8662ad032785f348ee77"

func TestDefaultIsScribesPolicy(t *testing.T) {
	p := Default()
	if got := p.Scopes(); !slices.Equal(got, scribeScopes) || len(got) != 23 {
		t.Errorf("Scopes: got %d: %q", len(got), got)
	}
	for role, want := range map[string][]string{
		"owner": scribeScopes, "admin": scribeScopes, "manager": managerScopes, "member": nil,
	} {
		if got, ok := p.RoleScopes(role); !ok || !slices.Equal(got, want) {
			t.Errorf("RoleScopes(%s): got %q, %v", role, got, ok)
		}
	}
	if len(p.Roles) != 4 {
		t.Errorf("got %d roles, want 4", len(p.Roles))
	}
	if p.TokenPrefix != "scribe" || p.Limits != (Limits{1000, 100, 128}) || p.Retention != 90*24*time.Hour {
		t.Errorf("got %q, %+v, %s", p.TokenPrefix, p.Limits, p.Retention)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	p.Resources[0].Name = "changed"
	if Default().Resources[0].Name != "teammates" {
		t.Error("Default shares memory between calls")
	}
}

func TestParseFillsInDefaults(t *testing.T) {
	p := mustParse(t, minimal)
	want := &Policy{
		TokenPrefix: "scribe",
		Resources:   []Resource{{Name: "things", Actions: []string{"read", "write"}}},
		Roles:       []Role{{"boss", []string{"*"}}, {"nobody", nil}},
		Limits:      Limits{1000, 100, 128},
		Retention:   90 * Day,
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got %+v", p)
	}
	p = mustParse(t, minimal+"limits: {scopes_per_key: 7}\ntoken_prefix: acme\nretention_days: 3650\n")
	if p.Limits != (Limits{1000, 7, 128}) || p.TokenPrefix != "acme" || p.Retention != 3650*Day {
		t.Errorf("got %+v", p)
	}
}

func TestPolicyFindsRolesAndScopes(t *testing.T) {
	p := mustParse(t, `
version: 1
resources:
  - {name: b, actions: [z, a]}
  - {name: a, actions: [r]}
roles:
  - {name: some, scopes: ["b:*", "b:a"]}
  - {name: one, scopes: ["b:a"]}
  - {name: all, scopes: ["*", "a:r"]}
  - {name: none, scopes: []}
`)
	for role, want := range map[string][]string{
		"some": {"b:a", "b:z"}, "one": {"b:a"}, "all": {"a:r", "b:a", "b:z"}, "none": nil,
	} {
		if got, ok := p.RoleScopes(role); !ok || !p.HasRole(role) || !slices.Equal(got, want) {
			t.Errorf("RoleScopes(%s): got %q, %v", role, got, ok)
		}
	}
	for _, role := range []string{"", "*", "ALL", "some "} {
		if scopes, ok := p.RoleScopes(role); ok || scopes != nil || p.HasRole(role) {
			t.Errorf("there is a role %q: %q", role, scopes)
		}
	}
	for scope, want := range map[string]bool{
		"a:r": true, "b:a": true, "b:z": true,
		"": false, "*": false, "b:*": false, "a:a": false, "b:r": false, "b": false, ":": false, "b:": false, ":a": false, "b:a ": false, "B:a": false, "b:a:a": false,
	} {
		if p.HasScope(scope) != want {
			t.Errorf("HasScope(%q) = %v", scope, !want)
		}
	}
}

// TestInvalidPolicyDenies: an invalid policy grants nothing that its catalogue does not have.
func TestInvalidPolicyDenies(t *testing.T) {
	p := &Policy{
		Resources: []Resource{{Name: "a", Actions: []string{"r", "r", "*"}}, {Name: "*", Actions: []string{"r"}}},
		Roles:     []Role{{"x", []string{"b:r", "a", "", "*:r", "a:w"}}, {"", []string{"*"}}},
	}
	if got, ok := p.RoleScopes("x"); !ok || slices.Contains(got, "b:r") || slices.Contains(got, "a:w") || slices.Contains(got, "a:r") {
		t.Errorf("got %q, %v", got, ok)
	}
	if p.HasScope("a:*") || p.HasScope("*:r") || new(Policy).HasRole("") || new(Policy).HasScope("a:r") {
		t.Error("a wildcard counts as a scope, or an empty policy has something")
	}
}

func TestValidScopeNameAcceptsOnlyItsForm(t *testing.T) {
	long := strings.Repeat("a", 64)
	for text, want := range map[string]bool{
		"a:b": true, "signatures:read": true, "smart_fields2:do_it": true, long + ":" + long: true,
		"": false, ":": false, "a": false, "a:": false, ":b": false, "a:b:c": false, "a::b": false,
		"*": false, "a:*": false, "*:a": false, "A:b": false, "a:B": false, "1a:b": false, "_a:b": false,
		"a-b:c": false, "a:b-c": false, "a :b": false, "a:b\n": false, "é:b": false, long + "a:b": false, "a:a" + long: false,
	} {
		if ValidScopeName(text) != want {
			t.Errorf("ValidScopeName(%q) = %v", text, !want)
		}
	}
}

func TestValidateReportsEveryMistake(t *testing.T) {
	valid := func() *Policy {
		return &Policy{
			TokenPrefix: "acme",
			Resources:   []Resource{{Name: "a", Actions: []string{"r", "w"}}, {Name: "b", Actions: []string{"r"}}},
			Roles:       []Role{{"x", []string{"*"}}, {"y", []string{"a:*", "b:r"}}, {"z", []string{}}},
			Limits:      Limits{1_000_000, 1000, 1024},
			Retention:   3650 * Day,
		}
	}
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		change func(*Policy)
		want   string
	}{
		{func(p *Policy) { p.TokenPrefix = "ac_me" }, `token_prefix: is "ac_me", allowed are 2 to 12 characters of a-z and 0-9, the first a letter`},
		{func(p *Policy) { p.TokenPrefix = "" }, `token_prefix: is "", allowed are 2 to 12 characters of a-z and 0-9, the first a letter`},
		{func(p *Policy) { p.Resources[1].Name = "a" }, `resources[1].name: is "a", as is resources[0].name already; each may be there once
roles[1].scopes[1]: is "b:r", but there is no resource "b", allowed are those under resources`},
		{func(p *Policy) { p.Resources[0].Actions[1] = "r" }, `resources[0].actions[1]: is "r", as is resources[0].actions[0] already; each may be there once`},
		{func(p *Policy) { p.Resources[0].Actions[1] = "W" }, `resources[0].actions[1]: is "W", allowed are 1 to 64 characters of a-z, 0-9 and _, the first a letter`},
		{func(p *Policy) { p.Resources[0].Actions[1] = "*" }, `resources[0].actions[1]: is "*", allowed are 1 to 64 characters of a-z, 0-9 and _, the first a letter`},
		{func(p *Policy) { p.Resources[0].Actions = nil }, `resources[0].actions: has none, at least one is needed`},
		{func(p *Policy) { p.Roles[2].Scopes = []string{"a:x"} }, `roles[2].scopes[0]: is "a:x", but a has no action "x", allowed are those under resources`},
		{func(p *Policy) { p.Roles[2].Scopes = []string{"c:*"} }, `roles[2].scopes[0]: is "c:*", but there is no resource "c", allowed are those under resources`},
		{func(p *Policy) { p.Roles[2].Scopes = []string{"*:r"} }, `roles[2].scopes[0]: is "*:r", which is malformed, allowed are resource:action, resource:* and *`},
		{func(p *Policy) { p.Roles[2].Scopes = []string{""} }, `roles[2].scopes[0]: is "", which is malformed, allowed are resource:action, resource:* and *`},
		{func(p *Policy) { p.Roles[0].Scopes = []string{"*", "*"} }, `roles[0].scopes[1]: is "*", as is roles[0].scopes[0] already; each may be there once`},
		{func(p *Policy) { p.Roles[1].Name = "x" }, `roles[1].name: is "x", as is roles[0].name already; each may be there once`},
		{func(p *Policy) { p.Roles[1].Name = "" }, `roles[1].name: is missing or empty, allowed are 1 to 64 characters of a-z, 0-9, _ and -, the first a letter`},
		{func(p *Policy) { p.Limits = Limits{0, 0, 0} }, `limits.live_keys_per_workspace: is 0, allowed are 1 to 1000000
limits.scopes_per_key: is 0, allowed are 1 to 1000
limits.key_name_characters: is 0, allowed are 1 to 1024`},
		{func(p *Policy) { p.Limits = Limits{1_000_001, 1001, 1025} }, `limits.live_keys_per_workspace: is 1000001, allowed are 1 to 1000000
limits.scopes_per_key: is 1001, allowed are 1 to 1000
limits.key_name_characters: is 1025, allowed are 1 to 1024`},
		{func(p *Policy) { p.Retention = 0 }, `retention_days: is 0, allowed are 1 to 3650 whole days`},
		{func(p *Policy) { p.Retention = -Day }, `retention_days: is -1, allowed are 1 to 3650 whole days`},
		{func(p *Policy) { p.Retention = 3651 * Day }, `retention_days: is 3651, allowed are 1 to 3650 whole days`},
		{func(p *Policy) { p.Retention = Day + time.Second }, `retention_days: is 24h0m1s, allowed are 1 to 3650 whole days`},
		{func(p *Policy) { p.Resources, p.Roles = nil, nil }, "resources: has none, at least one is needed\nroles: has none, at least one is needed"},
		{func(p *Policy) { p.Resources[1].Actions = names(999) }, "resources: has 1001 scopes in all, allowed are up to 1000\n" +
			`roles[1].scopes[1]: is "b:r", but b has no action "r", allowed are those under resources`},
		{func(p *Policy) { p.Roles = rolesOf(101) }, "roles: has 101, allowed are up to 100"},
		{func(p *Policy) { p.Roles[0].Name = strings.Repeat("é", 60) }, `roles[0].name: is "` + strings.Repeat("é", 40) + `"…, allowed are 1 to 64 characters of a-z, 0-9, _ and -, the first a letter`},
	} {
		p := valid()
		test.change(p)
		err := p.Validate()
		if err == nil || err.Error() != test.want {
			t.Errorf("got\n%v\nwant\n%s", err, test.want)
			continue
		}
		var list Errors
		if !errors.As(err, &list) || len(list) != strings.Count(test.want, "\n")+1 || list[0].Line != 0 || list[0].File != "" {
			t.Errorf("not an Errors without positions: %#v", err)
		}
		var first *Error
		if !errors.As(err, &first) || first != list[0] {
			t.Error("errors.As does not find the first mistake")
		}
	}
}

func TestValidateAtTheLimits(t *testing.T) {
	p := Default()
	p.Resources, p.Actions = []Resource{{Name: "a", Actions: names(1000)}}, nil
	p.Roles = rolesOf(100)
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	for i := range p.Roles {
		p.Roles[i].Scopes = p.Scopes()
	}
	err := p.Validate()
	if err == nil || !strings.HasPrefix(err.Error(), "document: has ") || !strings.HasSuffix(err.Error(), " bytes in canonical form, allowed are up to 262144") {
		t.Errorf("a policy too large for the store: got %v", err)
	}
}

func names(count int) []string {
	list := make([]string, count)
	for i := range list {
		list[i] = fmt.Sprintf("a%d", i)
	}
	return list
}

func rolesOf(count int) []Role {
	roles := make([]Role, count)
	for i, name := range names(count) {
		roles[i] = Role{Name: name}
	}
	return roles
}

func TestDocumentIsCanonical(t *testing.T) {
	p := mustParse(t, minimal)
	const want = `version: 1
token_prefix: scribe
resources:
  - name: things
    actions:
      - read
      - write
roles:
  - name: boss
    scopes:
      - "*"
  - name: nobody
    scopes: []
limits:
  live_keys_per_workspace: 1000
  scopes_per_key: 100
  key_name_characters: 128
retention_days: 90
`
	if got := string(p.Document()); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestParseOfDocumentReturnsAnEqualPolicy(t *testing.T) {
	awkward := Default()
	awkward.Resources = []Resource{{Name: "y", Actions: []string{"true", "no", "null", "off", "e5", "inf"}}, {Name: "null", Actions: []string{"y"}}}
	awkward.Roles = []Role{{"yes", []string{"y:*", "null:y", "y:true"}}, {"a-", nil}, {"false", nil}, {"a--b_", nil}}
	awkward.Actions = []Action{{Name: "y", Title: "y"}, {Name: "null", Title: "null", Description: "- {a: [b]} # \"'\\"}}
	awkward.TokenPrefix = "no"
	for _, p := range []*Policy{Default(), awkward} {
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		if again := mustParse(t, string(p.Document())); !reflect.DeepEqual(again, p) || again.Digest() != p.Digest() {
			t.Errorf("%+v became %+v", p, again)
		}
	}
}

// TestDocumentOfInvalidPolicyIsRefused: an invalid name must not become other fields of the
// document.
func TestDocumentOfInvalidPolicyIsRefused(t *testing.T) {
	p := Default()
	p.Roles[3].Name = "member\n  - name: root\n    scopes: [\"*\"]\n#"
	text := string(p.Document())
	if strings.Contains(text, "\n  - name: root") {
		t.Errorf("a name breaks out of its line:\n%s", text)
	}
	if _, err := Parse("p", []byte(text)); err == nil {
		t.Error("accepted")
	}
}

func TestDigestIsStable(t *testing.T) {
	for range 3 {
		if got := Default().Digest(); got != defaultDigest {
			t.Fatalf("got %s, want %s", got, defaultDigest)
		}
	}
	spaced := strings.ReplaceAll(minimal, "\n", " # comment\n\n")
	if mustParse(t, spaced).Digest() != mustParse(t, minimal).Digest() {
		t.Error("comments and blank lines change the digest")
	}
	seen := map[string]bool{}
	for _, change := range []func(*Policy){
		func(*Policy) {},
		func(p *Policy) { p.TokenPrefix = "other" },
		func(p *Policy) { p.Resources[0].Name = "other" },
		func(p *Policy) { p.Resources[0].Actions[0] = "other" },
		func(p *Policy) { p.Roles[0].Name = "other" },
		func(p *Policy) { p.Roles[0].Scopes = nil },
		func(p *Policy) { p.Limits.LiveKeysPerWorkspace++ },
		func(p *Policy) { p.Limits.ScopesPerKey++ },
		func(p *Policy) { p.Limits.KeyNameCharacters++ },
		func(p *Policy) { p.Retention += Day },
	} {
		p := Default()
		change(p)
		seen[p.Digest()] = true
	}
	if len(seen) != 10 {
		t.Errorf("10 different policies have %d digests", len(seen))
	}
}

// TestUnknownScopeSaysHowManyScopesItLeavesOut: the reader must not take the list in the error for
// the whole catalogue.
func TestUnknownScopeSaysHowManyScopesItLeavesOut(t *testing.T) {
	many := make([]string, 100)
	for number := range many {
		many[number] = fmt.Sprintf("r%02d:read", number)
	}
	all := Default().Scopes()
	for text, want := range map[string]struct {
		catalogue []string
		says      string
	}{
		"emails:fly": {all, `"emails:fly" is not in the policy, which has emails:delete, emails:read, emails:write and 20 more; GetPolicy lists all 23`},
		"bees:read":  {all, `"bees:read" is not in the policy, which has ` + strings.Join(all, ", ")},
		"bees:fly":   {many, `"bees:fly" is not in the policy, which has ` + strings.Join(many[:30], ", ") + " and 70 more; GetPolicy lists all 100"},
		"emails":     {all, "is not a scope; resource:action is required, e.g. signatures:read"},
		"emails:*":   {all, "is not a scope; resource:action is required, e.g. signatures:read"},
	} {
		if got := UnknownScope(text, want.catalogue, "GetPolicy"); got != want.says {
			t.Errorf("%s: %s\nwant %s", text, got, want.says)
		}
	}
}
