package service_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	allowed         = keysvcv1.Decision_DECISION_ALLOWED
	unauthenticated = keysvcv1.Decision_DECISION_UNAUTHENTICATED
	denied          = keysvcv1.Decision_DECISION_PERMISSION_DENIED
)

// decisionCase is a message that is answered with a decision. There is one for each reason, and for each
// shape of token.
type decisionCase struct {
	name     string
	request  *keysvcv1.ValidateKeyRequest
	decision keysvcv1.Decision
	reason   keysvcv1.Reason
	keyID    string
}

func decisionCases(w *world) []decisionCase {
	year := func(expires time.Duration) func(*storagev1.KeyRecord) {
		return func(r *storagev1.KeyRecord) { r.Secrets[0].ExpireTime = timestamppb.New(now.Add(expires)) }
	}
	good, goodToken := w.key("ann", nil, "emails:read", "financial_documents:read")
	managed, managedToken := w.key("mia", nil, "financial_documents:read")
	revoked, revokedToken := w.key("ann", func(r *storagev1.KeyRecord) { r.RevokeTime = timestamppb.New(now) }, "emails:read")
	removed, removedToken := w.key("rob", nil, "emails:read")
	expired, expiredToken := w.key("ann", year(0), "emails:read")
	suspended, suspendedToken := w.key("sue", nil, "emails:read")
	held, heldToken := w.key("sue", func(r *storagev1.KeyRecord) { r.HoldTime = timestamppb.New(now) }, "emails:read")
	near, nearToken := w.key("ann", func(r *storagev1.KeyRecord) { r.AllowedCidrs = []string{"192.0.2.0/24"} }, "emails:read")
	ask := func(token string, edit func(*keysvcv1.ValidateKeyRequest)) *keysvcv1.ValidateKeyRequest {
		request := &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:read"}
		if edit != nil {
			edit(request)
		}
		return request
	}
	identity := func(r *keysvcv1.ValidateKeyRequest) { r.RequiredScope, r.IdentityOnly = "", true }
	scope := func(name string) func(*keysvcv1.ValidateKeyRequest) {
		return func(r *keysvcv1.ValidateKeyRequest) { r.RequiredScope = name }
	}
	address := func(text string) func(*keysvcv1.ValidateKeyRequest) {
		return func(r *keysvcv1.ValidateKeyRequest) { r.ClientAddress = text }
	}
	workspace := func(id string) func(*keysvcv1.ValidateKeyRequest) {
		return func(r *keysvcv1.ValidateKeyRequest) { r.WorkspaceId = id }
	}
	none, invalid := keysvcv1.Reason_REASON_UNSPECIFIED, keysvcv1.Reason_REASON_KEY_INVALID
	cases := []decisionCase{
		{"allowed", ask(goodToken, nil), allowed, none, good},
		{"allowed, in the workspace", ask(goodToken, workspace("acme")), allowed, none, good},
		{"allowed, identity", ask(goodToken, identity), allowed, none, good},
		{"identity of a member who may do nothing of it", ask(managedToken, identity), allowed, none, managed},
		{"allowed, address", ask(nearToken, address("192.0.2.1")), allowed, none, near},
		{"allowed, mapped address", ask(nearToken, address("::ffff:192.0.2.1")), allowed, none, near},
		{"an address that nobody asked for", ask(goodToken, address("2001:db8::1%eth0")), allowed, none, good},
		{"other workspace", ask(goodToken, workspace("globex")), unauthenticated, invalid, ""},
		{"workspace that does not exist", ask(goodToken, workspace("nowhere")), unauthenticated, invalid, ""},
		{"revoked", ask(revokedToken, nil), unauthenticated, keysvcv1.Reason_REASON_KEY_REVOKED, revoked},
		{"revoked, in another workspace", ask(revokedToken, workspace("globex")), unauthenticated, invalid, ""},
		{"member removed", ask(removedToken, identity), unauthenticated, keysvcv1.Reason_REASON_KEY_REVOKED, removed},
		{"expired", ask(expiredToken, nil), unauthenticated, keysvcv1.Reason_REASON_KEY_EXPIRED, expired},
		{"member suspended", ask(suspendedToken, nil), unauthenticated, keysvcv1.Reason_REASON_MEMBER_INACTIVE, suspended},
		{"held, and its member suspended", ask(heldToken, nil), unauthenticated, keysvcv1.Reason_REASON_KEY_HELD, held},
		{"address elsewhere", ask(nearToken, address("198.51.100.1")), denied, keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED, near},
		{"no address", ask(nearToken, nil), denied, keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED, near},
		{"scope not granted", ask(goodToken, scope("emails:write")), denied, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, good},
		{"scope beyond role", ask(managedToken, scope("financial_documents:read")), denied, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, managed},
	}
	for name, text := range map[string]string{
		"empty":              "",
		"spaces":             " " + goodToken + " ",
		"Bearer in front":    "Bearer " + goodToken,
		"16 KiB":             strings.Repeat("x", 16<<10),
		"16 KiB of a token":  strings.Repeat(goodToken, 200),
		"not ASCII":          "scribe_ksk1_ключ",
		"cut off":            goodToken[:len(goodToken)-1],
		"mistyped":           strings.Replace(goodToken, goodToken[40:44], "0000", 1),
		"unknown id":         w.token("Key0000000000999").Reveal(),
		"right id, wrong":    w.token(good).Reveal(),
		"other prefix":       "other" + goodToken[len("scribe"):],
		"a key's id alone":   good,
		"what logs show":     "scribe_ksk1_" + good + "_[redacted]",
		"with a line break":  goodToken + "\n",
		"with a NUL byte":    goodToken + "\x00",
		"of a revoked, else": w.token(revoked).Reveal(),
	} {
		cases = append(cases, decisionCase{"token " + name, ask(text, nil), unauthenticated, invalid, ""})
	}
	return cases
}

