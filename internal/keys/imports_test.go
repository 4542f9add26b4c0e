package keys_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
)

// foreign returns the import of a token of another system, of the member ann.
func foreign(text string) *keysvcv1.KeyImport {
	sum := sha256.Sum256([]byte(text))
	return &keysvcv1.KeyImport{TokenSha256: sum[:], MemberId: "ann", Name: "old", Scopes: []string{"emails:read"}}
}

// importing is a world with the member ann in two workspaces.
type importing struct {
	*keystest.World
	*testing.T
}

func newImporting(t *testing.T) importing {
	t.Helper()
	w := importing{keystest.NewWorld(t, keystest.NewBolt(t), nil), t}
	for _, workspaceID := range []string{"acme", "other"} {
		w.Put(workspaceID, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		w.Put(workspaceID, "bob", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	}
	return w
}

// imports imports keys and returns the results in words: a key id, "known" with a key id, or the reason of the
// error.
func (w importing) imports(workspaceID string, imported ...*keysvcv1.KeyImport) (words []string, response *keysvcv1.ImportKeysResponse) {
	w.Helper()
	response, err := w.ImportKeys(w.Context(), keystest.Actor, &keysvcv1.ImportKeysRequest{WorkspaceId: workspaceID, Keys: imported})
	if err != nil {
		w.Fatal(err)
	}
	for _, result := range response.GetResults() {
		switch {
		case result.GetError() != nil:
			words = append(words, strings.TrimPrefix(result.GetError().GetReason().String(), "ERROR_REASON_"))
		case result.GetImported():
			words = append(words, "imported")
		default:
			words = append(words, "known")
		}
	}
	return words, response
}

func (w importing) want(workspaceID, want string, imported ...*keysvcv1.KeyImport) *keysvcv1.ImportKeysResponse {
	w.Helper()
	words, response := w.imports(workspaceID, imported...)
	if got := strings.Join(words, " "); got != want {
		w.Errorf("got %q, want %q: %v", got, want, response)
	}
	return response
}

func (w importing) get(keyID string) *keysvcv1.Key {
	w.Helper()
	response, err := w.GetKey(w.Context(), access.All(), &keysvcv1.GetKeyRequest{KeyId: keyID})
	if err != nil {
		w.Fatal(err)
	}
	return response.GetKey()
}

func TestImportedTokenWorksUntilItIsRotatedAway(t *testing.T) {
	w := newImporting(t)
	began := w.Clock.Now()
	made := foreign("old-token-1")
	made.CreateTime = timestamppb.New(began.AddDate(-3, 0, 0))
	made.Labels = map[string]string{"team": "web"}
	w.Want("old-token-1", "emails:read", decide.KeyInvalid)
	response := w.want("acme", "imported imported", made, foreign("old-token-2"))
	keyID := response.GetResults()[0].GetKeyId()
	w.Want("old-token-1", "emails:read", decide.NoReason)
	w.Want("old-token-1", "emails:write", decide.ScopeNotGranted)
	w.Want("old-token-3", "emails:read", decide.KeyInvalid)
	// 1. It is shown as imported.
	key := w.get(keyID)
	if !key.GetImportTime().AsTime().Equal(began) || !key.GetCreateTime().AsTime().Equal(began.AddDate(-3, 0, 0)) || key.GetLabels()["team"] != "web" ||
		!key.GetSecrets()[0].GetImported() || key.GetSecrets()[0].GetLastUsedTime() == nil || !key.GetExpireTime().AsTime().Equal(began.AddDate(1, 0, 0)) {
		t.Errorf("%v", key)
	}
	// 2. It survives a restart, which reads the store.
	w.Restart(true)
	w.Want("old-token-1", "emails:read", decide.NoReason)
	// 3. A rotation makes it a key of keysvc. The old token is the older secret.
	rotated, err := w.RotateKey(t.Context(), keystest.Actor, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if secrets := rotated.GetKey().GetSecrets(); len(secrets) != 2 || secrets[0].GetImported() || !secrets[1].GetImported() {
		t.Errorf("secrets %v", secrets)
	}
	w.Want("old-token-1", "emails:read", decide.NoReason)
	w.Want(rotated.GetToken(), "emails:read", decide.NoReason)
	w.Clock.Advance(time.Hour)
	w.Want("old-token-1", "emails:read", decide.KeyInvalid)
	w.Want(rotated.GetToken(), "emails:read", decide.NoReason)
	// 4. The file is imported once more: the token that was rotated away does not come back, before and after a
	// restart.
	for range 2 {
		again := w.want("acme", "known known", made, foreign("old-token-2"))
		if again.GetRevision() != rotated.GetRevision() || again.GetResults()[0].GetKeyId() != keyID {
			t.Errorf("%v, want revision %d", again, rotated.GetRevision())
		}
		w.Want("old-token-1", "emails:read", decide.KeyInvalid)
		w.Restart(true)
	}
	listed, err := w.ListKeys(t.Context(), access.All(), &keysvcv1.ListKeysRequest{WorkspaceId: "acme", Imported: proto.Bool(true)})
	if err != nil || len(listed.GetKeys()) != 1 || listed.GetKeys()[0].GetKeyId() != response.GetResults()[1].GetKeyId() {
		t.Errorf("%v, %v", listed, err)
	}
}

func TestImportedTokenIsRevokedLikeAnyOther(t *testing.T) {
	w := newImporting(t)
	w.want("acme", "imported imported imported", foreign("one"), foreign("two"), foreign("three"))
	// 1. By its text, with a line break, and by its digest.
	if _, err := w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: "one\n"}); err != nil {
		t.Error(err)
	}
	if _, err := w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{TokenDigest: foreign("two").GetTokenSha256()}); err != nil {
		t.Error(err)
	}
	_, err := w.RevokeToken(t.Context(), keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: "four"})
	if got := keystest.ReasonOf(err); got != keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND {
		t.Errorf("got %v", err)
	}
	w.Want("one", "emails:read", decide.KeyRevoked)
	w.Want("two", "emails:read", decide.KeyRevoked)
	w.Want("three", "emails:read", decide.NoReason)
	w.want("acme", "known", foreign("one"))
	w.Want("one", "emails:read", decide.KeyRevoked)
	// 2. With its member.
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	w.Want("three", "emails:read", decide.MemberInactive)
	w.want("acme", "MEMBER_SUSPENDED", foreign("five"))
	w.Clock.Advance(366 * 24 * time.Hour)
	w.Want("three", "emails:read", decide.KeyExpired)
}

