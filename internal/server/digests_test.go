package server_test

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/token"
)

// drawn is a secret that a caller has drawn.
type drawn struct {
	nonce, digest []byte
	text          string
}

// drawIn draws the secret of a key of a workspace. The nonce is made of one byte.
func drawIn(t *testing.T, workspaceID string, nonce byte) drawn {
	t.Helper()
	full := bytes.Repeat([]byte{nonce}, token.NonceLength)
	made, err := token.New("scribe", token.KeyID(workspaceID, [token.NonceLength]byte(full)), strings.NewReader(strings.Repeat("abcdefg"+string(rune(nonce)), 20)))
	if err != nil {
		t.Fatal(err)
	}
	digest := made.Digest()
	return drawn{nonce: full, digest: digest[:], text: made.Reveal()}
}

func (d drawn) keyID() string { return strings.Split(d.text, "_")[2] }

// request returns a request that issues the secret to a member of acme.
func (d drawn) request() *keysvcv1.CreateKeyRequest {
	return &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "local", Scopes: []string{"signatures:read"}, TokenDigest: d.digest, KeyIdNonce: d.nonce,
	}
}

// TestDigestsAreAnsweredAsTheirTokens asks by token and by digest in every state of a key.
func TestDigestsAreAnsweredAsTheirTokens(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "manager")
	b.putMember(t, "acme", "sue", "owner")
	made := map[string]*keysvcv1.CreateKeyResponse{}
	for _, state := range []string{"live", "rotated", "revoked"} {
		made[state] = b.create(t, "acme", "ann", "signatures:read")
	}
	made["suspended"] = b.create(t, "acme", "sue", "signatures:read")
	ctx := testContext(t)
	short, err := b.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "short", Scopes: []string{"signatures:read"}, ExpireTime: timestamppb.New(testTime.Add(time.Hour)),
	})
	if err != nil {
		t.Fatal(err)
	}
	made["expired"] = short
	b.push(t, "acme", "sue", "owner", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	if _, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: made["revoked"].GetKey().GetKeyId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: made["rotated"].GetKey().GetKeyId(), Overlap: durationpb.New(0)}); err != nil {
		t.Fatal(err)
	}
	b.clock.pass(2 * time.Hour)
	asked := 0
	for state, key := range made {
		for _, question := range []*keysvcv1.ValidateKeyRequest{
			{RequiredScope: "signatures:read", IncludeGrant: true, WithDetails: true},
			{RequiredScope: "signatures:read", WorkspaceId: "acme"},
			{RequiredScope: "signatures:read", WorkspaceId: "other"},
			{RequiredScope: "signatures:write"},
			{RequiredScope: "financial_documents:read"},
			{RequiredScope: "no:such"},
			{IdentityOnly: true, ClientAddress: "192.0.2.1"},
			{},
		} {
			byToken, byDigest := proto.CloneOf(question), proto.CloneOf(question)
			byToken.Token = key.GetToken()
			byDigest.TokenDigest, byDigest.KeyId = digestOf(key.GetToken()), key.GetKey().GetKeyId()
			want, wantErr := b.validation.ValidateKey(ctx, byToken)
			got, gotErr := b.validation.ValidateKey(ctx, byDigest)
			if status.Convert(wantErr).String() != status.Convert(gotErr).String() {
				t.Errorf("%s, %v: %v, by token %v", state, question, gotErr, wantErr)
			}
			if wantErr != nil {
				continue
			}
			asked++
			if want.GetByDigest() || !got.GetByDigest() {
				t.Errorf("%s: by_digest is %t of a digest, and %t of a token", state, got.GetByDigest(), want.GetByDigest())
			}
			batch, err := b.validation.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{byToken, byDigest, {
				TokenDigest: []byte{1}, IdentityOnly: true,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			// The clock goes on from answer to answer.
			for _, each := range append(batch.GetResponses(), want, got) {
				if each.GetGrant() != nil {
					each.Grant.ValidFor = nil
				}
			}
			if !proto.Equal(batch.GetResponses()[0], want) || !proto.Equal(batch.GetResponses()[1], got) || batch.GetResponses()[2].GetError().GetReason() != keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID {
				t.Errorf("%s: the batch has %v", state, batch)
			}
			got.ByDigest = false
			if !proto.Equal(want, got) {
				t.Errorf("%s, %v: %v\nby token: %v", state, question, got, want)
			}
		}
	}
	if asked < 20 {
		t.Errorf("only %d questions have an answer", asked)
	}
}

// TestWrongDigestsLookAlike: whatever does not match is answered in the same way.
func TestWrongDigestsLookAlike(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	one, two := b.create(t, "acme", "ann", "signatures:read"), b.create(t, "acme", "ann", "signatures:read")
	hash := token.Present(one.GetToken()).Hash()
	foreign := token.ForeignDigest("sk_live_1")
	for name, request := range map[string]*keysvcv1.ValidateKeyRequest{
		"unknown":                    {TokenDigest: foreign[:], KeyId: one.GetKey().GetKeyId()},
		"foreign":                    {TokenDigest: foreign[:]},
		"of a key, without its id":   {TokenDigest: digestOf(one.GetToken())},
		"of a key, with another id":  {TokenDigest: digestOf(one.GetToken()), KeyId: two.GetKey().GetKeyId()},
		"of a key, with no key's id": {TokenDigest: digestOf(one.GetToken()), KeyId: noSuchKey},
		"what is stored":             {TokenDigest: hash.Sum[:], KeyId: one.GetKey().GetKeyId()},
		"of the token's text":        {TokenDigest: digestOf(one.GetToken() + " "), KeyId: one.GetKey().GetKeyId()},
	} {
		request.RequiredScope = "signatures:read"
		got, err := b.validation.ValidateKey(testContext(t), request)
		want := &keysvcv1.ValidateKeyResponse{
			Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID, ByDigest: true,
			Revision: got.GetRevision(), Epoch: got.GetEpoch(),
		}
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestLocalKeysAreIssuedOnce: the call with the same request id and digest is answered again, whatever
// has happened since, and nothing else is.
func TestLocalKeysAreIssuedOnce(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	b.putMember(t, "other", "ann", "owner")
	ctx, one := testContext(t), drawIn(t, "acme", 1)
	request := one.request()
	request.RequestId, request.ExpireTime = new("r1"), timestamppb.New(testTime.Add(time.Hour))
	made, err := b.keys.CreateKey(ctx, request)
	if err != nil || made.GetToken() != "" || !made.GetByDigest() || made.GetKey().GetKeyId() != one.keyID() || !made.GetKey().GetSecrets()[0].GetIssuedLocally() {
		t.Fatalf("%v, %v", made, err)
	}
	again := func(change func(*keysvcv1.CreateKeyRequest)) (*keysvcv1.CreateKeyResponse, string) {
		t.Helper()
		repeated := proto.CloneOf(request)
		if change != nil {
			change(repeated)
		}
		response, err := b.keys.CreateKey(ctx, repeated)
		reason := "OK"
		if err != nil {
			reason = status.Code(err).String()
		}
		return response, reason
	}
	if repeated, got := again(nil); got != "OK" || !proto.Equal(repeated, made) {
		t.Errorf("repeated: %s, %v", got, repeated)
	}
	two := drawIn(t, "acme", 2)
	for name, test := range map[string]struct {
		change func(*keysvcv1.CreateKeyRequest)
		want   string
	}{
		"another digest":             {func(r *keysvcv1.CreateKeyRequest) { r.TokenDigest = two.digest }, "AlreadyExists"},
		"another nonce":              {func(r *keysvcv1.CreateKeyRequest) { r.KeyIdNonce = two.nonce }, "AlreadyExists"},
		"no digest":                  {func(r *keysvcv1.CreateKeyRequest) { r.TokenDigest, r.KeyIdNonce = nil, nil }, "AlreadyExists"},
		"a wrong digest":             {func(r *keysvcv1.CreateKeyRequest) { r.TokenDigest = []byte{1} }, "AlreadyExists"},
		"no request id":              {func(r *keysvcv1.CreateKeyRequest) { r.RequestId = nil }, "InvalidArgument"},
		"another request id":         {func(r *keysvcv1.CreateKeyRequest) { r.RequestId = new("r2") }, "InvalidArgument"},
		"the same, other content":    {func(r *keysvcv1.CreateKeyRequest) { r.Name = "another" }, "OK"},
		"a nonce of a key, only one": {func(r *keysvcv1.CreateKeyRequest) { r.RequestId, r.TokenDigest = new("r3"), two.digest }, "InvalidArgument"},
	} {
		if _, got := again(test.change); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	// In another workspace the nonce gives another id.
	elsewhere, got := again(func(r *keysvcv1.CreateKeyRequest) { r.WorkspaceId = "other" })
	if got != "OK" || elsewhere.GetKey().GetKeyId() == one.keyID() {
		t.Errorf("in another workspace: %s, %v", got, elsewhere)
	}
	// The expire time has passed, and the key is revoked.
	b.clock.pass(2 * time.Hour)
	if repeated, got := again(nil); got != "OK" || repeated.GetKey().GetState() != keysvcv1.KeyState_KEY_STATE_EXPIRED {
		t.Errorf("after its expiry: %s, %v", got, repeated)
	}
	if _, err := b.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: one.keyID()}); err != nil {
		t.Fatal(err)
	}
	if repeated, got := again(nil); got != "OK" || repeated.GetKey().GetState() != keysvcv1.KeyState_KEY_STATE_REVOKED {
		t.Errorf("after its revocation: %s, %v", got, repeated)
	}
	before := made.GetRevision()
	listed, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "acme"})
	if err != nil || len(listed.GetKeys()) != 1 || listed.GetRevision() != before+2 { // of the other workspace, and revoked
		t.Errorf("something else was committed: %v, %v", listed, err)
	}
}