// TestEveryTokenIsAnsweredWithADecision: the RPC succeeds with any token, and only an allowed token
// is answered with a principal and a grant.
func TestEveryTokenIsAnsweredWithADecision(t *testing.T) {
	w := newWorld(t)
	cases := decisionCases(w)
	defer w.start()()
	reasons := make(map[keysvcv1.Reason]bool)
	for _, test := range cases {
		reasons[test.reason] = true
		t.Run(test.name, func(t *testing.T) {
			// Asking for more must not get more out of a refusal.
			for _, more := range []bool{false, true} {
				request := proto.CloneOf(test.request)
				request.WithDetails, request.IncludeGrant = more, more
				response := w.validate(request)
				if response.GetDecision() != test.decision || response.GetReason() != test.reason || response.GetKeyId() != test.keyID {
					t.Errorf("got %s, %s, key %q; want %s, %s, key %q", response.GetDecision(), response.GetReason(), response.GetKeyId(),
						test.decision, test.reason, test.keyID)
				}
				if response.GetRevision() != revision || response.GetEpoch() != epoch || response.GetError() != nil {
					t.Errorf("got %v", response)
				}
				yes := test.decision == allowed
				if (response.GetPrincipal() != nil) != yes || (response.GetGrant() != nil) != (yes && more) {
					t.Errorf("got principal %v, grant %v", response.GetPrincipal(), response.GetGrant())
				}
				if yes && (response.GetPrincipal().GetKeyId() != test.keyID || response.GetPrincipal().GetWorkspaceId() != "acme") {
					t.Errorf("got principal %v", response.GetPrincipal())
				}
			}
		})
	}
	for number, name := range keysvcv1.Reason_name {
		if !reasons[keysvcv1.Reason(number)] {
			t.Errorf("no case for %s", name)
		}
	}
	if len(w.log.entries) != 0 {
		t.Errorf("logged %+v", w.log.entries)
	}
}

// TestRefusedTokensLookAlike: unknown, wrong and foreign tokens are answered with the same bytes.
func TestRefusedTokensLookAlike(t *testing.T) {
	w := newWorld(t)
	cases := decisionCases(w)
	defer w.start()()
	var want []byte
	compared := 0
	for _, test := range cases {
		if test.reason != keysvcv1.Reason_REASON_KEY_INVALID {
			continue
		}
		compared++
		got, err := proto.MarshalOptions{Deterministic: true}.Marshal(w.validate(test.request))
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", test.name, got, want)
		}
	}
	if compared < 15 {
		t.Errorf("only %d cases were compared", compared)
	}
}

