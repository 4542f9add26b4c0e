package keyauth_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	scope        = "signatures:read"
	service      = "/test.v1.Signatures/"
	methodGet    = service + "Get"
	methodWrite  = service + "Write"
	methodWho    = service + "Who"
	methodOpen   = service + "Open"
	methodListen = service + "Listen"
	methodForgot = service + "Forgotten"
)

var table = keyauth.Table{
	methodGet:    keyauth.Scope(scope),
	methodWrite:  keyauth.Scope("signatures:write"),
	methodWho:    keyauth.IdentityOnly(),
	methodOpen:   keyauth.Public(),
	methodListen: keyauth.Scope(scope),
}

// downstream is a real grpc server behind a Guard.
type downstream struct {
	conn *grpc.ClientConn
	log  *lockedBuffer
	// unary and stream are the handlers of all methods.
	unary  func(ctx context.Context) error
	stream func(stream grpc.ServerStream) error
}

func serve(t *testing.T, validator keyauth.Validator, config keyauth.Config) *downstream {
	t.Helper()
	d := &downstream{log: &lockedBuffer{}}
	d.unary = func(context.Context) error { return nil }
	d.stream = func(grpc.ServerStream) error { return nil }
	config.Log = slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	config.Tables = append(config.Tables, table)
	guard, err := keyauth.NewGuard(validator, config)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(guard.StreamServerInterceptor()),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return d.stream(stream) }),
		grpc.WaitForHandlers(true),
	)
	description := &grpc.ServiceDesc{ServiceName: "test.v1.Signatures", HandlerType: (*any)(nil)}
	for _, name := range []string{"Get", "Write", "Who", "Open", "Forgotten"} {
		description.Methods = append(description.Methods, grpc.MethodDesc{MethodName: name, Handler: func(
			_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor,
		) (any, error) {
			message := &emptypb.Empty{}
			if err := decode(message); err != nil {
				return nil, err
			}
			return intercept(ctx, message, &grpc.UnaryServerInfo{FullMethod: service + name}, func(ctx context.Context, _ any) (any, error) {
				return &emptypb.Empty{}, d.unary(ctx)
			})
		}})
	}
	description.Streams = []grpc.StreamDesc{{
		StreamName: "Listen", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error { return d.stream(stream) },
	}}
	server.RegisterService(description, struct{}{})
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	d.conn, err = grpc.NewClient("passthrough:///downstream", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *downstream) call(ctx context.Context, method string, headers ...string) error {
	return d.conn.Invoke(metadata.AppendToOutgoingContext(ctx, headers...), method, &emptypb.Empty{}, &emptypb.Empty{})
}