// TestLocalRotationsAreMadeOnce is TestLocalKeysAreIssuedOnce for RotateKey.
func TestLocalRotationsAreMadeOnce(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	ctx, one, two, three := testContext(t), drawIn(t, "acme", 1), drawIn(t, "acme", 2), drawIn(t, "acme", 3)
	create := one.request()
	create.RequestId = new("created")
	if _, err := b.keys.CreateKey(ctx, create); err != nil {
		t.Fatal(err)
	}
	b.clock.pass(time.Second)
	request := &keysvcv1.RotateKeyRequest{
		WorkspaceId: "acme", KeyId: one.keyID(), Overlap: durationpb.New(time.Hour), TokenDigest: two.digest, RequestId: new("r1"),
		ExpireTime: timestamppb.New(testTime.Add(2 * time.Hour)),
	}
	rotate := func(change func(*keysvcv1.RotateKeyRequest)) (*keysvcv1.RotateKeyResponse, codes.Code) {
		t.Helper()
		repeated := proto.CloneOf(request)
		if change != nil {
			change(repeated)
		}
		response, err := b.keys.RotateKey(ctx, repeated)
		return response, status.Code(err)
	}
	made, got := rotate(nil)
	if got != codes.OK || made.GetToken() != "" || !made.GetByDigest() || len(made.GetKey().GetSecrets()) != 2 || !made.GetKey().GetSecrets()[0].GetIssuedLocally() {
		t.Fatalf("%v, %v", made, got)
	}
	if repeated, got := rotate(nil); got != codes.OK || !proto.Equal(repeated, made) {
		t.Errorf("repeated: %s, %v", got, repeated)
	}
	for name, test := range map[string]struct {
		change func(*keysvcv1.RotateKeyRequest)
		want   codes.Code
	}{
		"another digest":                  {func(r *keysvcv1.RotateKeyRequest) { r.TokenDigest = three.digest }, codes.AlreadyExists},
		"no digest":                       {func(r *keysvcv1.RotateKeyRequest) { r.TokenDigest = nil }, codes.AlreadyExists},
		"the older secret":                {func(r *keysvcv1.RotateKeyRequest) { r.TokenDigest = one.digest }, codes.AlreadyExists},
		"the older one, another request":  {func(r *keysvcv1.RotateKeyRequest) { r.TokenDigest, r.RequestId = one.digest, nil }, codes.InvalidArgument},
		"the same, another request":       {func(r *keysvcv1.RotateKeyRequest) { r.RequestId = new("r2") }, codes.InvalidArgument},
		"the same, no request id":         {func(r *keysvcv1.RotateKeyRequest) { r.RequestId, r.Overlap = nil, durationpb.New(0) }, codes.InvalidArgument},
		"the request that created it":     {func(r *keysvcv1.RotateKeyRequest) { r.RequestId, r.TokenDigest = new("created"), one.digest }, codes.AlreadyExists},
		"a third secret, another request": {func(r *keysvcv1.RotateKeyRequest) { r.TokenDigest, r.RequestId = three.digest, nil }, codes.FailedPrecondition},
	} {
		if _, got := rotate(test.change); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	create.RequestId, create.TokenDigest = new("r1"), two.digest
	if _, err := b.keys.CreateKey(ctx, create); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the rotation's request id creates: %v", err)
	}
	b.clock.pass(3 * time.Hour)
	if repeated, got := rotate(nil); got != codes.OK || repeated.GetRevision() != made.GetRevision() {
		t.Errorf("after its expiry: %s, %v", got, repeated)
	}
	answer, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{TokenDigest: two.digest, KeyId: one.keyID(), IdentityOnly: true})
	if err != nil || answer.GetReason() != keysvcv1.Reason_REASON_KEY_EXPIRED {
		t.Errorf("%v, %v", answer, err)
	}
}

