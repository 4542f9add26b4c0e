package keyauth_test

import (
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

func TestRequirementOfSeveralScopes(t *testing.T) {
	many := make([]string, keyauth.MaxScopes+1)
	for index := range many {
		many[index] = "notes:read" + string(rune('a'+index))
	}
	for name, test := range map[string]struct {
		requirement keyauth.Requirement
		valid       bool
		text        string
	}{
		"all":       {keyauth.AllOf("a:b", "c:d"), true, "all of a:b, c:d"},
		"any":       {keyauth.AnyOf("a:b", "c:d"), true, "any of a:b, c:d"},
		"most":      {keyauth.AllOf(many[1:]...), true, ""},
		"none":      {keyauth.AllOf(), false, ""},
		"no any":    {keyauth.AnyOf(), false, ""},
		"too many":  {keyauth.AnyOf(many...), false, ""},
		"twice":     {keyauth.AllOf("a:b", "a:b"), false, ""},
		"malformed": {keyauth.AnyOf("a:b", "c"), false, ""},
		"a space":   {keyauth.AllOf("a:b c:d"), false, ""},
		"a space 2": {keyauth.AllOf("a:b c:d", "e:f"), false, ""},
		"wildcard":  {keyauth.AnyOf("a:b", "*"), false, ""},
		"no field":  {keyauth.Scope("a:b").WorkspaceField(""), false, ""},
	} {
		if got := test.requirement.IsValid(); got != test.valid {
			t.Errorf("%s: valid %t, want %t", name, got, test.valid)
		}
		if test.text != "" && test.requirement.String() != test.text {
			t.Errorf("%s: %q, want %q", name, test.requirement, test.text)
		}
	}
	if keyauth.AllOf("a:b") != keyauth.Scope("a:b") || keyauth.AnyOf("a:b") != keyauth.Scope("a:b") {
		t.Error("one scope is not Scope")
	}
	if keyauth.AllOf("a:b", "c:d") == keyauth.AnyOf("a:b", "c:d") {
		t.Error("all and any are equal")
	}
}