func (d *downstream) open(t *testing.T, method string, headers ...string) grpc.ClientStream {
	t.Helper()
	stream, err := d.conn.NewStream(metadata.AppendToOutgoingContext(t.Context(), headers...),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

type lockedBuffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}

// expect checks a status and its ErrorInfo; an empty reason stands for a status without one.
func expect(t *testing.T, err error, code codes.Code, reason, neededScope string) {
	t.Helper()
	answer := status.Convert(err)
	if answer.Code() != code {
		t.Fatalf("status %v, want %v", err, code)
	}
	var info *errdetails.ErrorInfo
	for _, detail := range answer.Details() {
		info, _ = detail.(*errdetails.ErrorInfo)
	}
	if info.GetReason() != reason || info.GetMetadata()["scope"] != neededScope || (reason != "" && info.GetDomain() != "keysvc") {
		t.Fatalf("%v with %v; want reason %q and scope %q", answer, info, reason, neededScope)
	}
}

func TestUnaryCallsAreDecidedByTheirRequirement(t *testing.T) {
	validator := keyauthtest.New(t)
	validator.SetScopes(scope, "signatures:write")
	key := validator.CreateKey(keyauthtest.Key{WorkspaceID: "acme", MemberID: "ann", Scopes: []string{scope}})
	bearer := []string{"authorization", "Bearer " + key.Token}
	d := serve(t, validator, keyauth.Config{Tables: []keyauth.Table{keyauth.Health()}})
	var seen keyauth.Principal
	d.unary = func(ctx context.Context) error {
		seen, _ = keyauth.PrincipalFrom(ctx)
		return nil
	}
	expect(t, d.call(t.Context(), methodGet, bearer...), codes.OK, "", "")
	if !reflect.DeepEqual(seen, key.Principal) {
		t.Fatalf("principal %+v, want %+v", seen, key.Principal)
	}
	expect(t, d.call(t.Context(), methodWho, bearer...), codes.OK, "", "")
	expect(t, d.call(t.Context(), methodWrite, bearer...), codes.PermissionDenied, "SCOPE_NOT_GRANTED", "signatures:write")
	expect(t, d.call(t.Context(), methodOpen), codes.OK, "", "")
	if !reflect.DeepEqual(seen, keyauth.Principal{}) {
		t.Fatalf("a public method has the principal %+v", seen)
	}
	expect(t, d.call(t.Context(), "/grpc.health.v1.Health/Check"), codes.OK, "", "")
	expect(t, d.call(t.Context(), methodForgot, bearer...), codes.PermissionDenied, "SCOPE_NOT_GRANTED", "")
	validator.RevokeKey(key.KeyID)
	expect(t, d.call(t.Context(), methodGet, bearer...), codes.Unauthenticated, "KEY_INVALID", "")
	log := d.log.String()
	for _, want := range []string{"REASON_KEY_REVOKED", "REASON_SCOPE_NOT_GRANTED", "key_id=" + key.KeyID, "in no table", methodForgot} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
	if strings.Contains(log, key.Token) {
		t.Error("the token is in the log")
	}
}

func TestHostileHeadersAreRefused(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	d := serve(t, validator, keyauth.Config{})
	tests := map[string][]string{
		"None":     {},
		"Two":      {"authorization", "Bearer " + key.Token, "authorization", "Bearer " + key.Token},
		"Joined":   {"authorization", "Bearer " + key.Token + ", Bearer x"},
		"Basic":    {"authorization", "Basic " + key.Token},
		"Naked":    {"authorization", key.Token},
		"Empty":    {"authorization", ""},
		"NoToken":  {"authorization", "Bearer "},
		"Spaces":   {"authorization", "Bearer " + key.Token + " x"},
		"Binary":   {"authorization-bin", "Bearer " + key.Token},
		"Proxy":    {"proxy-authorization", "Bearer " + key.Token},
		"APIKey":   {"x-api-key", key.Token},
		"Grpcgate": {"grpcgateway-authorization", "Bearer " + key.Token},
	}
	for name, headers := range tests {
		t.Run(name, func(t *testing.T) {
			expect(t, d.call(t.Context(), methodGet, headers...), codes.Unauthenticated, "KEY_INVALID", "")
		})
	}
	if asked := validator.Asked(); len(asked) != 0 {
		t.Fatalf("the validator was asked %d times", len(asked))
	}
	// These forms are as good as the usual one.
	for _, value := range []string{"bearer ", "BEARER ", "Bearer  "} {
		expect(t, d.call(t.Context(), methodGet, "Authorization", value+key.Token), codes.OK, "", "")
	}
}

func TestTokenIsNotInTheHandlersContext(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	d := serve(t, validator, keyauth.Config{})
	check := func(ctx context.Context) error {
		incoming, ok := metadata.FromIncomingContext(ctx)
		if !ok || len(incoming.Get("x-other")) != 1 || incoming.Get("x-other")[0] != "kept" {
			return status.Errorf(codes.Internal, "metadata %v", incoming)
		}
		if len(incoming.Get("authorization")) != 0 || len(metadata.ValueFromIncomingContext(ctx, "authorization")) != 0 {
			return status.Error(codes.Internal, "the token is there")
		}
		for _, values := range incoming {
			if strings.Contains(strings.Join(values, " "), key.Token) {
				return status.Error(codes.Internal, "the token is there")
			}
		}
		if outgoing, ok := metadata.FromOutgoingContext(metadata.AppendToOutgoingContext(ctx, "authorization", "mine")); !ok || len(outgoing.Get("authorization")) != 1 {
			return status.Error(codes.Internal, "outgoing metadata was touched")
		}
		if _, ok := peer.FromContext(ctx); !ok {
			return status.Error(codes.Internal, "the rest of the context is gone")
		}
		return nil
	}
	d.unary = check
	d.stream = func(stream grpc.ServerStream) error { return check(stream.Context()) }
	headers := []string{
		"authorization", "Bearer " + key.Token, "x-other", "kept",
		// Headers that gateways and proxies make from it.
		"grpcgateway-authorization", "Bearer " + key.Token, "x-forwarded-authorization", key.Token, "proxy-authorization", key.Token,
	}
	for _, method := range []string{methodGet, methodWho, methodOpen} {
		expect(t, d.call(t.Context(), method, headers...), codes.OK, "", "")
	}
	if err := d.open(t, methodListen, headers...).RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// validatorFunc is a validator with one fault.
type validatorFunc func(ctx context.Context, question keyauth.Question) (keyauth.Answer, error)

func (f validatorFunc) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	return f(ctx, question)
}

func TestErrorsOfTheValidatorNeverPass(t *testing.T) {
	const secret = "test_ksk1_secret"
	failing := func(err error) validatorFunc {
		return func(context.Context, keyauth.Question) (keyauth.Answer, error) {
			return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{}}, err
		}
	}
	answering := func(answer keyauth.Answer) validatorFunc {
		return func(context.Context, keyauth.Question) (keyauth.Answer, error) { return answer, nil }
	}
	tests := []struct {
		name      string
		validator validatorFunc
		want      codes.Code
	}{
		{"Unavailable", failing(status.Error(codes.Unavailable, "down")), codes.Unavailable},
		{"Slow", failing(status.Error(codes.DeadlineExceeded, "slow")), codes.Unavailable},
		{"DeadlineOfItsOwn", failing(context.DeadlineExceeded), codes.Unavailable},
		{"Busy", failing(status.Error(codes.ResourceExhausted, "busy")), codes.Unavailable},
		{"AskedWrongly", failing(status.Error(codes.InvalidArgument, "no such scope")), codes.Internal},
		{"NotAllowedToAsk", failing(status.Error(codes.PermissionDenied, "who are you")), codes.Internal},
		{"NotKnown", failing(status.Error(codes.Unauthenticated, "who are you")), codes.Internal},
		{"Damaged", failing(status.Error(codes.DataLoss, "damaged")), codes.Internal},
		{"NotImplemented", failing(status.Error(codes.Unimplemented, "old")), codes.Internal},
		{"Plain", failing(errors.New("broken promise")), codes.Internal},
		{"Nothing", answering(keyauth.Answer{}), codes.Internal},
		{"UnknownDecision", answering(keyauth.Answer{Decision: 99, Principal: &keyauth.Principal{}}), codes.Internal},
		{"NobodyAllowed", answering(keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED}), codes.Internal},
		{"Panic", func(context.Context, keyauth.Question) (keyauth.Answer, error) { panic("at " + secret) }, codes.Internal},
		{"RuntimePanic", func(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
			return keyauth.Answer{KeyID: question.Token[len(question.Token)+1:]}, nil
		}, codes.Internal},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := serve(t, test.validator, keyauth.Config{})
			d.unary = func(context.Context) error {
				t.Error("the handler ran")
				return nil
			}
			d.stream = func(grpc.ServerStream) error { return d.unary(t.Context()) }
			headers := []string{"authorization", "Bearer " + secret}
			err := d.call(t.Context(), methodGet, headers...)
			expect(t, err, test.want, "", "")
			expect(t, d.open(t, methodListen, headers...).RecvMsg(&emptypb.Empty{}), test.want, "", "")
			if strings.Contains(d.log.String()+err.Error(), secret) {
				t.Error("the token got out")
			}
			if !strings.Contains(d.log.String(), methodGet) {
				t.Errorf("the log does not name the method:\n%s", d.log)
			}
		})
	}
}

