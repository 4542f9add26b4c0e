package keys

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// MaxOverlap is how long an old secret may go on after a rotation.
	MaxOverlap = 30 * 24 * time.Hour
	// MaxRequestIDs is how many request ids one key remembers: the one it was created
	// with, and the newest of its rotations. Without a bound, a key that is rotated every
	// day for years would outgrow what one change may delete.
	MaxRequestIDs = 64
)

// RotateKey issues a new secret for a live key. The answer holds the token; nothing
// else ever does.
func (m *Manager) RotateKey(ctx context.Context, actor audit.Actor, request *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
	now := m.clock()
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkKeyID(&fields, request.GetKeyId())
	overlap := checkOverlap(&fields, request.GetOverlap())
	if request.RequestId == nil {
		checkExpireTime(&fields, request.GetExpireTime(), now)
	} // else later: a retry is told from a first call before it is judged
	checkRequestID(&fields, request.RequestId)
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	var issued token.Token
	record, position, err := m.changeKey(ctx, request.GetWorkspaceId(), request.GetKeyId(),
		func(view *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			if err := view.requestUnused(ctx, request.RequestId); err != nil {
				return nil, err
			}
			if err := m.trusted(); err != nil && overlap > 0 { // without one it takes away
				return nil, err
			}
			var fields problem.Fields
			expireTime := checkExpireTime(&fields, request.GetExpireTime(), now)
			if err := fields.Err(); err != nil {
				return nil, err
			}
			if err := m.checkLive(record, now); err != nil {
				return nil, err
			}
			if request.RequestId != nil {
				remember(record, request.GetRequestId())
			}
			until := expireTime
			if request.GetExpireTime() == nil {
				until = sameLife(record.GetSecrets()[0], now)
			}
			if err := retire(record, overlap, now, until); err != nil {
				return nil, err
			}
			active, err := view.ActivePolicy()
			if err != nil {
				return nil, err
			}
			if issued, err = m.issue(record, active.TokenPrefix, now, until); err != nil {
				return nil, err
			}
			event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_ROTATED, now, record.GetWorkspaceId())
			event.Details = map[string]string{
				"overlap":     overlap.String(),
				"expire_time": until.Format(time.RFC3339Nano),
			}
			return event, nil
		})
	if err != nil {
		return nil, asRequestUsed(err)
	}
	key, err := m.show(record, now)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RotateKeyResponse{
		Key: key, Token: issued.Reveal(), Revision: position.Revision, Epoch: position.Epoch,
	}, nil
}

// remember adds a request id to those of the key; if there are too many, the oldest of
// its rotations goes.
func remember(record *storagev1.KeyRecord, requestID string) {
	if len(record.GetRequestIds()) >= MaxRequestIDs {
		record.RequestIds = slices.Delete(record.GetRequestIds(), 1, 2)
	}
	record.RequestIds = append(record.GetRequestIds(), requestID)
}

// retire leaves of a key's secrets what goes on beside a new one that expires at until:
// the newest, until the end of the overlap, but no longer than the key; and nothing if
// there is no overlap.
func retire(record *storagev1.KeyRecord, overlap time.Duration, now, until time.Time) error {
	if overlap == 0 {
		record.Secrets = nil
		return nil
	}
	if overlapping(record, now) {
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS,
			"the key has two live secrets already; finish the rotation first, or rotate with an overlap of 0")
	}
	old := record.GetSecrets()[0]
	end := now.Add(overlap)
	if until.Before(end) {
		end = until
	}
	old.OverlapEndTime = timestamppb.New(end)
	record.Secrets = []*storagev1.SecretRecord{old}
	return nil
}

// overlapping says whether an older secret of the key still matches.
func overlapping(record *storagev1.KeyRecord, now time.Time) bool {
	secrets := record.GetSecrets()
	return len(secrets) > 1 && now.Before(endOf(secrets[1]))
}

// sameLife returns when a secret issued now expires so that it lives as long as
// another was given, but no longer than a year.
func sameLife(other *storagev1.SecretRecord, now time.Time) time.Time {
	given := other.GetExpireTime().AsTime().Sub(other.GetCreateTime().AsTime())
	until, year := now.Add(given), oneYearAfter(now)
	if until.After(year) {
		return year
	}
	return until
}

func checkOverlap(fields *problem.Fields, overlap *durationpb.Duration) time.Duration {
	switch {
	case overlap == nil:
		fields.Add("overlap", "is missing; 0 to %s are required, where 0 ends all other secrets at once", days(MaxOverlap))
	case overlap.CheckValid() != nil, overlap.AsDuration() < 0, overlap.AsDuration() > MaxOverlap:
		fields.Add("overlap", "is out of range; 0 to %s are allowed", days(MaxOverlap))
	}
	return overlap.AsDuration()
}

// FinishRotation ends the overlap of a live key now.
func (m *Manager) FinishRotation(ctx context.Context, actor audit.Actor, request *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
	var fields problem.Fields
	checkID(&fields, "workspace_id", request.GetWorkspaceId())
	checkKeyID(&fields, request.GetKeyId())
	checkActor(&fields, request.ActorMemberId)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	record, position, err := m.changeKey(ctx, request.GetWorkspaceId(), request.GetKeyId(),
		func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			if err := m.checkLive(record, now); err != nil {
				return nil, err
			}
			if !overlapping(record, now) {
				return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
			}
			record.Secrets = record.GetSecrets()[:1]
			return audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_ROTATION_FINISHED, now, record.GetWorkspaceId()), nil
		})
	if err != nil {
		return nil, err
	}
	key, err := m.show(record, now)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.FinishRotationResponse{Key: key, Revision: position.Revision, Epoch: position.Epoch}, nil
}
