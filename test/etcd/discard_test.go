package etcd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/migrate"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// interrupted begins a migration of a file, which ends after a number of steps.
func interrupted(t *testing.T, from storage.Exporter, target storage.Importer, steps int) {
	t.Helper()
	report, err := migrate.Run(t.Context(), migrate.Options{Source: from, Target: &stopping{target, steps}})
	_ = target.Close()
	if !errors.Is(err, errStop) {
		t.Fatalf("after %d steps: %v, %q", steps, err, report.Problems)
	}
}

// discard removes an unfinished migration. each is called for each part that was removed.
func discard(ctx context.Context, target storage.Importer, each func()) error {
	return errors.Join(target.Discard(ctx, func(int64, int64) { each() }), target.Close())
}

func nothing() {}

// countNames returns how many names are stored under a prefix.
func countNames(t *testing.T, client *clientv3.Client, prefix string) int64 {
	t.Helper()
	found, err := client.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	return found.Count
}

// steps returns after how many steps a migration of a file is to end: while it copies, before it completes the store, before it
// compares, and before it releases the store.
func steps(t *testing.T, from storage.Exporter) []int {
	t.Helper()
	parts := len(exported(t, from, storage.PortableRefusal))
	return []int{0, parts / 2, parts, parts + 1, parts + 2}
}

// TestDiscardRemovesAnUnfinishedMigration: however far it was, and although the removal is interrupted as well. Nobody opens
// the store before its end, and then another migration can be made there. What is stored beside it stays.
func TestDiscardRemovesAnUnfinishedMigration(t *testing.T) {
	sequential(t)
	t.Parallel()
	from, other, client := openExport(t, newFile(t, 100)), newFile(t, 5), newClient(t)
	for _, left := range steps(t, from) {
		prefix := newPrefix()
		config := etcdConfig(t, prefix)
		interrupted(t, from, etcdstore.NewImport(t.Context(), config), left)
		mustPut(t, client, prefix+"neighbour/data/header", "another store")
		before := countNames(t, client, prefix)

		// 1. The removal is interrupted.
		ctx, interrupt := context.WithCancel(t.Context())
		if err := discard(ctx, etcdstore.NewImport(t.Context(), config), interrupt); left > 0 && !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d steps: an interrupted removal: %v", left, err)
		}
		interrupt()
		if now := countNames(t, client, prefix); left > 0 && now >= before {
			t.Errorf("after %d steps: %d names of %d are left", left, now, before)
		}
		if left > 0 {
			if _, err := etcdstore.New(t.Context(), config); !errors.Is(err, storage.ErrUnfinished) {
				t.Errorf("after %d steps: opening a store that is partly removed: %v", left, err)
			}
			again := etcdstore.NewImport(t.Context(), config)
			if _, err := migrate.Run(t.Context(), migrate.Options{Source: from, Target: again}); !errors.Is(err, storage.ErrUnfinished) {
				t.Errorf("after %d steps: migrating into a store that is partly removed: %v", left, err)
			}
			_ = again.Close()

			// 2. It is given again.
			if err := discard(t.Context(), etcdstore.NewImport(t.Context(), config), nothing); err != nil {
				t.Fatalf("after %d steps: %v", left, err)
			}
		}
		if now := countNames(t, client, prefix); now != 1 {
			t.Errorf("after %d steps: %d names are left, want the neighbour's alone", left, now)
		}

		// 3. There is nothing any more.
		mustDelete(t, client, prefix+"neighbour/data/header")
		if err := discard(t.Context(), etcdstore.NewImport(t.Context(), config), nothing); !errors.Is(err, storage.ErrAbsent) {
			t.Errorf("after %d steps: discarding nothing: %v", left, err)
		}
		toEtcd(t, other, prefix)
		mustBeSound(t, prefix)
	}
}

