package keys

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// maxExplainedChanges is how many changes an explanation has, and maxPolicyChanges how many of
	// these are of the policy.
	maxExplainedChanges = 10
	maxPolicyChanges    = 3
)

// ExplainQuery asks what a request with a token of a key would be answered.
type ExplainQuery struct {
	// WorkspaceID is the workspace of the key; empty means any, for a caller that sees all of them.
	WorkspaceID string
	// KeyID is the key.
	KeyID string
	// Requirement is what the request needs.
	Requirement decide.Requirement
	// Address is that of the presenter; the zero Addr if it is not known.
	Address netip.Addr
}

// Explanation is a decision, and all that it was made from.
type Explanation struct {
	Position

	// Decision and Reason are those on a token that holds the key's newest secret.
	Decision decide.Decision
	Reason   decide.Reason
	// Key is the key.
	Key *Key
	// Role is the member's role, and EffectiveScopes are the scopes of the key that the role has.
	// Both are empty if the member was removed.
	Role            string
	EffectiveScopes []string
	// MemberState is the state of the member that the key acts as.
	MemberState MemberState
	// Findings are the checks in their order.
	Findings []Finding
	// Remedies say what would have to change, in the order of the checks that failed.
	Remedies []string
	// Changes are the newest events that the decision depends on, newest first.
	Changes []AuditEvent
}

// Finding is a check, what came of it, and a sentence about it.
type Finding struct {
	decide.Step

	// Description says what was found.
	Description string
}

// ExplainKey says what a validation of a token with the key's newest secret would answer, and why.
// It makes the decision with package decide, as a validation does. Errors: KEY_NOT_FOUND and other
// *problem.Error, and those of the store and the context.
func (m *Manager) ExplainKey(ctx context.Context, visible access.Workspaces, query ExplainQuery) (*Explanation, error) {
	seen, err := sees(visible, query.WorkspaceID)
	if err != nil {
		return nil, err
	}
	if err := query.check(); err != nil {
		return nil, err
	}
	if !seen {
		return nil, asKeyNotFound(storage.ErrNotFound)
	}
	for {
		// The steps and their order are those of GetKey. The decision, and all that is said about
		// it, are made from one look at the projection.
		record, revision, err := m.store.GetKey(ctx, query.WorkspaceID, query.KeyID)
		if err := m.reached(ctx, revision, err); err != nil {
			return nil, asKeyNotFound(err)
		}
		found := m.projection.Find(query.KeyID)
		explanation, err := m.explain(ctx, &query, record, found)
		if err != nil {
			return nil, err
		}
		if explanation == nil || !m.isStill(record.GetWorkspaceId(), revision) {
			continue
		}
		explanation.Changes, err = m.changesOf(ctx, record, visible.IsAll(), found.Revision)
		return explanation, err
	}
}

// check checks the fields of a query.
func (q *ExplainQuery) check() error {
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", q.WorkspaceID)
	checkKeyID(&fields, q.KeyID)
	CheckRequirement(&fields, q.Requirement)
	return fields.Err()
}

// maxRequired is the largest number of scopes in all_of and any_of.
const maxRequired = 16

// CheckRequirement checks that a request says what it needs: exactly one of its four fields. A second
// one is refused, because a server that ignored it could allow what was not meant.
func CheckRequirement(fields *problem.Fields, requirement decide.Requirement) {
	switch {
	case requirement.Kinds() == 0:
		fields.Add("required_scope", "is missing; a scope of the policy is required, or one of identity_only, all_of and any_of")
	case requirement.Kinds() > 1:
		name := "identity_only"
		switch {
		case len(requirement.AnyOf) > 0:
			name = "any_of"
		case len(requirement.AllOf) > 0:
			name = "all_of"
		}
		fields.Add(name, "is set beside another requirement; exactly one of required_scope, identity_only, all_of and any_of is required")
	}
	checkRequired(fields, "all_of", requirement.AllOf)
	checkRequired(fields, "any_of", requirement.AnyOf)
}

