// Package restore makes a store from a backup without bringing back what was taken away since. The
// audit sink says what that was; what the sink cannot say is held for a person. The package knows
// records and events, and no backend.
package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// maxDoubts is how many doubts a Since names.
const maxDoubts = 20

// Since is what an audit sink says about the time since a backup.
type Since struct {
	// Files are those that were read, in their order. Lines is how many events they have that are
	// newer than the backup.
	Files []string
	Lines int64
	// From is the position of the backup, and Newest that of the newest line of the sink. LastTime is
	// the time of the newest event.
	From, Newest anchor.Mark
	LastTime     time.Time
	// Doubts say why the sink may lack events. Without one, it has every event from the backup up to
	// its last line. More is how many more there are.
	Doubts []string
	More   int

	// policy has the events of the policy, and workspaces those of each workspace.
	policy     []*alteration
	workspaces map[string]*workspaceSince
	// created is how many keys were created, and lost names the first of them.
	created int64
	lost    []Line
}

// workspaceSince has the events of one workspace, by the records that they alter.
type workspaceSince struct {
	own           []*alteration
	members, keys map[string][]*alteration
	// chain ends in the newest event. first is the event that the backup's chain must lead to.
	chain storage.Head
	first *storagev1.AuditRecord
	// broken is set once an event was missing.
	broken bool
}

// alteration is what one event altered in one record.
type alteration struct {
	action storagev1.AuditAction
	time   time.Time
	by     *storagev1.ChangedByRecord
	// fields are the fields of this record, with their names in it.
	fields []*storagev1.FieldChange
	// deleted is set if the record was deleted.
	deleted bool
	// unclear is set if the event does not say everything.
	unclear bool
}

// Follow reads the files of an audit sink, in any order, and collects what they say about the time
// after from, the position of a backup. progress, which may be nil, is called with the number of lines
// that were read. What is wrong with the sink becomes a doubt. Errors: those of the file system, and
// the context's.
func Follow(ctx context.Context, files []string, from anchor.Mark, progress func(lines int64)) (*Since, error) {
	return follow(ctx, files, from, false, progress)
}

// FollowSparse is Follow for the sink of a store whose revisions have gaps, because others use them as well. It
// notices that an event is missing by the workspace's next event alone. So the person's word that the sink is complete is also about
// the last line of each workspace.
func FollowSparse(ctx context.Context, files []string, from anchor.Mark, progress func(lines int64)) (*Since, error) {
	return follow(ctx, files, from, true, progress)
}

func follow(ctx context.Context, files []string, from anchor.Mark, sparse bool, progress func(lines int64)) (*Since, error) {
	since := &Since{From: from, workspaces: make(map[string]*workspaceSince)}
	if len(files) == 0 {
		since.doubt("no audit sink was read")
		return since, nil
	}
	ordered, err := sink.Order(files)
	if err != nil {
		return nil, err
	}
	since.Files = ordered
	reader := sink.NewReader(ordered...)
	defer reader.Close() //nolint:errcheck // only read
	f := &following{Since: since, sparse: sparse}
	for count := int64(1); ; count++ {
		line, err := reader.Next()
		name, number := reader.Where()
		broken := (*sink.LineError)(nil)
		switch {
		case errors.Is(err, io.EOF):
			f.end()
			return since, ctx.Err()
		case errors.As(err, &broken):
			// A line that is torn may be an event that was acknowledged.
			since.doubt("%v", broken)
		case err != nil:
			return nil, err
		default:
			f.line(line, fmt.Sprintf("%s:%d", name, number))
		}
		if count%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if progress != nil {
				progress(count)
			}
		}
	}
}

// doubt notes why the sink may lack events.
func (s *Since) doubt(format string, arguments ...any) {
	if len(s.Doubts) == maxDoubts {
		s.More++
		return
	}
	s.Doubts = append(s.Doubts, fmt.Sprintf(format, arguments...))
}

// MustReach notes a doubt if the sink ends before a mark, which something else remembers.
func (s *Since) MustReach(mark anchor.Mark) {
	if mark.Epoch != s.Newest.Epoch || mark.Revision > s.Newest.Revision || mark.Revision == s.Newest.Revision && mark.Hash != s.Newest.Hash {
		s.doubt("the anchor knows revision %d of epoch %s, and the sink ends at revision %d of epoch %s: lines are missing",
			mark.Revision, mark.Epoch, s.Newest.Revision, s.Newest.Epoch)
	}
}

