package keys

import (
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// This file decides where a caller may do what a verb does. Each verb is given the workspaces that
// the caller has the verb's right for: a verb that changes something in audit.Actor, a verb that
// reads as visible.
//
// A verb calls mayChange or sees before anything else: before it looks anything up, takes a barrier
// or waits for its turn. So neither an answer nor the time that it takes tells what there is in a
// workspace of others. Manager.change asks again, so that a verb that forgot to ask changes nothing.

// mayChange returns nil if the actor may change a workspace, and CALLER_NOT_ALLOWED otherwise. A
// caller that is limited to some workspaces and sends no id of a workspace gets FIELD_INVALID,
// with the name of the field.
func mayChange(actor audit.Actor, field, workspaceID string) error {
	if actor.Workspaces.Has(workspaceID) {
		return nil // the verb checks the form of the id
	}
	if err := named(actor.Workspaces, field, workspaceID); err != nil {
		return err
	}
	return notAllowed()
}

// mayChangeAll returns nil if the actor may change everything, and CALLER_NOT_ALLOWED otherwise.
func mayChangeAll(actor audit.Actor) error {
	if actor.Workspaces.IsAll() {
		return nil
	}
	return problem.New(problem.CallerNotAllowed,
		"the caller may not do this: it concerns all workspaces, and the caller does not have the right for all of them")
}

// sees reports whether a reader sees a workspace; the empty workspaceID stands for all workspaces. A
// workspace that it does not see must be answered as one that does not exist. Errors:
// CALLER_NOT_ALLOWED if the reader sees nothing at all, and FIELD_INVALID if it sees some workspaces
// only and names none.
func sees(visible access.Workspaces, workspaceID string) (bool, error) {
	if err := named(visible, "workspace_id", workspaceID); err != nil {
		return false, err
	}
	return visible.Has(workspaceID), nil
}

// named refuses an id of a workspace that is missing or malformed, if the caller is limited to some
// workspaces, and everything if the caller has no workspace.
func named(workspaces access.Workspaces, field, workspaceID string) error {
	switch {
	case workspaces.IsAll():
		return nil
	case workspaces.IsEmpty():
		return notAllowed()
	}
	var fields problem.Fields
	if workspaceID == "" {
		fields.Add(field, "is missing; the caller is limited to some workspaces, and must name one of them")
	} else {
		checkID(&fields, field, workspaceID)
	}
	return fields.Err()
}

func notAllowed() error {
	return problem.New(problem.CallerNotAllowed, "the caller may not do this, or not in this workspace")
}