func checkRequired(fields *problem.Fields, name string, scopes []string) {
	if len(scopes) > maxRequired {
		fields.Add(name, "has %d scopes; 1 to %d are allowed", len(scopes), maxRequired)
		return
	}
	for index, scope := range scopes {
		// Whether there is such a scope is checked with the policy.
		if slices.Contains(scopes[:index], scope) {
			fields.Add(name, "has at index %d a scope that it has before; each is allowed once", index)
		}
	}
}

// explain makes the explanation without the changes; nil if the key was deleted after its record
// had been read.
func (m *Manager) explain(ctx context.Context, query *ExplainQuery, record *storagev1.KeyRecord, found projection.Found) (*Explanation, error) {
	scope := query.Requirement.Scope
	switch {
	case found.Policy == nil:
		return nil, cmp.Or(found.Damaged, storage.ErrUnavailable)
	case scope != "" && !found.Policy.Catalogue.Contains(scope):
		var fields problem.Fields
		fields.AddAs(problem.ScopeUnknown, "required_scope", "%s", policy.UnknownScope(scope, found.Policy.Catalogue, policy.WhereScopesAreListed))
		return nil, fields.Err()
	case found.Damaged != nil:
		return nil, found.Damaged
	case !found.Exists:
		return nil, nil
	}
	now := m.now()
	subject := found.Subject()
	decision, reason, steps := decide.Explain(subject, query.Requirement, query.Address, now)
	if latest := m.latest(); decision == decide.Allowed && !latest.IsZero() {
		if later, _, _ := decide.Explain(subject, query.Requirement, query.Address, latest); later != decide.Allowed {
			return nil, problem.New(problem.ClockUnsure,
				"it is not known whether the key has expired: the server's clock was set forward, and its operator has to check it")
		}
	}
	key, err := m.show(record, now, m.readMember(ctx))
	if err != nil {
		return nil, err
	}
	explanation := &Explanation{
		Position: m.at(found.Revision), Decision: decision, Reason: reason, Key: key, MemberState: MemberRemoved,
	}
	says := &sentences{query: query, key: key, subject: &subject, policy: found.Policy}
	active := slices.IndexFunc(steps, func(step decide.Step) bool { return step.Check == decide.MemberActive })
	if outcome := steps[active].Outcome; outcome != decide.NotApplicable {
		explanation.MemberState = MemberSuspended
		if outcome == decide.Passed {
			explanation.MemberState = MemberActive
		}
		explanation.Role = subject.Member.Role
		explanation.EffectiveScopes = found.EffectiveScopes()
	}
	final := slices.ContainsFunc(steps, func(step decide.Step) bool {
		return step.Check <= decide.NotExpired && step.Outcome == decide.Failed
	})
	for _, step := range steps {
		explanation.Findings = append(explanation.Findings, Finding{Step: step, Description: says.found(step)})
		if remedy := says.remedy(step, final); remedy != "" && !slices.Contains(explanation.Remedies, remedy) {
			explanation.Remedies = append(explanation.Remedies, remedy)
		}
	}
	return explanation, nil
}

// changesOf returns the newest events up to a revision that a decision on a key depends on: those
// that changed the key, its member, its workspace or, if the reader may see it, the policy.
func (m *Manager) changesOf(ctx context.Context, record *storagev1.KeyRecord, withPolicy bool, revision int64) ([]AuditEvent, error) {
	changes, err := m.newest(ctx, record.GetWorkspaceId(), revision, maxExplainedChanges, func(event *storagev1.AuditRecord) bool {
		return event.GetAction() != storagev1.AuditAction_AUDIT_ACTION_UPGRADED && concerns(event, record)
	})
	if err != nil || !withPolicy {
		return changes, err
	}
	ofPolicy, err := m.newest(ctx, "", revision, maxPolicyChanges, func(event *storagev1.AuditRecord) bool {
		return event.GetAction() != storagev1.AuditAction_AUDIT_ACTION_UPGRADED
	})
	if err != nil {
		return nil, err
	}
	changes = append(changes, ofPolicy...)
	slices.SortFunc(changes, func(a, b AuditEvent) int { return cmp.Compare(b.Revision, a.Revision) })
	return changes[:min(len(changes), maxExplainedChanges)], nil
}

