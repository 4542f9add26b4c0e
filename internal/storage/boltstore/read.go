package boltstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// contextInterval is after how many records a long read looks at its context.
const contextInterval = 1024

// loaded lists the buckets that Load visits, in its order.
var loaded = []string{bucketPolicy, bucketWorkspaces, bucketMembers, bucketHeads, bucketKeys}

// Load implements storage.Store.
func (s *Store) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
	return s.load(ctx, nil, func(tx *bolt.Tx, _ io.ReaderAt, known *damage) error { return load(ctx, tx, known, visit) })
}

// LoadViews implements storage.ViewLoader.
func (s *Store) LoadViews(ctx context.Context, expect func(storage.Expected), visit func(storage.Item) error) (storage.Position, error) {
	return s.load(ctx, expect, func(tx *bolt.Tx, file io.ReaderAt, known *damage) error {
		return loadViews(ctx, tx, file, known, visit)
	})
}

// load runs use in a read transaction for a Load. known is what is wrong with the file, and expect,
// which may be nil, is told what will be visited.
func (s *Store) load(ctx context.Context, expect func(storage.Expected), use func(tx *bolt.Tx, file io.ReaderAt, known *damage) error) (storage.Position, error) {
	if err := ctx.Err(); err != nil {
		return storage.Position{}, err
	}
	if err := s.reopen(ctx); err != nil {
		return storage.Position{}, err
	}
	var from *fileIndex
	var known *damage
	verified := &opened{}
	position, err := s.readFile(ctx, true, func(index *fileIndex) {
		from, verified.file, verified.database = index, s.file.file, s.file.database
		// The damage that was found when the file was opened is complete until a commit.
		if index.damage.revision == s.position.Revision {
			known = index.damage
		}
	}, func(tx *bolt.Tx) error {
		if known == nil {
			if err := verified.read(ctx, tx, nil); err != nil {
				return err
			}
			known = verified.index.damage
		}
		if expect != nil {
			expect(storage.Expected{Keys: from.ids.Len(), IDs: from.ids})
		}
		return use(tx, verified.file, known)
	})
	if err == nil {
		s.loaded(from)
	}
	return position, err
}

// load visits every record that the projection needs. Records that are known to be wrong
// are visited as damaged.
func load(ctx context.Context, tx *bolt.Tx, known *damage, visit func(storage.Item) error) error {
	return loadBuckets(ctx, tx, known, loaded, visit)
}

// loadBuckets is load for some of the buckets.
func loadBuckets(ctx context.Context, tx *bolt.Tx, known *damage, some []string, visit func(storage.Item) error) error {
	for _, bucket := range some {
		if err := known.visitAbsent(bucket, visit); err != nil {
			return err
		}
		visited := 0
		err := tx.Bucket([]byte(bucket)).ForEach(func(name, value []byte) error {
			if visited++; visited%contextInterval == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err := visit(known.judge(decode(bucket, string(name), value))); err != nil || bucket != bucketKeys {
				return err
			}
			return loadUsage(tx, name, visit)
		})
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// decode decodes a stored value into an item, or into Damaged if it cannot.
func decode(bucket, name string, value []byte) storage.Item {
	framed := frameName(bucket, name)
	switch bucket {
	case bucketPolicy:
		record := &storagev1.PolicyRecord{}
		if err := storage.Decode("policy", framed, value, record); err != nil {
			return storage.Item{Damaged: &storage.Damaged{Err: err}}
		}
		return storage.Item{Policy: record}
	case bucketWorkspaces:
		record := &storagev1.WorkspaceRecord{}
		err := storage.Decode("workspace", framed, value, record)
		if err != nil {
			err = &storage.DamagedError{Kind: "workspace", Name: name, Problem: problemOf(err)}
		} else if record.GetWorkspaceId() != name {
			err = misplaced("workspace", name)
		}
		if err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: name, Err: err}}
		}
		return storage.Item{Workspace: record}
	case bucketMembers:
		workspaceID, memberID, _ := cutMemberName(name)
		record := &storagev1.MemberRecord{}
		if err := decodeMember(name, value, record); err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, MemberID: memberID, Err: err}}
		}
		return storage.Item{Member: record}
	case bucketHeads:
		workspaceID := parseHeadName(name)
		head, err := decodeHead(name, value, &storagev1.HeadRecord{})
		if err != nil {
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, Head: true, Err: err}}
		}
		return storage.Item{Head: &storage.WorkspaceHead{WorkspaceID: workspaceID, Head: head}}
	default:
		record := &storagev1.KeyRecord{}
		if err := decodeKey([]byte(name), value, record); err != nil {
			_, keyID, workspaceID, _ := parseKeyName([]byte(name)) // opening the file checks the name
			return storage.Item{Damaged: &storage.Damaged{WorkspaceID: workspaceID, KeyID: keyID, Err: err}}
		}
		return storage.Item{Key: record}
	}
}

