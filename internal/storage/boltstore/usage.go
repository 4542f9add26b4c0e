package boltstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// PutUsage implements storage.Store.
func (s *Store) PutUsage(ctx context.Context, uses []storage.Usage) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.room.admit(false); err != nil {
		return err
	}
	// 1. Find the slots.
	var file *opened
	times := make([]slotTime, 0, len(uses))
	_, err := s.lookUp(ctx, func(index *fileIndex) {
		file = s.file
		for _, use := range uses {
			if at, found := index.key(use.KeyID); found {
				times = append(times, slotTime{at.slot, use.Time.UnixNano()})
			}
		}
	})
	if err != nil {
		return err
	}
	// Ascending, as in all writes.
	slices.SortFunc(times, func(a, b slotTime) int { return cmp.Compare(a.slot, b.slot) })

	// 2. Write them.
	return s.writeAside(ctx, file, need(make([]write, len(times))), func(tx *bolt.Tx) error {
		return putTimes(tx, times)
	})
}

// writeAside commits a transaction that bypasses the committer, because it changes nothing that
// the index or a watcher knows. bytes is the estimate of how much it takes; the reserve is left
// untouched. Errors: ErrFull, ErrUnavailable, ErrOutcomeUnknown, the context's, or fill's, after
// which nothing was written.
func (s *Store) writeAside(ctx context.Context, file *opened, bytes int64, fill func(tx *bolt.Tx) error) error {
	// 1. Fill the transaction, while readers go on.
	if err := s.writing.Claim(ctx); err != nil {
		return err
	}
	defer s.writing.Unlock()
	var tx *bolt.Tx
	err := guard(func() error {
		var err error
		if tx, err = file.database.Begin(true); err != nil {
			return err
		}
		if err := s.room.prepare(file, tx, false, bytes); err != nil {
			return err
		}
		return fill(tx)
	})
	// 2. Keep readers out, and commit, as in Store.write.
	s.state.Lock()
	defer s.state.Unlock()
	if s.file != file {
		if tx != nil {
			_ = tx.Rollback()
		}
		return storage.ErrUnavailable
	}
	if err == nil {
		err = s.commit(tx)
	}
	if isNoRoomInFile(err) {
		return storage.ErrFull // no change is refused because of this: the estimate may have been too low
	}
	if err == nil {
		err = s.checkCommitted()
	}
	if err != nil {
		s.goDown(tx)
		return fmt.Errorf("%w: %w", storage.ErrOutcomeUnknown, err)
	}
	return nil
}

// slotTime is when the key in a slot was last used, in Unix nanoseconds.
type slotTime struct{ slot, nanoseconds int64 }

// putTimes writes the times that are later than the stored ones. A key that was deleted in
// the meantime has no record, and gets no time.
func putTimes(tx *bolt.Tx, times []slotTime) error {
	bucket := tx.Bucket([]byte(bucketUsage))
	keys := tx.Bucket([]byte(bucketKeys)).Cursor()
	for _, each := range times {
		name := number(each.slot)
		if found, _ := keys.Seek([]byte(name)); len(found) < numberLength || string(found[:numberLength]) != name {
			continue
		}
		if stored, err := decodeUsage(name, bucket.Get([]byte(name))); err == nil && stored >= each.nanoseconds {
			continue
		}
		if err := bucket.Put([]byte(name), frame(bucketUsage, name, []byte(number(each.nanoseconds)))); err != nil {
			return err
		}
	}
	return nil
}

// decodeUsage returns a stored time in Unix nanoseconds, 0 if no time is stored.
func decodeUsage(name string, value []byte) (int64, error) {
	if value == nil {
		return 0, nil
	}
	payload, err := storage.Unframe("usage", frameName(bucketUsage, name), value)
	if err != nil {
		return 0, err
	}
	nanoseconds, err := parseNumber(payload)
	if err != nil {
		return 0, &storage.DamagedError{Kind: "usage", Problem: err.Error()}
	}
	return nanoseconds, nil
}

// loadUsage visits when the key under keyName was last used. A damaged time is left out: no
// decision depends on it, and the next use repairs it.
func loadUsage(tx *bolt.Tx, keyName []byte, visit func(storage.Item) error) error {
	_, keyID, _, err := parseKeyName(keyName)
	if err != nil {
		return nil //nolint:nilerr // the key itself is visited as damaged
	}
	name := string(keyName[:numberLength])
	nanoseconds, err := decodeUsage(name, tx.Bucket([]byte(bucketUsage)).Get([]byte(name)))
	if err != nil || nanoseconds == 0 {
		return nil //nolint:nilerr // see above
	}
	return visit(storage.Item{Usage: &storage.Usage{KeyID: keyID, Time: time.Unix(0, nanoseconds).UTC()}})
}