// TestDiscardRemovesAnUnfinishedFile is TestDiscardRemovesAnUnfinishedMigration for a file, which is removed at once.
func TestDiscardRemovesAnUnfinishedFile(t *testing.T) {
	sequential(t)
	t.Parallel()
	prefix, other, path := newPrefix(), newPrefix(), filepath.Join(t.TempDir(), "keysvc.db")
	toEtcd(t, newFile(t, 100), prefix)
	toEtcd(t, newFile(t, 5), other)
	from, err := etcdstore.OpenExport(t.Context(), etcdConfig(t, prefix))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	newImport := func() *boltstore.Import { return boltstore.NewImport(path, boltstore.Config{}) }
	for _, left := range steps(t, from) {
		interrupted(t, from, newImport(), left)
		if err := discard(t.Context(), newImport(), nothing); err != nil {
			t.Fatalf("after %d steps: %v", left, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
			t.Errorf("after %d steps: %v is left, %v", left, entries, err)
		}
		if err := discard(t.Context(), newImport(), nothing); !errors.Is(err, storage.ErrAbsent) {
			t.Errorf("after %d steps: discarding nothing: %v", left, err)
		}
	}
	// A file that is damaged, and one beside another store.
	if err := os.WriteFile(path+".migrating", []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := discard(t.Context(), newImport(), nothing); err != nil {
		t.Errorf("a damaged file: %v", err)
	}
	interrupted(t, from, newImport(), 20)
	filled := newImport()
	if err := os.Rename(path+".migrating", path+".kept"); err != nil {
		t.Fatal(err)
	}
	toFile(t, other, path)
	if err := os.Rename(path+".kept", path+".migrating"); err != nil {
		t.Fatal(err)
	}
	if err := discard(t.Context(), filled, nothing); err != nil {
		t.Errorf("beside another store: %v", err)
	}
	mustBeSoundFile(t, path)
}

// TestDiscardLeavesAStore: one that a migration has finished, another one, what is no store, and a file that is being filled.
func TestDiscardLeavesAStore(t *testing.T) {
	t.Parallel()
	path, finished, made, stray := newFile(t, 5), newPrefix(), newPrefix(), newPrefix()
	toEtcd(t, path, finished)
	store := open(t, etcdConfig(t, made))
	fillStore(t, store, 5)
	client := newClient(t)
	mustPut(t, client, stray+"something", "else")
	for _, prefix := range []string{finished, made, stray} {
		before := countNames(t, client, prefix)
		if err := discard(t.Context(), etcdstore.NewImport(t.Context(), etcdConfig(t, prefix)), nothing); !errors.Is(err, storage.ErrPresent) {
			t.Errorf("%s: %v", prefix, err)
		}
		if after := countNames(t, client, prefix); after != before {
			t.Errorf("%s: %d names of %d are left", prefix, after, before)
		}
	}
	mustBeSound(t, finished)

	back := filepath.Join(t.TempDir(), "back.db")
	toFile(t, finished, back)
	refused := func(what string, path string, want error) {
		t.Helper()
		if err := discard(t.Context(), boltstore.NewImport(path, boltstore.Config{}), nothing); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	refused("a finished file", back, storage.ErrPresent)
	// As an end between the two steps of Release leaves it.
	if err := os.Link(back, back+".migrating"); err != nil {
		t.Fatal(err)
	}
	refused("a finished file with two names", back, storage.ErrPresent)
	mustBeSoundFile(t, back)

	third := filepath.Join(t.TempDir(), "third.db")
	from, err := etcdstore.OpenExport(t.Context(), etcdConfig(t, made))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	target, once := boltstore.NewImport(third, boltstore.Config{}), true
	defer target.Close()
	_, err = migrate.Run(t.Context(), migrate.Options{Source: from, Target: target, Progress: func(migrate.Stage, int64, int64) {
		if once {
			once = false
			refused("a file that is being filled", third, storage.ErrLocked)
		}
	}})
	if err != nil || once {
		t.Errorf("the migration beside it: %v", err)
	}
	mustBeSoundFile(t, third)
}

// TestDiscardStopsAMigration: a migration under way ends with an error, wherever it is, and nothing of it is left or served.
func TestDiscardStopsAMigration(t *testing.T) {
	sequential(t)
	t.Parallel()
	from := openExport(t, newFile(t, 100))
	for _, at := range []migrate.Stage{migrate.Copying, migrate.Comparing, migrate.Checking} {
		prefix, discarded, wires := newPrefix(), false, &network{}
		remove := func() {
			discarded = true
			if err := discard(t.Context(), etcdstore.NewImport(t.Context(), etcdConfig(t, prefix)), nothing); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
		target := etcdstore.NewImport(t.Context(), etcdstore.Config{Members: wires.clients(t), Prefix: prefix})
		report, err := migrate.Run(t.Context(), migrate.Options{Source: from, Target: target, Progress: func(stage migrate.Stage, done, total int64) {
			switch {
			case stage != at || discarded:
			case at == migrate.Checking && done == total: // the next transaction that writes is the one of Release
				wires.next(func(s *sent) (*clientv3.TxnResponse, error) {
					remove()
					return s.deliver()
				})
			case at != migrate.Checking && done == 150:
				remove()
			}
		}})
		_ = target.Close()
		if err == nil || !discarded {
			t.Errorf("%s: the migration ends with %v, %+v", at, err, report)
		}
		if left := countNames(t, newClient(t), prefix); left != 0 {
			t.Errorf("%s: %d names are left", at, left)
		}
	}
}

// TestDiscardOutlastsLostAnswers executes each transaction of a removal, and loses its answer the first time.
func TestDiscardOutlastsLostAnswers(t *testing.T) {
	t.Parallel()
	prefix, wires, sends := newPrefix(), &network{}, 0
	interrupted(t, openExport(t, newFile(t, 20)), etcdstore.NewImport(t.Context(), etcdConfig(t, prefix)), 30)
	target := etcdstore.NewImport(t.Context(), etcdstore.Config{Members: wires.clients(t), Prefix: prefix})
	wires.set(func(s *sent) (*clientv3.TxnResponse, error) {
		response, err := s.deliver()
		if sends++; sends%2 == 1 {
			return lose()
		}
		return response, err
	})
	if err := discard(t.Context(), target, nothing); err != nil || sends < 6 {
		t.Errorf("after %d transactions: %v", sends, err)
	}
	if left := countNames(t, newClient(t), prefix); left != 0 {
		t.Errorf("%d names are left", left)
	}
}

// fillQuota puts values of another tenant until etcd has no room.
func fillQuota(t *testing.T, client *clientv3.Client) {
	t.Helper()
	for {
		_, err := client.Put(t.Context(), "/filler", strings.Repeat("x", 8<<10))
		switch {
		case errors.Is(err, rpctypes.ErrNoSpace):
			return
		case err != nil:
			t.Fatal(err)
		}
	}
}

// TestDiscardNeedsNoRoom: a migration that found the quota of etcd used up can be removed.
func TestDiscardNeedsNoRoom(t *testing.T) {
	t.Parallel()
	from, prefix, own := openExport(t, newFile(t, 100)), newPrefix(), ownServer(t, 512<<10)
	client := clientOf(t, own.endpoint())
	config := etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix}
	interrupted(t, from, etcdstore.NewImport(t.Context(), config), 200)
	fillQuota(t, client)
	target := etcdstore.NewImport(t.Context(), config)
	_, err := migrate.Run(t.Context(), migrate.Options{Source: from, Target: target})
	_ = target.Close()
	if !errors.Is(err, storage.ErrFull) {
		t.Errorf("going on without room: %v", err)
	}
	if err := discard(t.Context(), etcdstore.NewImport(t.Context(), config), nothing); err != nil {
		t.Fatal(err)
	}
	if left := countNames(t, client, prefix); left != 0 {
		t.Errorf("%d names are left", left)
	}
}

// TestDiscardWithoutRoomStopsAMigration: without room there is no record that would stop a migration that has only its
// release before it.
func TestDiscardWithoutRoomStopsAMigration(t *testing.T) {
	t.Parallel()
	path, prefix, own := newFile(t, 5), newPrefix(), ownServer(t, 512<<10)
	client := clientOf(t, own.endpoint())
	config := etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix}
	wires, discarded := &network{}, false
	theirs := clientOf(t, own.endpoint())
	theirs.KV = &faultyKV{theirs.KV, wires}
	target := etcdstore.NewImport(t.Context(), etcdstore.Config{Members: []*clientv3.Client{theirs}, Prefix: prefix})
	defer target.Close()
	remove := func(s *sent) (*clientv3.TxnResponse, error) {
		discarded = true
		fillQuota(t, client)
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		if err := discard(ctx, etcdstore.NewImport(t.Context(), config), interrupt); !errors.Is(err, context.Canceled) {
			t.Errorf("an interrupted removal: %v", err)
		}
		return s.deliver()
	}
	_, err := migrate.Run(t.Context(), migrate.Options{Source: openExport(t, path), Target: target, Progress: func(stage migrate.Stage, done, total int64) {
		if stage == migrate.Checking && done == total { // the next transaction that writes is the one of Release
			wires.next(remove)
		}
	}})
	if !errors.Is(err, storage.ErrLocked) || !discarded {
		t.Errorf("the migration: %v", err)
	}
	if _, err := etcdstore.New(t.Context(), config); !errors.Is(err, storage.ErrUnfinished) {
		t.Errorf("opening a store that is partly removed: %v", err)
	}
}