// TestValidationsReadNothingFromTheStore: the store is read only for with_details on an allowed token. (All
// other methods of the test's store panic.)
func TestValidationsReadNothingFromTheStore(t *testing.T) {
	w := newWorld(t)
	cases := decisionCases(w)
	defer w.start()()
	batch := &keysvcv1.BatchValidateKeysRequest{}
	for _, test := range cases {
		request := proto.CloneOf(test.request)
		request.IncludeGrant = true
		w.validate(request)
		batch.Requests = append(batch.Requests, request)
		if test.decision != allowed {
			request.WithDetails = true
			w.validate(request)
		}
	}
	if _, err := w.service.BatchValidateKeys(known(t), batch); err != nil {
		t.Fatal(err)
	}
	if w.details.reads != 0 {
		t.Fatalf("%d reads", w.details.reads)
	}
	request := proto.CloneOf(cases[0].request)
	request.WithDetails = true
	w.validate(request)
	if w.details.reads != 1 {
		t.Errorf("%d reads for the one that asks for details", w.details.reads)
	}
}

func TestPrincipalHasDetailsOnlyIfAskedFor(t *testing.T) {
	w := newWorld(t)
	keyID, text := w.key("mia", nil, "signatures:read", "emails:read", "financial_documents:read")
	defer w.start()()
	request := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true}
	want := &keysvcv1.Principal{KeyId: keyID, WorkspaceId: "acme", MemberId: "mia", Role: "manager"}
	if got := w.validate(request).GetPrincipal(); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	request.WithDetails = true
	want.KeyName = "name of " + keyID
	want.Labels = map[string]string{"team": "blue"}
	want.Scopes = []string{"emails:read", "signatures:read"} // what the role has not is not effective
	want.ExpireTime = timestamppb.New(now.Add(time.Hour))
	if got := w.validate(request).GetPrincipal(); !proto.Equal(got, want) {
		t.Errorf("with details: got %v, want %v", got, want)
	}
}

// TestDetailsThatCannotBeReadAreAnError: there is never an answer without the details that were asked for.
func TestDetailsThatCannotBeReadAreAnError(t *testing.T) {
	for _, test := range []struct {
		name   string
		err    error
		code   codes.Code
		reason string
	}{
		// Purged since: asked again, the answer is another.
		{"gone", storage.ErrNotFound, codes.Unavailable, "STORE_UNAVAILABLE"},
		{"store down", storage.ErrUnavailable, codes.Unavailable, "STORE_UNAVAILABLE"},
		{"damaged", &storage.DamagedError{Kind: "key"}, codes.DataLoss, "RECORD_DAMAGED"},
		{"unexpected", errors.New("hm"), codes.Internal, "INTERNAL"},
		{"read took too long", context.DeadlineExceeded, codes.DeadlineExceeded, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			_, text := w.key("ann", nil, "emails:read")
			w.details.err = test.err
			defer w.start()()
			request := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true, WithDetails: true}
			response, err := w.service.ValidateKey(known(t), request)
			if response != nil || read(t, err).code != test.code || read(t, err).info.GetReason() != test.reason {
				t.Errorf("got %v, %v", response, err)
			}
			if _, err := w.service.ValidateKey(known(t), &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true}); err != nil {
				t.Errorf("without details: got %v", err)
			}
		})
	}
}

