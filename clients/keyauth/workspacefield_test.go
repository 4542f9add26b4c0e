package keyauth_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// keyServer is a service whose requests name a workspace: keysvc's own, which have such fields.
type keyServer struct {
	keysvcv1.UnimplementedKeyServiceServer
	handled int
}

func (s *keyServer) GetKey(context.Context, *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
	s.handled++
	return &keysvcv1.GetKeyResponse{}, nil
}

func serveKeys(t *testing.T, validator keyauth.Validator, config keyauth.Config) (*keyServer, keysvcv1.KeyServiceClient) {
	t.Helper()
	guard, err := keyauth.NewGuard(validator, config)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(guard.UnaryServerInterceptor()), grpc.StreamInterceptor(guard.StreamServerInterceptor()))
	service := &keyServer{}
	keysvcv1.RegisterKeyServiceServer(server, service)
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///keys", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); server.Stop(); <-served })
	return service, keysvcv1.NewKeyServiceClient(conn)
}

const methodGetKey = "/keysvc.v1.KeyService/GetKey"

func TestWorkspaceFieldOfAUnaryRequest(t *testing.T) {
	validator := keyauthtest.New(t)
	token := validator.CreateKey(keyauthtest.Key{WorkspaceID: "acme", Scopes: []string{scope}}).Token
	for name, test := range map[string]struct {
		field, workspace string
		code             codes.Code
		reason           string
	}{
		"its own":           {"workspace_id", "acme", codes.OK, ""},
		"a foreign one":     {"workspace_id", "other", codes.Unauthenticated, "KEY_INVALID"},
		"none":              {"workspace_id", "", codes.NotFound, ""},
		"an impossible one": {"workspace_id", "a/b", codes.NotFound, ""},
		"no such field":     {"workspace", "acme", codes.Internal, ""},
		"inside a text":     {"workspace_id.id", "acme", codes.Internal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			// The field counts, not the function.
			service, client := serveKeys(t, validator, keyauth.Config{
				Tables:    []keyauth.Table{{methodGetKey: keyauth.Scope(scope).WorkspaceField(test.field)}},
				Workspace: func(context.Context, string, any) string { return "acme" },
			})
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
			_, err := client.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: test.workspace})
			expect(t, err, test.code, test.reason, "")
			if (service.handled == 1) != (test.code == codes.OK) {
				t.Errorf("handled %d times", service.handled)
			}
		})
	}
	for _, question := range validator.Asked() {
		if question.Requirement != keyauth.Scope(scope) {
			t.Errorf("asked for %v", question.Requirement)
		}
	}
}

func TestWorkspaceFieldIsNotForPublicMethods(t *testing.T) {
	_, err := keyauth.NewGuard(keyauthtest.New(t), keyauth.Config{Tables: []keyauth.Table{{methodGetKey: keyauth.Public().WorkspaceField("workspace_id")}}})
	if err == nil {
		t.Error("no error")
	}
}

// TestWorkspaceFieldWithoutMessage: another transport that does not say the workspace must not get any.
func TestWorkspaceFieldWithoutMessage(t *testing.T) {
	validator := keyauthtest.New(t)
	token := validator.CreateKey(keyauthtest.Key{WorkspaceID: "acme"}).Token
	guard, err := keyauth.NewGuard(validator, keyauth.Config{})
	if err != nil {
		t.Fatal(err)
	}
	request := keyauth.Request{Requirement: keyauth.IdentityOnly().WorkspaceField("workspace_id"), Authorization: []string{"Bearer " + token}}
	_, err = guard.Admit(t.Context(), request)
	var refusal *keyauth.RefusalError
	if !errors.As(err, &refusal) || refusal.Code != codes.NotFound {
		t.Errorf("got %v", err)
	}
	request.WorkspaceID = "acme"
	if _, err := guard.Admit(t.Context(), request); err != nil {
		t.Errorf("got %v", err)
	}
}

// fixedStream is a ServerStream with one message.
type fixedStream struct {
	grpc.ServerStream
	ctx       context.Context
	workspace string
	received  bool
	sent      int
}

func (s *fixedStream) Context() context.Context { return s.ctx }

func (s *fixedStream) RecvMsg(message any) error {
	if s.received {
		return io.EOF
	}
	s.received = true
	message.(*keysvcv1.GetKeyRequest).WorkspaceId = s.workspace
	message.(*keysvcv1.GetKeyRequest).KeyId = "secret of another"
	return nil
}

func (s *fixedStream) SendMsg(any) error { s.sent++; return nil }

// plainValidator hides that a Validator is a Watcher.
type plainValidator struct{ keyauth.Validator }