// decodeHead decodes a workspace's head.
func decodeHead(name string, value []byte, record *storagev1.HeadRecord) (storage.Head, error) {
	workspaceID := parseHeadName(name)
	if err := storage.Decode("head", frameName(bucketHeads, name), value, record); err != nil {
		return storage.Head{}, &storage.DamagedError{Kind: "head", Name: workspaceID, Problem: problemOf(err)}
	}
	return storage.HeadOf(workspaceID, record)
}

// decodeKey decodes a key's record and checks that its name is right.
func decodeKey(name, value []byte, record *storagev1.KeyRecord) error {
	_, keyID, workspaceID, err := parseKeyName(name)
	if err != nil {
		return &storage.DamagedError{Kind: "key", Problem: err.Error()}
	}
	if err := storage.Decode("key", frameName(bucketKeys, string(name)), value, record); err != nil {
		return &storage.DamagedError{Kind: "key", Name: keyID, Problem: problemOf(err)}
	}
	if record.GetKeyId() != keyID || record.GetWorkspaceId() != workspaceID {
		return misplaced("key", keyID)
	}
	return nil
}

// decodeMember decodes a member's record and checks that its name is right.
func decodeMember(name string, value []byte, record *storagev1.MemberRecord) error {
	_, memberID, _ := cutMemberName(name)
	if err := storage.Decode("member", frameName(bucketMembers, name), value, record); err != nil {
		return &storage.DamagedError{Kind: "member", Name: memberID, Problem: problemOf(err)}
	}
	if memberName(record.GetWorkspaceId(), record.GetMemberId()) != name {
		return misplaced("member", memberID)
	}
	return nil
}

func cutMemberName(name string) (workspaceID, memberID string, found bool) {
	return strings.Cut(name, "\x00")
}

func misplaced(kind, name string) error {
	return &storage.DamagedError{Kind: kind, Name: name, Problem: "the record is of another " + kind}
}

func problemOf(err error) string {
	if damaged, ok := err.(*storage.DamagedError); ok { //nolint:errorlint // Decode wraps nothing
		return damaged.Problem
	}
	return err.Error()
}

// GetKey implements storage.Store.
func (s *Store) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	var slot int64
	var expected expectation
	record := &storagev1.KeyRecord{}
	position, err := s.read(ctx, func(index *fileIndex) {
		slot, expected = index.findKey(workspaceID, keyID)
	}, func(tx *bolt.Tx) error {
		if slot == 0 && expected.fault == nil {
			return storage.ErrNotFound
		}
		value, err := keyAt(tx.Bucket([]byte(bucketKeys)).Cursor(), slot, record)
		if expected.fault != nil {
			return expected.fault
		}
		if err != nil {
			return err
		}
		return expected.compareValue(value)
	})
	if err != nil {
		return nil, position.Revision, err
	}
	return record, position.Revision, nil
}

// FindRequest implements storage.Store.
func (s *Store) FindRequest(ctx context.Context, workspaceID, requestID string) (keyID string, revision int64, err error) {
	position, err := s.lookUp(ctx, func(index *fileIndex) {
		if entry := index.workspaces[workspaceID]; entry != nil {
			keyID = entry.requestIDs[requestID]
		}
	})
	if err == nil && keyID == "" {
		err = storage.ErrNotFound
	}
	return keyID, position.Revision, err
}

// keyAt reads the key in a slot that the index has, and returns its stored value.
func keyAt(cursor *bolt.Cursor, slot int64, record *storagev1.KeyRecord) ([]byte, error) {
	prefix := []byte(number(slot))
	name, value := cursor.Seek(prefix)
	if !bytes.HasPrefix(name, prefix) {
		return nil, &storage.DamagedError{Kind: "key", Name: "slot " + strconv.FormatInt(slot, 10), Problem: "missing"}
	}
	return value, decodeKey(name, value, record)
}

