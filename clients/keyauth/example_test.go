package keyauth_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// reader allows one token to read. A real service uses the client of package keyclient.
type reader struct{}

func (reader) Validate(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
	switch {
	case question.Token != "token-of-ann":
		return keyauth.Answer{
			Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID,
		}, nil
	case question.Requirement.Scope() != "signatures:read":
		return keyauth.Answer{
			Decision: keysvcv1.Decision_DECISION_PERMISSION_DENIED, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED,
		}, nil
	}
	return keyauth.Answer{
		Decision:  keysvcv1.Decision_DECISION_ALLOWED,
		Principal: &keyauth.Principal{KeyID: "9fQ2mXc7Lr0TzB4w", WorkspaceID: "acme", MemberID: "ann", Role: "manager"},
	}, nil
}

// protoc-gen-go-keyscope generates such tables; this one is written by hand.
var signatures = keyauth.Table{
	"/scribe.signatures.v1.SignaturesService/GetSignature":    keyauth.Scope("signatures:read"),
	"/scribe.signatures.v1.SignaturesService/UpdateSignature": keyauth.Scope("signatures:write"),
}

func ExampleNewGuard() {
	guard, err := keyauth.NewGuard(reader{}, keyauth.Config{
		Tables: []keyauth.Table{signatures, keyauth.Health(), keyauth.Reflection()},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(guard.StreamServerInterceptor()),
	)
	defer server.Stop()
	// Output:
}

func ExampleNewGuard_refuses() {
	_, err := keyauth.NewGuard(reader{}, keyauth.Config{Tables: []keyauth.Table{
		{"/scribe.signatures.v1.SignaturesService/GetSignature": keyauth.Scope("signatures")},
	}})
	fmt.Println(err)
	// Output: keyauth: /scribe.signatures.v1.SignaturesService/GetSignature: needs "signatures"; allowed are Scope with resource:action, AllOf and AnyOf with 1 to 16 of them, IdentityOnly and Public
}

func ExamplePrincipalFrom() {
	getSignature := func(ctx context.Context) {
		principal, ok := keyauth.PrincipalFrom(ctx)
		if !ok {
			fmt.Println("nobody") // a public method
			return
		}
		fmt.Println("signatures of", principal.WorkspaceID)
	}
	getSignature(context.Background())
	getSignature(keyauth.WithPrincipal(context.Background(), keyauth.Principal{WorkspaceID: "acme"}))
	// Output:
	// nobody
	// signatures of acme
}

func ExampleGuard_Admit() {
	guard, err := keyauth.NewGuard(reader{}, keyauth.Config{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Log:            slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, scope := range []string{"signatures:read", "signatures:write"} {
		ctx, err := guard.Admit(context.Background(), keyauth.Request{
			Name:          "some transport",
			Requirement:   keyauth.Scope(scope),
			Authorization: []string{"Bearer token-of-ann"},
			Peer:          netip.MustParseAddr("10.0.0.7"),
			Forwarded:     []string{"192.0.2.1"},
		})
		if refusal, refused := errors.AsType[*keyauth.RefusalError](err); refused {
			fmt.Println(refusal.Code == codes.PermissionDenied, refusal)
			continue
		}
		principal, _ := keyauth.PrincipalFrom(ctx)
		fmt.Println(principal.MemberID, "may pass")
	}
	// Output:
	// ann may pass
	// true the API key may not do this: it needs the scope signatures:write
}

func ExampleGuard_Watch() {
	guard, err := keyauth.NewGuard(reader{}, keyauth.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	// The reader is no keyauth.Watcher, so there is nothing to watch.
	fmt.Println(guard.Watch(context.Background(), keyauth.Request{Requirement: keyauth.IdentityOnly()}))
	// Output: <nil>
}
