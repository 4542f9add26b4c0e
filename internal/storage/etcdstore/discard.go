package etcdstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Discard implements storage.Importer. It takes these steps, each in a transaction that compares the record of the
// migration:
//
//  1. A record without a source replaces the record. From then on every process that fills the store stops, and none
//     goes on with it, but another Discard.
//  2. The header goes, and then the folders, a part at a time.
//  3. The record goes.
//
// So nobody opens the store, or begins a new migration, before all is removed. If the quota of etcd is used up, it takes no
// record, and the first step is left out. Then the missing header keeps Release from its end, and what a migration finds
// that goes on after an interrupted Discard is not what it has copied.
func (i *Import) Discard(ctx context.Context, progress func(done, total int64)) error {
	s := i.store
	response, err := s.read(ctx, s.get(nameMigration), s.get(nameHeader), s.get("", clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err != nil {
		return err
	}
	stored := first(response, 0)
	switch {
	case stored != nil:
	case found(response, 2).GetCount() == 0:
		return fmt.Errorf("%w, and no unfinished migration, under %s", storage.ErrAbsent, s.config.Prefix)
	case first(response, 1) != nil:
		return fmt.Errorf("%w: no migration into %s is unfinished, and servers can open the store", storage.ErrPresent, s.config.Prefix)
	default:
		return fmt.Errorf("%w: what is stored under %s is not of a migration", storage.ErrPresent, s.config.Prefix)
	}
	// 1. The record.
	run, err := randomText(rand.Reader)
	if err != nil {
		return err
	}
	taken, err := i.commit(ctx, s.holds(nameMigration, "=", string(stored.Value)), nil, &storagev1.MigrationRecord{Run: run})
	switch {
	case errors.Is(err, storage.ErrFull):
		i.stored = string(stored.Value)
	case err != nil:
		return err
	case !taken:
		return errOthersMigrate
	}
	// 2. The header, and the folders.
	if err := i.remove(ctx, nameHeader, after(nameHeader)); err != nil {
		return err
	}
	if response, err = s.read(ctx, s.get("", clientv3.WithPrefix(), clientv3.WithCountOnly())); err != nil {
		return err
	}
	done, total, at := int64(0), found(response, 0).GetCount(), response.Header.GetRevision()
	for _, folder := range []string{folderData, folderUsage} {
		err := s.stream(ctx, folder, endOf(folder), at, func(some *chunk) error {
			defer some.release()
			if len(some.pairs) == 0 {
				return nil
			}
			if err := i.remove(ctx, string(some.pairs[0].name), after(string(some.pairs[len(some.pairs)-1].name))); err != nil {
				return err
			}
			done += int64(len(some.pairs))
			progress(done, max(done, total))
			return nil
		})
		if err != nil {
			return err
		}
	}
	// 3. The record.
	return i.remove(ctx, nameMigration, after(nameMigration))
}

var errOthersMigrate = fmt.Errorf("%w: another process goes on with the migration, or discards it", storage.ErrLocked)

// remove deletes the names from one on to before another one, as long as the record of the migration
// is the one that Discard knows.
func (i *Import) remove(ctx context.Context, from, to string) error {
	s := i.store
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(s.holds(nameMigration, "=", i.stored)).
			Then(clientv3.OpDelete(s.config.Prefix+from, clientv3.WithRange(s.config.Prefix+to))).
			Else(s.get(nameMigration)).Commit()
	})
	if err == nil && !response.Succeeded && (from != nameMigration || first(response, 0) != nil) { // else an earlier attempt was executed
		err = errOthersMigrate
	}
	return err
}
