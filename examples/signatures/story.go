package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/examples/process"
	signaturesv1 "github.com/scribe-mail/keysvc/examples/signatures/gen/scribe/signatures/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	workspace = "acme"
	member    = "ann"
)

// story plays requests, and notes every answer that was not the expected one.
type story struct {
	out        io.Writer
	service    *service
	signatures signaturesv1.SignaturesServiceClient
	surprises  []string
}

// play plays the story. The error names the answers that were not the expected ones.
func play(ctx context.Context, out io.Writer, keysvc *process.Keysvc, service *service) error {
	conn, err := grpc.NewClient(service.grpcAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it was in use until now
	s := &story{out: out, service: service, signatures: signaturesv1.NewSignaturesServiceClient(conn)}

	s.say("Ann is a manager in acme. The product's backend makes a key for her that may read and write signatures.")
	if err := putMember(ctx, keysvc, "manager"); err != nil {
		return err
	}
	made, err := createKey(ctx, keysvc, "signatures:read", "signatures:write")
	if err != nil {
		return err
	}
	token, keyID := made.GetToken(), made.GetKey().GetKeyId()
	s.say("Key %s, shown once: %s", keyID, shorten(token))

	s.requests(ctx, token)
	if err := s.changes(ctx, keysvc, token, keyID); err != nil {
		return err
	}
	if len(s.surprises) > 0 {
		return errors.New("not as expected: " + strings.Join(s.surprises, "; "))
	}
	s.say("That is all. Run it with --serve to try it yourself.")
	return nil
}

// requests makes requests with the key, without a key, and with a token that is not valid.
func (s *story) requests(ctx context.Context, token string) {
	s.say("The key may do what its scopes cover.")
	s.http(ctx, 200, token, "POST", "/v1/signatures", `{"name":"Default","content":"<b>Ann</b>"}`)
	s.http(ctx, 200, token, "GET", "/v1/signatures", "")
	s.grpc(ctx, "OK", token, "GetSignature", func(ctx context.Context) error {
		_, err := s.signatures.GetSignature(ctx, &signaturesv1.GetSignatureRequest{Id: "sig-1"})
		return err
	})
	s.http(ctx, 200, token, "POST", "/v1/signatures/sig-1/publish", "")

	s.say("Everything else is refused with 403, PERMISSION_DENIED.")
	s.http(ctx, 403, token, "DELETE", "/v1/signatures/sig-1", "")
	s.grpc(ctx, "PermissionDenied", token, "InstallSignature", func(ctx context.Context) error {
		_, err := s.signatures.InstallSignature(ctx, &signaturesv1.InstallSignatureRequest{Id: "sig-1", Email: "ann@example.com"})
		return err
	})

	s.say("A request without a token is refused with 401, UNAUTHENTICATED, and so is a token whose last character was changed.")
	s.http(ctx, 401, "", "GET", "/v1/signatures", "")
	s.http(ctx, 401, token[:len(token)-1]+"x", "GET", "/v1/signatures", "")
	s.grpc(ctx, "Unauthenticated", "", "ListSignatures", func(ctx context.Context) error {
		_, err := s.signatures.ListSignatures(ctx, &signaturesv1.ListSignaturesRequest{})
		return err
	})
}

// changes changes the member's role and then revokes the key. After each change it makes the requests
// again, and expects the streams that the key held open to end.
func (s *story) changes(ctx context.Context, keysvc *process.Keysvc, token, keyID string) error {
	s.say("A stream is opened with the key.")
	held, err := s.hold(ctx, token)
	if err != nil {
		return err
	}

	s.say("Ann becomes an ordinary member, who has no scopes. Her key loses its scopes at once.")
	if err := putMember(ctx, keysvc, "member"); err != nil {
		return err
	}
	s.http(ctx, 403, token, "GET", "/v1/signatures", "")
	s.ended(held, "PermissionDenied", token)
	s.say("She is a manager again.")
	if err := putMember(ctx, keysvc, "manager"); err != nil {
		return err
	}
	s.http(ctx, 200, token, "GET", "/v1/signatures/sig-1", "")

	held, err = s.hold(ctx, token)
	if err != nil {
		return err
	}
	s.say("The key is revoked, and the stream that it holds open ends.")
	revoked, err := keysvc.Client.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: keyID})
	if err != nil {
		return err
	}
	if err := everywhere(ctx, keysvc, revoked.GetRevision(), revoked.GetEpoch()); err != nil {
		return err
	}
	s.ended(held, "Unauthenticated", token)
	s.http(ctx, 401, token, "GET", "/v1/signatures", "")
	s.grpc(ctx, "Unauthenticated", token, "ListSignatures", func(ctx context.Context) error {
		_, err := s.signatures.ListSignatures(ctx, &signaturesv1.ListSignaturesRequest{})
		return err
	})
	return nil
}

func (s *story) say(format string, arguments ...any) {
	fmt.Fprintf(s.out, "\n# "+format+"\n", arguments...)
}

// expect prints a request and its answer.
func (s *story) expect(want, got, request, answer string) {
	fmt.Fprintf(s.out, "  → %s\n  ← %s\n", request, answer)
	if got != want {
		s.surprises = append(s.surprises, fmt.Sprintf("%s gave %s instead of %s", request, got, want))
	}
}

