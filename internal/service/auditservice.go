package service

import (
	"context"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// AuditService implements keysvcv1.AuditServiceServer.
type AuditService struct {
	keysvcv1.UnimplementedAuditServiceServer
	management
}

// NewAudit returns the service over a Manager.
func NewAudit(manager *keys.Manager, errors Errors) *AuditService {
	return &AuditService{management: management{verbs: Verbs{manager}, errors: errors}}
}

// ListAuditEvents implements keysvcv1.AuditServiceServer.
func (s *AuditService) ListAuditEvents(ctx context.Context, request *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
	return read(ctx, s.management, keysvcv1.AuditService_ListAuditEvents_FullMethodName, request, s.verbs.ListAuditEvents)
}

// ExplainKey implements keysvcv1.AuditServiceServer.
func (s *AuditService) ExplainKey(ctx context.Context, request *keysvcv1.ExplainKeyRequest) (*keysvcv1.ExplainKeyResponse, error) {
	return read(ctx, s.management, keysvcv1.AuditService_ExplainKey_FullMethodName, request, s.verbs.ExplainKey)
}

// ListAuditEvents calls keys.Manager.ListAuditEvents.
func (v Verbs) ListAuditEvents(ctx context.Context, visible access.Workspaces, request *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
	return showAuditPage(v.Manager.ListAuditEvents(ctx, visible, auditQueryOf(request)))
}

// ReadAuditLog calls keys.ReadAuditLog. The error is not mapped to a status.
func ReadAuditLog(ctx context.Context, source keys.AuditSource, epoch string, request *keysvcv1.ListAuditEventsRequest) (*keysvcv1.ListAuditEventsResponse, error) {
	return showAuditPage(keys.ReadAuditLog(ctx, source, epoch, auditQueryOf(request)))
}

func auditQueryOf(request *keysvcv1.ListAuditEventsRequest) keys.AuditQuery {
	return keys.AuditQuery{
		WorkspaceID:    request.GetWorkspaceId(),
		KeyID:          request.GetKeyId(),
		MemberID:       request.GetMemberId(),
		Caller:         request.GetCaller(),
		Since:          timeOf(request.GetSince()),
		Until:          timeOf(request.GetUntil()),
		AfterRevision:  request.GetAfterRevision(),
		BeforeRevision: request.GetBeforeRevision(),
		Refused:        request.GetRefused(),
		PageSize:       int(request.GetPageSize()),
		PageToken:      request.GetPageToken(),
	}
}

func showAuditPage(page *keys.AuditPage, err error) (*keysvcv1.ListAuditEventsResponse, error) {
	if err != nil {
		return nil, err
	}
	return &keysvcv1.ListAuditEventsResponse{
		Events: showAuditEvents(page.Events), NextPageToken: page.NextPageToken, Revision: page.Revision, Epoch: page.Epoch,
	}, nil
}

// ExplainKey calls keys.Manager.ExplainKey.
func (v Verbs) ExplainKey(ctx context.Context, visible access.Workspaces, request *keysvcv1.ExplainKeyRequest) (*keysvcv1.ExplainKeyResponse, error) {
	query := keys.ExplainQuery{
		WorkspaceID: request.GetWorkspaceId(),
		KeyID:       request.GetKeyId(),
		Requirement: decide.Requirement{Scope: request.GetRequiredScope(), IdentityOnly: request.GetIdentityOnly()},
	}
	var fields problem.Fields
	query.Address = addressOf(&fields, request.GetClientAddress())
	if err := fields.Err(); err != nil && !visible.IsEmpty() {
		return nil, err
	}
	explanation, err := v.Manager.ExplainKey(ctx, visible, query)
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ExplainKeyResponse{
		Decision:        keysvcv1.Decision(explanation.Decision),
		Reason:          keysvcv1.Reason(explanation.Reason),
		Key:             showKey(explanation.Key),
		Role:            explanation.Role,
		MemberState:     keysvcv1.MemberState(explanation.MemberState),
		EffectiveScopes: explanation.EffectiveScopes,
		Remedies:        explanation.Remedies,
		Changes:         showAuditEvents(explanation.Changes),
		Revision:        explanation.Revision,
		Epoch:           explanation.Epoch,
	}
	for _, finding := range explanation.Findings {
		response.Checks = append(response.Checks, &keysvcv1.KeyCheck{
			Kind: keysvcv1.KeyCheckKind(finding.Check), Outcome: keysvcv1.KeyCheckOutcome(finding.Outcome), Description: finding.Description,
		})
	}
	return response, nil
}

func showAuditEvents(events []keys.AuditEvent) []*keysvcv1.AuditEvent {
	shown := make([]*keysvcv1.AuditEvent, 0, len(events))
	for _, event := range events {
		if event.Refusal != nil {
			shown = append(shown, showRefusal(&event))
		} else {
			shown = append(shown, showAuditEvent(&event))
		}
	}
	return shown
}

// showAuditEvent returns the event of a change as messages have it. Of the records that it lists,
// the hashes are left out: they cover the hashes of secrets.
func showAuditEvent(event *keys.AuditEvent) *keysvcv1.AuditEvent {
	record := event.Record
	shown := &keysvcv1.AuditEvent{
		Revision:         event.Revision,
		WorkspaceId:      record.GetWorkspaceId(),
		Sequence:         record.GetSequence(),
		Time:             record.GetTime(),
		Action:           keysvcv1.AuditAction(record.GetAction()),
		Caller:           record.GetCaller(),
		CallerCredential: record.GetCallerCredential(),
		ActorMemberId:    record.GetActorMemberId(),
		RequestId:        record.GetRequestId(),
		KeyId:            record.GetKeyId(),
		MemberId:         record.GetMemberId(),
		Details:          record.GetDetails(),
		Hash:             event.Hash[:],
		PreviousHash:     record.GetPreviousHash(),
	}
	for _, field := range record.GetFields() {
		shown.Fields = append(shown.Fields, &keysvcv1.AuditFieldChange{
			Field: field.GetField(), Before: field.GetBefore(), After: field.GetAfter(),
		})
	}
	for _, change := range record.GetChanges() {
		shown.Records = append(shown.Records, &keysvcv1.AuditedRecord{
			Kind: keysvcv1.AuditedRecordKind(change.GetKind()), Name: change.GetName(),
			Added:   len(change.GetBefore()) == 0 && shown.GetAction() != keysvcv1.AuditAction_AUDIT_ACTION_UPGRADED,
			Deleted: len(change.GetAfter()) == 0,
		})
	}
	return shown
}

// refusedActions are the actions of the kinds of refusals.
var refusedActions = []keysvcv1.AuditAction{
	keysvcv1.AuditAction_AUDIT_ACTION_UNSPECIFIED,
	keysvcv1.AuditAction_AUDIT_ACTION_CHANGE_REFUSED,
	keysvcv1.AuditAction_AUDIT_ACTION_CALLER_REFUSED,
	keysvcv1.AuditAction_AUDIT_ACTION_CONNECTION_REFUSED,
	keysvcv1.AuditAction_AUDIT_ACTION_OTHERS_REFUSED,
}

// showRefusal returns what was refused as messages have it.
func showRefusal(event *keys.AuditEvent) *keysvcv1.AuditEvent {
	refusal := event.Refusal
	shown := &keysvcv1.AuditEvent{
		Revision:         event.Revision,
		WorkspaceId:      refusal.GetWorkspaceId(),
		Time:             refusal.GetTime(),
		Caller:           refusal.GetCaller(),
		CallerCredential: refusal.GetCallerCredential(),
		ActorMemberId:    refusal.GetActorMemberId(),
		RequestId:        refusal.GetRequestId(),
		KeyId:            refusal.GetKeyId(),
		MemberId:         refusal.GetMemberId(),
		Refusal: &keysvcv1.AuditRefusal{
			Method: refusal.GetMethod(), Code: refusal.GetCode(), Reason: refusal.GetReason(), Peer: refusal.GetPeer(),
			Count: refusal.GetCount(), LastTime: refusal.GetLastTime(),
		},
	}
	if kind := int(refusal.GetKind()); kind > 0 && kind < len(refusedActions) {
		shown.Action = refusedActions[kind]
	}
	return shown
}
