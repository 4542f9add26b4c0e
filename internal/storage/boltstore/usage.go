package boltstore

import (
	"cmp"
	"context"
	"encoding/binary"
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
	times := make([]slotUse, 0, len(uses))
	_, err := s.lookUp(ctx, func(index *fileIndex) {
		file = s.file
		for _, use := range uses {
			if at, found := index.key(use.KeyID); found {
				times = append(times, slotUse{at.slot, use})
			}
		}
	})
	if err != nil {
		return err
	}
	// Ascending, as in all writes.
	slices.SortFunc(times, func(a, b slotUse) int { return cmp.Compare(a.slot, b.slot) })

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

// slotUse is when the key in a slot was last used.
type slotUse struct {
	slot int64
	use  storage.Usage
}

// putTimes writes the times that are later than the stored ones. A key that was deleted in
// the meantime has no record, and gets no time.
func putTimes(tx *bolt.Tx, times []slotUse) error {
	bucket := tx.Bucket([]byte(bucketUsage))
	keys := tx.Bucket([]byte(bucketKeys)).Cursor()
	for _, each := range times {
		name := number(each.slot)
		if found, _ := keys.Seek([]byte(name)); len(found) < numberLength || string(found[:numberLength]) != name {
			continue
		}
		stored, err := decodeUsage(name, bucket.Get([]byte(name)))
		if err != nil {
			stored = storedUse{} // the next use overwrites a damaged time
		}
		wanted, differs := stored.raise(useOf(each.use))
		if !differs {
			continue
		}
		if err := bucket.Put([]byte(name), frame(bucketUsage, name, wanted.encode())); err != nil {
			return err
		}
	}
	return nil
}

// storedUse is a value of bucketUsage: the last use of a key, and those of its secrets if they do not
// follow from it. It is stored as a number, which is all that stores of earlier versions have, and a tag
// and a number for each secret. Times are in Unix nanoseconds, and 0 if there was no use.
type storedUse struct {
	at      int64
	secrets [2]storage.SecretUseView
}

// useOf returns a use as it is stored.
func useOf(use storage.Usage) storedUse {
	stored := storedUse{at: use.Time.UnixNano()}
	for index, secret := range use.Secrets {
		stored.secrets[index].Tag = secret.Tag
		if !secret.Time.IsZero() {
			stored.secrets[index].Time = secret.Time.UnixNano()
		}
	}
	return stored
}

// raise returns the later one of each time of two uses, and reports whether it differs from s. The
// secrets are those of the later use.
func (s storedUse) raise(use storedUse) (later storedUse, differs bool) {
	later = storedUse{at: max(s.at, use.at), secrets: use.secrets}
	if use.secrets == [2]storage.SecretUseView{} && use.at <= s.at {
		later.secrets = s.secrets
	}
	for index := range later.secrets {
		for _, had := range s.secrets {
			if had.Tag == later.secrets[index].Tag {
				later.secrets[index].Time = max(later.secrets[index].Time, had.Time)
			}
		}
	}
	return later, later != s
}

// secretUseLength is the length of the last use of a secret: a tag and a number.
const secretUseLength = 4 + numberLength

// encode returns the payload of the value.
func (s storedUse) encode() []byte {
	payload := []byte(number(s.at))
	for _, secret := range s.secrets {
		if secret.Tag != 0 {
			payload = append(binary.BigEndian.AppendUint32(payload, secret.Tag), number(secret.Time)...)
		}
	}
	return payload
}

// parseUse is the inverse of encode.
func parseUse(payload []byte) (use storedUse, err error) {
	if use.at, err = parseNumber(payload); err != nil {
		return storedUse{}, err
	}
	rest := payload[numberLength:]
	if len(rest)%secretUseLength != 0 || len(rest) > len(use.secrets)*secretUseLength {
		return storedUse{}, fmt.Errorf("value of %d bytes is not a last use", len(payload))
	}
	for index := 0; len(rest) > 0; index++ {
		use.secrets[index].Tag = binary.BigEndian.Uint32(rest)
		if use.secrets[index].Time, err = parseNumber(rest[4:]); err != nil {
			return storedUse{}, err
		}
		rest = rest[secretUseLength:]
	}
	return use, nil
}

// decodeUsage returns a stored use, the zero one if none is stored.
func decodeUsage(name string, value []byte) (storedUse, error) {
	if value == nil {
		return storedUse{}, nil
	}
	payload, err := storage.Unframe("usage", frameName(bucketUsage, name), value)
	if err != nil {
		return storedUse{}, err
	}
	use, err := parseUse(payload)
	if err != nil {
		return storedUse{}, &storage.DamagedError{Kind: "usage", Problem: err.Error()}
	}
	return use, nil
}

// loadUsage visits when the key under keyName was last used. A damaged time is left out: no
// decision depends on it, and the next use repairs it.
func loadUsage(tx *bolt.Tx, keyName []byte, visit func(storage.Item) error) error {
	_, keyID, _, err := parseKeyName(keyName)
	if err != nil {
		return nil //nolint:nilerr // the key itself is visited as damaged
	}
	name := string(keyName[:numberLength])
	stored, err := decodeUsage(name, tx.Bucket([]byte(bucketUsage)).Get([]byte(name)))
	if err != nil || stored.at == 0 {
		return nil //nolint:nilerr // see above
	}
	use := storage.Usage{KeyID: keyID, Time: time.Unix(0, stored.at).UTC()}
	for index, secret := range stored.secrets {
		use.Secrets[index].Tag = secret.Tag
		if secret.Time != 0 {
			use.Secrets[index].Time = time.Unix(0, secret.Time).UTC()
		}
	}
	return visit(storage.Item{Usage: &use})
}