// concerns reports whether an event changed a key, its member or its workspace.
func concerns(event *storagev1.AuditRecord, key *storagev1.KeyRecord) bool {
	if len(event.GetChanges()) == 0 { // of schema 1
		return event.GetKeyId() == key.GetKeyId() || event.GetKeyId() == "" && event.GetMemberId() == key.GetMemberId() ||
			event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED
	}
	return slices.ContainsFunc(event.GetChanges(), func(change *storagev1.RecordChange) bool {
		switch change.GetKind() {
		case storagev1.RecordKind_RECORD_KIND_KEY:
			return change.GetName() == key.GetKeyId()
		case storagev1.RecordKind_RECORD_KIND_MEMBER:
			return change.GetName() == key.GetMemberId()
		case storagev1.RecordKind_RECORD_KIND_WORKSPACE:
			return true
		case storagev1.RecordKind_RECORD_KIND_POLICY, storagev1.RecordKind_RECORD_KIND_SETTINGS, storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
		}
		return false
	})
}

// newest returns the newest events of a workspace, or of the policy, up to a revision that are
// wanted: at most limit, and among those of maxAuditReads reads.
func (m *Manager) newest(ctx context.Context, workspaceID string, revision int64, limit int, wanted func(*storagev1.AuditRecord) bool) ([]AuditEvent, error) {
	var newest []AuditEvent
	query := storage.AuditQuery{WorkspaceID: workspaceID, Before: revision + 1, Limit: storage.MaxPage}
	for range maxAuditReads {
		scan, err := m.store.ScanAuditEvents(ctx, query)
		if err != nil {
			return nil, err
		}
		for _, event := range scan.Events {
			if !wanted(event.Record) {
				continue
			}
			if newest = append(newest, shownEvent(event)); len(newest) == limit {
				return newest, nil
			}
		}
		if query.Before = scan.Next; query.Before == 0 {
			break
		}
	}
	return newest, nil
}

// sentences says in words what the checks of an explanation found.
type sentences struct {
	query   *ExplainQuery
	key     *Key
	subject *decide.Subject
	policy  *projection.Policy
}

// found describes a step.
func (s *sentences) found(step decide.Step) string {
	passed := step.Outcome == decide.Passed
	member, scope := s.key.MemberID, s.query.Requirement.Scope
	switch step.Check {
	case decide.NotRevoked:
		if passed {
			return "The key was not revoked."
		}
		return "The key was revoked" + s.revocation() + "."
	case decide.WorkspaceExists:
		return fmt.Sprintf("Workspace %s %s.", s.key.WorkspaceID, s.removal(passed, StopWorkspaceRemoved))
	case decide.MemberExists:
		return fmt.Sprintf("Member %s %s.", member, s.removal(passed, StopMemberRemoved))
	case decide.NotExpired:
		verb := "expired"
		if passed {
			verb = "expires"
		}
		return fmt.Sprintf("The key %s at %s.", verb, inUTC(s.key.ExpireTime))
	case decide.NotHeld:
		return "The key is held" + s.since(StopHeld) + ": the store was restored from a backup, and what was revoked or narrowed since is not known."
	case decide.MemberActive:
		switch step.Outcome {
		case decide.Passed:
			return fmt.Sprintf("Member %s is active.", member)
		case decide.Failed:
			return fmt.Sprintf("Member %s was suspended%s.", member, s.since(StopMemberSuspended))
		case decide.NotApplicable:
		}
		return "There is no such member any more."
	case decide.AddressAllowed:
		return s.address(passed)
	case decide.ScopeGranted:
		switch step.Outcome {
		case decide.Passed:
			return fmt.Sprintf("The key was granted %s.", scope)
		case decide.Failed:
			return fmt.Sprintf("The key was not granted %s; it has %s.", scope, strings.Join(s.key.Scopes, ", "))
		case decide.NotApplicable:
		}
		return "The request needs no scope."
	case decide.ScopeWithinRole:
		switch step.Outcome {
		case decide.Passed:
			return fmt.Sprintf("The member's role %s has %s.", s.subject.Member.Role, scope)
		case decide.Failed:
			return fmt.Sprintf("The member's role %s does not have %s.", s.subject.Member.Role, scope)
		case decide.NotApplicable:
		}
		if s.query.Requirement.Scope == "" {
			return "The request needs no scope."
		}
		return "There is no such member any more."
	}
	return ""
}