func TestWorkspaceFieldOfAStream(t *testing.T) {
	memory := keyauthtest.New(t)
	token := memory.CreateKey(keyauthtest.Key{WorkspaceID: "acme", Scopes: []string{scope}}).Token
	for name, test := range map[string]struct {
		workspace string
		code      codes.Code
	}{
		"its own":           {"acme", codes.OK},
		"a foreign one":     {"other", codes.Unauthenticated},
		"none":              {"", codes.NotFound},
		"an impossible one": {"a/b", codes.NotFound},
	} {
		for kind, validator := range map[string]keyauth.Validator{"watched": memory, "plain": plainValidator{memory}} {
			t.Run(name+", "+kind, func(t *testing.T) {
				guard, err := keyauth.NewGuard(validator, keyauth.Config{Tables: []keyauth.Table{{methodListen: keyauth.Scope(scope).WorkspaceField("workspace_id")}}})
				if err != nil {
					t.Fatal(err)
				}
				ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token))
				stream := &fixedStream{ctx: ctx, workspace: test.workspace}
				err = guard.StreamServerInterceptor()(nil, stream, &grpc.StreamServerInfo{FullMethod: methodListen}, func(_ any, stream grpc.ServerStream) error {
					if err := stream.SendMsg(&keysvcv1.GetKeyResponse{}); err == nil {
						t.Error("it could send before it had received")
					}
					message := &keysvcv1.GetKeyRequest{}
					err := stream.RecvMsg(message)
					if (err == nil) != (test.code == codes.OK) {
						t.Errorf("received: %v", err)
					}
					if err != nil && message.GetKeyId() != "" {
						t.Error("the handler sees the message")
					}
					if err := stream.SendMsg(&keysvcv1.GetKeyResponse{}); (err == nil) != (test.code == codes.OK) {
						t.Errorf("sent: %v", err)
					}
					return nil // whatever the handler says
				})
				code := codes.OK
				var refusal *keyauth.RefusalError
				if errors.As(err, &refusal) {
					code = refusal.Code
				}
				if code != test.code {
					t.Errorf("got %v, want %v", err, test.code)
				}
			})
		}
	}
}

func TestCoversNamesEveryMethodInNoTable(t *testing.T) {
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.v1.Notes", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Put"}, {MethodName: "Get"}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true}},
	}, struct{}{})
	guard := func(table keyauth.Table) *keyauth.Guard {
		made, err := keyauth.NewGuard(keyauthtest.New(t), keyauth.Config{Tables: []keyauth.Table{table}})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	err := guard(keyauth.Table{"/test.v1.Notes/Get": keyauth.Public()}).Covers(server)
	const want = "keyauth: in no table, so denied to everybody: /test.v1.Notes/Put, /test.v1.Notes/Watch; " +
		"add the table of the service to Config.Tables, for example keyauth.Health()"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	all := keyauth.Table{"/test.v1.Notes/Get": keyauth.Public(), "/test.v1.Notes/Put": keyauth.IdentityOnly(), "/test.v1.Notes/Watch": keyauth.IdentityOnly()}
	if err := guard(all).Covers(server); err != nil {
		t.Error(err)
	}
}

func TestRefusalNamesTheMissingScopes(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Name: "deploy", Scopes: []string{scope}})
	guard, err := keyauth.NewGuard(validator, keyauth.Config{Details: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		requirement   keyauth.Requirement
		text, missing string
	}{
		"one": {keyauth.Scope("a:b"), "the API key may not do this: it needs the scope a:b", "a:b"},
		"all": {keyauth.AllOf("c:d", scope, "a:b"), "the API key may not do this: it needs the scopes c:d, a:b", "c:d a:b"},
		"any": {keyauth.AnyOf("c:d", "a:b"), "the API key may not do this: it needs one of the scopes c:d, a:b", "c:d a:b"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := guard.Admit(t.Context(), keyauth.Request{Requirement: test.requirement, Authorization: []string{"Bearer " + key.Token}})
			var refusal *keyauth.RefusalError
			if !errors.As(err, &refusal) || refusal.Error() != test.text {
				t.Fatalf("got %v", err)
			}
			if got := infoOf(refusal.GRPCStatus())["missing_scopes"]; got != test.missing {
				t.Errorf("missing_scopes %q", got)
			}
		})
	}
	ctx, err := guard.Admit(t.Context(), keyauth.Request{Requirement: keyauth.AnyOf("c:d", scope), Authorization: []string{"Bearer " + key.Token}})
	if err != nil {
		t.Fatal(err)
	}
	principal, _ := keyauth.PrincipalFrom(ctx)
	if principal.KeyName != "deploy" || len(principal.Scopes) != 1 || principal.ExpireTime.IsZero() {
		t.Errorf("principal %+v", principal)
	}
}

// infoOf returns the metadata of a status's ErrorInfo.
func infoOf(answered *status.Status) map[string]string {
	for _, detail := range answered.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetMetadata()
		}
	}
	return nil
}