func TestListsSelectKeysThatWereIssuedLocally(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	b.putMember(t, "acme", "ann", "owner")
	ctx, one := testContext(t), drawIn(t, "acme", 1)
	plain := b.create(t, "acme", "ann", "signatures:read")
	if _, err := b.keys.CreateKey(ctx, one.request()); err != nil {
		t.Fatal(err)
	}
	both := []string{one.keyID(), plain.GetKey().GetKeyId()}
	list := func(locally *bool, want ...string) {
		t.Helper()
		listed, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "acme", IssuedLocally: locally})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, key := range listed.GetKeys() {
			got = append(got, key.GetKeyId())
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
	}
	list(nil, both...)
	list(new(true), both[0])
	list(new(false), both[1])
	// A rotation by the server ends the local secret.
	if _, err := b.keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: one.keyID(), Overlap: durationpb.New(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	list(new(true), both[0])
	b.clock.pass(time.Hour)
	list(new(true))
	list(new(false), both...)
}

// TestTokensCanBeRefused: a server that refuses tokens neither takes nor gives any.
func TestTokensCanBeRefused(t *testing.T) {
	t.Parallel()
	var mutex sync.Mutex
	var seen []events.TokensPresented
	b := start(t, options{
		settings: func(s *config.Settings) { s.Tokens = config.TokensRefused },
		hooks: events.Hooks{TokensPresented: func(forms events.TokensPresented) {
			mutex.Lock()
			defer mutex.Unlock()
			seen = append(seen, forms)
		}},
	})
	b.putMember(t, "acme", "ann", "owner")
	ctx, one, two := testContext(t), drawIn(t, "acme", 1), drawIn(t, "acme", 2)
	if _, err := b.keys.CreateKey(ctx, one.request()); err != nil {
		t.Fatal(err)
	}
	rotation := func(digest []byte) *keysvcv1.RotateKeyRequest {
		return &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: one.keyID(), Overlap: durationpb.New(0), TokenDigest: digest}
	}
	drawnThere := one.request()
	drawnThere.TokenDigest, drawnThere.KeyIdNonce = nil, nil
	for name, call := range map[string]func() error{
		"ValidateKey": func() error {
			_, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: one.text, IdentityOnly: true})
			return err
		},
		"ValidateKey, malformed": func() error {
			_, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: "x", RequiredScope: "no:such"})
			return err
		},
		"RevokeToken": func() error {
			_, err := b.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: one.text})
			return err
		},
		"CreateKey": func() error { _, err := b.keys.CreateKey(ctx, drawnThere); return err },
		"RotateKey": func() error { _, err := b.keys.RotateKey(ctx, rotation(nil)); return err },
	} {
		if err := call(); status.Code(err) != codes.FailedPrecondition || detailsOf(t, err).info.GetReason() != "TOKENS_REFUSED" {
			t.Errorf("%s: %v", name, err)
		}
	}
	batch, err := b.validation.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{
		{Token: one.text, IdentityOnly: true}, {TokenDigest: one.digest, KeyId: one.keyID(), IdentityOnly: true}, {IdentityOnly: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	items := batch.GetResponses()
	if items[0].GetError().GetReason() != keysvcv1.ErrorReason_ERROR_REASON_TOKENS_REFUSED || items[0].GetError().GetCode() != int32(codes.FailedPrecondition) ||
		items[1].GetDecision() != keysvcv1.Decision_DECISION_ALLOWED || items[2].GetReason() != keysvcv1.Reason_REASON_KEY_INVALID {
		t.Errorf("the batch has %v", batch)
	}
	if _, err := b.keys.RotateKey(ctx, rotation(two.digest)); err != nil {
		t.Error(err)
	}
	if got, err := b.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{TokenDigest: two.digest, KeyId: one.keyID()}); err != nil || !got.GetByDigest() {
		t.Errorf("%v, %v", got, err)
	}
	b.stop(t, patience)
	mutex.Lock()
	defer mutex.Unlock()
	// Tokens: five calls, and one item. Digests: two keys, an item, and a report.
	if want := []events.TokensPresented{{Tokens: 6, Digests: 4, Caller: "local", Last: true}}; !slices.Equal(seen, want) {
		t.Errorf("reported %+v, want %+v", seen, want)
	}
	if !strings.Contains(b.log.String(), "tokens came in these forms since the start") || strings.Contains(b.log.String(), secretOf(one.text)) {
		t.Errorf("the log has no line about the forms, or a secret:\n%s", b.log)
	}
}
