package keyauth_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// olderKeys is a Validator of older keys.
type olderKeys struct {
	asked int
	err   error
}

func (o *olderKeys) Validate(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
	o.asked++
	if o.err != nil || question.Token != "old.1" {
		return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, o.err
	}
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{WorkspaceID: "acme", MemberID: "ann"}}, nil
}

func isOld(token string) bool { return strings.HasPrefix(token, "old.") }

func TestChainAsksTheOneThatTheFormNames(t *testing.T) {
	keysvc, older := keyauthtest.New(t), new(olderKeys)
	chain, err := keyauth.Chain(keysvc, keyauth.Link{Name: "old key", Recognizes: isOld, Validator: older})
	if err != nil {
		t.Fatal(err)
	}
	guard, err := keyauth.NewGuard(chain, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	key := keysvc.CreateKey(keyauthtest.Key{})
	for _, test := range []struct {
		name, token    string
		err            error
		code           codes.Code
		credential     string
		keysvc, others int
	}{
		{"a key", key.Token, nil, codes.OK, "", 1, 0},
		{"an older key", "old.1", nil, codes.OK, "old key", 0, 1},
		{"an unknown older key", "old.2", nil, codes.Unauthenticated, "", 0, 1},
		{"an older key that cannot be checked", "old.1", status.Error(codes.Unavailable, "down"), codes.Unavailable, "", 0, 1},
		{"an older key, asked wrongly", "old.1", errors.New("broken"), codes.Internal, "", 0, 1},
		{"the form of keysvc inside that of the older", "old._ksk1_x", nil, codes.Unauthenticated, "", 1, 0},
		{"no known form", "junk", nil, codes.Unauthenticated, "", 1, 0},
	} {
		older.asked, older.err = 0, test.err
		before := len(keysvc.Asked())
		ctx, err := guard.Admit(t.Context(), keyauth.Request{Name: "x", Requirement: keyauth.IdentityOnly(), Authorization: []string{"Bearer " + test.token}})
		if status.Code(err) != test.code || older.asked != test.others || len(keysvc.Asked())-before != test.keysvc {
			t.Errorf("%s: %v, older keys were asked %d times and keysvc %d", test.name, err, older.asked, len(keysvc.Asked())-before)
		}
		if err == nil {
			if principal, _ := keyauth.PrincipalFrom(ctx); principal.Credential != test.credential || principal.MemberID == "" {
				t.Errorf("%s: %+v", test.name, principal)
			}
		}
	}
}

func TestChainWatchesThroughIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keysvc := keyauthtest.New(t)
		chain, err := keyauth.Chain(keysvc, keyauth.Link{Name: "old key", Recognizes: isOld, Validator: new(olderKeys)})
		if err != nil {
			t.Fatal(err)
		}
		guard, err := keyauth.NewGuard(chain, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		key := keysvc.CreateKey(keyauthtest.Key{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		watch := func(token string) chan error {
			ended := make(chan error, 1)
			go func() {
				ended <- guard.Watch(ctx, keyauth.Request{Name: "x", Requirement: keyauth.IdentityOnly(), Authorization: []string{"Bearer " + token}})
			}()
			return ended
		}
		ofKeysvc, ofOlder := watch(key.Token), watch("old.1")
		synctest.Wait()
		keysvc.RevokeKey(key.KeyID)
		if err := <-ofKeysvc; status.Code(err) != codes.Unauthenticated {
			t.Errorf("a revoked key: %v", err)
		}
		synctest.Wait()
		select {
		case err := <-ofOlder:
			t.Errorf("the stream of an older key ended: %v", err)
		default:
		}
		cancel()
		if err := <-ofOlder; !errors.Is(err, context.Canceled) {
			t.Errorf("an older key: %v", err)
		}
	})
	// A chain of Validators that do not watch does not, either.
	plain, err := keyauth.Chain(new(olderKeys))
	if err != nil {
		t.Fatal(err)
	}
	if plain.(interface{ Watches() bool }).Watches() {
		t.Error("a chain watches although nobody in it does")
	}
}

func TestChainNamesEveryWrongLink(t *testing.T) {
	_, err := keyauth.Chain(nil, keyauth.Link{}, keyauth.Link{Name: "a", Recognizes: isOld, Validator: new(olderKeys)}, keyauth.Link{Name: "a", Recognizes: isOld, Validator: new(olderKeys)})
	for _, want := range []string{"keysvc: is nil", "links[0].Name: is empty", "links[0].Recognizes", "links[0].Validator", `links[2].Name: "a"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

// session is the principal of a session that may read signatures.
var session = keyauth.Principal{WorkspaceID: "acme", MemberID: "ann", Role: "admin", Scopes: []string{"signatures:read", "signatures:write"}, Credential: "session"}

func TestAuthenticatorComesFirstAndIsHeldToTheRequirement(t *testing.T) {
	keysvc := keyauthtest.New(t)
	token := keysvc.CreateKey(keyauthtest.Key{Scopes: []string{"signatures:read"}}).Token
	guard, err := keyauth.NewGuard(keysvc, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	read := keyauth.Scope("signatures:read")
	without := func(change func(*keyauth.Principal)) *keyauth.Principal {
		changed := session
		change(&changed)
		return &changed
	}
	for _, test := range []struct {
		name        string
		requirement keyauth.Requirement
		who         *keyauth.Principal // nil: not found
		err         error
		token       bool
		workspace   string
		code        codes.Code
		credential  string
	}{
		{"session", read, &session, nil, false, "", codes.OK, "session"},
		{"session, identity only", keyauth.IdentityOnly(), &session, nil, false, "acme", codes.OK, "session"},
		{"session, all of", keyauth.AllOf("signatures:read", "signatures:write"), &session, nil, false, "", codes.OK, "session"},
		{"session, any of", keyauth.AnyOf("assets:read", "signatures:write"), &session, nil, false, "", codes.OK, "session"},
		{"session, one of all lacks", keyauth.AllOf("signatures:read", "assets:read"), &session, nil, false, "", codes.PermissionDenied, ""},
		{"session, scope lacks", keyauth.Scope("assets:read"), &session, nil, false, "", codes.PermissionDenied, ""},
		{"session, foreign workspace", read, &session, nil, false, "other", codes.Unauthenticated, ""},
		{"session, impossible workspace", read, &session, nil, false, "a/b", codes.NotFound, ""},
		{"session, the request names no workspace", read.WorkspaceField("workspace_id"), &session, nil, false, "", codes.NotFound, ""},
		{"session, the request names its workspace", read.WorkspaceField("workspace_id"), &session, nil, false, "acme", codes.OK, "session"},
		{"session, nothing said", keyauth.Requirement{}, &session, nil, false, "", codes.PermissionDenied, ""},
		{"session, malformed scope", keyauth.Scope("signatures"), &session, nil, false, "", codes.PermissionDenied, ""},
		{"session and token", read, &session, nil, true, "", codes.Unauthenticated, ""},
		{"token", read, nil, nil, true, "", codes.OK, ""},
		{"nothing", read, nil, nil, false, "", codes.Unauthenticated, ""},
		{"it cannot be known", read, nil, status.Error(codes.Unavailable, "down"), true, "", codes.Unavailable, ""},
		{"an error", read, &session, errors.New("broken"), false, "", codes.Internal, ""},
		{"its own refusal", read, nil, &keyauth.RefusalError{Code: codes.Unauthenticated}, true, "", codes.Unauthenticated, ""},
		{"no workspace", read, without(func(p *keyauth.Principal) { p.WorkspaceID = "" }), nil, false, "", codes.Internal, ""},
		{"no member", read, without(func(p *keyauth.Principal) { p.MemberID = "" }), nil, false, "", codes.Internal, ""},
		{"no mark", read, without(func(p *keyauth.Principal) { p.Credential = "" }), nil, false, "", codes.Internal, ""},
	} {
		request := keyauth.Request{Name: "x", Requirement: test.requirement, WorkspaceID: test.workspace}
		request.Authenticate = func(context.Context) (keyauth.Principal, bool, error) {
			if test.who == nil {
				return keyauth.Principal{}, false, test.err
			}
			return *test.who, true, test.err
		}
		if test.token {
			request.Authorization = []string{"Bearer " + token}
		}
		ctx, err := guard.Admit(t.Context(), request)
		if status.Code(err) != test.code {
			t.Errorf("%s: %v, want %v", test.name, err, test.code)
		}
		if err == nil {
			if principal, _ := keyauth.PrincipalFrom(ctx); principal.Credential != test.credential {
				t.Errorf("%s: %+v", test.name, principal)
			}
		}
	}
	request := keyauth.Request{Name: "x", Requirement: read, Authenticate: func(context.Context) (keyauth.Principal, bool, error) { panic("broken") }}
	if _, err := guard.Admit(t.Context(), request); status.Code(err) != codes.Internal {
		t.Errorf("a panic: %v", err)
	}
}

func TestAuthenticatorOfCalls(t *testing.T) {
	keysvc := keyauthtest.New(t)
	const method = "/a.B/C"
	guard, err := keyauth.NewGuard(keysvc, keyauth.Config{
		Log: slog.New(slog.DiscardHandler), Tables: []keyauth.Table{{method: keyauth.Scope("signatures:read")}},
		Authenticate: func(ctx context.Context, fullMethod string) (keyauth.Principal, bool, error) {
			if fullMethod != method || len(metadata.ValueFromIncomingContext(ctx, "authorization")) > 0 {
				t.Error("the authenticator sees the token, or another method")
			}
			return session, len(metadata.ValueFromIncomingContext(ctx, "cookie")) > 0, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	token := keysvc.CreateKey(keyauthtest.Key{Scopes: []string{"signatures:read"}}).Token
	for _, test := range []struct {
		name       string
		metadata   []string
		code       codes.Code
		credential string
	}{
		{"session", []string{"cookie", "session=1"}, codes.OK, "session"},
		{"key", []string{"authorization", "Bearer " + token}, codes.OK, ""},
		{"both", []string{"cookie", "session=1", "authorization", "Bearer " + token}, codes.Unauthenticated, ""},
		{"none", nil, codes.Unauthenticated, ""},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(test.metadata...))
		_, err := guard.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
			if principal, ok := keyauth.PrincipalFrom(ctx); !ok || principal.Credential != test.credential {
				t.Errorf("%s: %+v", test.name, principal)
			}
			return nil, nil
		})
		if status.Code(err) != test.code {
			t.Errorf("%s: %v, want %v", test.name, err, test.code)
		}
		ran := false
		err = guard.StreamServerInterceptor()(nil, &streamOf{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error {
			ran = true
			return nil
		})
		if status.Code(err) != test.code || ran != (test.code == codes.OK) {
			t.Errorf("%s, stream: %v, want %v", test.name, err, test.code)
		}
	}
}

type streamOf struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamOf) Context() context.Context { return s.ctx }

func TestLacksSaysWhatTheGuardWould(t *testing.T) {
	for _, test := range []struct {
		requirement keyauth.Requirement
		want        string // empty: nothing lacks
	}{
		{keyauth.Public(), ""},
		{keyauth.IdentityOnly(), ""},
		{keyauth.Scope("signatures:read"), ""},
		{keyauth.Scope("assets:read"), "the scope assets:read"},
		{keyauth.AllOf("signatures:read", "assets:read", "assets:write"), "the scopes assets:read, assets:write"},
		{keyauth.AnyOf("assets:read", "assets:write"), "one of the scopes assets:read, assets:write"},
		{keyauth.Requirement{}, "not open to API keys"},
		{keyauth.Scope("x"), "not open to API keys"},
	} {
		refusal := keyauth.Lacks(session, test.requirement)
		if (refusal == nil) != (test.want == "") || refusal != nil && (refusal.Code != codes.PermissionDenied || !strings.Contains(refusal.Error(), test.want)) {
			t.Errorf("%s: %v", test.requirement, refusal)
		}
	}
}