func TestGrantHoldsWhatACacheMayAnswer(t *testing.T) {
	w := newWorld(t)
	_, plain := w.key("mia", nil, "signatures:read", "emails:read", "financial_documents:read")
	_, none := w.key("mia", nil, "financial_documents:read")
	rotated, newest := w.key("ann", func(r *storagev1.KeyRecord) {
		r.AllowedCidrs = []string{"192.0.2.0/24", "2001:db8::/32"}
	}, "emails:read")
	older := w.token(rotated)
	ends := now.Add(time.Minute)
	overlapping := w.secret(older, 30*time.Minute)
	overlapping.OverlapEndTime = timestamppb.New(ends)
	record := w.items[len(w.items)-1].Key
	record.Secrets = append(record.Secrets, overlapping)
	defer w.start()()

	for _, test := range []struct {
		name, token string
		validFor    time.Duration
		scopes      []string
		cidrs       []string
	}{
		{"plain", plain, time.Hour, []string{"emails:read", "signatures:read"}, nil},
		{"nothing effective", none, time.Hour, nil, nil},
		{"address rules", newest, time.Hour, []string{"emails:read"}, []string{"192.0.2.0/24", "2001:db8::/32"}},
		{"older secret", older.Reveal(), time.Minute, []string{"emails:read"}, []string{"192.0.2.0/24", "2001:db8::/32"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := &keysvcv1.ValidateKeyRequest{Token: test.token, IdentityOnly: true, ClientAddress: "192.0.2.1"}
			if got := w.validate(request).GetGrant(); got != nil {
				t.Errorf("unasked: got %v", got)
			}
			request.IncludeGrant = true
			grant := w.validate(request).GetGrant()
			if got := grant.GetValidFor().AsDuration(); got != test.validFor {
				t.Errorf("valid for %s, want %s", got, test.validFor)
			}
			if !slices.Equal(grant.GetScopes(), test.scopes) {
				t.Errorf("scopes %q, want %q", grant.GetScopes(), test.scopes)
			}
			if test.cidrs == nil {
				if len(grant.GetConditions()) != 0 {
					t.Errorf("conditions %v", grant.GetConditions())
				}
				return
			}
			if len(grant.GetConditions()) != 1 || !slices.Equal(grant.GetConditions()[0].GetAllowedAddresses().GetCidrs(), test.cidrs) {
				t.Errorf("conditions %v, want %q", grant.GetConditions(), test.cidrs)
			}
		})
	}
	t.Run("older secret, details", func(t *testing.T) {
		response := w.validate(&keysvcv1.ValidateKeyRequest{
			Token: older.Reveal(), IdentityOnly: true, ClientAddress: "192.0.2.1", WithDetails: true,
		})
		if got := response.GetPrincipal().GetExpireTime().AsTime(); !got.Equal(ends) {
			t.Errorf("expires at %s, want %s", got, ends)
		}
	})
}

// badCase is a request that gets no decision.
type badCase struct {
	name    string
	request *keysvcv1.ValidateKeyRequest
	code    codes.Code
	reason  string
	fields  []string
}

