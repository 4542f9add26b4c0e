package keys

import (
	"context"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// WorkspaceState is whether a workspace's keys can work. The numbers are those of the API.
type WorkspaceState int32

// The states of a workspace.
const (
	// WorkspaceStateUnspecified is the state of no workspace.
	WorkspaceStateUnspecified WorkspaceState = iota
	// WorkspaceActive workspaces have keys that can be used.
	WorkspaceActive
	// WorkspaceRemoved workspaces have no keys: those that they had count as revoked.
	WorkspaceRemoved
)

// Workspace is a workspace as callers see it.
type Workspace struct {
	// ID is the product's id of the workspace.
	ID string
	// State is whether the workspace's keys can work.
	State WorkspaceState
	// CreateTime is when the workspace was created, or created again after a removal.
	CreateTime time.Time
	// RemoveTime is when the workspace was removed; zero if it is active.
	RemoveTime time.Time
	// Keys and Members are how many keys and members the workspace has, whatever their state.
	Keys, Members int
}

// WorkspaceQuery selects the workspaces that ListWorkspaces returns.
type WorkspaceQuery struct {
	// States, if not empty, selects workspaces in one of these states.
	States []WorkspaceState
	// PageSize is the max number of workspaces on a page: up to MaxPageSize, 0 for DefaultPageSize.
	PageSize int
	// PageToken is NextPageToken of the page before, given with the same states; empty for the
	// first page.
	PageToken string
}

// WorkspacePage is one page of a list of workspaces.
type WorkspacePage struct {
	// Position is that of the page: every workspace is as of it, or later.
	Position

	// Workspaces are by ascending id.
	Workspaces []*Workspace
	// NextPageToken is the PageToken of the next page; empty on the last page.
	NextPageToken string
}

// ListWorkspaces reads a page of the workspaces that the caller sees, by ascending id. Errors:
// CALLER_NOT_ALLOWED if the caller sees none, other *problem.Error, and those of the store and the
// context.
func (m *Manager) ListWorkspaces(ctx context.Context, visible access.Workspaces, query WorkspaceQuery) (*WorkspacePage, error) {
	if visible.IsEmpty() {
		return nil, notAllowed()
	}
	var fields problem.Fields
	size := pageSize(&fields, query.PageSize)
	wanted := projection.WorkspaceQuery{
		Limit: size, Limited: !visible.IsAll(), Among: visible.Names(),
		Active:  len(query.States) == 0 || slices.Contains(query.States, WorkspaceActive),
		Removed: len(query.States) == 0 || slices.Contains(query.States, WorkspaceRemoved),
	}
	for _, state := range query.States {
		if state != WorkspaceActive && state != WorkspaceRemoved {
			fields.Add("states", "has an unknown state; active and removed are allowed")
			break
		}
	}
	if err := fields.Err(); err != nil {
		return nil, err // a page token cannot be compared with bad states
	}
	// The order and the number of the states make no difference to the list.
	digest := pageDigest("workspaces", []bool{wanted.Active, wanted.Removed})
	wanted.After = parsePageToken(&fields, query.PageToken, digest)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	// The projection is read alone, so it must first have every change that was acknowledged before
	// the call.
	if err := m.projection.Fresh(ctx); err != nil {
		return nil, err
	}
	result := &WorkspacePage{Position: m.at(m.projection.Revision())}
	page, next, err := m.projection.ListWorkspaces(wanted)
	if err != nil {
		return nil, err
	}
	for _, each := range page {
		result.Workspaces = append(result.Workspaces, showWorkspace(each))
	}
	result.NextPageToken = makePageToken(next, digest)
	return result, nil
}

func showWorkspace(summary projection.WorkspaceSummary) *Workspace {
	shown := &Workspace{
		ID: summary.ID, State: WorkspaceActive, CreateTime: summary.Current.Created, RemoveTime: summary.RemovedAt(),
		Keys: summary.Keys, Members: summary.Members,
	}
	if summary.Current.Removed {
		shown.State = WorkspaceRemoved
	}
	return shown
}