// readPage reads a page, and then compares its records with the index. If a record was changed
// between the two, readPage starts over, at most five times; then the error is errMoved.
func (s *Store) readPage(ctx context.Context, resolve func(*fileIndex), read func(tx *bolt.Tx) ([]observation, error)) (storage.Position, error) {
	const attempts = 5
	var position storage.Position
	var err error
	for range attempts {
		var seen []observation
		position, err = s.read(ctx, resolve, func(tx *bolt.Tx) error {
			var err error
			seen, err = read(tx)
			return err
		})
		if err != nil {
			return position, err
		}
		var confirmed error
		_, err = s.lookUp(ctx, func(index *fileIndex) {
			confirmed = index.confirm(seen, position.Revision)
		})
		if err = errors.Join(err, confirmed); !errors.Is(err, errMoved) {
			return position, err
		}
	}
	return position, err
}

// parseCursor parses a cursor that is a number. An empty cursor stands for first.
func parseCursor(cursor string, first int64) (int64, error) {
	if cursor == "" {
		return first, nil
	}
	position, err := strconv.ParseInt(cursor, 10, 64)
	if err != nil || position < 1 || strconv.FormatInt(position, 10) != cursor {
		return 0, storage.ErrInvalidCursor
	}
	return position, nil
}

// ListKeys implements storage.Store. Its cursor is the slot of the last key of the page.
func (s *Store) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	query = query.Bounded()
	before, err := parseCursor(query.Cursor, math.MaxInt64)
	if err != nil {
		return storage.KeyPage{}, err
	}
	var page storage.KeyPage
	var slots []int64
	var seen []observation
	last, total := int64(0), 0
	add := func(record *storagev1.KeyRecord, slot int64, value []byte) bool {
		if query.Full(len(page.Keys), total, len(value)) {
			page.Next = strconv.FormatInt(last, 10)
			return false
		}
		page.Keys = append(page.Keys, record)
		seen = append(seen, observe(record.GetWorkspaceId(), recordID{kindKey, record.GetKeyId()}, value))
		last, total = slot, total+len(value)
		return true
	}
	position, err := s.readPage(ctx, func(index *fileIndex) {
		page, seen, last, total = storage.KeyPage{}, nil, 0, 0
		if entry := index.workspaces[query.WorkspaceID]; entry != nil {
			slots = index.page(entry, before, query.Limit)
		}
	}, func(tx *bolt.Tx) ([]observation, error) {
		cursor := tx.Bucket([]byte(bucketKeys)).Cursor()
		if query.WorkspaceID == "" {
			err := allKeys(ctx, cursor, before, add)
			return seen, err
		}
		work := giveway.From(ctx)
		for _, slot := range slots {
			work.GiveWay() // no lock is held in a transaction that reads
			record := &storagev1.KeyRecord{}
			value, err := keyAt(cursor, slot, record)
			if err != nil {
				return nil, err
			}
			if !add(record, slot, value) {
				break
			}
		}
		return seen, ctx.Err()
	})
	if err != nil {
		return storage.KeyPage{}, err
	}
	page.Revision = position.Revision
	return page, nil
}

// allKeys passes the keys of all workspaces to add, from the slot below before downwards,
// until add returns false.
func allKeys(ctx context.Context, cursor *bolt.Cursor, before int64, add func(*storagev1.KeyRecord, int64, []byte) bool) error {
	work := giveway.From(ctx)
	var value []byte
	name, _ := cursor.Seek([]byte(number(before)))
	if name == nil {
		name, value = cursor.Last()
	} else {
		name, value = cursor.Prev()
	}
	for ; name != nil; name, value = cursor.Prev() {
		if err := ctx.Err(); err != nil {
			return err
		}
		work.GiveWay()
		record := &storagev1.KeyRecord{}
		if err := decodeKey(name, value, record); err != nil {
			return err
		}
		slot, err := parseNumber(name)
		if err != nil {
			return err
		}
		if !add(record, slot, value) {
			return nil
		}
	}
	return nil
}

