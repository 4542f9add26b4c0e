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

// PutUsage implements storage.Store. It is the one write that does not go through
// the committer: it changes nothing that the directory or a watcher knows.
func (s *Store) PutUsage(ctx context.Context, uses []storage.Usage) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.room.admit(false); err != nil {
		return err
	}
	if err := s.state.Enter(ctx); err != nil {
		return err
	}
	file := s.file
	if file == nil || s.closed || s.unloaded {
		s.state.RUnlock()
		return storage.ErrUnavailable
	}
	times := make([]slotTime, 0, len(uses))
	for _, use := range uses {
		if at, found := s.directory.keys[use.KeyID]; found {
			times = append(times, slotTime{at.slot, use.Time.UnixNano()})
		}
	}
	s.state.RUnlock()
	// Ascending, as all writes.
	slices.SortFunc(times, func(a, b slotTime) int { return cmp.Compare(a.slot, b.slot) })

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
		if err := s.room.prepare(file, tx, false, need(make([]write, len(times)))); err != nil {
			return err
		}
		return putTimes(tx, times)
	})
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
		s.room.fitted(false, err)
		return storage.ErrFull
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

// putTimes writes those times that are later than the stored ones. A key that was
// deleted meanwhile has no record, and gets no time.
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

// decodeUsage returns a stored time, 0 if there is none.
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

// loadUsage visits when the key under keyName was last used. A damaged time counts as
// none: nothing is decided by it, and the next use mends it.
func loadUsage(tx *bolt.Tx, keyName []byte, visit func(storage.Item) error) error {
	_, keyID, _, err := parseKeyName(keyName)
	if err != nil {
		return nil //nolint:nilerr // visited as damaged
	}
	name := string(keyName[:numberLength])
	nanoseconds, err := decodeUsage(name, tx.Bucket([]byte(bucketUsage)).Get([]byte(name)))
	if err != nil || nanoseconds == 0 {
		return nil //nolint:nilerr // see above
	}
	return visit(storage.Item{Usage: &storage.Usage{KeyID: keyID, Time: time.Unix(0, nanoseconds).UTC()}})
}
