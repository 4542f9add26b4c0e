package keyclient_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// newToken returns a well-formed token that no keysvc knows.
func newToken(t testing.TB) string {
	t.Helper()
	id, err := token.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made, err := token.New("scribe", id, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made.Reveal()
}

func reading(text string) keyauth.Question {
	return keyauth.Question{Token: text, Requirement: keyauth.Scope("signatures:read")}
}

// The server is a newer keysvc, a broken keysvc, or another program. Its answer is never a yes,
// and a Guard never makes a 401 or 403 of it.
func TestAnswersWithoutSenseAreNeitherYesNorNo(t *testing.T) {
	text := newToken(t)
	principal := &keysvcv1.Principal{KeyId: "k", WorkspaceId: "acme", MemberId: "ann", Role: "owner"}
	for _, test := range []struct {
		name     string
		response *keysvcv1.ValidateKeyResponse
		err      error
		want     codes.Code
		public   codes.Code
	}{
		{name: "nothing", response: &keysvcv1.ValidateKeyResponse{ByDigest: true}, want: codes.Internal, public: codes.Internal},
		{name: "unknown decision", response: &keysvcv1.ValidateKeyResponse{Decision: 99, Principal: principal, ByDigest: true}, want: codes.Internal, public: codes.Internal},
		{name: "negative decision", response: &keysvcv1.ValidateKeyResponse{Decision: -1, Principal: principal, ByDigest: true}, want: codes.Internal, public: codes.Internal},
		{
			name: "nobody", response: &keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_ALLOWED, ByDigest: true},
			want: codes.Internal, public: codes.Internal,
		},
		{
			// An older keysvc has looked at an empty token.
			name: "no digest was used", want: codes.Unavailable, public: codes.Unavailable,
			response: &keysvcv1.ValidateKeyResponse{
				Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID,
			},
		},
		{
			name: "no workspace", want: codes.Internal, public: codes.Internal,
			response: &keysvcv1.ValidateKeyResponse{
				Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keysvcv1.Principal{KeyId: "k", MemberId: "ann", Role: "owner"}, ByDigest: true,
			},
		},
		{name: "asked wrongly", err: status.Error(codes.InvalidArgument, "no such scope"), want: codes.InvalidArgument, public: codes.Internal},
		{name: "caller not known", err: status.Error(codes.Unauthenticated, "who?"), want: codes.Unauthenticated, public: codes.Internal},
		{name: "caller not allowed", err: status.Error(codes.PermissionDenied, "no"), want: codes.PermissionDenied, public: codes.Internal},
		{name: "damaged", err: status.Error(codes.DataLoss, "crc"), want: codes.DataLoss, public: codes.Internal},
		{name: "overloaded", err: status.Error(codes.ResourceExhausted, "later"), want: codes.ResourceExhausted, public: codes.Unavailable},
		{name: "down", err: status.Error(codes.Unavailable, "later"), want: codes.Unavailable, public: codes.Unavailable},
		{name: "late", err: status.Error(codes.DeadlineExceeded, "late"), want: codes.Unavailable, public: codes.Unavailable},
		{name: "given up", err: status.Error(codes.Canceled, "gone"), want: codes.Unavailable, public: codes.Unavailable},
		{name: "echo", err: status.Error(codes.NotFound, "who is "+text+"?"), want: codes.NotFound, public: codes.Internal},
		{name: "echo of one that is down", err: status.Error(codes.Unavailable, text), want: codes.Unavailable, public: codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := serve(t, answering(test.response, test.err), keyclient.Config{WithoutNearCache: true})
				answer, err := client.Validate(t.Context(), reading(text))
				if status.Code(err) != test.want || !reflect.DeepEqual(answer, keyauth.Answer{}) {
					t.Fatalf("answered %+v, %v; want %v", answer, err, test.want)
				}
				if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), text) {
					t.Fatal("the error holds the token")
				}
				var log strings.Builder
				guard, err := keyauth.NewGuard(client, keyauth.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
				if err != nil {
					t.Fatal(err)
				}
				_, err = guard.Admit(t.Context(), keyauth.Request{Requirement: keyauth.Scope("signatures:read"), Authorization: []string{"Bearer " + text}})
				if status.Code(err) != test.public {
					t.Fatalf("the presenter sees %v, want %v", err, test.public)
				}
				if strings.Contains(log.String()+err.Error(), text) {
					t.Fatal("the log or the answer holds the token")
				}
			})
		})
	}
}