// GetMember implements storage.Store.
func (s *Store) GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error) {
	var expected expectation
	record := &storagev1.MemberRecord{}
	position, err := s.read(ctx, func(index *fileIndex) {
		expected = index.expect(workspaceID, recordID{kindMember, memberID})
	}, func(tx *bolt.Tx) error {
		name := memberName(workspaceID, memberID)
		value := tx.Bucket([]byte(bucketMembers)).Get([]byte(name))
		if value != nil {
			if err := decodeMember(name, value, record); err != nil {
				return err
			}
		}
		if err := expected.compareValue(value); err != nil || value != nil {
			return err
		}
		return storage.ErrNotFound
	})
	if err != nil {
		return nil, position.Revision, err
	}
	return record, position.Revision, nil
}

// ListMembers implements storage.Store. Its cursor is the id of the last member of the
// page.
func (s *Store) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	query = query.Bounded()
	if len(query.Cursor) > storage.MaxIDBytes || strings.Contains(query.Cursor, "\x00") || !utf8.ValidString(query.Cursor) {
		return storage.MemberPage{}, storage.ErrInvalidCursor
	}
	var page storage.MemberPage
	prefix := []byte(memberName(query.WorkspaceID, ""))
	position, err := s.readPage(ctx, nil, func(tx *bolt.Tx) ([]observation, error) {
		page = storage.MemberPage{}
		var seen []observation
		cursor := tx.Bucket([]byte(bucketMembers)).Cursor()
		start := []byte(memberName(query.WorkspaceID, query.Cursor))
		name, value := cursor.Seek(start)
		if query.Cursor != "" && bytes.Equal(name, start) {
			name, value = cursor.Next()
		}
		total := 0
		for ; bytes.HasPrefix(name, prefix); name, value = cursor.Next() {
			if query.Full(len(page.Members), total, len(value)) {
				page.Next = page.Members[len(page.Members)-1].GetMemberId()
				return seen, nil
			}
			total += len(value)
			record := &storagev1.MemberRecord{}
			if err := decodeMember(string(name), value, record); err != nil {
				return nil, err
			}
			page.Members = append(page.Members, record)
			seen = append(seen, observe(query.WorkspaceID, recordID{kindMember, record.GetMemberId()}, value))
		}
		return seen, ctx.Err()
	})
	if err != nil {
		return storage.MemberPage{}, err
	}
	page.Revision = position.Revision
	return page, nil
}

// read runs use in a read transaction on the newest durable state. It waits for a commit
// in progress, no longer than the context lasts. resolve runs first, while the index
// agrees with that state; it may be nil. use must not use the index.
func (s *Store) read(ctx context.Context, resolve func(*fileIndex), use func(tx *bolt.Tx) error) (storage.Position, error) {
	return s.readFile(ctx, false, resolve, use)
}

// readFile is read, also for Load. loading is true for Load, which alone may read a reopened
// file before a Load has visited everything.
func (s *Store) readFile(ctx context.Context, loading bool, resolve func(*fileIndex), use func(tx *bolt.Tx) error) (storage.Position, error) {
	// 1. Resolve and begin under one lock, so that the index and the transaction show the same
	// revision. No commit is in progress then: bbolt would show what it has not synced yet.
	var tx *bolt.Tx
	position, err := s.locked(ctx, loading, func() error {
		if resolve != nil {
			resolve(s.index)
		}
		var err error
		tx, err = s.file.database.Begin(false)
		return err
	})
	if err != nil {
		if errors.Is(err, berrors.ErrDatabaseNotOpen) {
			err = storage.ErrUnavailable
		}
		return storage.Position{}, err
	}
	defer tx.Rollback() //nolint:errcheck // of a read transaction: nothing to lose
	// 2. Read without the lock: a long read must not hold up commits.
	return position, guard(func() error { return use(tx) })
}

// lookUp runs use with the index of the newest durable state.
func (s *Store) lookUp(ctx context.Context, use func(*fileIndex)) (storage.Position, error) {
	return s.locked(ctx, false, func() error {
		use(s.index)
		return nil
	})
}

// locked runs use with state held for reading, if the store may answer, and returns the
// store's position at that time.
func (s *Store) locked(ctx context.Context, loading bool, use func() error) (storage.Position, error) {
	if err := ctx.Err(); err != nil {
		return storage.Position{}, err
	}
	if err := s.state.Enter(ctx); err != nil {
		return storage.Position{}, err
	}
	defer s.state.RUnlock()
	if s.file == nil || s.closed || s.unloaded && !loading {
		return storage.Position{}, storage.ErrUnavailable
	}
	return s.position, use()
}