func badCases(w *world) []badCase {
	_, text := w.key("ann", nil, "emails:read")
	_, ofDamaged := w.key("dan", nil, "emails:read")
	damaged := w.token("Key0000000000997")
	w.add(storage.Item{Damaged: &storage.Damaged{
		WorkspaceID: "acme", KeyID: damaged.ID(), Err: &storage.DamagedError{Kind: "key", Name: damaged.ID(), Problem: "checksum"},
	}})
	invalid := func(name, field string, edit func(*keysvcv1.ValidateKeyRequest)) badCase {
		request := &keysvcv1.ValidateKeyRequest{Token: text, RequiredScope: "emails:read"}
		edit(request)
		return badCase{name, request, codes.InvalidArgument, "FIELD_INVALID", []string{field}}
	}
	cases := []badCase{
		{"nothing at all", &keysvcv1.ValidateKeyRequest{}, codes.InvalidArgument, "FIELD_INVALID", []string{"required_scope"}},
		{"no request", nil, codes.InvalidArgument, "FIELD_INVALID", []string{"required_scope"}},
		invalid("neither scope nor identity", "required_scope", func(r *keysvcv1.ValidateKeyRequest) { r.RequiredScope = "" }),
		invalid("both scope and identity", "identity_only", func(r *keysvcv1.ValidateKeyRequest) { r.IdentityOnly = true }),
		invalid("workspace with a space", "workspace_id", func(r *keysvcv1.ValidateKeyRequest) { r.WorkspaceId = "ac me" }),
		invalid("workspace with a control character", "workspace_id", func(r *keysvcv1.ValidateKeyRequest) { r.WorkspaceId = "acme\n" }),
		invalid("workspace with a NUL byte", "workspace_id", func(r *keysvcv1.ValidateKeyRequest) { r.WorkspaceId = "acme\x00" }),
		invalid("workspace too long", "workspace_id", func(r *keysvcv1.ValidateKeyRequest) { r.WorkspaceId = strings.Repeat("a", 129) }),
		invalid("negative revision", "min_revision", func(r *keysvcv1.ValidateKeyRequest) { r.MinRevision, r.Epoch = -1, epoch }),
		invalid("revision without epoch", "epoch", func(r *keysvcv1.ValidateKeyRequest) { r.MinRevision = 1 }),
		invalid("epoch without revision", "epoch", func(r *keysvcv1.ValidateKeyRequest) { r.Epoch = epoch }),
		{
			"several at once",
			&keysvcv1.ValidateKeyRequest{Token: text, WorkspaceId: " ", ClientAddress: "here", MinRevision: -1},
			codes.InvalidArgument, "FIELD_INVALID",
			[]string{"required_scope", "workspace_id", "client_address", "min_revision", "epoch"},
		},
		{
			"other epoch", &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true, MinRevision: 1, Epoch: "other"},
			codes.FailedPrecondition, "EPOCH_MISMATCH", nil,
		},
		{"damaged key", &keysvcv1.ValidateKeyRequest{Token: damaged.Reveal(), IdentityOnly: true}, codes.DataLoss, "RECORD_DAMAGED", nil},
		{"damaged member", &keysvcv1.ValidateKeyRequest{Token: ofDamaged, IdentityOnly: true}, codes.DataLoss, "RECORD_DAMAGED", nil},
	}
	for _, address := range []string{
		"here", "localhost", " 192.0.2.1", "192.0.2.1 ", "192.0.2.1:443", "[2001:db8::1]:443", "[2001:db8::1]", "192.0.2.0/24",
		"192.0.2", "192.0.2.256", "192.0.2.01", "2001:db8:::1", "192.0.2.1, 192.0.2.2", "192.0.2.1\n", "::ffff:192.0.2.1/96", strings.Repeat("1", 1<<16),
	} {
		cases = append(cases, invalid(fmt.Sprintf("address %.20q", address), "client_address", func(r *keysvcv1.ValidateKeyRequest) {
			r.ClientAddress = address
		}))
	}
	// Never a silent yes or no: a caller that asks for what does not exist has a bug, which
	// must show with any token.
	for name, of := range map[string]string{"good token": text, "no token": "", "garbage": "hello", "unknown token": w.token("Key0000000000998").Reveal()} {
		for _, scope := range []string{"emails:fly", "emails", "emails:", "*", "emails:*", "Emails:read", "emails:read ", "emails:read,emails:write", strings.Repeat("e", 1<<16)} {
			cases = append(cases, badCase{
				fmt.Sprintf("scope %.20q, %s", scope, name), &keysvcv1.ValidateKeyRequest{Token: of, RequiredScope: scope},
				codes.InvalidArgument, "SCOPE_UNKNOWN",
				[]string{"required_scope"},
			})
		}
	}
	return cases
}

func TestBadRequestsNameTheFieldAndNeverTheToken(t *testing.T) {
	w := newWorld(t)
	cases := badCases(w)
	defer w.start()()
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			response, err := w.service.ValidateKey(known(t), test.request)
			if response != nil {
				t.Errorf("got %v", response)
			}
			got := refused(t, err, test.code, test.reason, test.fields...)
			if text := test.request.GetToken(); len(text) > 20 && strings.Contains(fmt.Sprint(err, got), text) {
				t.Errorf("the error shows the token: %v", err)
			}
			if len(got.message) > 2000 {
				t.Errorf("the error has %d bytes", len(got.message))
			}
		})
	}
}

// TestBatchTakes1To256Items: the status of the call is about the batch, not about its items.
func TestBatchTakes1To256Items(t *testing.T) {
	w := newWorld(t)
	_, text := w.key("ann", nil, "emails:read")
	defer w.start()()
	for count, fine := range map[int]bool{0: false, 1: true, 255: true, 256: true, 257: false, 5000: false} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			request := &keysvcv1.BatchValidateKeysRequest{}
			for range count {
				request.Requests = append(request.Requests, &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true})
			}
			response, err := w.service.BatchValidateKeys(known(t), request)
			if !fine {
				refused(t, err, codes.InvalidArgument, "FIELD_INVALID", "requests")
				return
			}
			if err != nil || len(response.GetResponses()) != count {
				t.Errorf("got %d responses, %v", len(response.GetResponses()), err)
			}
		})
	}
	if service.MaxBatch != 256 {
		t.Errorf("a batch may have %d items", service.MaxBatch)
	}
}

