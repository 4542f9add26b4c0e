package keyclient

import (
	"context"
	"sync/atomic"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/internal/merge"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// maxTokenBytes is the length of the longest text that is sent as a token.
const maxTokenBytes = token.MaxTextBytes

// tooOld is the beginning of the error of a server that does not know digests.
const tooOld = "keyclient: keysvc is older than this client and does not know digests; upgrade keysvc first"

// remote is the Validator that asks keysvc each question.
type remote struct {
	merger *merge.Merger
	wire   *wire
}

// wire is what a question becomes on the wire, and what an answer is read from.
type wire struct {
	// tokens is set to send tokens in the place of digests.
	tokens bool
	// malformed counts the texts that were refused without a call, because they cannot be tokens.
	malformed atomic.Int64
}

// Validate implements keyauth.Validator, see Client.Validate.
func (r *remote) Validate(ctx context.Context, question keyauth.Question) (keyauth.Answer, error) {
	if err := ctx.Err(); err != nil {
		return keyauth.Answer{}, err
	}
	if answer, answered, err := r.wire.withoutCall(&question); answered {
		return answer, err
	}
	response, err := r.merger.Ask(ctx, r.wire.request(question), nil)
	if err != nil {
		return keyauth.Answer{}, err
	}
	return r.wire.answer(&question, response)
}

// withoutCall answers a question that needs no call, and reports whether it did.
func (w *wire) withoutCall(question *keyauth.Question) (answer keyauth.Answer, answered bool, err error) {
	switch {
	case !question.Requirement.IsValid() || question.Requirement.IsPublic():
		return keyauth.Answer{}, true, status.Errorf(codes.Internal, "keyclient: %q is nothing to ask keysvc for", question.Requirement)
	case cannotBeToken(question.Token):
		if token.In(question.Token) {
			w.malformed.Add(1)
		}
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

// request returns the message for a question that needs a call.
func (w *wire) request(question keyauth.Question) *keysvcv1.ValidateKeyRequest {
	request := &keysvcv1.ValidateKeyRequest{
		RequiredScope: question.Requirement.Scope(),
		IdentityOnly:  question.Requirement.IsIdentityOnly(),
		WorkspaceId:   question.WorkspaceID,
		WithDetails:   question.WithDetails,
	}
	switch {
	case question.Requirement.IsAllOf():
		request.AllOf = question.Requirement.Scopes()
	case question.Requirement.IsAnyOf():
		request.AnyOf = question.Requirement.Scopes()
	}
	if w.tokens {
		request.Token = question.Token
	} else {
		request.TokenDigest, request.KeyId = digestOf(question.Token)
	}
	if question.ClientAddress.IsValid() {
		request.ClientAddress = question.ClientAddress.String()
	}
	return request
}

// digestOf returns what is sent in the place of a text: the digest of a token and the id of its key,
// and for any other text its hash and no id. Text with "_ksk1_" in it is a token here, because
// withoutCall has refused everything else.
func digestOf(text string) (digest []byte, keyID string) {
	if parsed, err := token.Parse(text); err == nil {
		sum := parsed.Digest()
		return sum[:], parsed.ID()
	}
	sum := token.ForeignDigest(text)
	return sum[:], ""
}

// answer reads a response. A response that makes no sense is an error, not a no, because it
// tells nothing about the token. So is the answer of a server that does not know digests, which has
// looked at an empty token.
func (w *wire) answer(question *keyauth.Question, response *keysvcv1.ValidateKeyResponse) (keyauth.Answer, error) {
	if !w.tokens && !response.GetByDigest() {
		return keyauth.Answer{}, status.Error(codes.Unavailable, tooOld+", or set SendTokens until then")
	}
	answer := keyauth.Answer{Decision: response.GetDecision(), Reason: response.GetReason(), KeyID: response.GetKeyId()}
	answer.MissingScopes = response.GetMissingScopes()
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
		if end := principal.GetExpireTime(); end.IsValid() && end != nil {
			answer.ExpireTime = end.AsTime()
		}
		if question.WithDetails {
			answer.Principal.Scopes, answer.Principal.KeyName = principal.GetScopes(), principal.GetKeyName()
			answer.Principal.ExpireTime = answer.ExpireTime
		}
		return answer, nil
	case keysvcv1.Decision_DECISION_UNSPECIFIED:
	}
	return keyauth.Answer{}, status.Errorf(codes.Internal, "keyclient: keysvc answered with decision %d, which this version does not know", answer.Decision)
}
