package keys

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// UpdateKey changes the masked fields of a live key (AIP-134).
func (m *Manager) UpdateKey(ctx context.Context, actor audit.Actor, request *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
	active, _, err := m.freshPolicy(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := checkUpdate(request, active); err != nil {
		return nil, err
	}
	actor.MemberID = request.GetActorMemberId()
	now := m.clock()
	record, position, err := m.changeKey(ctx, request.GetKey().GetWorkspaceId(), request.GetKey().GetKeyId(),
		func(view *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			if err := m.checkLive(record, now); err != nil {
				return nil, err
			}
			if request.Etag != nil && request.GetEtag() != etagOf(record) {
				return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_ETAG_MISMATCH,
					"the key has changed since it was read: its etag is another; read it again")
			}
			active, err := view.ActivePolicy()
			if err != nil {
				return nil, err
			}
			wanted, err := checkUpdate(request, active) // the policy may have changed since
			if err != nil {
				return nil, err
			}
			before := proto.CloneOf(record)
			wanted.apply(record)
			if proto.Equal(before, record) {
				return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
			}
			if wanted.masked["scopes"] {
				if err := m.checkScopesOfMember(view, record); err != nil {
					return nil, err
				}
			}
			event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED, now, record.GetWorkspaceId())
			event.Details = describe(record)
			event.Details["changed"] = strings.Join(slices.Sorted(maps.Keys(wanted.masked)), " ")
			return event, nil
		})
	if err != nil {
		return nil, err
	}
	key, err := m.show(record, now)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.UpdateKeyResponse{Key: key, Revision: position.Revision, Epoch: position.Epoch}, nil
}

// update is what a caller asked for, checked.
type update struct {
	masked        map[string]bool
	name          string
	labels        map[string]string
	scopes, cidrs []string
}

// updatable are the fields that a mask may name.
var updatable = []string{"name", "labels", "scopes", "allowed_cidrs"}

func checkUpdate(request *keysvcv1.UpdateKeyRequest, active *projection.Policy) (*update, error) {
	var fields problem.Fields
	key := request.GetKey()
	nested := fields.Within("key")
	checkID(nested, "workspace_id", key.GetWorkspaceId())
	checkKeyID(nested, key.GetKeyId())
	checkActor(&fields, request.ActorMemberId)
	if request.Etag != nil && (request.GetEtag() == "" || len(request.GetEtag()) > MaxRequestIDLength) {
		fields.Add("etag", "is not the etag of a key; give back what was read, or leave it out")
	}
	wanted := &update{masked: make(map[string]bool)}
	for index, path := range request.GetUpdateMask().GetPaths() {
		if index == len(updatable)*4 || !slices.Contains(updatable, path) {
			fields.Add("update_mask", "names a field that cannot be changed; %s can", strings.Join(updatable, ", "))
			break
		}
		wanted.masked[path] = true
	}
	if len(request.GetUpdateMask().GetPaths()) == 0 {
		fields.Add("update_mask", "is missing; one or more of %s are required", strings.Join(updatable, ", "))
	}
	if wanted.masked["name"] {
		checkName(nested, key.GetName(), active.Limits)
		wanted.name = key.GetName()
	}
	if wanted.masked["labels"] {
		checkLabels(nested, key.GetLabels())
		wanted.labels = maps.Clone(key.GetLabels())
	}
	if wanted.masked["scopes"] {
		wanted.scopes = checkScopes(nested, key.GetScopes(), active)
	}
	if wanted.masked["allowed_cidrs"] {
		wanted.cidrs = checkCIDRs(nested, key.GetAllowedCidrs())
	}
	return wanted, fields.Err()
}

// apply sets the masked fields.
func (u *update) apply(record *storagev1.KeyRecord) {
	if u.masked["name"] {
		record.Name = u.name
	}
	if u.masked["labels"] {
		record.Labels = u.labels
	}
	if u.masked["scopes"] {
		record.Scopes = u.scopes
	}
	if u.masked["allowed_cidrs"] {
		record.AllowedCidrs = u.cidrs
	}
}

// checkScopesOfMember refuses scopes that the role of the key's member does not have.
// The member need not be active: a suspended member's keys can be narrowed, too.
func (m *Manager) checkScopesOfMember(view *attempt, record *storagev1.KeyRecord) error {
	member, err := m.projection.Member(record.GetWorkspaceId(), record.GetMemberId())
	if err != nil {
		return err
	}
	if !view.Has(member) { // the key counts as revoked, which was checked
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED, "the key's member was removed")
	}
	return checkWithinRole(record.GetScopes(), member, view.Policy)
}

// checkLive refuses a key that is revoked or expired.
func (m *Manager) checkLive(record *storagev1.KeyRecord, now time.Time) error {
	state, err := m.stateOf(record, now)
	if err != nil {
		return err
	}
	switch state {
	case keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED:
		return nil
	case keysvcv1.KeyState_KEY_STATE_EXPIRED:
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_KEY_EXPIRED, "the key is expired; create another")
	case keysvcv1.KeyState_KEY_STATE_REVOKED, keysvcv1.KeyState_KEY_STATE_UNSPECIFIED:
	}
	return problem.New(keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED, "the key is revoked; create another")
}