// IsWhole reports whether the sink has every event from the backup up to its last line. Whether that
// line is the last one that there was, the sink cannot say.
func (s *Since) IsWhole() bool { return len(s.Doubts) == 0 }

// following follows the lines.
type following struct {
	*Since
	// at is the position that the next line must follow on. Its epoch is empty until the position of
	// the backup was found.
	at anchor.Mark
	// sparse is set if revisions may be missing, and several events may have one.
	sparse bool
}

// follows reports whether an event may be the next one.
func (f *following) follows(mark anchor.Mark) bool {
	if f.sparse {
		return mark.Epoch == f.at.Epoch && mark.Revision >= f.at.Revision
	}
	return mark.Epoch == f.at.Epoch && mark.Revision == f.at.Revision+1
}

// line takes a line of a file.
func (f *following) line(line sink.Line, where string) {
	f.Newest = line.Mark
	if line.Event != nil && line.Time.After(f.LastTime) {
		f.LastTime = line.Time
	}
	if f.at.Epoch == "" {
		if line.Mark == f.From {
			f.at = f.From
			return
		}
		// Before the position of the backup there is nothing to do. Behind it there is, even if the
		// position itself was not found: what was taken away must not come back.
		if line.Event != nil && line.Mark.Epoch == f.From.Epoch && line.Mark.Revision > f.From.Revision {
			f.doubt("%s: the sink does not have the position of the backup, revision %d, before revision %d", where, f.From.Revision, line.Mark.Revision)
			f.at = line.Mark
			f.event(line.Event)
		}
		return
	}
	if line.Event == nil {
		f.anchor(line.Mark, where)
		return
	}
	if !f.follows(line.Mark) {
		f.doubt("%s: revision %d follows on revision %d: events between them are missing", where, line.Mark.Revision, f.at.Revision)
	}
	f.at = line.Mark
	f.event(line.Event)
}

// anchor takes an anchor's line after the position of the backup.
func (f *following) anchor(mark anchor.Mark, where string) {
	before := f.at
	f.at = mark
	switch {
	case mark == before:
	case mark.Revision == before.Revision && mark.Hash == before.Hash:
		// A person has accepted the store as it was: nothing was given up.
	case mark.Epoch != before.Epoch && mark.Revision == f.From.Revision && mark.Hash == f.From.Hash:
		// The same backup was restored before. What was narrowed until then, and what was narrowed
		// from then on, stays narrowed. The chains begin again at the backup.
		for _, workspace := range f.workspaces {
			workspace.restart()
		}
	default:
		f.doubt("%s: the sink goes on at revision %d after revision %d: another copy of the store was served, or events are missing", where, mark.Revision, before.Revision)
	}
}

// end looks at what was read.
func (f *following) end() {
	if f.at.Epoch == "" {
		f.doubt("the sink does not have the position of the backup, revision %d of epoch %s", f.From.Revision, f.From.Epoch)
	}
}

// workspace returns what is known about a workspace.
func (s *Since) workspace(id string) *workspaceSince {
	found := s.workspaces[id]
	if found == nil {
		found = &workspaceSince{members: make(map[string][]*alteration), keys: make(map[string][]*alteration)}
		s.workspaces[id] = found
	}
	return found
}

// restart lets the next event follow on the backup.
func (w *workspaceSince) restart() {
	again := &alteration{action: restarts}
	w.chain = storage.Head{}
	w.own = append(w.own, again)
	for id := range w.members {
		w.members[id] = append(w.members[id], again)
	}
	for id := range w.keys {
		w.keys[id] = append(w.keys[id], again)
	}
}

// restarts stands for an anchor's line from which on the events follow on the backup again.
const restarts = storagev1.AuditAction_AUDIT_ACTION_UNSPECIFIED

