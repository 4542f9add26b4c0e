package keys_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// named returns a world in which workspace acme has keys with these names, oldest first.
func named(t *testing.T, names ...string) *keystest.World {
	t.Helper()
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	for _, name := range names {
		if _, err := w.Verbs.CreateKey(t.Context(), actorIn(access.All()), &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: name, Scopes: []string{"signatures:read"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// search returns the names of the keys on all pages of a list, and the last page.
func search(t *testing.T, w *keystest.World, request *keysvcv1.ListKeysRequest) (names []string, last *keysvcv1.ListKeysResponse) {
	t.Helper()
	for {
		page, err := w.Verbs.ListKeys(t.Context(), access.All(), request)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range page.GetKeys() {
			names = append(names, key.GetName())
		}
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return names, page
		}
	}
}

func TestKeysAreFoundByAPartOfTheirName(t *testing.T) {
	w := named(t, "Backup of Friday", "café nightly", "CAFÉ by day", "Straße", "λόγος", "plain")
	for _, test := range []struct {
		part string
		want []string
	}{
		{"", []string{"plain", "λόγος", "Straße", "CAFÉ by day", "café nightly", "Backup of Friday"}},
		{"friday", []string{"Backup of Friday"}},
		{"UP OF ", []string{"Backup of Friday"}},
		{"Café", []string{"CAFÉ by day", "café nightly"}},
		{"cafe\u0301", []string{"CAFÉ by day", "café nightly"}}, // NFD
		{"cafe", nil},
		{"STRASSE", nil}, // simple folding makes no two characters of one
		{"ΛΌΓΟΣ", []string{"λόγος"}},
		{"acme", nil},
		{strings.Repeat("é", 128), nil},
	} {
		for _, size := range []int32{1, 2, 0} {
			got, last := search(t, w, &keysvcv1.ListKeysRequest{WorkspaceId: "acme", NameContains: test.part, PageSize: size, WithTotalSize: true})
			if !slices.Equal(got, test.want) || last.TotalSize == nil || int(last.GetTotalSize()) != len(test.want) {
				t.Errorf("%q in pages of %d: got %q of %v, want %q", test.part, size, got, last.TotalSize, test.want)
			}
		}
	}
}

func TestMalformedSearchesAreRefused(t *testing.T) {
	w := named(t)
	for field, request := range map[string]*keysvcv1.ListKeysRequest{
		"name_contains: has 129 characters; 1 to 128 are allowed": {WorkspaceId: "acme", NameContains: strings.Repeat("é", 129)},
		"name_contains: is not valid UTF-8":                       {NameContains: "\xff"},
		"name_contains: has a control character":                  {NameContains: "a\nb"},
		"name_contains: holds what looks like a token":            {NameContains: "scribe_ksk1_AAAAAAAAAAAAAAAA_" + strings.Repeat("A", 49)},
		"workspace_id: is missing; with_total_size needs":         {WithTotalSize: true},
	} {
		_, err := w.Verbs.ListKeys(t.Context(), access.All(), request)
		name, problemText, _ := strings.Cut(field, ": ")
		if err == nil || !strings.Contains(fmt.Sprint(err), name) || !strings.Contains(fmt.Sprint(err), problemText) {
			t.Errorf("want %q, got %v", field, err)
		}
	}
}

// TestPageTokenBelongsToItsSearch: a page token holds for the same name_contains only, and with or
// without a total.
func TestPageTokenBelongsToItsSearch(t *testing.T) {
	w := named(t, "one a", "two a", "three a")
	first, err := w.Verbs.ListKeys(t.Context(), access.All(), &keysvcv1.ListKeysRequest{WorkspaceId: "acme", NameContains: "a", PageSize: 1})
	if err != nil || first.GetNextPageToken() == "" || first.TotalSize != nil {
		t.Fatalf("got %v, %v", first, err)
	}
	next := &keysvcv1.ListKeysRequest{WorkspaceId: "acme", NameContains: "a", PageSize: 1, PageToken: first.GetNextPageToken(), WithTotalSize: true}
	second, err := w.Verbs.ListKeys(t.Context(), access.All(), next)
	if err != nil || second.GetKeys()[0].GetName() != "two a" || second.GetTotalSize() != 3 {
		t.Errorf("got %v, %v", second, err)
	}
	for _, other := range []string{"", "b", "A"} {
		next.NameContains = other
		if _, err := w.Verbs.ListKeys(t.Context(), access.All(), next); keystest.ReasonOf(err) != problem.PageTokenInvalid {
			t.Errorf("%q: got %v", other, err)
		}
	}
}

func TestTotalCountsWhatPassesTheFilters(t *testing.T) {
	w := named(t, "one", "two", "three")
	bob := "bob"
	for _, test := range []struct {
		request *keysvcv1.ListKeysRequest
		visible access.Workspaces
		want    int32
	}{
		{&keysvcv1.ListKeysRequest{}, access.All(), 3},
		{&keysvcv1.ListKeysRequest{MemberId: &bob}, access.All(), 0},
		{&keysvcv1.ListKeysRequest{States: []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_REVOKED}}, access.All(), 0},
		{&keysvcv1.ListKeysRequest{NameContains: "t"}, access.All(), 2},
		{&keysvcv1.ListKeysRequest{}, access.Only("globex"), 0}, // as for a workspace that is not there
	} {
		test.request.WorkspaceId, test.request.WithTotalSize, test.request.PageSize = "acme", true, 1
		page, err := w.Verbs.ListKeys(t.Context(), test.visible, test.request)
		if err != nil || page.TotalSize == nil || page.GetTotalSize() != test.want {
			t.Errorf("%v: got %v, %v", test.request, page, err)
		}
	}
}

func TestAssignableScopesAreThoseOfTheRoleNow(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	get := func() []string {
		t.Helper()
		got, err := w.Verbs.GetMember(t.Context(), access.All(), &keysvcv1.GetMemberRequest{WorkspaceId: "acme", MemberId: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetAssignableScopes()
	}
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	got := get()
	if len(got) != 23 || !slices.Equal(got[:4], []string{"teammates:read", "teammates:write", "teammates:delete", "emails:read"}) {
		t.Errorf("an owner: %q", got)
	}
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	if got := get(); len(got) != 22 || slices.Contains(got, "financial_documents:read") {
		t.Errorf("a manager: %q", got)
	}
	active, err := w.Verbs.GetPolicy(t.Context(), access.All(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range active.GetPolicy().GetRoles() {
		if role.GetName() == "manager" {
			role.Scopes = []string{"signatures:*", "emails:delete"}
		}
	}
	if _, err := w.Verbs.ApplyPolicy(t.Context(), actorIn(access.All()), &keysvcv1.ApplyPolicyRequest{Policy: active.GetPolicy(), ReplacesDigest: active.GetDigest()}); err != nil {
		t.Fatal(err)
	}
	if got := get(); !slices.Equal(got, []string{"emails:delete", "signatures:read", "signatures:write", "signatures:delete"}) {
		t.Errorf("a manager under a narrower policy: %q", got)
	}
	w.Put("acme", "ann", "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	if got := get(); len(got) != 0 {
		t.Errorf("a role without scopes: %q", got)
	}
	w.Put("acme", "ann", "owner", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	if got := get(); len(got) != 0 {
		t.Errorf("a suspended owner: %q", got)
	}
}
