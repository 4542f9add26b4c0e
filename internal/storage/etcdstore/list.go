package etcdstore

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// ListKeys implements storage.Store. The cursor is the name of the last key's record, without
// the folder of the workspace. In a list of all workspaces it is the orderKey of the last key.
func (s *Store) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	query = query.Bounded()
	if query.WorkspaceID == "" {
		return s.listAll(ctx, query)
	}
	from := keyFolder(query.WorkspaceID)
	if query.Cursor != "" {
		if _, _, _, ok := parseKeyName(from + query.Cursor); !ok || !validID(query.Cursor) {
			return storage.KeyPage{}, storage.ErrInvalidCursor
		}
		from = after(from + query.Cursor)
	}
	var page storage.KeyPage
	err := s.page(ctx, query, from, keyFolder(query.WorkspaceID), func(at int64, found []*mvccpb.KeyValue, more bool) error {
		page = storage.KeyPage{Revision: at}
		for _, pair := range found {
			record := &storagev1.KeyRecord{}
			if err := decodeKey(s.name(pair), pair.Value, record); err != nil {
				return err
			}
			page.Keys = append(page.Keys, record)
		}
		if more {
			page.Next = s.name(found[len(found)-1])[len(keyFolder(query.WorkspaceID)):]
		}
		return nil
	})
	if err != nil {
		return storage.KeyPage{}, err
	}
	return page, nil
}

// orderKey sorts the keys of all workspaces: by rank, which the process that created the key
// chose, and then by the revision of the creation. Only keys that were created at the same time
// share a rank.
type orderKey struct {
	rank    string // a complement, so that the newest rank sorts first
	created int64
	keyID   string
	name    string // of the record
}

// compare is negative if a is newer than b.
func (a orderKey) compare(b orderKey) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.created, a.created), cmp.Compare(a.keyID, b.keyID))
}

func (a orderKey) cursor() string { return a.rank + number(a.created) + a.keyID }

func parseOrderKey(cursor string) (orderKey, bool) {
	if len(cursor) != 2*numberLength+storage.KeyIDLength {
		return orderKey{}, false
	}
	rank, keyID := cursor[:numberLength], cursor[2*numberLength:]
	created, ok := parseNumber(cursor[numberLength : 2*numberLength])
	_, isRank := parseComplement(rank)
	return orderKey{rank: rank, created: created, keyID: keyID}, ok && isRank
}

// listAll is ListKeys for all workspaces.
func (s *Store) listAll(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	var last orderKey
	if query.Cursor != "" {
		var ok bool
		if last, ok = parseOrderKey(query.Cursor); !ok {
			return storage.KeyPage{}, storage.ErrInvalidCursor
		}
	}
	var page storage.KeyPage
	err := s.repeatRead(ctx, func(ctx context.Context) error {
		response, err := s.read(ctx, s.getRevision())
		if err != nil {
			return err
		}
		page = storage.KeyPage{Revision: s.revision(first(response, 0))}
		at := response.Header.GetRevision()
		order, err := s.order(ctx, last, query.Limit+1, at)
		if err != nil {
			return err
		}
		given := order[:min(len(order), query.Limit)]
		if page.Keys, err = s.recordsOf(ctx, query, given, at); err != nil {
			return err
		}
		if count := len(page.Keys); count < len(order) {
			page.Next = order[count-1].cursor()
		}
		return nil
	})
	if err != nil {
		return storage.KeyPage{}, err
	}
	return page, nil
}

// order returns at least limit keys that sort after last, or all keys that do. It reads whole
// ranks, because it has to sort the keys of one rank itself.
func (s *Store) order(ctx context.Context, last orderKey, limit int, at int64) ([]orderKey, error) {
	var sorted, group []orderKey
	finish := func() {
		slices.SortFunc(group, orderKey.compare)
		sorted = append(sorted, group...)
		group = group[:0]
	}
	from := folderOrder + last.rank
	for {
		response, err := s.read(ctx, s.list(from, folderOrder, limit, at))
		if err != nil {
			return nil, err
		}
		for _, pair := range pairs(response, 0) {
			next, err := s.decodeOrder(pair)
			if err != nil {
				return nil, err
			}
			if len(group) > 0 && group[0].rank != next.rank {
				finish()
			}
			if last.rank == "" || last.compare(next) < 0 {
				group = append(group, next)
			}
			from = after(s.name(pair))
		}
		more := found(response, 0).GetMore()
		if !more {
			finish()
		}
		if !more || len(sorted) >= limit {
			return sorted, nil
		}
	}
}

func (s *Store) decodeOrder(pair *mvccpb.KeyValue) (orderKey, error) {
	name := s.name(pair)
	rank, keyID, ok := parseOrderName(name)
	if !ok {
		return orderKey{}, &storage.DamagedError{Kind: "order", Name: name, Problem: "not the name of an index entry"}
	}
	record, err := storage.Unframe("order", name, pair.Value)
	if err != nil {
		return orderKey{}, &storage.DamagedError{Kind: "key", Name: keyID, Problem: "index entry of the order: " + problemOf(err)}
	}
	return orderKey{rank: rank, created: pair.CreateRevision, keyID: keyID, name: string(record)}, nil
}

// recordsOf reads the records of keys at an etcd revision, until the page is full.
func (s *Store) recordsOf(ctx context.Context, query storage.Query, order []orderKey, at int64) ([]*storagev1.KeyRecord, error) {
	records, total := make([]*storagev1.KeyRecord, 0, len(order)), 0
	for some := range slices.Chunk(order, gets/2) {
		parts := make([]clientv3.Op, len(some), gets)
		heads := make(map[string]int) // where the response has the heads of the workspaces
		for index, key := range some {
			parts[index] = s.get(key.name, clientv3.WithRev(at))
			if of, _, _, _ := parseKeyName(key.name); heads[of] == 0 {
				heads[of] = len(some) + len(heads)
			}
		}
		for _, of := range slices.SortedFunc(maps.Keys(heads), func(a, b string) int { return heads[a] - heads[b] }) {
			parts = append(parts, s.get(headName(of), clientv3.WithRev(at)))
		}
		response, err := s.read(ctx, parts...)
		if err != nil {
			return nil, err
		}
		for index, key := range some {
			stored := first(response, index)
			if stored == nil {
				return nil, &storage.DamagedError{Kind: "key", Name: key.keyID, Problem: "missing"}
			}
			if query.Full(len(records), total, len(stored.Value)) {
				return records, nil
			}
			total += len(stored.Value)
			record := &storagev1.KeyRecord{}
			if err := decodeKey(key.name, stored.Value, record); err != nil {
				return nil, err
			}
			of := record.GetWorkspaceId()
			if err := s.confirm(of, first(response, heads[of]), observe(of, recordID{kindKey, key.keyID}, stored)); err != nil {
				return nil, err
			}
			records = append(records, record)
		}
	}
	return records, nil
}
