package keyauth_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// patience bounds every wait. Only a wait that hangs reaches it.
const patience = 20 * time.Second

// The handler is blocked in SendMsg, because the presenter does not read.
func TestStreamEndsWhileSendMsgBlocks(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	d := serve(t, validator, keyauth.Config{})
	returned := make(chan error, 1)
	d.stream = func(stream grpc.ServerStream) error {
		for {
			if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 1<<20))); err != nil {
				returned <- err
				return err
			}
		}
	}
	stream := d.open(t, methodListen, "authorization", "Bearer "+key.Token)
	if err := stream.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
		t.Fatal(err)
	}
	validator.RevokeKey(key.KeyID)
	select {
	case err := <-returned:
		expect(t, err, codes.Unauthenticated, "KEY_INVALID", "")
	case <-time.After(patience):
		t.Fatal("the handler is still in SendMsg")
	}
	// Messages on their way may still come, and then the refusal.
	for {
		if err := stream.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
			expect(t, err, codes.Unauthenticated, "KEY_INVALID", "")
			return
		}
	}
}

// A goroutine that the handler left behind uses the stream. That is against grpc's rules: it
// must fail, and must not end the process.
func TestStreamUsedAfterItsHandlerFailsQuietly(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	d := serve(t, validator, keyauth.Config{})
	left := make(chan grpc.ServerStream, 1)
	d.stream = func(stream grpc.ServerStream) error {
		if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		left <- stream
		return nil
	}
	stream := d.open(t, methodListen, "authorization", "Bearer "+key.Token)
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); err == nil {
		t.Fatal("it sent something")
	}
	for old, try := <-left, 0; try < 100; try++ {
		if err := old.RecvMsg(&emptypb.Empty{}); err == nil {
			t.Fatal("a message came out of a stream that is over")
		}
	}
}

// stuckWatcher ignores its context.
type stuckWatcher struct {
	validatorFunc
	release chan struct{}
}

func (w *stuckWatcher) Watch(context.Context, keyauth.Question) (keyauth.Answer, error) {
	<-w.release
	return keyauth.Answer{}, errors.New("late")
}

// The Watcher ignores its context. The stream ends when its handler returns.
func TestStreamDoesNotWaitForAWatcherThatDoesNotReturn(t *testing.T) {
	watcher := &stuckWatcher{release: make(chan struct{}), validatorFunc: func(context.Context, keyauth.Question) (keyauth.Answer, error) {
		return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{}}, nil
	}}
	d := serve(t, watcher, keyauth.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := d.conn.Invoke(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer x"), methodListen, &emptypb.Empty{}, &emptypb.Empty{})
	close(watcher.release)
	if status.Code(err) == codes.DeadlineExceeded {
		t.Fatal("the stream waited for the watcher")
	}
}

// watchFunc is a Watcher whose first answer is yes.
type watchFunc func(ctx context.Context) (keyauth.Answer, error)

func (watchFunc) Validate(context.Context, keyauth.Question) (keyauth.Answer, error) {
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{}}, nil
}

func (f watchFunc) Watch(ctx context.Context, _ keyauth.Question) (keyauth.Answer, error) {
	return f(ctx)
}

func TestStreamEndsIfItsWatcherFails(t *testing.T) {
	for name, test := range map[string]struct {
		watch watchFunc
		want  codes.Code
	}{
		"Panic": {func(context.Context) (keyauth.Answer, error) { panic("at the disco") }, codes.Internal},
		"Allowed": {func(context.Context) (keyauth.Answer, error) {
			return watchFunc(nil).Validate(t.Context(), keyauth.Question{})
		}, codes.Internal},
		"Zero": {func(context.Context) (keyauth.Answer, error) { return keyauth.Answer{}, nil }, codes.Internal},
		"NoRight": {func(context.Context) (keyauth.Answer, error) {
			return keyauth.Answer{}, status.Error(codes.Unauthenticated, "who are you")
		}, codes.Internal},
		"Down": {func(context.Context) (keyauth.Answer, error) {
			return keyauth.Answer{}, status.Error(codes.Unavailable, "down")
		}, codes.Unavailable},
		"ForeignContext": {func(context.Context) (keyauth.Answer, error) {
			return keyauth.Answer{}, context.Canceled
		}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, test.watch, keyauth.Config{})
			d.stream = func(stream grpc.ServerStream) error { return stream.RecvMsg(&emptypb.Empty{}) }
			expect(t, d.open(t, methodListen, "authorization", "Bearer x").RecvMsg(&emptypb.Empty{}), test.want, "", "")
		})
	}
}

func TestStreamWithoutWatcherIsDecidedOnce(t *testing.T) {
	asked := 0
	d := serve(t, validatorFunc(func(context.Context, keyauth.Question) (keyauth.Answer, error) {
		asked++
		return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{MemberID: "ann"}}, nil
	}), keyauth.Config{})
	d.stream = func(stream grpc.ServerStream) error {
		if principal, ok := keyauth.PrincipalFrom(stream.Context()); !ok || principal.MemberID != "ann" {
			return status.Error(codes.Internal, "no principal")
		}
		for range 3 {
			if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
				return err
			}
		}
		return stream.SendMsg(&emptypb.Empty{})
	}
	stream := d.open(t, methodListen, "authorization", "Bearer x")
	for range 3 {
		if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if asked != 1 {
		t.Fatalf("asked %d times", asked)
	}
}

