package keyclient_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
	"github.com/scribe-mail/keysvc/internal/token"
)

// wiretap keeps all messages of unary calls, as they are on the wire.
type wiretap struct {
	mutex    sync.Mutex
	messages [][]byte
	// lose, if it is set, decides which answers the client does not get.
	lose func(method string) error
}

func (w *wiretap) option() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			w.keep(request)
			err := invoke(ctx, method, request, reply, conn, options...)
			w.keep(reply)
			if w.lose != nil {
				if lost := w.lose(method); lost != nil {
					return lost
				}
			}
			return err
		})
}

func (w *wiretap) keep(message any) {
	encoded, err := proto.Marshal(message.(proto.Message))
	if err != nil {
		panic(err)
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.messages = append(w.messages, encoded)
}

// holds reports whether any message has a text in it.
func (w *wiretap) holds(text string) bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return slices.ContainsFunc(w.messages, func(message []byte) bool { return bytes.Contains(message, []byte(text)) })
}

// secretOf returns the secret in a token.
func secretOf(text string) string { return text[len(text)-49 : len(text)-6] }

// keysvcWithMember starts a keysvc where acme has the owner ann.
func keysvcWithMember(t *testing.T) *servertest.Keysvc {
	t.Helper()
	keysvc := servertest.Start(t, servertest.Options{})
	if _, err := keysvc.Members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
	return keysvc
}

func newKey() *keysvcv1.CreateKeyRequest {
	return &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "local", Scopes: []string{"signatures:read"}}
}

// TestClientSendsTokensOnlyIfTold: a client sends digests, with and without a near-cache.
func TestClientSendsTokensOnlyIfTold(t *testing.T) {
	keysvc := keysvcWithMember(t)
	made, err := keysvc.Keys.CreateKey(t.Context(), newKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, cached := range []bool{false, true} {
		for _, told := range []bool{false, true} {
			tap := &wiretap{}
			client := newClient(t, keysvc.Address, keyclient.Config{
				WithoutNearCache: !cached, SendTokens: told, ValidationTimeout: patience, DialOptions: []grpc.DialOption{tap.option()},
			})
			for text, want := range map[string]keysvcv1.Decision{
				made.GetToken(): keysvcv1.Decision_DECISION_ALLOWED,
				newToken(t):     keysvcv1.Decision_DECISION_UNAUTHENTICATED,
				"sk_live_abcd":  keysvcv1.Decision_DECISION_UNAUTHENTICATED,
			} {
				answer, err := client.Validate(t.Context(), reading(text))
				if err != nil || answer.Decision != want {
					t.Errorf("near-cache %t, SendTokens %t: %+v, %v", cached, told, answer, err)
				}
				secret := text
				if token.In(text) {
					secret = secretOf(text)
				}
				if tap.holds(secret) != told {
					t.Errorf("near-cache %t, SendTokens %t: the token is sent: %t", cached, told, !told)
				}
			}
			if client.MalformedTokens() != 0 {
				t.Error("a well-formed token counts as malformed")
			}
			for _, text := range []string{made.GetToken()[1:], made.GetToken() + "x", "x_ksk1_"} {
				if answer, err := client.Validate(t.Context(), reading(text)); err != nil || answer.Reason != keysvcv1.Reason_REASON_KEY_INVALID || tap.holds("_ksk1_") != told {
					t.Errorf("malformed: %+v, %v", answer, err)
				}
			}
			if got := client.MalformedTokens(); got != 3 {
				t.Errorf("%d malformed tokens are counted, want 3", got)
			}
		}
	}
}

// TestOldServerIsUnavailableToANearCache: the answers of a server that does not know digests are about
// empty tokens.
func TestOldServerIsUnavailableToANearCache(t *testing.T) {
	client := serve(t, func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method != keysvcv1.ValidationService_ValidateKey_FullMethodName {
			return status.Error(codes.Unimplemented, "no sessions")
		}
		return answering(&keysvcv1.ValidateKeyResponse{
			Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID, Revision: 1, Epoch: "e",
		}, nil)(nil, stream)
	}, keyclient.Config{ValidationTimeout: patience})
	for range 3 { // never from memory either
		if answer, err := client.Validate(t.Context(), reading(newToken(t))); status.Code(err) != codes.Unavailable || !reflect.DeepEqual(answer, keyauth.Answer{}) || !strings.Contains(err.Error(), "does not know digests") {
			t.Errorf("answered %+v, %v", answer, err)
		}
	}
}

