package blind_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// zeros is a broken source of randomness.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}

// TestWeakLocalSecretIsMarkedAndListed: a client whose source of randomness is broken issues a key. keysvc
// cannot know that the secret is weak. But every secret that keysvc did not draw is marked, and whoever
// hears of the broken client finds its keys.
func TestWeakLocalSecretIsMarkedAndListed(t *testing.T) {
	onLinux(t)
	t.Parallel()
	c := begin(t)
	ctx := t.Context()
	if _, err := c.plain.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE}); err != nil {
		t.Fatal(err)
	}
	request := &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{scope}}
	drawn, err := c.plain.Keys.CreateKey(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := keyclient.Issuer{Keys: c.plain.Keys, Policies: c.plain.Policies, Random: zeros{}}.Create(ctx, request)
	if err != nil || !strings.Contains(weak.Reveal(), "_"+strings.Repeat("0", secretLength)) {
		t.Fatalf("the secret is not a weak one, %v", err)
	}
	drawnID, weakID := drawn.GetKey().GetKeyId(), weak.Key.GetKeyId()
	answer, err := c.plain.Validate(ctx, keyauth.Question{Token: weak.Reveal(), Requirement: keyauth.Scope(scope)})
	if err != nil || answer.KeyID != weakID {
		t.Errorf("it does not work, and would need no list: %+v, %v", answer, err)
	}

	// 1. The mark, in the answer, in GetKey and in the audit event.
	for keyID, want := range map[string]bool{drawnID: false, weakID: true} {
		got, err := c.plain.Keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: "acme", KeyId: keyID})
		if err != nil || len(got.GetKey().GetSecrets()) != 1 || got.GetKey().GetSecrets()[0].GetIssuedLocally() != want {
			t.Errorf("%s: %v, %v", keyID, got, err)
		}
		events, err := keysvcv1.NewAuditServiceClient(c.plain.Conn()).ListAuditEvents(ctx, &keysvcv1.ListAuditEventsRequest{WorkspaceId: "acme", KeyId: keyID})
		if err != nil || len(events.GetEvents()) != 1 {
			t.Fatalf("%s: %v, %v", keyID, events, err)
		}
		marked := slices.ContainsFunc(events.GetEvents()[0].GetFields(), func(field *keysvcv1.AuditFieldChange) bool { return field.GetField() == "secrets.issued_locally" })
		if marked != want {
			t.Errorf("%s: the event is %v", keyID, events)
		}
	}

	// 2. The list, and the command's.
	list := func(locally bool, want ...string) {
		t.Helper()
		listed, err := c.plain.Keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{IssuedLocally: &locally})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, one := range listed.GetKeys() {
			got = append(got, one.GetKeyId())
		}
		if !slices.Equal(got, want) {
			t.Errorf("issued locally %t: %v, want %v", locally, got, want)
		}
		flag := map[bool]string{true: "--issued-locally", false: "--issued-locally=false"}[locally]
		command := exec.CommandContext(ctx, c.program, "key", "list", "--workspace", "acme", flag)
		command.Env = append(clean(), "KEYSVC_ADDR="+c.proxy.target())
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		for _, keyID := range []string{drawnID, weakID} {
			if shown := strings.Contains(string(output), keyID); shown != slices.Contains(want, keyID) {
				t.Errorf("key list %s:\n%s", flag, output)
			}
		}
	}
	list(true, weakID)
	list(false, drawnID)

	// 3. The cure: keysvc draws a new secret. During an overlap the weak one works, and stays listed.
	rotate(t, c, weakID, time.Hour)
	list(true, weakID)
	rotate(t, c, weakID, 0)
	list(true)
	list(false, weakID, drawnID)
}

func rotate(t *testing.T, c *campaign, keyID string, overlap time.Duration) {
	t.Helper()
	if _, err := c.plain.Keys.RotateKey(t.Context(), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(overlap)}); err != nil {
		t.Fatal(err)
	}
}
