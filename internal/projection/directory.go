package projection

import (
	"cmp"
	"slices"
	"time"
)

// WorkspaceQuery selects workspaces.
type WorkspaceQuery struct {
	// After is the id that the ids of the workspaces come after; "" for the first page.
	After string
	// Limit is the max number of workspaces. At least 1.
	Limit int
	// Limited is set if only the workspaces in Among are wanted.
	Limited bool
	// Among are ids of workspaces, which need not exist.
	Among []string
	// Active and Removed say which states are wanted.
	Active, Removed bool
}

// WorkspaceSummary is a workspace in a list.
type WorkspaceSummary struct {
	// ID is the workspace's id.
	ID string
	// Current is the workspace.
	Current *Current
	// Keys and Members are how many records of keys and of members the workspace has, whatever
	// their state.
	Keys, Members int
}

// ListWorkspaces returns workspaces by ascending id, and the WorkspaceQuery.After of the page that
// follows, "" if none follows. What it returns is as of one revision. A workspace that comes, or
// changes its state, meanwhile may be missing. The error is a storage.DamagedError if the record of
// one of the workspaces cannot be read.
func (p *Projection) ListWorkspaces(query WorkspaceQuery) (page []WorkspaceSummary, next string, err error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	s.walks.Add(1)
	defer s.walks.Add(-1)
	var first firstOf
	if query.Limited {
		first = p.firstAmong(s, query)
	} else {
		first = p.firstOfAll(s, query)
	}
	found := first.take()
	// From here on the lock is held without a break.
	if len(found) > query.Limit {
		found = found[:query.Limit]
		next = found[query.Limit-1].id
	}
	for _, each := range found {
		if damaged := s.damagedWorkspaces[each.number]; damaged != nil {
			return nil, "", damaged
		}
		if query.wants(s, each) {
			page = append(page, WorkspaceSummary{ID: each.id, Current: each.current, Keys: each.keys.Len(), Members: each.members.Len()})
		}
	}
	return page, next, nil
}

// firstOfAll returns the first workspaces of a query that is not limited. mutex is held for reading,
// and released between strides.
func (p *Projection) firstOfAll(s *state, query WorkspaceQuery) firstOf {
	first := firstOf{limit: query.Limit + 1}
	for number := 1; number < len(s.numbered); number++ { // workspaces are only ever added
		if each := s.numbered[number]; each.id > query.After && query.wants(s, each) {
			first.add(each)
		}
		if number%stride == 0 {
			p.giveWay()
		}
	}
	return first
}

// firstAmong returns the first workspaces of a limited query. mutex is held for reading, and released
// between strides.
func (p *Projection) firstAmong(s *state, query WorkspaceQuery) firstOf {
	first := firstOf{limit: query.Limit + 1}
	for index, id := range query.Among {
		if each := s.workspaces[id]; each != nil && id > query.After && query.wants(s, each) {
			first.add(each)
		}
		if (index+1)%stride == 0 {
			p.giveWay()
		}
	}
	return first
}

// wants reports whether a workspace is selected by its state. A damaged one is, because an answer
// without it would be wrong.
func (q WorkspaceQuery) wants(s *state, of *workspace) bool {
	switch {
	case of.id == "":
		return false // the policy's
	case s.damagedWorkspaces[of.number] != nil:
		return true
	case of.current == nil:
		return false
	case of.current.Removed:
		return q.Removed
	}
	return q.Active
}

// firstOf keeps the first workspaces by id of those that are added.
type firstOf struct {
	limit int
	kept  []*workspace
	// bound is the id that every wanted id comes before; "" at first.
	bound string
}

// add adds a workspace, at most once.
func (f *firstOf) add(each *workspace) {
	if f.bound != "" && each.id >= f.bound {
		return
	}
	// Sorting once for limit additions costs less than keeping the list sorted.
	if f.kept = append(f.kept, each); len(f.kept) >= 2*f.limit {
		f.kept = f.take()
		f.bound = f.kept[f.limit-1].id
	}
}

// take returns the first workspaces, sorted.
func (f *firstOf) take() []*workspace {
	slices.SortFunc(f.kept, func(a, b *workspace) int { return cmp.Compare(a.id, b.id) })
	return f.kept[:min(len(f.kept), f.limit)]
}

// RemovedAt returns when the workspace was removed; zero if it is active.
func (w WorkspaceSummary) RemovedAt() time.Time {
	if !w.Current.Removed {
		return time.Time{}
	}
	return w.Current.Since()
}

// Totals is how much a projection holds.
type Totals struct {
	// Keys, Members and Workspaces are how many records there are, whatever their state.
	Keys, Members, Workspaces int
	// Damaged is how many records cannot be read.
	Damaged int
}

// Totals counts what the projection holds. It visits every workspace, and no key and no member.
func (p *Projection) Totals() Totals {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	totals := Totals{Damaged: len(s.damagedKeys) + len(s.damagedLives) + len(s.damagedWorkspaces) + len(s.damagedHeads)}
	if s.damagedPolicy != nil {
		totals.Damaged++
	}
	for number := 1; number < len(s.numbered); number++ {
		each := s.numbered[number]
		totals.Keys += each.keys.Len()
		totals.Members += each.members.Len()
		if each.current != nil {
			totals.Workspaces++
		}
		if number%stride == 0 {
			p.giveWay()
		}
	}
	return totals
}
