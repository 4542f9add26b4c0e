package keyclient

import (
	"context"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

var _ keyauth.Validator = (*Client)(nil)

// maxTokenBytes is the longest token text that is sent; keysvc's have less than a hundred.
const maxTokenBytes = 4096

// Validate implements keyauth.Validator. A token that cannot be one is refused without a
// call. The error is the context's if that ended, a status of codes.Unavailable if keysvc
// was not reached within the ValidationTimeout or the context's deadline, of
// codes.Internal if the question or the answer makes no sense, and keysvc's own otherwise.
func (c *Client) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if !question.Requirement.IsValid() || question.Requirement.IsPublic() {
		return keyauth.Answer{}, status.Errorf(codes.Internal, "keyclient: %q is nothing to ask keysvc for", question.Requirement)
	}
	if cannotBeToken(question.Token) {
		return keyauth.Answer{
			Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED,
			Reason:   keysvcv1.Reason_REASON_KEY_INVALID,
		}, nil
	}
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	response, err := c.Validations.ValidateKey(bounded, request(question))
	if err != nil {
		return keyauth.Answer{}, c.explain(ctx, bounded, err)
	}
	return answer(response)
}

// cannotBeToken says whether text need not leave this process: it looks like one of
// keysvc's tokens and its checksum is wrong, or gRPC could not carry it. What looks like
// nothing known is for keysvc to judge, which may be newer.
func cannotBeToken(text string) bool {
	if text == "" || len(text) > maxTokenBytes || !utf8.ValidString(text) {
		return true
	}
	if !strings.Contains(text, "_ksk1_") {
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

// answer reads a response. What makes no sense is an error, not a no: it tells nothing of
// the token.
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

// explain returns the error that is told, given the caller's context and the bounded one.
func (c *Client) explain(ctx, bounded context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		return notWithin(c.timeout)
	}
	return err
}