func TestValidateEndsAtTheEarlierOfTimeoutAndDeadline(t *testing.T) {
	for _, test := range []struct {
		name    string
		timeout time.Duration
		// own is the request's deadline; cancel is when it is cancelled.
		own, cancel time.Duration
		elapsed     time.Duration
		want        func(error) bool
	}{
		{name: "default", elapsed: 4 * time.Second, want: unavailable},
		{name: "configured", timeout: 250 * time.Millisecond, elapsed: 250 * time.Millisecond, want: unavailable},
		{name: "request has longer", own: time.Minute, elapsed: 4 * time.Second, want: unavailable},
		{name: "request has less", own: 100 * time.Millisecond, elapsed: 100 * time.Millisecond, want: func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		{name: "request is cancelled", cancel: 100 * time.Millisecond, elapsed: 100 * time.Millisecond, want: func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := serve(t, func(_ any, stream grpc.ServerStream) error {
					<-stream.Context().Done()
					return status.FromContextError(stream.Context().Err()).Err()
				}, keyclient.Config{WithoutNearCache: true, ValidationTimeout: test.timeout})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.own != 0 {
					ctx, cancel = context.WithTimeout(ctx, test.own)
					defer cancel()
				}
				if test.cancel != 0 {
					time.AfterFunc(test.cancel, cancel)
				}
				begun := time.Now()
				answer, err := client.Validate(ctx, reading(newToken(t)))
				if !test.want(err) || !reflect.DeepEqual(answer, keyauth.Answer{}) {
					t.Errorf("answered %+v, %v", answer, err)
				}
				if elapsed := time.Since(begun); elapsed != test.elapsed {
					t.Errorf("took %s, want %s", elapsed, test.elapsed)
				}
			})
		})
	}
}

func unavailable(err error) bool { return status.Code(err) == codes.Unavailable }

// A context's own deadline wins.
func TestCallsWithoutADeadlineGetOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, func(_ any, stream grpc.ServerStream) error {
			<-stream.Context().Done()
			return status.FromContextError(stream.Context().Err()).Err()
		}, keyclient.Config{WithoutNearCache: true})
		longer, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		validate := func(ctx context.Context) error {
			_, err := client.Validations.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{})
			return err
		}
		list := func(ctx context.Context) error {
			_, err := client.Keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{})
			return err
		}
		for _, test := range []struct {
			name string
			ctx  context.Context
			call func(context.Context) error
			want time.Duration
		}{
			{"validation", t.Context(), validate, 4 * time.Second},
			{"management", t.Context(), list, 10 * time.Second},
			{"longer", longer, list, time.Minute - 14*time.Second},
		} {
			begun := time.Now()
			if err := test.call(test.ctx); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s: %v", test.name, err)
			}
			if elapsed := time.Since(begun); elapsed != test.want {
				t.Errorf("%s: took %s, want %s", test.name, elapsed, test.want)
			}
		}
	})
}

func TestClosedClientIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan struct{})
		client := serve(t, func(_ any, stream grpc.ServerStream) error {
			close(asked)
			<-stream.Context().Done()
			return status.FromContextError(stream.Context().Err()).Err()
		}, keyclient.Config{WithoutNearCache: true})
		failed := make(chan error, 1)
		go func() {
			_, err := client.Validate(t.Context(), reading(newToken(t)))
			failed <- err
		}()
		<-asked
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !unavailable(err) {
			t.Errorf("a question under way: %v", err)
		}
		if _, err := client.Validate(t.Context(), reading(newToken(t))); !unavailable(err) {
			t.Errorf("a question afterwards: %v", err)
		}
	})
}

func TestUserAgentNamesTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen string
		client := serve(t, func(_ any, stream grpc.ServerStream) error {
			md, _ := metadata.FromIncomingContext(stream.Context())
			seen = strings.Join(md.Get("user-agent"), "|")
			return status.Error(codes.NotFound, "")
		}, keyclient.Config{WithoutNearCache: true, UserAgent: "signatures/3"})
		if _, err := client.Validate(t.Context(), reading(newToken(t))); status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		if !strings.HasPrefix(seen, "signatures/3 keysvc-go grpc-go/") {
			t.Fatalf("user agent %q", seen)
		}
	})
}
