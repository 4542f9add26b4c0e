package etcdstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// pairsPage is how many pairs a walk that gives way reads at once.
	pairsPage = 500
	// gets is how many records one transaction reads by name.
	gets = 100
	// maxAttempts is how often a read of several parts is tried, if etcd is compacted before
	// it has finished.
	maxAttempts = 3
)

// repeatRead makes a read of several parts, and starts over if etcd is compacted meanwhile.
func (s *Store) repeatRead(ctx context.Context, read func(ctx context.Context) error) error {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return err
	}
	defer done()
	for range maxAttempts {
		if err = read(ctx); !errors.Is(err, errCompacted) {
			return err
		}
	}
	return err
}

// revision returns the store's revision: the revision of the newest change, which put the feed
// entry. The caller is told of it, so watches have to come to it.
func (s *Store) revision(feedHead *mvccpb.KeyValue) int64 {
	s.told.raise(feedHead.GetModRevision())
	return feedHead.GetModRevision()
}

// GetKey implements storage.Store.
func (s *Store) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	record, at := &storagev1.KeyRecord{}, int64(0)
	err := s.repeatRead(ctx, func(ctx context.Context) error {
		if len(keyID) != storage.KeyIDLength || !validID(keyID) || workspaceID != "" && !validID(workspaceID) {
			return storage.ErrNotFound
		}
		response, err := s.read(ctx, s.getRevision(), s.get(idName(keyID)))
		if err != nil {
			return err
		}
		at = s.revision(first(response, 0))
		pair := first(response, 1)
		if pair == nil {
			return storage.ErrNotFound
		}
		where, err := decodeID(keyID, pair.Value)
		if err != nil {
			return err
		}
		if workspaceID != "" && !strings.HasPrefix(where.name, keyFolder(workspaceID)) {
			return storage.ErrNotFound
		}
		of, _, _, _ := parseKeyName(where.name)
		pinned := clientv3.WithRev(response.Header.GetRevision())
		response, err = s.read(ctx, s.get(where.name, pinned), s.get(headName(of), pinned))
		if err != nil {
			return err
		}
		stored := first(response, 0)
		if stored == nil {
			return &storage.DamagedError{Kind: "key", Name: keyID, Problem: "missing"}
		}
		if err := decodeKey(where.name, stored.Value, record); err != nil {
			return err
		}
		return s.confirm(of, first(response, 1), observe(of, recordID{kindKey, keyID}, stored))
	})
	if err != nil {
		return nil, at, err
	}
	return record, at, nil
}

// FindRequest implements storage.Store.
func (s *Store) FindRequest(ctx context.Context, workspaceID, requestID string) (keyID string, at int64, err error) {
	err = s.repeatRead(ctx, func(ctx context.Context) error {
		if !validID(workspaceID) || !validID(requestID) {
			return storage.ErrNotFound
		}
		name := requestName(workspaceID, requestID)
		response, err := s.read(ctx, s.getRevision(), s.get(name))
		if err != nil {
			return err
		}
		at = s.revision(first(response, 0))
		pair := first(response, 1)
		if pair == nil {
			return storage.ErrNotFound
		}
		payload, err := storage.Unframe("request", name, pair.Value)
		keyID = string(payload)
		return err
	})
	return keyID, at, err
}

// GetMember implements storage.Store.
func (s *Store) GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error) {
	record, at := &storagev1.MemberRecord{}, int64(0)
	err := s.repeatRead(ctx, func(ctx context.Context) error {
		if !validID(workspaceID) || !validID(memberID) {
			return storage.ErrNotFound
		}
		name := memberName(workspaceID, memberID)
		response, err := s.read(ctx, s.getRevision(), s.get(name), s.get(headName(workspaceID)))
		if err != nil {
			return err
		}
		at = s.revision(first(response, 0))
		id, stored, head := recordID{kindMember, memberID}, first(response, 1), first(response, 2)
		if stored == nil {
			return cmp.Or(s.confirm(workspaceID, head, observe(workspaceID, id, nil)), storage.ErrNotFound)
		}
		if err := decodeMember(name, stored.Value, record); err != nil {
			return err
		}
		return s.confirm(workspaceID, head, observe(workspaceID, id, stored))
	})
	if err != nil {
		return nil, at, err
	}
	return record, at, nil
}