func TestImportRefusesEachBadKeyAlone(t *testing.T) {
	w := newImporting(t)
	w.want("other", "imported", foreign("taken"))
	edited := func(edit func(*keysvcv1.KeyImport)) *keysvcv1.KeyImport {
		imported := foreign(fmt.Sprintf("token %p", edit))
		edit(imported)
		return imported
	}
	twice := foreign("twice")
	response := w.want("acme",
		"imported TOKEN_KNOWN imported TOKEN_KNOWN FIELD_INVALID FIELD_INVALID SCOPE_UNKNOWN SCOPE_BEYOND_ROLE MEMBER_NOT_FOUND FIELD_INVALID FIELD_INVALID",
		foreign("good"), foreign("taken"), twice, twice,
		edited(func(k *keysvcv1.KeyImport) { k.TokenSha256 = k.GetTokenSha256()[1:] }),
		edited(func(k *keysvcv1.KeyImport) { k.TokenSha256 = make([]byte, 32) }),
		edited(func(k *keysvcv1.KeyImport) { k.Scopes = []string{"emails:sing"} }),
		edited(func(k *keysvcv1.KeyImport) { k.Scopes = []string{"financial_documents:read"} }),
		edited(func(k *keysvcv1.KeyImport) { k.MemberId = "nobody" }),
		edited(func(k *keysvcv1.KeyImport) { k.ExpireTime = timestamppb.New(w.Clock.Now().AddDate(2, 0, 0)) }),
		edited(func(k *keysvcv1.KeyImport) { k.CreateTime = timestamppb.New(w.Clock.Now().AddDate(0, 1, 0)) }),
	)
	w.Want("good", "emails:read", decide.NoReason)
	if message := response.GetResults()[1].GetError().GetMessage(); strings.Contains(message, "other") && strings.Contains(message, "workspace") {
		t.Errorf("the error tells of which workspace the key is: %q", message)
	}
	ofBob := foreign("good")
	ofBob.MemberId = "bob"
	w.want("acme", "TOKEN_KNOWN", ofBob)
	for count, want := range map[int]bool{0: false, keys.MaxImports: true, keys.MaxImports + 1: false} {
		var many []*keysvcv1.KeyImport
		for number := range count {
			many = append(many, foreign(fmt.Sprint("many", number)))
		}
		_, err := w.ImportKeys(t.Context(), keystest.Actor, &keysvcv1.ImportKeysRequest{WorkspaceId: "acme", Keys: many})
		if (err == nil) != want {
			t.Errorf("%d keys: %v", count, err)
		}
	}
}