// TestIssueLocallyKeepsTheTokenHere: nothing that keysvc gets or gives holds the secret, and the key
// works.
func TestIssueLocallyKeepsTheTokenHere(t *testing.T) {
	keysvc := keysvcWithMember(t)
	tap := &wiretap{}
	client := newClient(t, keysvc.Address, keyclient.Config{WithoutNearCache: true, ValidationTimeout: patience, DialOptions: []grpc.DialOption{tap.option()}})
	made, err := client.IssueLocally(t.Context(), newKey())
	if err != nil {
		t.Fatal(err)
	}
	keyID := made.Key.GetKeyId()
	parsed, err := token.Parse(made.Reveal())
	if err != nil || parsed.ID() != keyID || parsed.Prefix() != "scribe" || made.Revision == 0 || made.Epoch == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	if secrets := made.Key.GetSecrets(); len(secrets) != 1 || !secrets[0].GetIssuedLocally() {
		t.Errorf("the secrets are %v", secrets)
	}
	allowed := func(text string) bool {
		t.Helper()
		answer, err := client.Validate(t.Context(), reading(text))
		if err != nil {
			t.Fatal(err)
		}
		return answer.Decision == keysvcv1.Decision_DECISION_ALLOWED && answer.KeyID == keyID
	}
	rotated, err := client.RotateLocally(t.Context(), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: keyID, Overlap: durationpb.New(0)})
	if err != nil {
		t.Fatal(err)
	}
	if allowed(made.Reveal()) || !allowed(rotated.Reveal()) {
		t.Error("not the new token alone works")
	}
	if shown := fmt.Sprintf("%v %+v %#v %+v", made, made, *made, rotated); strings.Contains(shown, secretOf(made.Reveal())) || strings.Contains(shown, secretOf(rotated.Reveal())) {
		t.Errorf("shown: %s", shown)
	}
	// A report finds the token in what surrounds it, and sends its digest.
	response, err := client.RevokeToken(t.Context(), `{"key": "`+rotated.Reveal()+`"}`, nil)
	if err != nil || response.GetKeyId() != keyID || allowed(rotated.Reveal()) {
		t.Errorf("revoked %v, %v", response, err)
	}
	for _, each := range []*keyclient.IssuedKey{made, rotated} {
		if tap.holds(secretOf(each.Reveal())) {
			t.Error("a secret is on the wire")
		}
		digest := token.Present(each.Reveal()).Hash() // the verifier is not on the wire either
		if tap.holds(string(digest.Sum[:])) {
			t.Error("a verifier is on the wire")
		}
	}
	plain, err := client.Keys.CreateKey(t.Context(), newKey())
	if err != nil || !tap.holds(secretOf(plain.GetToken())) {
		t.Errorf("a secret on the wire is not noticed, %v", err)
	}
}

// TestIssueLocallySurvivesLostAnswers: the call is repeated, and makes one key.
func TestIssueLocallySurvivesLostAnswers(t *testing.T) {
	keysvc := keysvcWithMember(t)
	lost := map[string]int{}
	tap := &wiretap{lose: func(method string) error {
		lost[method]++
		switch lost[method] {
		case 1:
			return status.Error(codes.Unknown, "the disk failed")
		case 2:
			return status.Error(codes.Unavailable, "the connection broke")
		}
		return nil
	}}
	client := newClient(t, keysvc.Address, keyclient.Config{WithoutNearCache: true, ValidationTimeout: patience, DialOptions: []grpc.DialOption{tap.option()}})
	issuer := keyclient.Issuer{Keys: client.Keys, Prefix: "scribe"}
	made, err := issuer.Create(t.Context(), newKey())
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := issuer.Rotate(t.Context(), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: made.Key.GetKeyId(), Overlap: durationpb.New(1)})
	if err != nil {
		t.Fatal(err)
	}
	if rotated.Revision != made.Revision+1 {
		t.Errorf("created at revision %d, rotated at %d: something was done twice", made.Revision, rotated.Revision)
	}
	listed, err := keysvc.Keys.ListKeys(t.Context(), &keysvcv1.ListKeysRequest{WorkspaceId: "acme", IssuedLocally: new(true)})
	if err != nil || len(listed.GetKeys()) != 1 {
		t.Errorf("the keys are %v, %v", listed, err)
	}
	if n := lost[keysvcv1.KeyService_CreateKey_FullMethodName]; n != 3 {
		t.Errorf("%d calls created a key, want 3", n)
	}
}

