package keys

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// KeyUpdate is a change of a key that UpdateKey makes.
type KeyUpdate struct {
	// WorkspaceID and KeyID name the key.
	WorkspaceID, KeyID string
	// Mask names the fields that change (AIP-134): one or more of name, labels, scopes and
	// allowed_cidrs. A field that it names is replaced by the one below, even if that is empty.
	Mask []string
	// Name, Labels, Scopes and AllowedCIDRs are bounded as those of KeySpec.
	Name         string
	Labels       map[string]string
	Scopes       []string
	AllowedCIDRs []string
	// Etag, if set, is that of the key as the caller read it. The update is refused with
	// ETAG_MISMATCH if the key has changed since.
	Etag *string
}

// UpdateKey changes the masked fields of a live key (AIP-134). Errors: *problem.Error if the update
// is refused, and those of the store and the context.
func (m *Manager) UpdateKey(ctx context.Context, actor audit.Actor, update KeyUpdate) (*Key, Position, error) {
	if err := mayChange(actor, "key.workspace_id", update.WorkspaceID); err != nil {
		return nil, Position{}, err
	}
	active, _, err := m.freshPolicy(ctx)
	if err != nil {
		return nil, Position{}, err
	}
	if _, err := checkUpdate(update, actor, active); err != nil {
		return nil, Position{}, err
	}
	now := m.clock()
	changed, position, err := m.changeKey(ctx, actor, update.WorkspaceID, update.KeyID,
		func(view *attempt, record *storagev1.KeyRecord) (*storagev1.AuditRecord, error) {
			if err := m.checkLive(record, now); err != nil {
				return nil, err
			}
			if update.Etag != nil && *update.Etag != etagOf(record) {
				return nil, problem.New(problem.EtagMismatch,
					"the key has changed since it was read: its etag is another; read it again")
			}
			active, err := view.ActivePolicy()
			if err != nil {
				return nil, err
			}
			wanted, err := checkUpdate(update, actor, active) // the policy may have changed since
			if err != nil {
				return nil, err
			}
			before := proto.CloneOf(record)
			wanted.apply(record)
			if proto.Equal(before, record) {
				return nil, nil // nothing to change
			}
			if wanted.masked["scopes"] {
				if err := m.checkScopesOfMember(view, record); err != nil {
					return nil, err
				}
			}
			return audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED, now, record.GetWorkspaceId()), nil
		})
	if err != nil {
		return nil, Position{}, err
	}
	return m.showAt(ctx, changed, now, position)
}

// checkedUpdate has the fields of a valid KeyUpdate, in the form that is stored.
type checkedUpdate struct {
	masked        map[string]bool
	name          string
	labels        map[string]string
	scopes, cidrs []string
}

// updatable are the fields that a mask may name.
var updatable = []string{"name", "labels", "scopes", "allowed_cidrs"}

func checkUpdate(update KeyUpdate, actor audit.Actor, active *projection.Policy) (*checkedUpdate, error) {
	var fields problem.Fields
	nested := fields.Within("key")
	checkID(nested, "workspace_id", update.WorkspaceID)
	checkKeyID(nested, update.KeyID)
	checkActor(&fields, actor)
	if update.Etag != nil && (*update.Etag == "" || len(*update.Etag) > MaxRequestIDLength) {
		fields.Add("etag", "is not the etag of a key; give back what was read, or leave it out")
	}
	wanted := &checkedUpdate{masked: make(map[string]bool)}
	for index, path := range update.Mask {
		// A mask of more than four times the number of fields is refused, too: it only repeats
		// fields.
		if index == len(updatable)*4 || !slices.Contains(updatable, path) {
			fields.Add("update_mask", "names a field that cannot be changed; %s can", strings.Join(updatable, ", "))
			break
		}
		wanted.masked[path] = true
	}
	if len(update.Mask) == 0 {
		fields.Add("update_mask", "is missing; one or more of %s are required", strings.Join(updatable, ", "))
	}
	if wanted.masked["name"] {
		checkName(nested, update.Name, active.Limits)
		wanted.name = update.Name
	}
	if wanted.masked["labels"] {
		checkLabels(nested, update.Labels)
		wanted.labels = maps.Clone(update.Labels)
	}
	if wanted.masked["scopes"] {
		wanted.scopes = checkScopes(nested, update.Scopes, active)
	}
	if wanted.masked["allowed_cidrs"] {
		wanted.cidrs = checkCIDRs(nested, update.AllowedCIDRs)
	}
	return wanted, fields.Err()
}

// apply sets the masked fields.
func (u *checkedUpdate) apply(record *storagev1.KeyRecord) {
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

// checkScopesOfMember refuses scopes that the role of the key's member does not have. The member
// may be suspended: the keys of a suspended member can be changed.
func (m *Manager) checkScopesOfMember(view *attempt, record *storagev1.KeyRecord) error {
	member, err := m.projection.Member(record.GetWorkspaceId(), record.GetMemberId())
	if err != nil {
		return err
	}
	if !view.Has(member) { // not reached as long as checkLive comes first: such a key counts as revoked
		return problem.New(problem.KeyRevoked, "the key's member was removed")
	}
	return checkWithinRole(record.GetScopes(), member, view.Policy)
}

// checkLive refuses a key that is revoked, expired or held. A held key gets no new secret: whether its
// owner may have one is what the person who releases it decides.
func (m *Manager) checkLive(record *storagev1.KeyRecord, now time.Time) error {
	state, err := m.stateOf(record, now)
	if err != nil {
		return err
	}
	switch state {
	case KeyActive, KeySuspended:
		return nil
	case KeyExpired:
		return problem.New(problem.KeyExpired, "the key is expired; create another")
	case KeyHeld:
		return problem.New(problem.KeyHeld, "the key is held since the store was restored from a backup; release it first, or revoke it")
	case KeyRevoked, KeyStateUnspecified:
	}
	return problem.New(problem.KeyRevoked, "the key is revoked; create another")
}