func TestImportThatIsOnlyCheckedChangesNothing(t *testing.T) {
	w := newImporting(t)
	request := &keysvcv1.ImportKeysRequest{WorkspaceId: "acme", Keys: []*keysvcv1.KeyImport{foreign("one")}, ValidateOnly: true}
	before := w.Projection.Revision()
	response, err := w.ImportKeys(t.Context(), keystest.Actor, request)
	if err != nil || !response.GetResults()[0].GetImported() || response.GetResults()[0].GetKeyId() != "" || w.Projection.Revision() != before {
		t.Errorf("%v, %v", response, err)
	}
	w.Want("one", "emails:read", decide.KeyInvalid)
}

func TestImportKeepsTheLimitOfLiveKeys(t *testing.T) {
	w := newImporting(t)
	limited := w.policyWithLimit(2)
	if _, err := w.ApplyPolicy(t.Context(), keystest.Actor, limited); err != nil {
		t.Fatal(err)
	}
	w.want("acme", "imported imported LIMIT_REACHED", foreign("one"), foreign("two"), foreign("three"))
}

func (w importing) policyWithLimit(limit int32) *keysvcv1.ApplyPolicyRequest {
	w.Helper()
	response, err := w.GetPolicy(w.Context(), access.All(), &keysvcv1.GetPolicyRequest{})
	if err != nil {
		w.Fatal(err)
	}
	wanted := response.GetPolicy()
	wanted.Limits.LiveKeysPerWorkspace = limit
	return &keysvcv1.ApplyPolicyRequest{Policy: wanted, ReplacesDigest: response.GetDigest()}
}

// TestOneTokenIsImportedIntoOneWorkspace: workspaces do not wait for each other, imports do.
func TestOneTokenIsImportedIntoOneWorkspace(t *testing.T) {
	w := newImporting(t)
	var importing sync.WaitGroup
	results := make([]string, 8)
	for index := range results {
		importing.Go(func() {
			response, err := w.ImportKeys(context.Background(), keystest.Actor, &keysvcv1.ImportKeysRequest{
				WorkspaceId: []string{"acme", "other"}[index%2], Keys: []*keysvcv1.KeyImport{foreign("one")},
			})
			switch {
			case err != nil:
				results[index] = err.Error()
			case response.GetResults()[0].GetImported():
				results[index] = "imported"
			}
		})
	}
	importing.Wait()
	if imported := strings.Count(strings.Join(results, " "), "imported"); imported != 1 {
		t.Errorf("imported %d times: %q", imported, results)
	}
	w.Want("one", "emails:read", decide.NoReason)
}

// TestEventOfAnImportNamesItsKeysAndNoHash also sees that each key finds the event.
func TestEventOfAnImportNamesItsKeysAndNoHash(t *testing.T) {
	w := newImporting(t)
	response := w.want("acme", "imported imported", foreign("one"), foreign("two"))
	for _, result := range response.GetResults() {
		page, err := w.ListAuditEvents(t.Context(), access.All(), &keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", KeyId: result.GetKeyId()})
		if err != nil || len(page.GetEvents()) != 1 {
			t.Fatalf("%+v, %v", page, err)
		}
		event := page.GetEvents()[0]
		if event.GetAction() != keysvcv1.AuditAction_AUDIT_ACTION_KEYS_IMPORTED || !strings.Contains(event.String(), "keys."+result.GetKeyId()+".scopes") {
			t.Errorf("%v", event)
		}
		for _, field := range event.GetFields() {
			if strings.Contains(field.GetField(), "hash") {
				t.Errorf("%s", field.GetField())
			}
		}
	}
}