// TestIssueLocallyNamesTheKeyIfNobodyAnswers: the caller can revoke what may have been made.
func TestIssueLocallyNamesTheKeyIfNobodyAnswers(t *testing.T) {
	keysvc := keysvcWithMember(t)
	for name, answers := range map[string][]error{
		"never":          {status.Error(codes.Unknown, "first")},
		"then a refusal": {status.Error(codes.Unknown, "first"), status.Error(codes.ResourceExhausted, "later")},
	} {
		tap, calls := &wiretap{}, 0
		tap.lose = func(string) error {
			err := answers[min(calls, len(answers)-1)]
			calls++
			return err
		}
		client := newClient(t, keysvc.Address, keyclient.Config{WithoutNearCache: true, DialOptions: []grpc.DialOption{tap.option()}})
		made, err := keyclient.Issuer{Keys: client.Keys, Prefix: "scribe"}.Create(t.Context(), newKey())
		if made != nil || status.Code(err) == codes.OK {
			t.Fatalf("%s: %v, %v", name, made, err)
		}
		listed, listErr := keysvc.Keys.ListKeys(t.Context(), &keysvcv1.ListKeysRequest{WorkspaceId: "acme", PageSize: 1})
		if listErr != nil || !strings.Contains(err.Error(), listed.GetKeys()[0].GetKeyId()) {
			t.Errorf("%s: %v does not name the key %v", name, err, listed)
		}
	}
	// A refusal with no lost answer before it is itself.
	client := newClient(t, keysvc.Address, keyclient.Config{WithoutNearCache: true})
	bad := newKey()
	bad.MemberId = "nobody"
	if _, err := client.IssueLocally(t.Context(), bad); status.Code(err) != codes.NotFound || strings.Contains(err.Error(), "not known") {
		t.Errorf("a refusal: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (keyclient.Issuer{Keys: client.Keys, Prefix: "scribe"}).Create(ended, newKey()); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	for _, broken := range []keyclient.Issuer{
		{Keys: client.Keys},
		{Keys: client.Keys, Prefix: "no prefix"},
		{Keys: client.Keys, Prefix: "scribe", Random: strings.NewReader("short")},
		{Keys: client.Keys, Prefix: "scribe", Random: iotest.ErrReader(errors.New("broken"))},
	} {
		if made, err := broken.Create(t.Context(), newKey()); err == nil {
			t.Errorf("%+v made %v", broken, made)
		}
	}
}

// TestOldServerThatIssuesATokenIsUndone: a server that does not know digests makes a key with a secret
// of its own.
func TestOldServerThatIssuesATokenIsUndone(t *testing.T) {
	var calls []string
	client := serve(t, func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		calls = append(calls, method)
		key := &keysvcv1.Key{WorkspaceId: "acme", KeyId: "0123456789abcdef"}
		switch method {
		case keysvcv1.KeyService_CreateKey_FullMethodName:
			return answer(stream, &keysvcv1.CreateKeyRequest{}, &keysvcv1.CreateKeyResponse{Key: key, Token: "plain"}, nil)
		case keysvcv1.KeyService_RotateKey_FullMethodName:
			return answer(stream, &keysvcv1.RotateKeyRequest{}, &keysvcv1.RotateKeyResponse{Key: key, Token: "plain"}, nil)
		case keysvcv1.KeyService_RevokeKey_FullMethodName:
			request := &keysvcv1.RevokeKeyRequest{}
			err := answer(stream, request, &keysvcv1.RevokeKeyResponse{Key: key}, nil)
			if request.GetWorkspaceId() != "acme" || request.GetKeyId() != key.GetKeyId() {
				t.Errorf("it revokes %v", request)
			}
			return err
		case keysvcv1.KeyService_RevokeToken_FullMethodName:
			return answer(stream, &keysvcv1.RevokeTokenRequest{}, nil, status.Error(codes.NotFound, "the token matches no live secret"))
		}
		return status.Error(codes.Unimplemented, method)
	}, keyclient.Config{WithoutNearCache: true})
	issuer := keyclient.Issuer{Keys: client.Keys, Prefix: "scribe"}
	made, err := issuer.Create(t.Context(), newKey())
	if made != nil || status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "does not know digests") {
		t.Errorf("created %v, %v", made, err)
	}
	if want := []string{keysvcv1.KeyService_CreateKey_FullMethodName, keysvcv1.KeyService_RevokeKey_FullMethodName}; !slices.Equal(calls, want) {
		t.Errorf("the calls are %v, want %v", calls, want)
	}
	if made, err = issuer.Rotate(t.Context(), &keysvcv1.RotateKeyRequest{WorkspaceId: "acme", KeyId: "0123456789abcdef", Overlap: durationpb.New(0)}); made != nil || status.Code(err) != codes.Unavailable {
		t.Errorf("rotated %v, %v", made, err)
	}
	// "Not found" of such a server is about no token at all.
	if _, err := client.RevokeToken(t.Context(), newToken(t), nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not revoked") {
		t.Errorf("reported: %v", err)
	}
}