// TestBatchAnswersEachItemAsIfAlone mixes good and bad items, in two orders. Each is answered at its
// index, as a call with this item alone would be.
func TestBatchAnswersEachItemAsIfAlone(t *testing.T) {
	w := newWorld(t)
	var requests []*keysvcv1.ValidateKeyRequest
	good, bad := decisionCases(w), badCases(w)
	for index := range max(len(good), len(bad)) {
		request := proto.CloneOf(good[index%len(good)].request)
		request.WithDetails, request.IncludeGrant = index%2 == 0, index%3 == 0
		requests = append(requests, request, bad[index%len(bad)].request)
	}
	requests = requests[:min(len(requests), service.MaxBatch)]
	defer w.start()()
	for _, order := range []func(){func() {}, func() { slices.Reverse(requests) }} {
		order()
		response, err := w.service.BatchValidateKeys(known(t), &keysvcv1.BatchValidateKeysRequest{Requests: requests})
		if err != nil || len(response.GetResponses()) != len(requests) {
			t.Fatalf("got %d responses, %v", len(response.GetResponses()), err)
		}
		refusals := 0
		for index, got := range response.GetResponses() {
			want, err := w.service.ValidateKey(known(t), requests[index])
			if err != nil {
				refusals++
				alone := read(t, err)
				want = &keysvcv1.ValidateKeyResponse{Error: &keysvcv1.ValidationError{
					Code:    int32(alone.code),
					Reason:  keysvcv1.ErrorReason(keysvcv1.ErrorReason_value["ERROR_REASON_"+alone.info.GetReason()]),
					Message: alone.message,
				}}
			}
			if !proto.Equal(got, want) {
				t.Errorf("item %d: got %v, want %v", index, got, want)
			}
			if (got.GetError() != nil) != (got.GetDecision() == keysvcv1.Decision_DECISION_UNSPECIFIED) {
				t.Errorf("item %d: decision %s with error %v", index, got.GetDecision(), got.GetError())
			}
		}
		if refusals < 20 || refusals > len(requests)-20 {
			t.Errorf("%d of %d items are bad: not much of a mixture", refusals, len(requests))
		}
	}
}

// TestBatchItemWithoutDetailsFailsAlone: only the item whose details cannot be read fails.
func TestBatchItemWithoutDetailsFailsAlone(t *testing.T) {
	for _, test := range []struct {
		err     error
		code    codes.Code
		reason  keysvcv1.ErrorReason
		message string
	}{
		{storage.ErrUnavailable, codes.Unavailable, keysvcv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE, "the store is not ready; nothing was changed; try again"},
		{errors.New("secret cause"), codes.Internal, keysvcv1.ErrorReason_ERROR_REASON_INTERNAL, "internal error; the log has its cause"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, 0, "the call's deadline passed; nothing was changed"},
	} {
		t.Run(test.code.String(), func(t *testing.T) {
			w := newWorld(t)
			_, text := w.key("ann", nil, "emails:read")
			w.details.err = test.err
			defer w.start()()
			plain := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true}
			detailed := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true, WithDetails: true}
			response, err := w.service.BatchValidateKeys(known(t), &keysvcv1.BatchValidateKeysRequest{
				Requests: []*keysvcv1.ValidateKeyRequest{plain, detailed, plain},
			})
			if err != nil {
				t.Fatal(err)
			}
			responses := response.GetResponses()
			want := &keysvcv1.ValidateKeyResponse{Error: &keysvcv1.ValidationError{Code: int32(test.code), Reason: test.reason, Message: test.message}}
			if !proto.Equal(responses[1], want) {
				t.Errorf("got %v, want %v", responses[1], want)
			}
			if responses[0].GetDecision() != allowed || responses[2].GetDecision() != allowed {
				t.Errorf("the others: got %v", responses)
			}
		})
	}
}