func TestCancelledCallsAreAnsweredCanceled(t *testing.T) {
	asked := make(chan struct{})
	d := serve(t, validatorFunc(func(ctx context.Context, _ keyauth.Question) (keyauth.Answer, error) {
		close(asked)
		<-ctx.Done()
		return keyauth.Answer{}, ctx.Err()
	}), keyauth.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	expect(t, d.call(ctx, methodGet, "authorization", "Bearer x"), codes.Canceled, "", "")
}

func TestMethodsInNoTableAreDenied(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	d := serve(t, validator, keyauth.Config{})
	d.stream = func(grpc.ServerStream) error {
		t.Error("the handler ran")
		return nil
	}
	for _, method := range []string{"/other.v1.Service/Get", service + "Added"} {
		err := d.open(t, method, "authorization", "Bearer "+key.Token).RecvMsg(&emptypb.Empty{})
		expect(t, err, codes.PermissionDenied, "SCOPE_NOT_GRANTED", "")
	}
}

func TestStreamIsDecidedBeforeItsHandler(t *testing.T) {
	d := serve(t, keyauthtest.New(t), keyauth.Config{})
	d.stream = func(grpc.ServerStream) error {
		t.Error("the handler ran")
		return nil
	}
	stream := d.open(t, methodListen)
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	expect(t, stream.RecvMsg(&emptypb.Empty{}), codes.Unauthenticated, "KEY_INVALID", "")
}

// Handlers wait in each possible call while the key loses what the stream needs.
func TestStreamEndsWithItsKeyInWhateverItWaitsFor(t *testing.T) {
	waits := map[string]func(stream grpc.ServerStream) error{
		"InRecv": func(stream grpc.ServerStream) error {
			for {
				if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
					return err
				}
			}
		},
		"OnTheContext": func(stream grpc.ServerStream) error {
			<-stream.Context().Done()
			return nil
		},
		"InRecvAndReturningNothing": func(stream grpc.ServerStream) error {
			stream.RecvMsg(&emptypb.Empty{})
			return nil
		},
		"InSendAfterwards": func(stream grpc.ServerStream) error {
			<-stream.Context().Done()
			return stream.SendMsg(&emptypb.Empty{})
		},
	}
	changes := map[string]struct {
		change func(validator *keyauthtest.Validator, key keyauthtest.Created)
		code   codes.Code
		reason string
		scope  string
	}{
		"Revoked": {func(v *keyauthtest.Validator, key keyauthtest.Created) { v.RevokeKey(key.KeyID) }, codes.Unauthenticated, "KEY_INVALID", ""},
		"RoleChanged": {func(v *keyauthtest.Validator, _ keyauthtest.Created) {
			v.SetRole("guest", "emails:read")
			v.PutMember("acme", "ann", "guest")
		}, codes.PermissionDenied, "SCOPE_BEYOND_ROLE", scope},
		"KeysvcGone": {func(v *keyauthtest.Validator, _ keyauthtest.Created) {
			v.Fail(status.Error(codes.Unavailable, "down"))
		}, codes.Unavailable, "", ""},
	}
	for name, wait := range waits {
		for what, change := range changes {
			t.Run(name+what, func(t *testing.T) {
				validator := keyauthtest.New(t)
				key := validator.CreateKey(keyauthtest.Key{WorkspaceID: "acme", MemberID: "ann", Scopes: []string{scope}})
				d := serve(t, validator, keyauth.Config{})
				d.stream = func(stream grpc.ServerStream) error {
					if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
						return err
					}
					return wait(stream)
				}
				stream := d.open(t, methodListen, "authorization", "Bearer "+key.Token)
				if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
					t.Fatal(err)
				}
				change.change(validator, key)
				expect(t, stream.RecvMsg(&emptypb.Empty{}), change.code, change.reason, change.scope)
			})
		}
	}
}

