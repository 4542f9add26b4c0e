package etcdstore

import (
	"context"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// usageBatch is the max number of keys whose last uses one transaction reads or records. Each use that is
// recorded is a transaction nested two deep, and etcd counts the nested ones against its limit of 128 as
// well.
const usageBatch = 100

var _ storage.UsageReader = (*Store)(nil)

// ReadUsage implements storage.UsageReader.
func (s *Store) ReadUsage(ctx context.Context, keyIDs []string) ([]storage.Usage, error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	keyIDs = slices.DeleteFunc(slices.Clone(keyIDs), func(keyID string) bool { return !validID(keyID) })
	var uses []storage.Usage
	for batch := range slices.Chunk(keyIDs, usageBatch) {
		stored, err := s.readUses(ctx, batch)
		if err != nil {
			return nil, err
		}
		for _, each := range stored {
			if each.use != nil {
				uses = append(uses, *each.use)
			}
		}
	}
	return uses, nil
}

// storedUse is what is stored about the last use of a key.
type storedUse struct {
	// revision is that of the stored value, 0 if nothing is stored. The use is nil if it is damaged or zero.
	revision int64
	use      *storage.Usage
}

// readUses reads the last uses of at most usageBatch keys, in the order of the keys.
func (s *Store) readUses(ctx context.Context, keyIDs []string) ([]storedUse, error) {
	parts := make([]clientv3.Op, len(keyIDs))
	for index, keyID := range keyIDs {
		parts[index] = s.get(usageName(keyID))
	}
	response, err := s.read(ctx, parts...)
	if err != nil {
		return nil, err
	}
	stored := make([]storedUse, len(keyIDs))
	for index, keyID := range keyIDs {
		pair := first(response, index)
		if pair == nil {
			continue
		}
		stored[index].revision = pair.ModRevision
		// A damaged time is left out, and overwritten by the next use: no decision depends on it.
		if use, err := decodeUsage(usageName(keyID), keyID, pair.Value); err == nil && !use.Time.IsZero() {
			stored[index].use = use
		}
	}
	return stored, nil
}

// PutUsage implements storage.Store. Most keys that are in use have a time that is not old enough to be
// written again. So the times are read first, which no member has to log; and the last use of each secret
// can be taken over from what other processes have recorded.
func (s *Store) PutUsage(ctx context.Context, uses []storage.Usage) error {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return err
	}
	defer done()
	// A transaction must not put one name twice, so only the latest use of each key is kept.
	latest := make(map[string]storage.Usage, len(uses))
	for _, use := range uses {
		if before, twice := latest[use.KeyID]; validID(use.KeyID) && (!twice || before.Time.Before(use.Time)) {
			latest[use.KeyID] = use
		}
	}
	sorted := make([]storage.Usage, 0, len(latest))
	for _, use := range latest {
		sorted = append(sorted, use)
	}
	slices.SortFunc(sorted, func(a, b storage.Usage) int { return strings.Compare(a.KeyID, b.KeyID) })
	for batch := range slices.Chunk(sorted, usageBatch) {
		for len(batch) > 0 {
			// What another process recorded in between is read again.
			if batch, err = s.putUses(ctx, batch); err != nil {
				return err
			}
		}
	}
	return nil
}

// putUses records uses, and returns those that could not be recorded because another process has
// recorded a use of the key since it was read.
func (s *Store) putUses(ctx context.Context, uses []storage.Usage) (overtaken []storage.Usage, err error) {
	keyIDs := make([]string, len(uses))
	for index, use := range uses {
		keyIDs[index] = use.KeyID
	}
	stored, err := s.readUses(ctx, keyIDs)
	if err != nil {
		return nil, err
	}
	var parts []clientv3.Op
	var wanted []storage.Usage
	for index, use := range uses {
		merged, differs := s.mergeUse(stored[index].use, use)
		if !differs {
			continue
		}
		name := usageName(use.KeyID)
		put := []clientv3.Op{s.put(name, encodeUsage(name, merged))}
		isSame := clientv3.Compare(clientv3.ModRevision(s.config.Prefix+name), "=", stored[index].revision)
		// Nothing is put for a key that does not exist. That is no reason to try again.
		parts = append(parts, clientv3.OpTxn([]clientv3.Cmp{isSame},
			[]clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{s.isThere(idName(use.KeyID))}, put, nil)}, nil))
		wanted = append(wanted, use)
	}
	if len(parts) == 0 {
		return nil, nil
	}
	if err := s.admit(false); err != nil {
		return nil, err
	}
	// Recording the same times twice changes nothing, so the transaction is repeated if its
	// answer is lost.
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(s.holds(nameHeader, "=", s.header)).Then(parts...).Commit()
	})
	if err != nil {
		return nil, err
	}
	if !response.Succeeded {
		return nil, s.errHistory()
	}
	for index, part := range response.Responses {
		if !part.GetResponseTxn().GetSucceeded() {
			overtaken = append(overtaken, wanted[index])
		}
	}
	return overtaken, nil
}

// mergeUse returns what to store for a use of a key, of which a use may be stored, and reports whether it
// is so much newer that it is to be stored.
func (s *Store) mergeUse(stored *storage.Usage, use storage.Usage) (merged storage.Usage, differs bool) {
	if stored == nil {
		return use, true
	}
	granularity := max(0, s.config.UsageGranularity)
	isLater := func(at, than time.Time) bool { return at.After(than.Add(granularity)) }
	differs = isLater(use.Time, stored.Time)
	// The later use says which secrets the key has. If it names none, its only secret was used as the key was.
	merged, other := use, *stored
	if use.Time.Before(stored.Time) {
		merged, other = *stored, use
	}
	for index := range merged.Secrets {
		secret := &merged.Secrets[index]
		if secret.Tag == 0 {
			continue
		}
		differs = differs || isLater(lastOfSecret(use, secret.Tag), lastOfSecret(*stored, secret.Tag))
		if at := lastOfSecret(other, secret.Tag); secret.Time.Before(at) {
			secret.Time = at
		}
	}
	return merged, differs
}

// lastOfSecret returns when a secret was last used; zero if it never was.
func lastOfSecret(use storage.Usage, tag uint32) (at time.Time) {
	for _, secret := range use.Secrets {
		if secret.Tag == tag && secret.Time.After(at) {
			at = secret.Time
		}
	}
	return at
}
