package restore

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
)

// Words of events for the state of a member.
const (
	stateActive    = "MEMBER_STATE_ACTIVE"
	stateSuspended = "MEMBER_STATE_SUSPENDED"
	stateRemoved   = "MEMBER_STATE_REMOVED"
)

// narrowMember returns the member of a backup with everything taken away that the events took away.
// A member that was removed stays removed, and one that was suspended stays suspended, whatever came
// afterwards. active is the policy of the restored store.
func narrowMember(stored *storagev1.MemberRecord, altered []*alteration, active *policy.Policy) (*storagev1.MemberRecord, outcome) {
	var o outcome
	record := proto.CloneOf(stored)
	role, roles := stored.GetRole(), []string{stored.GetRole()}
	for _, event := range altered {
		if event.action == restarts {
			role = stored.GetRole()
			continue
		}
		isGone := record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
		if event.deleted {
			if !isGone { // it counted as removed, as the members of a removed workspace do
				remove(record, event)
				o.narrow("removed")
			}
			continue
		}
		if isGone {
			if event.action != storagev1.AuditAction_AUDIT_ACTION_MEMBER_REMOVED {
				o.widen("added again")
			}
			continue // the events that follow are those of another life
		}
		o.unclear = o.unclear || event.unclear
		version := int64(0)
		narrowed := len(o.narrowed)
		for _, field := range event.fields {
			switch name := field.GetField(); name {
			case "member.create_time":
				if event.action == storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT && len(field.GetBefore()) > 0 {
					remove(record, event)
					o.narrow("removed")
					o.widen("added again")
				}
			case "member.state":
				setState(record, event, field.GetAfter(), &o)
			case "member.role":
				o.unclear = o.unclear || !slices.Equal(field.GetBefore(), one(role))
				role = strings.Join(field.GetAfter(), "")
				roles = append(roles, role)
			case "member.source_version":
				version, _ = strconv.ParseInt(strings.Join(field.GetAfter(), ""), 10, 64) // 0 without one
			default:
				if !strings.HasPrefix(name, "member.") {
					o.unclear = true
				}
			}
		}
		// The version goes with what was narrowed. A push that was not replayed may come again.
		if len(o.narrowed) > narrowed && version > record.GetSourceVersion() {
			record.SourceVersion = version
		}
	}
	setRole(record, roles, active, &o)
	if len(o.narrowed) > 0 && len(altered) > 0 {
		record.UpdateTime = timestamppb.New(altered[len(altered)-1].time)
	}
	return record, o
}

// one returns a list of one word; none for "".
func one(word string) []string {
	if word == "" {
		return nil
	}
	return []string{word}
}

func remove(record *storagev1.MemberRecord, event *alteration) {
	record.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
	record.StateTime = timestamppb.New(event.time)
}

// setState applies a new state.
func setState(record *storagev1.MemberRecord, event *alteration, after []string, o *outcome) {
	switch strings.Join(after, ",") {
	case stateRemoved:
		remove(record, event)
		o.narrow("removed")
	case stateSuspended:
		if record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE {
			record.State, record.StateTime = storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED, timestamppb.New(event.time)
			o.narrow("suspended")
		}
	case stateActive:
		o.widen("active again")
	default:
		o.unclear = true
	}
}

// setRole gives a member the role that allows no more than any of the roles that it had, in the policy
// of the restored store. That policy allows no role more than the role was ever allowed.
func setRole(record *storagev1.MemberRecord, roles []string, active *policy.Policy, o *outcome) {
	scopes := func(role string) decide.Scopes {
		found, _ := active.RoleScopes(role)
		return found
	}
	withinAll := func(role string) bool {
		return !slices.ContainsFunc(roles, func(other string) bool { return len(scopes(role).Without(scopes(other))) > 0 })
	}
	newest := roles[len(roles)-1]
	switch chosen := slices.IndexFunc(roles, withinAll); {
	case chosen < 0:
		// Each role allows something that another one does not.
		record.Role, o.unclear = newest, true
	case withinAll(roles[0]) && (newest != roles[0]):
		o.widen("role")
	case withinAll(roles[0]):
	case withinAll(newest):
		record.Role = newest
	default:
		record.Role = roles[chosen]
	}
	if record.GetRole() != roles[0] {
		o.narrow("role")
	}
}

// narrowWorkspace returns the workspace of a backup, removed if it was removed since.
func narrowWorkspace(stored *storagev1.WorkspaceRecord, altered []*alteration) (*storagev1.WorkspaceRecord, outcome) {
	var o outcome
	record := proto.CloneOf(stored)
	for _, event := range altered {
		if event.action == restarts {
			continue
		}
		o.unclear = o.unclear || event.unclear
		repaired := event.action == storagev1.AuditAction_AUDIT_ACTION_CLOCK_REPAIRED
		for _, field := range event.fields {
			switch field.GetField() {
			case "workspace.create_time":
				if repaired || len(field.GetBefore()) == 0 {
					continue
				}
				o.widen("added again")
				if record.GetRemoveTime() == nil {
					record.RemoveTime = timestamppb.New(event.time)
					o.narrow("removed")
				}
			case "workspace.remove_time":
				if at, ok := timeOf(field.GetAfter()); ok && record.GetRemoveTime() == nil {
					record.RemoveTime = at
					o.narrow("removed")
				}
			case "workspace.removal_source_version":
				version, err := strconv.ParseInt(strings.Join(field.GetAfter(), ""), 10, 64)
				if err == nil && version > record.GetRemovalSourceVersion() && event.action == storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED {
					record.RemovalSourceVersion = version
					o.narrow("source version of its removal")
				}
			default:
				o.unclear = true
			}
		}
	}
	return record, o
}