// ListMembers implements storage.Store. Its cursor is the id of the last member of the
// page.
func (s *Store) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	query = query.Bounded()
	if query.Cursor != "" && !validID(query.Cursor) {
		return storage.MemberPage{}, storage.ErrInvalidCursor
	}
	from := memberName(query.WorkspaceID, query.Cursor)
	if query.Cursor != "" {
		from = after(from)
	}
	var page storage.MemberPage
	err := s.page(ctx, query, from, memberFolder(query.WorkspaceID), func(at int64, found []*mvccpb.KeyValue, more bool) error {
		page = storage.MemberPage{Revision: at}
		for _, pair := range found {
			record := &storagev1.MemberRecord{}
			if err := decodeMember(s.name(pair), pair.Value, record); err != nil {
				return err
			}
			page.Members = append(page.Members, record)
		}
		if more {
			page.Next = page.Members[len(page.Members)-1].GetMemberId()
		}
		return nil
	})
	if err != nil {
		return storage.MemberPage{}, err
	}
	return page, nil
}

// after returns the first name that sorts after another one.
func after(name string) string { return name + "\x00" }

// page reads a page of one workspace's records, in the order of their names.
func (s *Store) page(ctx context.Context, query storage.Query, from, folder string, give func(at int64, found []*mvccpb.KeyValue, more bool) error) error {
	return s.repeatRead(ctx, func(ctx context.Context) error {
		if !validID(query.WorkspaceID) {
			// Nothing is stored for such an id, but its folder could contain names of other workspaces.
			response, err := s.read(ctx, s.getRevision())
			if err != nil {
				return err
			}
			return give(s.revision(first(response, 0)), nil, false)
		}
		response, err := s.read(ctx, s.getRevision(), s.list(from, folder, query.Limit+1, 0), s.get(headName(query.WorkspaceID)))
		if err != nil {
			return err
		}
		all, count, total := pairs(response, 1), 0, 0
		for count < len(all) && !query.Full(count, total, len(all[count].Value)) {
			total += len(all[count].Value)
			count++
		}
		if err := give(s.revision(first(response, 0)), all[:count], count < len(all)); err != nil {
			return err
		}
		seen := make([]observation, 0, count)
		for _, pair := range all[:count] {
			if _, id, is := recordOf(s.name(pair)); is {
				seen = append(seen, observe(query.WorkspaceID, id, pair))
			}
		}
		return s.confirm(query.WorkspaceID, first(response, 2), seen...)
	})
}

