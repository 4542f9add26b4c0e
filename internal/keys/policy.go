package keys

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// InstallPolicy makes wanted the active policy of a store that has none. It returns
// the policy that is active then, which in a store that has one may be another.
func (m *Manager) InstallPolicy(ctx context.Context, actor audit.Actor, wanted *policy.Policy) (*projection.Policy, error) {
	if err := wanted.Validate(); err != nil {
		return nil, err
	}
	now := m.clock()
	_, err := m.change(ctx, "", func(view projection.Workspace) (*storage.Change, error) {
		if view.Policy != nil {
			return nil, nil //nolint:nilnil // documented: nil is "nothing to change"
		}
		return policyChange(actor, wanted, nil, now), nil
	})
	if err != nil {
		return nil, err
	}
	active, _ := m.projection.Policy()
	return active, nil
}

// policyChange returns the change that makes wanted the active policy.
func policyChange(actor audit.Actor, wanted *policy.Policy, retired []string, now time.Time) *storage.Change {
	event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_POLICY_APPLIED, now, "")
	event.Details = map[string]string{"digest": wanted.Digest()}
	return &storage.Change{
		Event: event,
		Kind:  storagev1.FeedKind_FEED_KIND_POLICY,
		PutPolicy: &storagev1.PolicyRecord{
			Document:      wanted.Document(),
			RetiredScopes: retired,
			ApplyTime:     timestamppb.New(now),
		},
	}
}

// showPolicy returns a policy as callers see it.
func showPolicy(active *policy.Policy) *keysvcv1.Policy {
	shown := &keysvcv1.Policy{
		TokenPrefix: active.TokenPrefix,
		Retention:   durationpb.New(active.Retention),
		Limits: &keysvcv1.PolicyLimits{
			LiveKeysPerWorkspace: int32(active.Limits.LiveKeysPerWorkspace), //nolint:gosec // at most 1,000,000
			ScopesPerKey:         int32(active.Limits.ScopesPerKey),         //nolint:gosec // at most 1,000
			KeyNameCharacters:    int32(active.Limits.KeyNameCharacters),    //nolint:gosec // at most 1,024
		},
	}
	for _, resource := range active.Resources {
		shown.Resources = append(shown.Resources, &keysvcv1.PolicyResource{Name: resource.Name, Actions: resource.Actions})
	}
	for _, role := range active.Roles {
		shown.Roles = append(shown.Roles, &keysvcv1.PolicyRole{Name: role.Name, Scopes: role.Scopes})
	}
	return shown
}