func (s *sentences) revocation() string {
	text := " at " + inUTC(s.key.RevokeTime)
	if by := s.key.RevokedBy; by != nil {
		text += " by " + by.Caller
		if by.MemberID != "" {
			text += ", which said that it acted for " + by.MemberID
		}
	}
	if s.key.StopReason == StopReported {
		text += ": its token was reported"
	}
	return text
}

// removal tells of the key's workspace or member that it was removed, or was not.
func (s *sentences) removal(passed bool, reason StopReason) string {
	if passed {
		return "was not removed since the key was created"
	}
	return "was removed after the key was created" + s.since(reason)
}

// since says when the key stopped working, if it did so for a reason and the time is known.
func (s *sentences) since(reason StopReason) string {
	if s.key.StopReason != reason || s.key.StopTime.IsZero() {
		return ""
	}
	return ", at " + inUTC(s.key.StopTime)
}

func (s *sentences) address(passed bool) string {
	allowed := strings.Join(s.key.AllowedCIDRs, ", ")
	switch {
	case allowed == "":
		return "The key may be used from any address."
	case !s.query.Address.IsValid():
		return fmt.Sprintf("No client address was given, and the key may only be used from %s.", allowed)
	case passed:
		return fmt.Sprintf("The key may be used from %s, which includes %s.", allowed, s.query.Address)
	}
	return fmt.Sprintf("The key may only be used from %s, and not from %s.", allowed, s.query.Address)
}

// remedy says what would have to change so that a step passes; "" for a step that did not fail. A
// key that can never work again is replaced, and gets its scopes and addresses then.
func (s *sentences) remedy(step decide.Step, final bool) string {
	if step.Outcome != decide.Failed {
		return ""
	}
	switch step.Check {
	case decide.NotRevoked, decide.NotExpired:
		return "Create another key with CreateKey: this one never works again."
	case decide.WorkspaceExists, decide.MemberExists:
		return "Add the member with PutMember, and create another key with CreateKey: this one never works again."
	case decide.NotHeld:
		return "Find out what was done to the key since the backup, and release it with ReleaseKeys."
	case decide.MemberActive:
		return "Make the member active with PutMember."
	case decide.AddressAllowed:
		switch {
		case final:
			return ""
		case !s.query.Address.IsValid():
			return "Let the service send the presenter's address as client_address."
		}
		return "Add the address to allowed_cidrs with UpdateKey."
	case decide.ScopeGranted:
		if final {
			return ""
		}
		return "Grant the scope to the key with UpdateKey."
	case decide.ScopeWithinRole:
		var able []string
		for _, role := range s.policy.Roles {
			if s.policy.Role(role.Name).Contains(s.query.Requirement.Scope) {
				able = append(able, role.Name)
			}
		}
		if len(able) == 0 {
			return "Let a role have the scope with ApplyPolicy, and give the member that role."
		}
		return fmt.Sprintf("Give the member a role that has the scope with PutMember: %s; or change the role with ApplyPolicy.", strings.Join(able, ", "))
	}
	return ""
}

func inUTC(at time.Time) string { return at.UTC().Truncate(time.Second).Format(time.RFC3339) }
