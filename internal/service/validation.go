package service

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/validation"
)

const (
	// MaxBatch is the max number of items of one batch.
	MaxBatch = 256
	// maxBatchBytes is the size of a batch's answers at which the next item is refused. With one
	// more answer they are still below 4 MiB, the default limit of a gRPC client.
	maxBatchBytes = 3 << 20
)

// ValidationService implements keysvcv1.ValidationServiceServer.
type ValidationService struct {
	keysvcv1.UnimplementedValidationServiceServer
	validator *validation.Validator
	errors    Errors
	// invalid counts tokens that are not valid; nil if nobody counts them.
	invalid func(caller string, address netip.Addr)
	forms   *Forms
	// decided counts decisions by their reasons; nil if nobody counts them.
	decided func(reason int)
	// traced notes decisions in the traces of their calls; nil without traces.
	traced func(ctx context.Context, decision, reason string)
}

// NewValidation returns the service over a Validator.
func NewValidation(validator *validation.Validator, errors Errors) *ValidationService {
	return &ValidationService{validator: validator, errors: errors}
}

// CountInvalid makes the service call a function for each token that is not a key's. It must be
// called before the service is used. caller is the caller's name, and address that of the
// presenter; the zero Addr if the caller does not say.
func (s *ValidationService) CountInvalid(count func(caller string, address netip.Addr)) {
	s.invalid = count
}

// CountDecisions makes the service call a function for each decision, with the number of its reason.
// It must be called before the service is used.
func (s *ValidationService) CountDecisions(count func(reason int)) { s.decided = count }

// TraceDecisions makes the service call a function for each decision of ValidateKey, with the names of
// the decision and its reason. It must be called before the service is used.
func (s *ValidationService) TraceDecisions(traced func(ctx context.Context, decision, reason string)) {
	s.traced = traced
}

// CountForms makes the service count the forms of tokens. It must be called before the service is
// used.
func (s *ValidationService) CountForms(forms *Forms) { s.forms = forms }

// Work returns the kind of work that a message asks for. A message that has to wait for a revision
// is a Wait; a message that asks for details, which are read from the store, is a Read. So these
// two do not take the slots of validations that are answered from memory.
func (s *ValidationService) Work(request any) callers.Work {
	switch request := request.(type) {
	case *keysvcv1.ValidateKeyRequest:
		return s.work(request)
	case *keysvcv1.BatchValidateKeysRequest:
		work := callers.Validation
		for _, item := range request.GetRequests() {
			switch s.work(item) {
			case callers.Wait:
				return callers.Wait
			case callers.Read:
				work = callers.Read
			case callers.NoWork, callers.Probe, callers.Validation, callers.Change, callers.Session, callers.Watch, callers.Inspection, callers.Backup:
			}
		}
		return work
	}
	return callers.Validation
}

func (s *ValidationService) work(request *keysvcv1.ValidateKeyRequest) callers.Work {
	switch {
	case request.GetMinRevision() != 0 && !s.validator.Reached(request.GetMinRevision()):
		return callers.Wait
	case request.GetWithDetails():
		return callers.Read
	}
	return callers.Validation
}

// ValidateKey implements keysvcv1.ValidationServiceServer.
func (s *ValidationService) ValidateKey(ctx context.Context, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	response, err := s.validate(ctx, workspacesOf(ctx), request)
	if s.traced != nil && err == nil {
		s.traced(ctx, strings.TrimPrefix(response.GetDecision().String(), "DECISION_"), strings.TrimPrefix(response.GetReason().String(), "REASON_"))
	}
	return response, s.errors.Status(ctx, err)
}

// BatchValidateKeys implements keysvcv1.ValidationServiceServer.
func (s *ValidationService) BatchValidateKeys(ctx context.Context, request *keysvcv1.BatchValidateKeysRequest) (*keysvcv1.BatchValidateKeysResponse, error) {
	if count := len(request.GetRequests()); count < 1 || count > MaxBatch {
		var fields problem.Fields
		fields.Add("requests", "has %d items; 1 to %d are allowed", count, MaxBatch)
		return nil, s.errors.Status(ctx, fields.Err())
	}
	workspaces := workspacesOf(ctx)
	ctx, cancel := validation.Together(ctx)
	defer cancel()
	responses, total := make([]*keysvcv1.ValidateKeyResponse, len(request.GetRequests())), 0
	for index, item := range request.GetRequests() {
		if total >= maxBatchBytes {
			responses[index] = &keysvcv1.ValidateKeyResponse{Error: s.itemError(ctx, problem.New(
				keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS,
				"the answers before this one have %d bytes, as many as fit into one batch; ask again in another batch", total))}
			continue
		}
		response, err := s.validate(ctx, workspaces, item)
		if ctx.Err() != nil {
			return nil, s.errors.Status(ctx, ctx.Err())
		}
		if err != nil {
			response = &keysvcv1.ValidateKeyResponse{Error: s.itemError(ctx, err)}
		}
		// All other answers are small: MaxBatch of them need not be counted.
		if err != nil || len(response.GetMissingScopes()) > 0 || item.GetIncludeGrant() || item.GetWithDetails() {
			total += proto.Size(response)
		}
		responses[index] = response
	}
	return &keysvcv1.BatchValidateKeysResponse{Responses: responses}, nil
}

// itemError returns the error of a batch's item, with the code, reason and message of a call with
// this item alone.
func (s *ValidationService) itemError(ctx context.Context, err error) *keysvcv1.ValidationError {
	if ended := contextStatus(err); ended != nil {
		return &keysvcv1.ValidationError{Code: int32(status.Code(ended)), Message: status.Convert(ended).Message()} //nolint:gosec // codes are below 17
	}
	return showError(s.errors.problem(ctx, err))
}

