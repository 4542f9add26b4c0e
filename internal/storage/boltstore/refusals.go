package boltstore

import (
	"context"
	"errors"
	"math"
	"strconv"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var _ storage.RefusalStore = (*Store)(nil)

// PutRefusals implements storage.RefusalStore.
func (s *Store) PutRefusals(ctx context.Context, refusals []*storagev1.RefusalRecord) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.room.admit(false); err != nil {
		return err
	}
	refusals = refusals[max(0, len(refusals)-storage.MaxRefusals):]
	bytes := need(make([]write, 2*len(refusals))) // as many are deleted
	for _, refusal := range refusals {
		bytes += 4 * int64(proto.Size(refusal))
	}
	var file *opened
	if _, err := s.lookUp(ctx, func(*fileIndex) { file = s.file }); err != nil || len(refusals) == 0 {
		return err
	}
	var damaged error
	err := s.writeAside(ctx, file, bytes, func(tx *bolt.Tx) error {
		// A damaged stream is no reason to reopen the file: the transaction commits without a change.
		if damaged = putRefusals(tx, refusals); damaged != nil && !errors.Is(damaged, storage.ErrDamaged) {
			return damaged
		}
		return nil
	})
	if err != nil {
		return err
	}
	return damaged
}

// putRefusals appends refusals and removes the oldest ones. After ErrDamaged it has changed
// nothing.
func putRefusals(tx *bolt.Tx, refusals []*storagev1.RefusalRecord) error {
	// A file of an earlier version has no such bucket, and needs no upgrade for it.
	bucket, err := tx.CreateBucketIfNotExists([]byte(bucketRefusals))
	if err != nil {
		return err
	}
	last := int64(0)
	if name, _ := bucket.Cursor().Last(); name != nil {
		if last, err = parseNumber(name); err != nil || last == math.MaxInt64 {
			return &storage.DamagedError{Kind: "refusal", Problem: "its name is not a number"}
		}
	}
	for _, refusal := range refusals {
		last++
		refusal.Sequence = last
		if err := put(tx, bucketRefusals, number(last), refusal); err != nil {
			return err
		}
	}
	return trim(bucket, last-storage.MaxRefusals)
}

// ListRefusals implements storage.RefusalStore. Its cursor is the sequence of the last refusal of
// the page.
func (s *Store) ListRefusals(ctx context.Context, query storage.Query) (storage.RefusalPage, error) {
	query = query.Bounded()
	before, err := parseCursor(query.Cursor, math.MaxInt64)
	if err != nil {
		return storage.RefusalPage{}, err
	}
	var page storage.RefusalPage
	position, err := s.read(ctx, nil, func(tx *bolt.Tx) (err error) {
		page, err = listRefusals(ctx, tx, query, before)
		return err
	})
	if err != nil {
		return storage.RefusalPage{}, err
	}
	page.Revision = position.Revision
	return page, nil
}

// listRefusals reads a page of refusals with sequences below before.
func listRefusals(ctx context.Context, tx *bolt.Tx, query storage.Query, before int64) (storage.RefusalPage, error) {
	var page storage.RefusalPage
	bucket := tx.Bucket([]byte(bucketRefusals))
	if bucket == nil {
		return page, nil
	}
	cursor, total := bucket.Cursor(), 0
	step := cursor.Prev
	if name, _ := cursor.Seek([]byte(number(before))); name == nil {
		step = cursor.Last
	}
	for name, value := step(); name != nil; name, value = cursor.Prev() {
		if err := ctx.Err(); err != nil {
			return page, err
		}
		refusal, err := decodeRefusal(string(name), value)
		if err != nil {
			return page, err
		}
		if query.WorkspaceID != "" && refusal.GetWorkspaceId() != query.WorkspaceID {
			continue
		}
		if query.Full(len(page.Refusals), total, len(value)) {
			page.Next = strconv.FormatInt(page.Refusals[len(page.Refusals)-1].GetSequence(), 10)
			return page, nil
		}
		page.Refusals, total = append(page.Refusals, refusal), total+len(value)
	}
	return page, nil
}

// decodeRefusal decodes a refusal and checks that its name is right.
func decodeRefusal(name string, value []byte) (*storagev1.RefusalRecord, error) {
	sequence, err := parseNumber([]byte(name))
	if err != nil {
		return nil, &storage.DamagedError{Kind: "refusal", Problem: err.Error()}
	}
	refusal := &storagev1.RefusalRecord{}
	title := strconv.FormatInt(sequence, 10)
	if err := storage.Decode("refusal", frameName(bucketRefusals, name), value, refusal); err != nil {
		return nil, &storage.DamagedError{Kind: "refusal", Name: title, Problem: problemOf(err)}
	}
	if number(refusal.GetSequence()) != name {
		return nil, misplaced("refusal", title)
	}
	return refusal, nil
}

// refusals checks the stream of refusals.
func (c *fileChecker) refusals() error {
	if c.tx.Bucket([]byte(bucketRefusals)) == nil {
		return nil
	}
	before := int64(0)
	return c.each(bucketRefusals, func(name string, value []byte) {
		c.report.Refusals++
		if _, err := decodeRefusal(name, value); err != nil {
			c.Problem("%v", err)
		}
		if sequence, err := parseNumber([]byte(name)); err == nil {
			if before > 0 && sequence != before+1 {
				c.Problem("refusal %d: it follows on %d", sequence, before)
			}
			before = sequence
		}
	})
}