func TestPanicIsLoggedOnceWithItsStack(t *testing.T) {
	d := serve(t, validatorFunc(func(context.Context, keyauth.Question) (keyauth.Answer, error) { panic("x") }), keyauth.Config{})
	expect(t, d.call(t.Context(), methodGet, "authorization", "Bearer x"), codes.Internal, "", "")
	if log := d.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "stack=") || !strings.Contains(log, methodGet) {
		t.Errorf("the log:\n%s", log)
	}
}

// The validator breaks its promise.
func TestErrorsThatQuoteTheTokenAreRedacted(t *testing.T) {
	d := serve(t, validatorFunc(func(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
		return keyauth.Answer{}, status.Error(codes.Unavailable, "cannot ask about "+question.Token)
	}), keyauth.Config{})
	err := d.call(t.Context(), methodGet, "authorization", "Bearer test_ksk1_secret")
	expect(t, err, codes.Unavailable, "", "")
	if strings.Contains(d.log.String()+err.Error(), "test_ksk1_secret") {
		t.Error("the token got out")
	}
}

func TestReasonsAreShownOnlyWithTheirOwnStatus(t *testing.T) {
	for _, reason := range []keysvcv1.Reason{
		keysvcv1.Reason_REASON_UNSPECIFIED, keysvcv1.Reason_REASON_KEY_REVOKED, keysvcv1.Reason_REASON_MEMBER_INACTIVE, 99,
	} {
		d := serve(t, validatorFunc(func(context.Context, keyauth.Question) (keyauth.Answer, error) {
			return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_PERMISSION_DENIED, Reason: reason}, nil
		}), keyauth.Config{})
		expect(t, d.call(t.Context(), methodGet, "authorization", "Bearer x"), codes.PermissionDenied, "SCOPE_NOT_GRANTED", scope)
	}
}

// The context or connection that ended is not the request's.
func TestErrorsOfOtherContextsAreUnavailable(t *testing.T) {
	for _, failure := range []error{context.Canceled, status.Error(codes.Unknown, "x"), status.Error(codes.Canceled, "the client connection is closing")} {
		d := serve(t, validatorFunc(func(context.Context, keyauth.Question) (keyauth.Answer, error) { return keyauth.Answer{}, failure }), keyauth.Config{})
		expect(t, d.call(t.Context(), methodGet, "authorization", "Bearer x"), codes.Unavailable, "", "")
	}
}

func TestAddressComesFromTheHeaderOfATrustedProxy(t *testing.T) {
	validator := keyauthtest.New(t)
	guard, err := keyauth.NewGuard(validator, keyauth.Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	key := validator.CreateKey(keyauthtest.Key{Scopes: []string{scope}})
	request := keyauth.Request{
		Requirement: keyauth.Scope(scope), Authorization: []string{"Bearer " + key.Token}, Peer: netip.MustParseAddr("10.0.0.1"),
	}
	// A trusted proxy that sends no header makes the address unknown.
	if _, err := guard.Admit(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	asked := validator.Asked()
	if address := asked[len(asked)-1].ClientAddress; address.IsValid() {
		t.Fatalf("client address %v", address)
	}
}

func TestNewGuardRefusesNamesThatAreNoMethods(t *testing.T) {
	for _, name := range []string{"/", "//", "/a", "/a/", "//b", "/a/b/c", "/a/b ", "a/b", "/a b/c", "/a/*"} {
		if _, err := keyauth.NewGuard(keyauthtest.New(t), keyauth.Config{Tables: []keyauth.Table{{name: keyauth.Public()}}}); err == nil {
			t.Errorf("the method %q is taken", name)
		}
	}
}

// loopStream is a stream without any cost.
type loopStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s loopStream) Context() context.Context { return s.ctx }
func (s loopStream) SendMsg(any) error        { return nil }

// BenchmarkWatchedMessage measures a message on a stream that can be ended.
func BenchmarkWatchedMessage(b *testing.B) {
	guard, err := keyauth.NewGuard(watchFunc(func(ctx context.Context) (keyauth.Answer, error) {
		<-ctx.Done()
		return keyauth.Answer{}, ctx.Err()
	}), keyauth.Config{Tables: []keyauth.Table{table}})
	if err != nil {
		b.Fatal(err)
	}
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs("authorization", "Bearer x"))
	b.ReportAllocs()
	err = guard.StreamServerInterceptor()(nil, loopStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: methodListen},
		func(_ any, stream grpc.ServerStream) error {
			message := &emptypb.Empty{}
			for b.Loop() {
				if err := stream.SendMsg(message); err != nil {
					return err
				}
			}
			return nil
		})
	if err != nil {
		b.Fatal(err)
	}
}