// http sends a request over HTTP, and expects a status.
func (s *story) http(ctx context.Context, want int, token, method, path, body string) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.service.httpAddress+path, bytes.NewBufferString(body))
	if err != nil {
		s.surprises = append(s.surprises, err.Error())
		return
	}
	described := method + " " + path + " " + describe(token) + " " + body
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.surprises = append(s.surprises, err.Error())
		return
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.surprises = append(s.surprises, err.Error())
		return
	}
	answer := response.Status
	if challenge := response.Header.Get("WWW-Authenticate"); challenge != "" {
		answer += "  WWW-Authenticate: " + challenge
	}
	s.expect(fmt.Sprint(want), fmt.Sprint(response.StatusCode), strings.TrimSpace(described), strings.TrimSpace(answer+"  "+string(text)))
}

// grpc calls a method over gRPC, and expects a status.
func (s *story) grpc(ctx context.Context, want, token, method string, call func(ctx context.Context) error) {
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	answer := status.Convert(call(ctx))
	described := answer.Code().String()
	if answer.Message() != "" {
		described += ": " + answer.Message()
	}
	if details := answer.Details(); len(details) > 0 {
		described += fmt.Sprintf("  %v", details)
	}
	s.expect(want, answer.Code().String(), "gRPC "+method+" "+describe(token), described)
}

// hold opens a stream. The channel receives how the stream ended.
func (s *story) hold(ctx context.Context, token string) (held <-chan error, err error) {
	stream, err := s.signatures.WatchSignatures(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), &signaturesv1.WatchSignaturesRequest{})
	if err != nil {
		return nil, err
	}
	// The header comes when the stream was admitted.
	if _, err := stream.Header(); err != nil {
		return nil, err
	}
	end := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				end <- err
				return
			}
		}
	}()
	return end, nil
}

// ended waits for a stream to end.
func (s *story) ended(held <-chan error, want, token string) {
	select {
	case err := <-held:
		s.expect(want, status.Code(err).String(), "gRPC WatchSignatures "+describe(token)+" (held open)", status.Convert(err).Code().String())
	case <-time.After(10 * time.Second):
		s.surprises = append(s.surprises, "the stream goes on")
	}
}

func describe(token string) string {
	if token == "" {
		return "(no token)"
	}
	return "Bearer " + shorten(token)
}

// shorten returns a token in a form that may be shown.
func shorten(token string) string {
	if cut := strings.LastIndexByte(token, '_'); cut >= 0 {
		return token[:cut+1] + "…"
	}
	return "…"
}

// putMember gives the member a role, and returns when every service's answers reflect it.
func putMember(ctx context.Context, keysvc *process.Keysvc, role string) error {
	put, err := keysvc.Client.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: workspace, MemberId: member, Role: role, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	if err != nil {
		return err
	}
	return everywhere(ctx, keysvc, put.GetRevision(), put.GetEpoch())
}

// everywhere returns when every service's answers reflect a change. Without this call, services
// learn of a change within milliseconds, and within a second whatever fails.
func everywhere(ctx context.Context, keysvc *process.Keysvc, revision int64, epoch string) error {
	_, err := keysvc.Client.Sync.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: revision, Epoch: epoch})
	return err
}

func createKey(ctx context.Context, keysvc *process.Keysvc, scopes ...string) (*keysvcv1.CreateKeyResponse, error) {
	return keysvc.Client.Keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspace, MemberId: member, Name: "example", Scopes: scopes,
	})
}

// stay serves until the context ends.
func stay(ctx context.Context, out io.Writer, keysvc *process.Keysvc, service *service) error {
	if err := putMember(ctx, keysvc, "manager"); err != nil {
		return err
	}
	made, err := createKey(ctx, keysvc, "signatures:read", "signatures:write")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, `The service is up, with a key of Ann's in acme that may read and write signatures.
Ctrl-C ends it, and everything is gone.

In another terminal, in this folder (with these commands, a list of processes does not show the token):

  export TOKEN=%[1]s
  key() { echo "Authorization: Bearer $TOKEN"; }
  curl -i -H @<(key) -d '{"name":"Default","content":"<b>Ann</b>"}' http://%[2]s/v1/signatures
  curl -i -H @<(key) http://%[2]s/v1/signatures
  curl -i -H @<(key) -X DELETE http://%[2]s/v1/signatures/sig-1
  curl -i http://%[2]s/v1/signatures
  grpcurl() { go tool -modfile=tools/go.mod grpcurl "$@"; } # unless it is installed
  grpcurl -plaintext -expand-headers -H 'authorization: Bearer ${TOKEN}' %[3]s scribe.signatures.v1.SignaturesService/ListSignatures
  grpcurl -plaintext -expand-headers -H 'authorization: Bearer ${TOKEN}' %[3]s scribe.signatures.v1.SignaturesService/WatchSignatures &

The last one ends with its key:

  keysvc() { go run ./cmd/keysvc "$@"; } # unless it is installed
  export KEYSVC_ADDR=%[4]s
  keysvc key list --workspace acme
  keysvc key revoke %[5]s --yes --wait
`, made.GetToken(), service.httpAddress, service.grpcAddress, keysvc.Target, made.GetKey().GetKeyId())
	<-ctx.Done()
	return nil
}