// TestDetailsOfAStoreThatHangsEndBeforeTheDeadline: the caller gets the error of that item, and the answers to the
// others, before its deadline.
func TestDetailsOfAStoreThatHangsEndBeforeTheDeadline(t *testing.T) {
	for deadline, takes := range map[time.Duration]time.Duration{
		0: time.Second, 200 * time.Millisecond: 160 * time.Millisecond, time.Second: 800 * time.Millisecond, time.Minute: time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			_, text := w.key("ann", nil, "emails:read")
			w.details.hangs = true
			defer w.start()()
			ctx := known(t)
			if deadline > 0 {
				bounded, cancel := context.WithTimeout(ctx, deadline)
				defer cancel()
				ctx = bounded
			}
			plain := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true}
			detailed := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true, WithDetails: true}
			begun := time.Now()
			response, err := w.service.BatchValidateKeys(ctx, &keysvcv1.BatchValidateKeysRequest{
				Requests: []*keysvcv1.ValidateKeyRequest{plain, detailed, detailed, plain},
			})
			if took := time.Since(begun); took != takes {
				t.Errorf("with a deadline of %s it took %s, want %s", deadline, took, takes)
			}
			if err != nil {
				t.Fatal(err)
			}
			for index, got := range response.GetResponses() {
				if detailed := index == 1 || index == 2; (got.GetError().GetReason() == keysvcv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE) != detailed ||
					(got.GetDecision() == allowed) == detailed {
					t.Errorf("item %d: got %v", index, got)
				}
			}
			if len(w.log.entries) != 0 {
				t.Errorf("logged: %+v", w.log.entries)
			}
		})
	}
}

// commit lets the store commit something that changes nothing.
func (w *world) commit(revision int64) {
	w.changes <- &storage.Committed{Revision: revision, Head: storage.WorkspaceHead{WorkspaceID: "acme"}}
}

func TestMinRevisionIsWaitedForWithinASecond(t *testing.T) {
	for _, test := range []struct {
		name     string
		revision int64
		deadline time.Duration   // the caller's; 0 for no deadline
		cancel   time.Duration   // when the caller leaves; 0 is never
		commits  []time.Duration // when each next revision comes
		code     codes.Code
		reason   string
		takes    time.Duration
	}{
		{"long reached", 1, 0, 0, nil, codes.OK, "", 0},
		{"just reached", revision, 0, 0, nil, codes.OK, "", 0},
		{"comes at once", revision + 1, 0, 0, []time.Duration{1}, codes.OK, "", 1},
		{"comes in time", revision + 2, 0, 0, []time.Duration{time.Millisecond, 999 * time.Millisecond}, codes.OK, "", 999 * time.Millisecond},
		{"comes too late", revision + 1, 0, 0, []time.Duration{1001 * time.Millisecond}, codes.Unavailable, "REVISION_NOT_REACHED", time.Second},
		{"only the one before comes", revision + 2, 0, 0, []time.Duration{time.Millisecond}, codes.Unavailable, "REVISION_NOT_REACHED", time.Second},
		{"never comes", 1 << 62, 0, 0, nil, codes.Unavailable, "REVISION_NOT_REACHED", time.Second},
		{"the caller is in a hurry", revision + 1, 300 * time.Millisecond, 0, nil, codes.Unavailable, "REVISION_NOT_REACHED", 240 * time.Millisecond},
		{"the caller gives as long as the server", revision + 1, time.Second, 0, nil, codes.Unavailable, "REVISION_NOT_REACHED", 800 * time.Millisecond},
		{"the caller has time", revision + 1, time.Minute, 0, nil, codes.Unavailable, "REVISION_NOT_REACHED", time.Second},
		{"the caller leaves", revision + 1, 0, 200 * time.Millisecond, nil, codes.Canceled, "", 200 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				keyID, text := w.key("ann", nil, "emails:read")
				defer w.start()()
				ctx, cancel := context.WithCancel(known(t))
				defer cancel()
				if test.deadline > 0 {
					ctx, cancel = context.WithTimeout(ctx, test.deadline)
					defer cancel()
				}
				var others sync.WaitGroup
				defer others.Wait()
				begin := time.Now()
				if test.cancel > 0 {
					others.Go(func() {
						time.Sleep(test.cancel) // in the bubble's time
						cancel()
					})
				}
				others.Go(func() {
					for index, at := range test.commits {
						time.Sleep(time.Until(begin.Add(at)))
						w.commit(revision + 1 + int64(index))
					}
				})
				response, err := w.service.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{
					Token: text, IdentityOnly: true, MinRevision: test.revision, Epoch: epoch,
				})
				if took := time.Since(begin); took != test.takes {
					t.Errorf("it took %s, want %s", took, test.takes)
				}
				if test.code != codes.OK {
					if got := read(t, err); got.code != test.code || got.info.GetReason() != test.reason || response != nil {
						t.Errorf("got %v, %v; want %s, %s", response, err, test.code, test.reason)
					}
					return
				}
				if err != nil || response.GetKeyId() != keyID || response.GetDecision() != allowed || response.GetRevision() < test.revision {
					t.Errorf("got %v, %v", response, err)
				}
			})
		})
	}
}