// ListAuditEvents implements storage.Store. Its cursor is the sequence of the last event of
// the page.
func (s *Store) ListAuditEvents(ctx context.Context, query storage.Query) (storage.AuditPage, error) {
	query = query.Bounded()
	before := int64(0)
	if query.Cursor != "" {
		var err error
		if before, err = strconv.ParseInt(query.Cursor, 10, 64); err != nil || before < 1 || strconv.FormatInt(before, 10) != query.Cursor {
			return storage.AuditPage{}, storage.ErrInvalidCursor
		}
	}
	var page storage.AuditPage
	err := s.repeatRead(ctx, func(ctx context.Context) error {
		page = storage.AuditPage{}
		parts := []clientv3.Op{s.getRevision()}
		known := query.WorkspaceID == "" || validID(query.WorkspaceID)
		if known {
			from := auditFolder(query.WorkspaceID)
			if before > 0 {
				from = auditName(query.WorkspaceID, before)
			}
			parts = append(parts, s.get(headName(query.WorkspaceID)), s.list(from, auditFolder(query.WorkspaceID), query.Limit+2, 0), s.get(namePruned))
		}
		response, err := s.read(ctx, parts...)
		if err != nil {
			return err
		}
		page.Revision = s.revision(first(response, 0))
		if !known {
			return nil
		}
		expected, err := newestEvent(query.WorkspaceID, first(response, 1))
		if err != nil {
			return err
		}
		if before > expected {
			return storage.ErrInvalidCursor
		}
		pruned, err := decodeMark(first(response, 3))
		if err != nil {
			return err
		}
		events := pairs(response, 2)
		// Events may be missing below an event that is old enough to be pruned. The newest one never is missing.
		mayMiss := false
		if before > 0 {
			expected = before - 1
			if len(events) > 0 && s.name(events[0]) == auditName(query.WorkspaceID, before) {
				mayMiss = events[0].ModRevision <= pruned
				events = events[1:]
			} else {
				mayMiss = pruned > 0 // the last one of the page before was pruned since
			}
		}
		full, total := false, 0
		for _, pair := range events {
			if full = query.Full(len(page.Events), total, len(pair.Value)); full {
				break
			}
			total += len(pair.Value)
			if _, sequence, ok := parseAuditName(s.name(pair)); ok && mayMiss && sequence < expected {
				expected = sequence
			}
			event, err := decodeAudit(query.WorkspaceID, s.name(pair), expected, pair.Value)
			if err != nil {
				return err
			}
			page.Events = append(page.Events, event)
			expected--
			mayMiss = pair.ModRevision <= pruned
		}
		if !full && expected > 0 && !mayMiss {
			return missingEvent(query.WorkspaceID, expected)
		}
		if full {
			page.Next = strconv.FormatInt(expected+1, 10)
		}
		return nil
	})
	if err != nil {
		return storage.AuditPage{}, err
	}
	return page, nil
}

// ScanAuditEvents implements storage.Store. Events are named by their sequence, so etcd sorts
// them by revision for each page: it reads all events of the workspace, or of all workspaces. A
// migration has stored several events in one revision. A page has all events of a revision or none, even
// if it has more than the limit then.
func (s *Store) ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error) {
	query = query.Bounded()
	folder := folderAudit
	if !query.All {
		folder = auditFolder(query.WorkspaceID)
	}
	var page storage.AuditScan
	err := s.repeatRead(ctx, func(ctx context.Context) error {
		page = storage.AuditScan{}
		parts := []clientv3.Op{s.getRevision()}
		known := query.All || query.WorkspaceID == "" || validID(query.WorkspaceID)
		if known && query.Before != 1 {
			parts = append(parts, s.get(folder, clientv3.WithPrefix(), clientv3.WithLimit(int64(query.Limit)+1),
				clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend),
				clientv3.WithMinModRev(query.After+1), clientv3.WithMaxModRev(max(0, query.Before-1))))
		}
		response, err := s.read(ctx, parts...)
		if err != nil {
			return err
		}
		page.Revision = s.revision(first(response, 0))
		if len(parts) == 1 {
			return nil
		}
		all := pairs(response, 1)
		total, more := 0, found(response, 1).GetMore()
		for len(all) > 0 {
			revision := all[0].ModRevision
			group := slices.IndexFunc(all, func(pair *mvccpb.KeyValue) bool { return pair.ModRevision != revision })
			if group < 0 {
				group = len(all)
				if more && len(page.Events) > 0 { // the rest of the revision may be missing
					page.Next = revision + 1
					return nil
				}
			}
			size := 0
			for _, pair := range all[:group] {
				size += len(pair.Value)
			}
			if query.Full(len(page.Events)+group-1, total, size) && len(page.Events) > 0 {
				page.Next = revision + 1
				return nil
			}
			events, err := s.eventsOf(ctx, folder, all[:group], more && group == len(all), response.Header.GetRevision())
			if err != nil {
				return err
			}
			page.Events, total, all = append(page.Events, events...), total+size, all[group:]
			if len(all) == 0 && more {
				page.Next = revision
			}
		}
		return nil
	})
	if err != nil {
		return storage.AuditScan{}, err
	}
	return page, nil
}