// event takes an event.
func (f *following) event(event *storage.AuditEvent) {
	record := event.Record
	f.Lines++
	workspace := f.workspace(record.GetWorkspaceId())
	// 1. The event must follow on the workspace's event before it. The first one must follow on the
	// backup, which is not known yet.
	if workspace.chain.Sequence == 0 {
		if workspace.first == nil {
			workspace.first = record
		} else if workspace.first.GetSequence() != record.GetSequence() || string(workspace.first.GetPreviousHash()) != string(record.GetPreviousHash()) {
			workspace.broken = true
		}
	} else if !workspace.chain.Follows(record) {
		workspace.broken = true
	}
	workspace.chain = storage.Head{Sequence: record.GetSequence(), Hash: storage.HashAudit(event.Encoded)}
	// 2. Each record that the change has put or deleted is one alteration.
	if len(record.GetChanges()) == 0 {
		f.doubt("the event %d of workspace %q does not list what it changed", record.GetSequence(), record.GetWorkspaceId())
	}
	for _, change := range record.GetChanges() {
		name := change.GetName()
		altered := &alteration{
			action: record.GetAction(), time: record.GetTime().AsTime(), deleted: len(change.GetAfter()) == 0,
			by: &storagev1.ChangedByRecord{Caller: record.GetCaller(), ActorMemberId: record.GetActorMemberId()},
		}
		switch change.GetKind() {
		case storagev1.RecordKind_RECORD_KIND_KEY:
			if len(change.GetBefore()) == 0 {
				if f.created++; len(f.lost) < maxListed { // a key that the backup does not have
					f.lost = append(f.lost, Line{WorkspaceID: record.GetWorkspaceId(), KeyID: name})
				}
				continue
			}
			altered.take(record, "keys."+name+".", func(field string) bool {
				return record.GetKeyId() == name && !strings.HasPrefix(field, "member.") && !strings.HasPrefix(field, "workspace.")
			})
			workspace.keys[name] = append(workspace.keys[name], altered)
		case storagev1.RecordKind_RECORD_KIND_MEMBER:
			altered.take(record, "members."+name+".", func(field string) bool {
				return record.GetMemberId() == name && strings.HasPrefix(field, "member.")
			})
			workspace.members[name] = append(workspace.members[name], altered)
		case storagev1.RecordKind_RECORD_KIND_WORKSPACE:
			altered.take(record, "", func(field string) bool { return strings.HasPrefix(field, "workspace.") })
			workspace.own = append(workspace.own, altered)
		case storagev1.RecordKind_RECORD_KIND_POLICY:
			altered.take(record, "", func(string) bool { return true })
			f.policy = append(f.policy, altered)
		case storagev1.RecordKind_RECORD_KIND_SETTINGS: // they allow nobody anything
		case storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
			f.doubt("the event %d of workspace %q changes a record of an unknown kind", record.GetSequence(), record.GetWorkspaceId())
		}
	}
}

// take takes those fields of an event that belong to the alteration: those whose names begin with a
// prefix, which is cut, and those that are the record's own.
func (a *alteration) take(event *storagev1.AuditRecord, prefix string, own func(field string) bool) {
	for _, field := range event.GetFields() {
		name := field.GetField()
		cut, has := strings.CutPrefix(name, prefix)
		switch {
		case prefix != "" && has:
			field = &storagev1.FieldChange{
				Field: cut, Before: field.GetBefore(), After: field.GetAfter(),
				BeforeOmitted: field.GetBeforeOmitted(), AfterOmitted: field.GetAfterOmitted(),
			}
		case !own(name):
			continue
		}
		if field.GetBeforeOmitted() > 0 || field.GetAfterOmitted() > 0 {
			a.unclear = true
		}
		a.fields = append(a.fields, field)
	}
	if len(a.fields) == 0 && !a.deleted && event.GetAction() != storagev1.AuditAction_AUDIT_ACTION_UPGRADED {
		a.unclear = true
	}
}

// checkFirst notes a doubt for each workspace whose events do not follow on its head in the backup.
func (s *Since) checkFirst(heads map[string]storage.Head) {
	var broken []string
	for id, workspace := range s.workspaces {
		if workspace.broken || workspace.first != nil && !heads[id].Follows(workspace.first) {
			broken = append(broken, id)
		}
	}
	slices.Sort(broken)
	for _, id := range broken {
		s.doubt("the events of workspace %q do not follow on each other, or not on the backup", id)
	}
}
