package cli

import (
	"cmp"
	"fmt"
	"slices"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/roster"
)

// planKind is what a step of a plan does.
type planKind int

// The kinds of steps, in the order in which a plan lists them and applies them: what takes access
// away comes first, because that is made even while the disk is full.
const (
	planRemove planKind = iota
	planSuspend
	planChange
	planAdd
	// planOutdated is a line that the server would refuse: its version is behind the one that keysvc
	// has.
	planOutdated
	// planSameVersion is one that it would refuse because the line has keysvc's version with other
	// content.
	planSameVersion
)

// refused reports whether the server would refuse such a step, so that it is not sent.
func (k planKind) refused() bool { return k == planOutdated || k == planSameVersion }

// planStep is one difference between what the product has and what keysvc has.
type planStep struct {
	kind planKind
	// line is the line of the file; 0 for a member that the file does not have.
	line int
	// wanted is the member as it is to be.
	wanted roster.Member
	// have is the member as it is; nil for none.
	have *keysvcv1.Member
}

// memberPlan is what makes keysvc have what the product has.
type memberPlan struct {
	steps     []planStep
	unchanged int
}

// add compares the members that the product has of one workspace with those that keysvc has of it.
func (p *memberPlan) add(workspaceID string, wanted []roster.Member, have []*keysvcv1.Member) {
	byID := make(map[string]*keysvcv1.Member, len(have))
	for _, member := range have {
		byID[member.GetMemberId()] = member
	}
	for _, member := range wanted {
		present := byID[member.MemberID]
		delete(byID, member.MemberID)
		kind, differs := compareMember(member, present)
		if !differs {
			p.unchanged++
			continue
		}
		p.steps = append(p.steps, planStep{kind: kind, line: member.Line, wanted: member, have: present})
	}
	for _, member := range have {
		if byID[member.GetMemberId()] == nil || member.GetState() == keysvcv1.MemberState_MEMBER_STATE_REMOVED {
			continue
		}
		p.steps = append(p.steps, planStep{
			kind: planRemove, have: member,
			wanted: roster.Member{WorkspaceID: workspaceID, MemberID: member.GetMemberId(), State: roster.Removed},
		})
	}
}

// sort puts the steps into their order.
func (p *memberPlan) sort() {
	slices.SortStableFunc(p.steps, func(a, b planStep) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.wanted.WorkspaceID, b.wanted.WorkspaceID), cmp.Compare(a.wanted.MemberID, b.wanted.MemberID))
	})
}

// count returns how many steps are of a kind.
func (p *memberPlan) count(kinds ...planKind) int {
	number := 0
	for _, step := range p.steps {
		if slices.Contains(kinds, step.kind) {
			number++
		}
	}
	return number
}

// compareMember compares a line with the member that keysvc has, which is nil for none, and reports
// whether something is to be done.
func compareMember(wanted roster.Member, have *keysvcv1.Member) (kind planKind, differs bool) {
	gone := have == nil || have.GetState() == keysvcv1.MemberState_MEMBER_STATE_REMOVED
	same := !gone && have.GetRole() == wanted.Role && stateOf(have) == wanted.State
	if wanted.State == roster.Removed {
		same = gone
	}
	version, known := wanted.SourceVersion, have.GetSourceVersion()
	switch {
	case same && (version == nil || *version <= known || gone):
		return 0, false // a version behind the stored one with equal content does no harm
	case version != nil && *version < known:
		return planOutdated, true
	case version != nil && *version == known && known > 0:
		return planSameVersion, true
	case wanted.State == roster.Removed:
		return planRemove, true
	case gone:
		return planAdd, true
	case wanted.State == roster.Suspended && stateOf(have) == roster.Active:
		return planSuspend, true
	}
	return planChange, true
}

// stateOf returns the state of a member as files have it; another text for a state that this command
// does not know.
func stateOf(member *keysvcv1.Member) roster.State {
	return roster.State(enumWord(member.GetState(), memberStatePrefix))
}

