package keyclient

import (
	"context"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// maxTokenBytes is the length of the longest text that is sent as a token.
const maxTokenBytes = token.MaxTextBytes

// remote is the Validator that makes a call for each question.
type remote struct {
	validations keysvcv1.ValidationServiceClient
	timeout     time.Duration
}

// Validate implements keyauth.Validator, see Client.Validate.
func (r *remote) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if err := ctx.Err(); err != nil {
		return keyauth.Answer{}, err
	}
	if answer, answered, err := withoutCall(&question); answered {
		return answer, err
	}
	bounded, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	response, err := r.validations.ValidateKey(bounded, request(question))
	if err != nil {
		return keyauth.Answer{}, r.explain(ctx, bounded, err, question.Token)
	}
	return answer(response)
}

// explain returns the error for the caller, whose context is ctx; bounded is that of the call. The error
// never holds the token. A deadline or cancellation that is not the caller's becomes codes.Unavailable.
func (r *remote) explain(ctx, bounded context.Context, err error, text string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// The server knows the deadline, too, and may say that it has passed before ctx does.
	own, has := ctx.Deadline()
	if ends, _ := bounded.Deadline(); has && own.Equal(ends) && status.Code(err) == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	switch code := status.Code(err); {
	case code == codes.DeadlineExceeded:
		return status.Errorf(codes.Unavailable, "keyclient: keysvc did not answer within %s", r.timeout)
	case code == codes.Canceled:
		return status.Error(codes.Unavailable, "keyclient: the client was closed")
	case strings.Contains(err.Error(), text):
		return status.Error(code, "keyclient: keysvc's error is not shown, because it contains the token")
	}
	return err
}

// withoutCall answers a question that needs no call, and reports whether it did.
func withoutCall(question *keyauth.Question) (answer keyauth.Answer, answered bool, err error) {
	switch {
	case !question.Requirement.IsValid() || question.Requirement.IsPublic():
		return keyauth.Answer{}, true, status.Errorf(codes.Internal, "keyclient: %q is nothing to ask keysvc for", question.Requirement)
	case cannotBeToken(question.Token):
		return keyauth.Answer{
			Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED,
			Reason:   keysvcv1.Reason_REASON_KEY_INVALID,
		}, true, nil
	}
	return keyauth.Answer{}, false, nil
}

// cannotBeToken reports whether no call is needed to refuse a text: it looks like a token of
// keysvc and its checksum is wrong, or gRPC could not carry it. Text of an unknown form is
// sent, because keysvc may be newer and know the form.
func cannotBeToken(text string) bool {
	if text == "" || len(text) > maxTokenBytes || !utf8.ValidString(text) {
		return true
	}
	if !token.In(text) {
		return false
	}
	_, err := token.Parse(text)
	return err != nil
}

func request(question keyauth.Question) *keysvcv1.ValidateKeyRequest {
	request := &keysvcv1.ValidateKeyRequest{
		Token:         question.Token,
		RequiredScope: question.Requirement.Scope(),
		IdentityOnly:  question.Requirement.IsIdentityOnly(),
		WorkspaceId:   question.WorkspaceID,
	}
	if question.ClientAddress.IsValid() {
		request.ClientAddress = question.ClientAddress.String()
	}
	return request
}

// answer reads a response. A response that makes no sense is an error, not a no, because it
// tells nothing about the token.
func answer(response *keysvcv1.ValidateKeyResponse) (keyauth.Answer, error) {
	answer := keyauth.Answer{Decision: response.GetDecision(), Reason: response.GetReason(), KeyID: response.GetKeyId()}
	switch answer.Decision {
	case keysvcv1.Decision_DECISION_UNAUTHENTICATED, keysvcv1.Decision_DECISION_PERMISSION_DENIED:
		return answer, nil
	case keysvcv1.Decision_DECISION_ALLOWED:
		principal := response.GetPrincipal()
		if principal.GetKeyId() == "" || principal.GetWorkspaceId() == "" || principal.GetMemberId() == "" {
			return keyauth.Answer{}, status.Error(codes.Internal, "keyclient: keysvc allowed a request without saying whose")
		}
		answer.Principal = &keyauth.Principal{
			KeyID:       principal.GetKeyId(),
			WorkspaceID: principal.GetWorkspaceId(),
			MemberID:    principal.GetMemberId(),
			Role:        principal.GetRole(),
		}
		return answer, nil
	case keysvcv1.Decision_DECISION_UNSPECIFIED:
	}
	return keyauth.Answer{}, status.Errorf(codes.Internal, "keyclient: keysvc answered with decision %d, which this version does not know", answer.Decision)
}
