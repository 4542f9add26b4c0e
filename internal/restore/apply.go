package restore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// caller is whom audit events of a restore name.
const caller = "keysvc restore"

// Store is what a plan is applied to: a copy of the backup that nobody serves.
type Store interface {
	storage.Committer
	storage.KeyReader
}

// event returns an event of a workspace.
func (p *Plan) event(workspaceID string) *storagev1.AuditRecord {
	return audit.NewEvent(audit.Actor{Caller: caller}, storagev1.AuditAction_AUDIT_ACTION_RESTORED, p.options.Now, workspaceID)
}

// writers is how many workspaces are changed at a time: a store commits changes of several workspaces
// together.
const writers = 64

// Apply makes the changes of the plan, each with its audit event. progress, which may be nil, is called
// with the number of keys that were held, by one goroutine at a time. After an error the store is of no
// use. Errors: those of the store, and the context's.
func (p *Plan) Apply(ctx context.Context, store Store, progress func(held int64)) error {
	a := &applying{Plan: p, store: store, progress: progress}
	// 1. The policy comes first: the roles that members get are chosen for it.
	if p.policy != nil {
		head := p.heads[""]
		if err := a.commit(ctx, "", &head, p.policy); err != nil {
			return err
		}
	}
	// 2. The workspaces do not depend on each other. The changes of one are made one after the other.
	ids := make(chan string)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var working sync.WaitGroup
	for range writers {
		working.Go(func() {
			for id := range ids {
				if err := a.workspace(ctx, id, p.workspaces[id]); err != nil {
					cancel(fmt.Errorf("workspace %q: %w", id, err))
				}
			}
		})
	}
	for _, id := range slices.Sorted(maps.Keys(p.workspaces)) {
		ids <- id
	}
	close(ids)
	working.Wait()
	return context.Cause(ctx)
}

// applying is a plan that is being applied.
type applying struct {
	*Plan
	store Store

	// mutex guards held, and calls of progress.
	mutex    sync.Mutex
	progress func(held int64)
	held     int64
}

// commit makes one change on a head, and moves the head.
func (a *applying) commit(ctx context.Context, workspaceID string, head *storage.Head, change *storage.Change) error {
	change.Narrows = true
	change.Link(workspaceID, *head)
	if _, err := a.store.Commit(ctx, change); err != nil {
		return err
	}
	encoded, err := storage.Encode(change.Event)
	if err != nil {
		return err
	}
	*head = head.After(encoded)
	return nil
}

func (a *applying) workspace(ctx context.Context, id string, plan *workspacePlan) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	head := a.heads[id]
	if plan.own != nil {
		event := a.event(id)
		event.Fields = audit.WorkspaceFields(plan.own.before, plan.own.after)
		change := &storage.Change{Event: event, Kind: storagev1.FeedKind_FEED_KIND_WORKSPACE, PutWorkspace: plan.own.after}
		if err := a.commit(ctx, id, &head, change); err != nil {
			return err
		}
	}
	for _, member := range plan.members {
		event := a.event(id)
		event.MemberId = member.after.GetMemberId()
		event.Fields = audit.MemberFields(member.before, member.after)
		change := &storage.Change{
			Event: event, Kind: storagev1.FeedKind_FEED_KIND_MEMBER, Subject: event.GetMemberId(), PutMembers: []*storagev1.MemberRecord{member.after},
		}
		if err := a.commit(ctx, id, &head, change); err != nil {
			return err
		}
	}
	for _, key := range plan.keys {
		event := a.event(id)
		event.KeyId, event.MemberId = key.after.GetKeyId(), key.after.GetMemberId()
		event.Fields = audit.KeyFields(key.before, key.after)
		change := &storage.Change{
			Event: event, Kind: storagev1.FeedKind_FEED_KIND_KEY, Subject: event.GetKeyId(), PutKeys: []*storagev1.KeyRecord{key.after},
		}
		if err := a.commit(ctx, id, &head, change); err != nil {
			return err
		}
	}
	return a.hold(ctx, id, head, plan.held)
}

// holdBytes is how large the records of one change may be: half of what a change may have, because the
// event has the fields.
const holdBytes = storage.MaxChangeBytes / 2

// hold holds keys, as many in one change as it takes.
func (a *applying) hold(ctx context.Context, workspaceID string, head storage.Head, keyIDs []string) error {
	var change *storage.Change
	size := 0
	commit := func() error {
		if change == nil {
			return nil
		}
		err := a.commit(ctx, workspaceID, &head, change)
		a.mutex.Lock()
		defer a.mutex.Unlock()
		if a.held += int64(len(change.PutKeys)); a.progress != nil {
			a.progress(a.held)
		}
		change, size = nil, 0
		return err
	}
	for _, keyID := range keyIDs {
		stored, _, err := a.store.GetKey(ctx, workspaceID, keyID)
		if err != nil {
			return err
		}
		record := proto.CloneOf(stored)
		record.HoldTime = timestamppb.New(a.options.Now)
		if length := proto.Size(record); change != nil && (len(change.PutKeys) == storage.MaxOperations || size+length > holdBytes) {
			if err := commit(); err != nil {
				return err
			}
		}
		if change == nil {
			change = &storage.Change{Event: a.event(workspaceID), Kind: storagev1.FeedKind_FEED_KIND_WORKSPACE}
		}
		size += proto.Size(record)
		change.PutKeys = append(change.PutKeys, record)
		change.Event.Fields = append(change.Event.Fields, audit.FieldsOfKey(stored, record)...)
	}
	return commit()
}