func TestStreamGoesOnWhileItsKeyIsValid(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	d := serve(t, validator, keyauth.Config{})
	d.stream = func(stream grpc.ServerStream) error {
		for {
			if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
				return err
			}
		}
	}
	stream := d.open(t, methodListen, "authorization", "Bearer "+key.Token)
	for range 100 {
		validator.CreateKey(keyauthtest.Key{})
		if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func TestNewGuardRefusesWrongConfigurations(t *testing.T) {
	validator := keyauthtest.New(t)
	for name, test := range map[string]struct {
		validator keyauth.Validator
		config    keyauth.Config
		want      string
	}{
		"NoValidator": {nil, keyauth.Config{}, "validator"},
		"Zero":        {validator, keyauth.Config{Tables: []keyauth.Table{{methodGet: {}}}}, methodGet},
		"Malformed":   {validator, keyauth.Config{Tables: []keyauth.Table{{methodGet: keyauth.Scope("signatures")}}}, `"signatures"`},
		"Twice":       {validator, keyauth.Config{Tables: []keyauth.Table{table, {methodGet: keyauth.Public()}}}, "two tables"},
		"NoMethod":    {validator, keyauth.Config{Tables: []keyauth.Table{{"test.v1.Signatures/Get": keyauth.Public()}}}, "form"},
		"Empty":       {validator, keyauth.Config{Tables: []keyauth.Table{{"": keyauth.Public()}}}, "form"},
		"Prefix":      {validator, keyauth.Config{TrustedProxies: []netip.Prefix{{}}}, "prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			guard, err := keyauth.NewGuard(test.validator, test.config)
			if err == nil || guard != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("NewGuard = %v, %v; want an error with %s", guard, err, test.want)
			}
		})
	}
}

