package access_test

import (
	"bytes"
	"testing"

	"github.com/scribe-mail/keysvc/internal/access"
)

func TestZeroValuesAllowNothing(t *testing.T) {
	var workspaces access.Workspaces
	if workspaces.Has("acme") || workspaces.Has("") || workspaces.IsAll() || !workspaces.IsEmpty() {
		t.Error("the zero Workspaces has something")
	}
	for name, grants := range map[string]*access.Grants{"nil": nil, "zero": {}} {
		for _, right := range append(access.Rights(), access.Nobody, 255) {
			if grants.May(right) {
				t.Errorf("%s grants have %v", name, right)
			}
		}
		if !grants.May(access.Anyone) {
			t.Errorf("%s grants may not do what anyone may", name)
		}
	}
	if (*access.Grants)(nil).May(access.Known) {
		t.Error("nil grants count as a known caller")
	}
	if access.Everything().May(access.Nobody) {
		t.Error("somebody has the right of nobody")
	}
}

func TestNoRightImpliesAnother(t *testing.T) {
	for _, given := range access.Rights() {
		var grants access.Grants
		grants.Add(given, access.Only("acme"))
		for _, asked := range access.Rights() {
			if got, want := grants.For(asked).Has("acme"), asked == given; got != want {
				t.Errorf("with %v: %v is %t", given, asked, got)
			}
			if grants.For(asked).Has("other") || grants.For(asked).Has("") {
				t.Errorf("with %v for acme: %v holds elsewhere", given, asked)
			}
		}
	}
}

func TestRightsHaveNamesThatParse(t *testing.T) {
	for _, right := range access.Rights() {
		if parsed, found := access.ParseRight(right.String()); !found || parsed != right {
			t.Errorf("%v parses as %v", right, parsed)
		}
	}
	for _, name := range []string{"", "nobody", "anyone", "known", "Validate", "all", "*"} {
		if _, found := access.ParseRight(name); found {
			t.Errorf("%q can be given", name)
		}
	}
}

func TestSetsOfWorkspaces(t *testing.T) {
	some := access.Only("b", "a", "b", "")
	if some.String() != "a, b" || !some.Has("a") || some.Has("c") || some.Has("") || some.IsAll() {
		t.Errorf("got %v", some)
	}
	if !some.Equal(access.Only("a", "b")) || some.Equal(access.All()) || some.Equal(access.Only("a")) {
		t.Error("Equal is wrong")
	}
	if !some.Union(access.All()).IsAll() || some.Union(access.Only("c")).String() != "a, b, c" {
		t.Error("Union is wrong")
	}
	prints := map[string]access.Workspaces{}
	for _, each := range []access.Workspaces{access.All(), {}, access.Only("a"), access.Only("b"), some, access.Only("ab")} {
		key := string(each.Fingerprint())
		if other, taken := prints[key]; taken {
			t.Errorf("%v and %v have one fingerprint", each, other)
		}
		prints[key] = each
	}
	if access.All().Fingerprint() != nil || !bytes.Equal(some.Fingerprint(), access.Only("a", "b").Fingerprint()) {
		t.Error("fingerprints depend on more than the set")
	}
}