// answer receives a request and answers it.
func answer(stream grpc.ServerStream, request, response proto.Message, err error) error {
	if received := stream.RecvMsg(request); received != nil {
		return received
	}
	if err != nil {
		return err
	}
	return stream.SendMsg(response)
}

// TestImportedTokenGoesAsItsHash: keysvc sees its hash and nothing else, from a client with a near-cache too,
// which answers it from memory.
func TestImportedTokenGoesAsItsHash(t *testing.T) {
	const text = "legacy-live-9fQ2mXc7Lr0TzB4w"
	keysvc := keysvcWithMember(t)
	hash := sha256.Sum256([]byte(text))
	imported, err := keysvc.Keys.ImportKeys(t.Context(), &keysvcv1.ImportKeysRequest{WorkspaceId: "acme", Keys: []*keysvcv1.KeyImport{
		{TokenSha256: hash[:], MemberId: "ann", Name: "old", Scopes: []string{"signatures:read"}},
	}})
	if err != nil || imported.GetResults()[0].GetError() != nil {
		t.Fatalf("%v, %v", imported, err)
	}
	tap := &wiretap{}
	client := newClient(t, keysvc.Address, keyclient.Config{DialOptions: []grpc.DialOption{tap.option()}})
	fresh(t, client)
	for deadline := time.Now().Add(patience); client.NearCache().Hits == 0; {
		answer, err := client.Validate(t.Context(), reading(text))
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED || time.Now().After(deadline) || answer.KeyID != imported.GetResults()[0].GetKeyId() {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
	if _, err := client.RevokeToken(t.Context(), " "+text+"\n", nil); err != nil {
		t.Error(err)
	}
	if tap.holds(text) {
		t.Error("the token was sent")
	}
}

func TestRevokeTokenAnswersWithoutACallWhatItCan(t *testing.T) {
	keysvc := keysvcWithMember(t)
	tap := &wiretap{}
	client := newClient(t, keysvc.Address, keyclient.Config{WithoutNearCache: true, DialOptions: []grpc.DialOption{tap.option()}})
	one, two := newToken(t), newToken(t)
	for name, test := range map[string]struct {
		text string
		want codes.Code
		call bool
	}{
		"unknown":              {one, codes.NotFound, true},
		"twice":                {one + "\n" + one, codes.NotFound, true},
		"two":                  {one + "\n" + two, codes.InvalidArgument, false},
		"none":                 {"nothing here", codes.NotFound, false},
		"of another system":    {"nothing\n", codes.NotFound, true},
		"a part":               {one[:len(one)-1], codes.NotFound, false},
		"hex, which is no one": {hex.EncodeToString([]byte(one)), codes.NotFound, true},
		"base64":               {base64.StdEncoding.EncodeToString([]byte(one)), codes.NotFound, true},
	} {
		tap.messages = nil
		response, err := client.RevokeToken(t.Context(), test.text, nil)
		if status.Code(err) != test.want || response != nil || (len(tap.messages) > 0) != test.call {
			t.Errorf("%s: %v, %v, messages: %d", name, response, err, len(tap.messages))
		}
		if strings.Contains(fmt.Sprint(err), secretOf(one)) {
			t.Errorf("%s: the error has the token", name)
		}
	}
}