// showError returns the error of one of several requests as messages have it.
func showError(told *problem.Error) *keysvcv1.ValidationError {
	return &keysvcv1.ValidationError{
		Code:    int32(codeOf(told.Reason)), //nolint:gosec // codes are below 17
		Reason:  told.Reason,
		Message: told.Error(),
	}
}

// workspacesOf returns the workspaces that the caller may validate in.
func workspacesOf(ctx context.Context) access.Workspaces {
	return callers.FromContext(ctx).For(access.Validate)
}

func (s *ValidationService) validate(ctx context.Context, workspaces access.Workspaces, request *keysvcv1.ValidateKeyRequest) (*keysvcv1.ValidateKeyResponse, error) {
	question, err := questionOf(request)
	if err != nil {
		return nil, err
	}
	question.Workspaces = workspaces
	byDigest := question.Digest.ByDigest()
	if byDigest || question.Token != "" {
		s.forms.count(ctx, byDigest)
	}
	answer, err := s.validator.Validate(ctx, question)
	if err != nil {
		return nil, err
	}
	if s.decided != nil {
		s.decided(int(answer.Reason))
	}
	response := &keysvcv1.ValidateKeyResponse{
		Decision: keysvcv1.Decision(answer.Decision),
		Reason:   keysvcv1.Reason(answer.Reason),
		KeyId:    answer.KeyID,
		Revision: answer.Revision,
		Epoch:    s.validator.Epoch(),
		ByDigest: byDigest,
	}
	if answer.Decision != decide.Allowed {
		response.MissingScopes = answer.Missing
		if answer.Reason == decide.KeyInvalid && s.invalid != nil {
			s.invalid(callers.FromContext(ctx).CallerName(), question.Address)
		}
		return response, nil
	}
	response.Principal = showPrincipal(&answer, request.GetIncludeGrant())
	if request.GetIncludeGrant() {
		response.Grant, response.SecretTag = showGrant(&answer, workspaces), answer.Grant.Secret.Tag()
	}
	return response, nil
}

// questionOf checks a message and returns the question in it.
func questionOf(request *keysvcv1.ValidateKeyRequest) (validation.Question, error) {
	question := validation.Question{
		Token: request.GetToken(),
		Requirement: decide.Requirement{
			Scope:        request.GetRequiredScope(),
			IdentityOnly: request.GetIdentityOnly(),
			AllOf:        request.GetAllOf(),
			AnyOf:        request.GetAnyOf(),
		},
		WorkspaceID: request.GetWorkspaceId(),
		MinRevision: request.GetMinRevision(),
		Epoch:       request.GetEpoch(),
		WithDetails: request.GetWithDetails(),
	}
	var fields problem.Fields
	question.Digest = keys.CheckPresented(&fields, question.Token, request.GetKeyId(), token.DigestFrom(request.GetTokenDigest()))
	keys.CheckRequirement(&fields, question.Requirement)
	keys.CheckWorkspaceID(&fields, question.WorkspaceID)
	question.Address = addressOf(&fields, request.GetClientAddress())
	if question.MinRevision < 0 {
		fields.Add("min_revision", "is negative; a revision that keysvc gave is required")
	}
	if (question.MinRevision != 0) != (question.Epoch != "") {
		fields.Add("epoch", "and min_revision must be given together")
	}
	return question, fields.Err()
}

// addressOf returns the client address in a message; the zero Addr for none.
func addressOf(fields *problem.Fields, text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		fields.Add("client_address", "is not an IPv4 or IPv6 address; one without a port is required")
	}
	return address
}

// showPrincipal returns who a token acts as. With a grant it has the token's end, which a near-cache passes on.
func showPrincipal(answer *validation.Answer, withGrant bool) *keysvcv1.Principal {
	principal := &keysvcv1.Principal{
		KeyId:       answer.Grant.Principal.KeyID,
		WorkspaceId: answer.Grant.Principal.WorkspaceID,
		MemberId:    answer.Grant.Principal.MemberID,
		Role:        answer.Grant.Principal.Role,
	}
	if answer.Details != nil {
		principal.KeyName = answer.Details.GetName()
		principal.Labels = answer.Details.GetLabels()
		principal.Scopes = answer.Grant.Effective()
	}
	if answer.Details != nil || withGrant {
		principal.ExpireTime = timestamppb.New(time.Unix(0, answer.Grant.HoldsUntil))
	}
	return principal
}

// showGrant returns a grant for a near-cache of a caller that may validate in some workspaces.
func showGrant(answer *validation.Answer, workspaces access.Workspaces) *keysvcv1.Grant {
	grant := &keysvcv1.Grant{
		Scopes:   answer.Grant.Effective(),
		ValidFor: durationpb.New(time.Unix(0, answer.Grant.HoldsUntil).Sub(answer.Now)),
		// Of the same rights as the answer (S7).
		VisibleWorkspaces: workspaces.Fingerprint(),
	}
	if prefixes := answer.Grant.AllowedPrefixes; len(prefixes) > 0 {
		allowed := &keysvcv1.AllowedAddresses{}
		for _, prefix := range prefixes {
			allowed.Cidrs = append(allowed.Cidrs, prefix.String())
		}
		grant.Conditions = append(grant.Conditions, &keysvcv1.GrantCondition{
			Kind: &keysvcv1.GrantCondition_AllowedAddresses{AllowedAddresses: allowed},
		})
	}
	return grant
}