func TestAdmitDecidesForOtherTransports(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{AllowedCIDRs: []string{"198.51.100.0/24"}})
	guard, err := keyauth.NewGuard(validator, keyauth.Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	request := keyauth.Request{
		Requirement: keyauth.IdentityOnly(), Authorization: []string{"Bearer " + key.Token},
		Peer: netip.MustParseAddr("10.0.0.1"), Forwarded: []string{"198.51.100.7"},
	}
	ctx, err := guard.Admit(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if principal, ok := keyauth.PrincipalFrom(ctx); !ok || !reflect.DeepEqual(principal, key.Principal) {
		t.Fatalf("principal %+v", principal)
	}
	request.Peer = netip.MustParseAddr("192.0.2.1")
	_, err = guard.Admit(t.Context(), request)
	expect(t, err, codes.PermissionDenied, "ADDRESS_NOT_ALLOWED", "")
	request.Requirement = keyauth.Requirement{}
	_, err = guard.Admit(t.Context(), request)
	expect(t, err, codes.PermissionDenied, "SCOPE_NOT_GRANTED", "")
	request.Requirement, request.Authorization = keyauth.Public(), nil
	ctx, err = guard.Admit(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := keyauth.PrincipalFrom(ctx); ok {
		t.Fatal("a public request has a principal")
	}
}

func BenchmarkInterceptor(b *testing.B) {
	principal := &keyauth.Principal{KeyID: "k", WorkspaceID: "w", MemberID: "m", Role: "r"}
	guard, err := keyauth.NewGuard(validatorFunc(func(context.Context, keyauth.Question) (keyauth.Answer, error) {
		return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: principal}, nil
	}), keyauth.Config{Tables: []keyauth.Table{table}})
	if err != nil {
		b.Fatal(err)
	}
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs(
		":authority", "x", "authorization", "Bearer scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789012345678901234567890123456789012345678",
		"content-type", "application/grpc", "user-agent", "grpc-go"))
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}})
	interceptor := guard.UnaryServerInterceptor()
	info := &grpc.UnaryServerInfo{FullMethod: methodGet}
	handler := func(ctx context.Context, _ any) (any, error) {
		if _, ok := keyauth.PrincipalFrom(ctx); !ok {
			b.Fatal("no principal")
		}
		return nil, nil // the result is not used
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := interceptor(ctx, nil, info, handler); err != nil {
			b.Fatal(err)
		}
	}
}

// TestReasonsOfLaterVersionsAreRefusals: what refuses is the decision, whatever the reason.
func TestReasonsOfLaterVersionsAreRefusals(t *testing.T) {
	t.Parallel()
	for decision, want := range map[keysvcv1.Decision]codes.Code{
		keysvcv1.Decision_DECISION_UNAUTHENTICATED:   codes.Unauthenticated,
		keysvcv1.Decision_DECISION_PERMISSION_DENIED: codes.PermissionDenied,
		keysvcv1.Decision(77):                        codes.Internal,
	} {
		guard, err := keyauth.NewGuard(
			validatorFunc(func(context.Context, keyauth.Question) (keyauth.Answer, error) {
				return keyauth.Answer{Decision: decision, Reason: keysvcv1.Reason(77), Principal: &keyauth.Principal{}}, nil
			}),
			keyauth.Config{Log: slog.New(slog.DiscardHandler)},
		)
		if err != nil {
			t.Fatal(err)
		}
		_, err = guard.Admit(t.Context(), keyauth.Request{
			Name: "test", Requirement: keyauth.IdentityOnly(), Authorization: []string{"Bearer some-token"},
		})
		if status.Code(err) != want {
			t.Errorf("%s with an unknown reason: %v", decision, err)
		}
	}
}

// TestManyInvalidTokensAreReported: the network that presents them is named once, and good keys
// go on.
func TestManyInvalidTokensAreReported(t *testing.T) {
	t.Parallel()
	invalid := keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID}
	var reports []keyauth.InvalidTokens
	log := &lockedBuffer{}
	guard, err := keyauth.NewGuard(
		validatorFunc(func(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
			if question.Token == "good" {
				return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{}}, nil
			}
			return invalid, nil
		}),
		keyauth.Config{
			Log:           slog.New(slog.NewTextHandler(log, nil)),
			InvalidTokens: func(report keyauth.InvalidTokens) { reports = append(reports, report) },
		},
	)
	if err != nil {
		t.Fatal(err)
	}
	admit := func(token string, host int) error {
		_, err := guard.Admit(t.Context(), keyauth.Request{
			Name: "test", Requirement: keyauth.IdentityOnly(), Authorization: []string{"Bearer " + token},
			Peer: netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2::%x", host)),
		})
		return err
	}
	for host := range 150 {
		if err := admit(fmt.Sprintf("guess-%d", host), host); err == nil {
			t.Error("an invalid token was admitted")
		}
	}
	if len(reports) != 1 || reports[0].Network.String() != "2001:db8:1:2::/64" || reports[0].Count != 100 {
		t.Errorf("got %v", reports)
	}
	if lines := strings.Count(log.String(), "many tokens are not valid"); lines != 1 {
		t.Errorf("%d lines say so, want one", lines)
	}
	if strings.Contains(log.String(), "guess-") {
		t.Error("the log has a token")
	}
	if err := admit("good", 1); err != nil {
		t.Errorf("a good key from there: %v", err)
	}
}