// text returns the plan, a line for each step: - for removed, ~ for changed, + for added, ! for a
// line that would be refused.
func (p *memberPlan) text() string {
	var t table
	for _, step := range p.steps {
		signs := map[planKind]string{planRemove: "-", planSuspend: "~", planChange: "~", planAdd: "+", planOutdated: "!", planSameVersion: "!"}
		t.add("  "+signs[step.kind], step.wanted.WorkspaceID, step.wanted.MemberID, step.difference())
	}
	return t.take()
}

// difference says what a step changes.
func (s planStep) difference() string {
	was := fmt.Sprintf("%s, %s", s.have.GetRole(), stateOf(s.have))
	will := fmt.Sprintf("%s, %s", s.wanted.Role, s.wanted.State)
	if s.wanted.State == roster.Removed {
		will = string(roster.Removed)
	}
	switch s.kind {
	case planRemove:
		if s.line == 0 {
			return was + "; the file does not have the member"
		}
		return was
	case planAdd:
		if s.have != nil {
			return will + "; was removed before"
		}
		return will
	case planOutdated:
		return fmt.Sprintf("line %d has source_version %d, and keysvc has %d", s.line, *s.wanted.SourceVersion, s.have.GetSourceVersion())
	case planSameVersion:
		return fmt.Sprintf("line %d has source_version %d as keysvc has, with other content: %s → %s", s.line, *s.wanted.SourceVersion, was, will)
	case planSuspend, planChange:
	}
	if was == will {
		return fmt.Sprintf("source_version %d → %d", s.have.GetSourceVersion(), *s.wanted.SourceVersion)
	}
	return was + " → " + will
}

// planShown is a plan and what became of it, for programs.
type planShown struct {
	Steps     []stepShown `json:"steps"`
	Unchanged int         `json:"unchanged"`
	// Made is how many of the steps were made.
	Made int `json:"made"`
}

// stepShown is a step of a plan.
type stepShown struct {
	Action      string `json:"action"`
	Line        int    `json:"line,omitempty"`
	WorkspaceID string `json:"workspace_id"`
	MemberID    string `json:"member_id"`
	// Before is what keysvc has, and After what the file has; nil for nothing.
	Before *memberShown `json:"before,omitempty"`
	After  *memberShown `json:"after,omitempty"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
}

// memberShown is a member as keysvc or the file has it. The version is a text as in the API.
type memberShown struct {
	Role          string       `json:"role,omitempty"`
	State         roster.State `json:"state"`
	SourceVersion *int64       `json:"source_version,omitempty,string"`
}

// shown returns the plan for programs, with the steps that failed.
func (p *memberPlan) shown(made int, failures []stepFailure) planShown {
	actions := map[planKind]string{
		planRemove: "remove", planSuspend: "change", planChange: "change", planAdd: "add",
		planOutdated: "none_outdated", planSameVersion: "none_same_version",
	}
	failed := make(map[[2]string]error, len(failures))
	for _, failure := range failures {
		failed[[2]string{failure.step.wanted.WorkspaceID, failure.step.wanted.MemberID}] = failure.err
	}
	shown := planShown{Steps: []stepShown{}, Unchanged: p.unchanged, Made: made}
	for _, step := range p.steps {
		each := stepShown{Action: actions[step.kind], Line: step.line, WorkspaceID: step.wanted.WorkspaceID, MemberID: step.wanted.MemberID}
		if step.have != nil {
			each.Before = &memberShown{step.have.GetRole(), stateOf(step.have), new(step.have.GetSourceVersion())}
		}
		if step.line > 0 {
			each.After = &memberShown{step.wanted.Role, step.wanted.State, step.wanted.SourceVersion}
		}
		if err := failed[[2]string{each.WorkspaceID, each.MemberID}]; err != nil {
			each.Error = err.Error()
		}
		shown.Steps = append(shown.Steps, each)
	}
	return shown
}

// summary returns the plan in one line.
func (p *memberPlan) summary() string {
	text := fmt.Sprintf("%d to add, %d to change, %d to remove, %d unchanged",
		p.count(planAdd), p.count(planChange, planSuspend), p.count(planRemove), p.unchanged)
	if outdated := p.count(planOutdated); outdated > 0 {
		text += fmt.Sprintf(", %d outdated", outdated)
	}
	if same := p.count(planSameVersion); same > 0 {
		text += fmt.Sprintf(", %d of the same version with other content", same)
	}
	return text + "."
}
