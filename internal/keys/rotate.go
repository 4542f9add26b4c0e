package keys

import (
	"context"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// MaxOverlap is how long an old secret may go on matching after a rotation.
	MaxOverlap = 30 * 24 * time.Hour
	// MaxRequestIDs is how many request ids one key remembers: that of its creation, and those of
	// its newest rotations. Without a bound, the record of a key that is rotated every day for
	// years would become too large for one change to delete.
	MaxRequestIDs = 64
)

// NotADuration stands for the duration of a message that is not a valid one. The verbs refuse it
// as they refuse any duration that is out of range.
const NotADuration = time.Duration(math.MinInt64 + 1)

// Rotation is a new secret that RotateKey issues.
type Rotation struct {
	// WorkspaceID and KeyID name the key.
	WorkspaceID, KeyID string
	// Overlap is how long the secret before the new one goes on matching, 0 to MaxOverlap; 0
	// ends all other secrets at once. Required.
	Overlap *time.Duration
	// ExpireTime is in the future, and at most a calendar year ahead; nil gives the new secret
	// the lifetime that the secret before it was given.
	ExpireTime *time.Time
	// RequestID is that of KeySpec.
	RequestID *string
	// Digest is that of the new token, if the caller has drawn its secret; zero lets the Manager
	// draw it.
	Digest token.Digest
}

// RotateKey issues a new secret for a live key. Errors: *problem.Error if the rotation is refused,
// the error of Config.ClockTrusted, and those of the store and the context.
func (m *Manager) RotateKey(ctx context.Context, actor audit.Actor, rotation Rotation) (*IssuedKey, error) {
	if err := mayChange(actor, "workspace_id", rotation.WorkspaceID); err != nil {
		return nil, err
	}
	if m.tokensRefused && rotation.Digest.IsZero() {
		return nil, errTokensRefused("draw the secret, and send token_digest (keysvc key rotate --local)")
	}
	now := m.clock()
	var fields problem.Fields
	checkID(&fields, "workspace_id", rotation.WorkspaceID)
	checkKeyID(&fields, rotation.KeyID)
	overlap := checkOverlap(&fields, rotation.Overlap)
	if rotation.RequestID == nil {
		checkExpireTime(&fields, rotation.ExpireTime, now)
	} // otherwise in step 3: a retry is recognized before its expire time is judged
	checkRequestID(&fields, rotation.RequestID)
	if !rotation.Digest.IsZero() {
		checkDigest(&fields, rotation.Digest)
	}
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	var issued token.Token
	changed, position, err := m.changeKey(ctx, actor, rotation.WorkspaceID, rotation.KeyID,
		func(view *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			// 1. Recognize a retry before anything is judged: the first call has rotated the key
			// already, and the expire time may have passed since.
			if err := view.requestUnused(ctx, rotation.RequestID); err != nil {
				_, err = view.repeated(ctx, err, rotation.KeyID, rotation.Digest, true)
				return nil, err
			}
			// 2. While the time is not known, refuse a rotation with an overlap, because the end
			// of the overlap would be wrong for good. A rotation without an overlap is allowed,
			// because it ends the secrets that the key had.
			if err := m.trusted(); err != nil && overlap > 0 {
				return nil, err
			}
			// 3. Judge the expire time, and the key.
			var fields problem.Fields
			expireTime := checkExpireTime(&fields, rotation.ExpireTime, now)
			if err := fields.Err(); err != nil {
				return nil, err
			}
			if err := m.checkLive(record, now); err != nil {
				return nil, err
			}
			if err := checkNewSecret(record, rotation.Digest); err != nil {
				return nil, err
			}
			if rotation.RequestID != nil {
				remember(record, *rotation.RequestID)
			}
			// 4. Take the lifetime from the newest secret before step 5 drops it.
			until := expireTime
			if rotation.ExpireTime == nil {
				until = sameLife(record.GetSecrets()[0], now)
			}
			// 5. Retire the old secrets, and then issue the new one, which goes before them.
			if err := retire(record, overlap, now, until); err != nil {
				return nil, err
			}
			active, err := view.ActivePolicy()
			if err != nil {
				return nil, err
			}
			if issued, err = m.issue(record, rotation.Digest, active.TokenPrefix, now, until); err != nil {
				return nil, err
			}
			event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_ROTATED, now, record.GetWorkspaceId())
			event.Details = map[string]string{"overlap": overlap.String()}
			return event, nil
		})
	if err != nil {
		return nil, asRequestUsed(err)
	}
	return m.issuedAt(ctx, changed, issued, now, position)
}

// remember adds a request id to those of the key. If there are too many, it drops the second one:
// the first one is that of the creation, if the creation had one (ADR 0008).
func remember(record *storagev1.KeyRecord, requestID string) {
	if len(record.GetRequestIds()) >= MaxRequestIDs {
		record.RequestIds = slices.Delete(record.GetRequestIds(), 1, 2)
	}
	record.RequestIds = append(record.GetRequestIds(), requestID)
}

// retire drops the secrets of a key that end with a rotation. Without an overlap it drops all of
// them. With an overlap it keeps the newest one, which goes on matching until the overlap or the
// new secret ends; until is the end of the new secret. Error: ROTATION_IN_PROGRESS.
func retire(record *storagev1.KeyRecord, overlap time.Duration, now, until time.Time) error {
	if overlap == 0 {
		record.Secrets = nil
		return nil
	}
	if overlapping(record, now) {
		return problem.New(problem.RotationInProgress,
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

// overlapping reports whether an older secret of the key still matches.
func overlapping(record *storagev1.KeyRecord, now time.Time) bool {
	secrets := record.GetSecrets()
	return len(secrets) > 1 && now.Before(endOf(secrets[1]))
}

// sameLife returns the expire time of a secret that is issued now with the lifetime that another
// secret was given, at most a year.
func sameLife(other *storagev1.SecretRecord, now time.Time) time.Time {
	given := other.GetExpireTime().AsTime().Sub(other.GetCreateTime().AsTime())
	until, year := now.Add(given), oneYearAfter(now)
	if until.After(year) {
		return year
	}
	return until
}

// checkOverlap checks the overlap of a rotation and returns it.
func checkOverlap(fields *problem.Fields, overlap *time.Duration) time.Duration {
	switch {
	case overlap == nil:
		fields.Add("overlap", "is missing; 0 to %s are required, where 0 ends all other secrets at once", days(MaxOverlap))
		return 0
	case *overlap < 0, *overlap > MaxOverlap:
		fields.Add("overlap", "is out of range; 0 to %s are allowed", days(MaxOverlap))
	}
	return *overlap
}

// FinishRotation ends the overlap of a live key now. Without an overlap it changes nothing, and
// that is no error. Errors: *problem.Error, and those of the store and the context.
func (m *Manager) FinishRotation(ctx context.Context, actor audit.Actor, workspaceID, keyID string) (*Key, Position, error) {
	if err := checkKeyName(actor, workspaceID, keyID); err != nil {
		return nil, Position{}, err
	}
	now := m.clock()
	changed, position, err := m.changeKey(ctx, actor, workspaceID, keyID,
		func(_ *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			if err := m.checkLive(record, now); err != nil {
				return nil, err
			}
			if !overlapping(record, now) {
				return nil, nil // nothing to change
			}
			record.Secrets = record.GetSecrets()[:1]
			return audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_ROTATION_FINISHED, now, record.GetWorkspaceId()), nil
		})
	if err != nil {
		return nil, Position{}, err
	}
	return m.showAt(ctx, changed, now, position)
}
