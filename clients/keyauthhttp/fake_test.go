package keyauthhttp_test

import (
	"context"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// fuzzToken is the one token that a recorder knows.
const fuzzToken = "token"

// recorder is a Validator without a keysvc, for tests that run it a million times. One token
// may do everything.
type recorder struct{ questions []keyauth.Question }

// Validate implements keyauth.Validator.
func (r *recorder) Validate(_ context.Context, question keyauth.Question) (keyauth.Answer, error) {
	r.questions = append(r.questions, question)
	if question.Token != fuzzToken {
		return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_INVALID}, nil
	}
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: fuzzPrincipal}, nil
}

var fuzzPrincipal = &keyauth.Principal{KeyID: "key", WorkspaceID: workspace, MemberID: member, Role: "admin"}