// TestMinRevisionSeesTheChange: an answer with the min_revision of a change reflects the change.
func TestMinRevisionSeesTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		keyID, text := w.key("ann", nil, "emails:read")
		defer w.start()()
		revoked := proto.CloneOf(w.items[len(w.items)-1].Key)
		revoked.RevokeTime = timestamppb.New(now)
		var others sync.WaitGroup
		defer others.Wait()
		others.Go(func() {
			time.Sleep(500 * time.Millisecond)
			w.changes <- &storage.Committed{
				Revision: revision + 1, Head: storage.WorkspaceHead{WorkspaceID: "acme"}, Put: []storage.Item{{Key: revoked}},
			}
		})
		response := w.validate(&keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true, MinRevision: revision + 1, Epoch: epoch})
		if response.GetReason() != keysvcv1.Reason_REASON_KEY_REVOKED || response.GetKeyId() != keyID || response.GetRevision() != revision+1 {
			t.Errorf("got %v", response)
		}
	})
}

// TestBatchWaitsOnce: all waits of a batch together take no longer than one, not 256 seconds. Items that
// need not wait are answered.
func TestBatchWaitsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, text := w.key("ann", nil, "emails:read")
		defer w.start()()
		request := &keysvcv1.BatchValidateKeysRequest{}
		for index := range 256 {
			item := &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true}
			switch index % 4 {
			case 1:
				item.MinRevision, item.Epoch = revision+9, epoch // never comes
			case 2:
				item.MinRevision, item.Epoch = revision, epoch
			case 3:
				item.MinRevision, item.Epoch = revision+1, epoch // comes during the wait for the one before
			}
			request.Requests = append(request.Requests, item)
		}
		var others sync.WaitGroup
		defer others.Wait()
		begin := time.Now()
		others.Go(func() {
			time.Sleep(500 * time.Millisecond)
			w.commit(revision + 1)
		})
		response, err := w.service.BatchValidateKeys(known(t), request)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it took %s, want a second", took)
		}
		for index, got := range response.GetResponses() {
			if index%4 == 1 {
				if got.GetError().GetReason() != keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED {
					t.Errorf("item %d: got %v", index, got)
				}
			} else if got.GetDecision() != allowed {
				t.Errorf("item %d: got %v", index, got)
			}
		}
	})
}

// TestBatchOfACallerThatLeftIsCancelled: a batch ends when its caller has left.
func TestBatchOfACallerThatLeftIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, text := w.key("ann", nil, "emails:read")
		defer w.start()()
		ctx, cancel := context.WithCancel(known(t))
		defer time.AfterFunc(10*time.Millisecond, cancel).Stop()
		request := &keysvcv1.BatchValidateKeysRequest{}
		for range 3 {
			request.Requests = append(request.Requests, &keysvcv1.ValidateKeyRequest{
				Token: text, IdentityOnly: true, MinRevision: revision + 1, Epoch: epoch,
			})
		}
		response, err := w.service.BatchValidateKeys(ctx, request)
		if response != nil || read(t, err).code != codes.Canceled {
			t.Errorf("got %v, %v", response, err)
		}
	})
}

// TestDamageIsLogged: the log has the damage once, in full; the caller is not told which record it is.
func TestDamageIsLogged(t *testing.T) {
	w := newWorld(t)
	_, text := w.key("dan", nil, "emails:read")
	defer w.start()()
	_, err := w.service.ValidateKey(known(t), &keysvcv1.ValidateKeyRequest{Token: text, IdentityOnly: true})
	got := refused(t, err, codes.DataLoss, "RECORD_DAMAGED")
	if strings.Contains(got.message, "checksum") {
		t.Errorf("got %q", got.message)
	}
	if len(w.log.entries) != 1 || !strings.Contains(w.log.entries[0].cause, "checksum mismatch of the member's record") {
		t.Errorf("logged %+v", w.log.entries)
	}
}