// eventsOf returns the events of one revision, the newest first. If there may be more than those that were
// found, it reads all of them, at an etcd revision.
func (s *Store) eventsOf(ctx context.Context, folder string, pairsFound []*mvccpb.KeyValue, more bool, at int64) ([]storage.AuditEvent, error) {
	revision := pairsFound[0].ModRevision
	if more {
		response, err := s.read(ctx, s.get(folder, clientv3.WithPrefix(), clientv3.WithRev(at),
			clientv3.WithMinModRev(revision), clientv3.WithMaxModRev(revision)))
		if err != nil {
			return nil, err
		}
		pairsFound = pairs(response, 0)
	}
	events := make([]storage.AuditEvent, 0, len(pairsFound))
	for _, pair := range pairsFound {
		name := s.name(pair)
		workspaceID, sequence, ok := parseAuditName(name)
		if !ok {
			return nil, &storage.DamagedError{Kind: "audit event", Name: name, Problem: "not the name of an audit event"}
		}
		event, err := decodeAudit(workspaceID, name, sequence, pair.Value)
		if err != nil {
			return nil, err
		}
		event.Revision = revision
		events = append(events, event)
	}
	slices.SortFunc(events, func(a, b storage.AuditEvent) int {
		return placeOf(revision, b.Record).compare(placeOf(revision, a.Record))
	})
	return events, nil
}

// newestEvent returns the sequence of a workspace's newest audit event, 0 if the workspace has
// no head.
func newestEvent(workspaceID string, head *mvccpb.KeyValue) (int64, error) {
	if head == nil {
		return 0, nil
	}
	decoded, err := decodeHead(workspaceID, head.Value)
	return decoded.Sequence, err
}

// decodeAudit decodes an audit event. If its name is not that of the expected sequence, the
// error says that the expected event is missing.
func decodeAudit(workspaceID, name string, sequence int64, value []byte) (storage.AuditEvent, error) {
	if name != auditName(workspaceID, sequence) {
		return storage.AuditEvent{}, missingEvent(workspaceID, sequence)
	}
	title := workspaceID + " " + strconv.FormatInt(sequence, 10)
	payload, err := storage.Unframe("audit event", name, value)
	if err != nil {
		return storage.AuditEvent{}, &storage.DamagedError{Kind: "audit event", Name: title, Problem: problemOf(err)}
	}
	event := storage.AuditEvent{Record: &storagev1.AuditRecord{}, Encoded: bytes.Clone(payload)}
	if err := proto.Unmarshal(payload, event.Record); err != nil {
		return storage.AuditEvent{}, &storage.DamagedError{Kind: "audit event", Name: title, Problem: "not a record"}
	}
	if event.Record.GetWorkspaceId() != workspaceID || event.Record.GetSequence() != sequence {
		return storage.AuditEvent{}, misplaced("audit event", title)
	}
	return event, nil
}

func missingEvent(workspaceID string, sequence int64) error {
	return &storage.DamagedError{Kind: "audit event", Name: workspaceID + " " + strconv.FormatInt(sequence, 10), Problem: "missing"}
}

// decodeKey decodes a key's record and checks that its name is right.
func decodeKey(name string, value []byte, record *storagev1.KeyRecord) error {
	_, _, keyID, ok := parseKeyName(name)
	if !ok {
		return &storage.DamagedError{Kind: "key", Name: name, Problem: "not the name of a key"}
	}
	if err := storage.Decode("key", name, value, record); err != nil {
		return &storage.DamagedError{Kind: "key", Name: keyID, Problem: problemOf(err)}
	}
	if keyName(record.GetWorkspaceId(), record.GetSequence(), record.GetKeyId()) != name {
		return misplaced("key", keyID)
	}
	return nil
}

// decodeMember decodes a member's record and checks that its name is right.
func decodeMember(name string, value []byte, record *storagev1.MemberRecord) error {
	_, memberID, _ := parseMemberName(name)
	if err := storage.Decode("member", name, value, record); err != nil {
		return &storage.DamagedError{Kind: "member", Name: memberID, Problem: problemOf(err)}
	}
	if memberName(record.GetWorkspaceId(), record.GetMemberId()) != name {
		return misplaced("member", memberID)
	}
	return nil
}

func misplaced(kind, name string) error {
	return &storage.DamagedError{Kind: kind, Name: name, Problem: fmt.Sprintf("the record is of another %s", kind)}
}
