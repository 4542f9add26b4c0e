package etcdstore

import (
	"context"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// usageBatch is the max number of keys whose last uses one transaction records. Each use is a
// transaction nested three deep, and etcd counts the nested ones against its limit of 128 as
// well.
const usageBatch = 100

// PutUsage implements storage.Store. etcd itself compares the stored times, so nothing is
// read, and several processes can record at the same time.
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
		if err := s.putUses(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) putUses(ctx context.Context, uses []storage.Usage) error {
	parts := make([]clientv3.Op, len(uses))
	for index, use := range uses {
		name := usageName(use.KeyID)
		value := encodeUsage(name, use)
		put := []clientv3.Op{s.put(name, value)}
		isKey := s.isThere(idName(use.KeyID))
		parts[index] = clientv3.OpTxn([]clientv3.Cmp{s.isAbsent(name)},
			[]clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{isKey}, put, nil)},
			[]clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{isKey, s.holds(name, "<", value)}, put, nil)})
	}
	// Recording the same times twice changes nothing, so the transaction is repeated if its
	// answer is lost.
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(s.holds(nameHeader, "=", s.header)).Then(parts...).Commit()
	})
	if err != nil {
		return err
	}
	if !response.Succeeded {
		return s.errHistory()
	}
	return nil
}
