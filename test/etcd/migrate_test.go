package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/migrate"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// newFile makes a file with a bit of everything that a store has, and returns its path.
func newFile(t *testing.T, keys int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keysvc.db")
	store, err := boltstore.Open(path, boltstore.Config{Create: boltstore.CreateNew, Unanchored: true, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	fillStore(t, store, keys)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeSoundFile(t, path)
	return path
}

// fillStore makes changes of a few workspaces, one after the other and mixed.
func fillStore(t *testing.T, store storage.Store, keys int) {
	t.Helper()
	policy := storagetest.ApplyPolicy(storage.Head{}, "first")
	mustCommit(t, store, policy)
	workspaces := []*storagetest.Workspace{storagetest.NewWorkspace("zeta"), storagetest.NewWorkspace("alpha"), storagetest.NewWorkspace("mu")}
	do := func(workspace *storagetest.Workspace, change *storage.Change) *storage.Change {
		mustFollow(t, store, workspace, change)
		return change
	}
	for _, workspace := range workspaces {
		do(workspace, workspace.PutMember("member", "admin"))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for number := range keys {
		workspace := workspaces[random.IntN(len(workspaces))]
		var requests []string
		for request := range number % 3 {
			requests = append(requests, fmt.Sprint("request ", request, " of ", number))
		}
		// Ids that do not ascend with the order of creation.
		created := do(workspace, workspace.CreateKey(storagetest.KeyID(keys-number), requests...))
		key := created.PutKeys[0]
		switch number % 7 {
		case 2:
			do(workspace, workspace.RevokeKey(key))
		case 3:
			do(workspace, workspace.DeleteKey(key))
		case 4:
			do(workspace, workspace.UpdateKey(key, func(key *storagev1.KeyRecord) { key.Name = "another name" }))
		}
		if number%5 == 0 {
			use := storage.Usage{KeyID: key.GetKeyId(), Time: time.Unix(int64(number)+1, 5), Secrets: [2]storage.SecretUse{{Tag: 7, Time: time.Unix(3, 4)}}}
			if err := store.PutUsage(t.Context(), []storage.Usage{use}); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustCommit(t, store, storagetest.ApplyPolicy(storagetest.After(policy), "second"))
	if refusals, has := storage.As[storage.RefusalStore](store); has {
		if err := refusals.PutRefusals(t.Context(), []*storagev1.RefusalRecord{{Count: 1, Caller: "web"}, {Count: 2}}); err != nil {
			t.Fatal(err)
		}
	}
}

func mustBeSoundFile(t *testing.T, path string) {
	t.Helper()
	report, err := boltstore.Check(t.Context(), path)
	if err != nil || len(report.Problems) > 0 {
		t.Fatalf("%s: %q, %v", path, report.Problems, err)
	}
}

// etcdConfig returns the config of a store under a prefix.
func etcdConfig(t *testing.T, prefix string) etcdstore.Config {
	return etcdstore.Config{Members: []*clientv3.Client{newClient(t)}, Prefix: prefix}
}

// exported returns what an exporter exports, as text without the parts of some kinds.
func exported(t *testing.T, from storage.Exporter, without ...storage.PortableKind) []string {
	t.Helper()
	var parts []string
	err := from.Export(t.Context(), func(part storage.Portable) error {
		if !slices.Contains(without, part.Kind) {
			use := part.Usage
			parts = append(parts, fmt.Sprintf("%v %x %d %x at %v %v", part, part.Payload, part.Head.Sequence, part.Head.Hash, use.Time.UTC(), use.Secrets))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// exportedFile is exported for a file, which it closes.
func exportedFile(t *testing.T, path string, without ...storage.PortableKind) []string {
	t.Helper()
	from := openExport(t, path)
	defer from.Close()
	return exported(t, from, without...)
}

func openExport(t *testing.T, path string) *boltstore.Export {
	t.Helper()
	from, err := boltstore.OpenExport(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	return from
}

// toEtcd migrates a file.
func toEtcd(t *testing.T, path, prefix string) *migrate.Report {
	t.Helper()
	report, err := tryToEtcd(t.Context(), t, path, prefix)
	if err != nil {
		t.Fatalf("%v: %q", err, report.Problems)
	}
	return report
}

func tryToEtcd(ctx context.Context, t *testing.T, path, prefix string) (*migrate.Report, error) {
	t.Helper()
	from, err := boltstore.OpenExport(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	target := etcdstore.NewImport(t.Context(), etcdConfig(t, prefix))
	defer target.Close()
	return migrate.Run(ctx, migrate.Options{Source: from, Target: target})
}

// toFile migrates a store in etcd.
func toFile(t *testing.T, prefix, path string) *migrate.Report {
	t.Helper()
	report, err := tryToFile(t, prefix, path)
	if err != nil {
		t.Fatalf("%v: %q", err, report.Problems)
	}
	return report
}

func tryToFile(t *testing.T, prefix, path string) (*migrate.Report, error) {
	t.Helper()
	from, err := etcdstore.OpenExport(t.Context(), etcdConfig(t, prefix))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	target := boltstore.NewImport(path, boltstore.Config{})
	defer target.Close()
	return migrate.Run(t.Context(), migrate.Options{Source: from, Target: target})
}

// TestMigrateToEtcdAndBack: the store in etcd is sound, lists everything in the order of the file, and the
// file that is made from it again has what the first had.
func TestMigrateToEtcdAndBack(t *testing.T) {
	t.Parallel()
	path, prefix := newFile(t, 300), newPrefix()
	first, err := boltstore.Open(path, boltstore.Config{Unanchored: true, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	keys, scan := storagetest.ListKeys(t, first, "", 1000), allEvents(t, first, 1000)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	report := toEtcd(t, path, prefix)
	if report.Resumed != 0 || report.Left[storage.PortableRefusal] != 2 || report.Counts[storage.PortableKey] != int64(len(keys)) || report.Counts[storage.PortableEvent] != int64(len(scan)) {
		t.Errorf("it reports %+v", report)
	}
	mustBeSound(t, prefix)
	store := open(t, etcdConfig(t, prefix))
	if store.Epoch() != report.Epoch || store.Epoch() == report.Origin.Epoch {
		t.Errorf("epoch %s, reported %s, of the source %s", store.Epoch(), report.Epoch, report.Origin.Epoch)
	}
	if barrier, err := store.Barrier(t.Context()); err != nil || barrier.Revision != report.Revision || barrier.Hash != report.Origin.Position.Hash {
		t.Errorf("its position is %+v, %v", barrier, err)
	}
	for _, limit := range []int{1, 7, 1000} {
		if got := storagetest.ListKeys(t, store, "", limit); !slices.EqualFunc(got, keys, func(a, b *storagev1.KeyRecord) bool { return a.GetKeyId() == b.GetKeyId() }) {
			t.Errorf("limit %d: keys are in another order", limit)
		}
		if got := allEvents(t, store, limit); !slices.EqualFunc(got, scan, func(a, b storage.AuditEvent) bool { return bytes.Equal(a.Encoded, b.Encoded) }) {
			t.Errorf("limit %d: events are in another order", limit)
		}
	}
	if feed, err := store.ListFeed(t.Context(), 100); err != nil || len(feed) != 1 || feed[0].GetRevision() != report.Revision {
		t.Errorf("its change log has %v, %v", feed, err)
	}
	// The store goes on: what was created last is listed first.
	workspace := storagetest.NewWorkspace("mu")
	workspace.Head = headIn(t, store, "mu")
	mustCommit(t, store, workspace.CreateKey(storagetest.KeyID(5000), "a new request"))
	if got := storagetest.ListKeys(t, store, "", 1); got[0].GetKeyId() != storagetest.KeyID(5000) {
		t.Errorf("the newest key is %s", got[0].GetKeyId())
	}
	mustBeSound(t, prefix)

	// And back. The second file has one key and one event more.
	back := filepath.Join(t.TempDir(), "back.db")
	toFile(t, prefix, back)
	mustBeSoundFile(t, back)
	before, after := exportedFile(t, path, storage.PortableRefusal, storage.PortableHead), exportedFile(t, back, storage.PortableHead)
	if missing := slices.DeleteFunc(slices.Clone(before), func(part string) bool { return slices.Contains(after, part) }); len(missing) > 0 || len(after) != len(before)+2 {
		t.Errorf("%d parts became %d; missing are %q", len(before), len(after), missing)
	}
	again, err := boltstore.Open(back, boltstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := storagetest.ListKeys(t, again, "", 1000); got[0].GetKeyId() != storagetest.KeyID(5000) ||
		!slices.EqualFunc(got[1:], keys, func(a, b *storagev1.KeyRecord) bool { return a.GetKeyId() == b.GetKeyId() }) {
		t.Error("the keys of the second file are in another order")
	}
	workspace.Head = headIn(t, again, "mu")
	mustCommit(t, again, workspace.CreateKey(storagetest.KeyID(5001)))
}

// headIn returns the head of a workspace.
func headIn(t *testing.T, store storage.Store, workspaceID string) (head storage.Head) {
	t.Helper()
	if _, err := store.Load(t.Context(), func(item storage.Item) error {
		if item.Head != nil && item.Head.WorkspaceID == workspaceID {
			head = item.Head.Head
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return head
}

// allEvents returns all events of a store by pages, newest first.
func allEvents(t *testing.T, store storage.AuditReader, limit int) (events []storage.AuditEvent) {
	t.Helper()
	query := storage.AuditQuery{All: true, Limit: limit}
	for {
		page, err := store.ScanAuditEvents(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, page.Events...)
		if query.Before = page.Next; query.Before == 0 {
			return events
		}
	}
}

// errStop is the error of what ends a migration.
var errStop = errors.New("stop")

// stopping ends a migration at its nth call. It stands for the end of the process: what is in memory is
// lost.
type stopping struct {
	storage.Importer
	left int
}

func (s *stopping) step() error {
	if s.left--; s.left < 0 {
		return errStop
	}
	return nil
}

// Put implements storage.Importer.
func (s *stopping) Put(ctx context.Context, part storage.Portable) error {
	return errors.Join(s.step(), s.Importer.Put(ctx, part))
}

// Complete implements storage.Importer.
func (s *stopping) Complete(ctx context.Context) error {
	if err := s.step(); err != nil {
		return err
	}
	return errors.Join(s.Importer.Complete(ctx), s.step())
}

// Release implements storage.Importer.
func (s *stopping) Release(ctx context.Context) (epoch string, revision int64, err error) {
	if err := s.step(); err != nil {
		return "", 0, err
	}
	return s.Importer.Release(ctx)
}

// TestInterruptedMigrationGoesOn interrupts migrations again and again: each run goes on where the one before
// was, and nobody can serve the target before its end.
func TestInterruptedMigrationGoesOn(t *testing.T) {
	sequential(t)
	t.Parallel()
	path, prefix := newFile(t, 100), newPrefix()
	from := openExport(t, path)
	back := filepath.Join(t.TempDir(), "back.db")
	var resumed int64
	interrupt := func(source storage.Exporter, target func() storage.Importer, served func() error) {
		t.Helper()
		for left, runs := 0, 0; ; left, runs = left+97, runs+1 {
			to := target()
			report, err := migrate.Run(t.Context(), migrate.Options{Source: source, Target: &stopping{to, left}})
			_ = to.Close()
			if err == nil {
				if runs < 3 {
					t.Fatalf("it was interrupted %d times", runs)
				}
				return
			}
			if !errors.Is(err, errStop) {
				t.Fatalf("run %d: %v, %q", runs, err, report.Problems)
			}
			if resumed = max(resumed, report.Resumed); report.Resumed > report.Origin.Parts {
				t.Fatalf("run %d went on at %d of %d", runs, report.Resumed, report.Origin.Parts)
			}
			if err := served(); err == nil {
				t.Fatalf("run %d: an unfinished target can be served", runs)
			}
		}
	}
	config := etcdConfig(t, prefix)
	interrupt(from, func() storage.Importer { return etcdstore.NewImport(t.Context(), config) }, func() error {
		store, err := etcdstore.New(t.Context(), config)
		if err == nil {
			_ = store.Close()
		} else if !errors.Is(err, storage.ErrUnfinished) {
			t.Fatal(err)
		}
		return err
	})
	if resumed == 0 {
		t.Error("no run went on")
	}
	mustBeSound(t, prefix)
	source, err := etcdstore.OpenExport(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	interrupt(source, func() storage.Importer { return boltstore.NewImport(back, boltstore.Config{}) }, func() error {
		_, err := boltstore.Open(back, boltstore.Config{})
		return err
	})
	mustBeSoundFile(t, back)
	if want, got := exported(t, from, storage.PortableRefusal), exported(t, openExport(t, back)); !slices.Equal(want, got) {
		t.Errorf("%d parts became %d others", len(want), len(got))
	}
}

// TestMigrationIsDoneOnce: to do it again changes nothing, as long as nobody has changed the target.
func TestMigrationIsDoneOnce(t *testing.T) {
	sequential(t)
	t.Parallel()
	path, prefix := newFile(t, 20), newPrefix()
	first := toEtcd(t, path, prefix)
	if again := toEtcd(t, path, prefix); !again.Finished || again.Epoch != first.Epoch || again.Revision != first.Revision {
		t.Errorf("once %+v, again %+v", first, again)
	}
	back := filepath.Join(t.TempDir(), "back.db")
	file := toFile(t, prefix, back)
	if again := toFile(t, prefix, back); !again.Finished || again.Epoch != file.Epoch {
		t.Errorf("once %+v, again %+v", file, again)
	}
	store := open(t, etcdConfig(t, prefix))
	mustCommit(t, store, storagetest.ApplyPolicy(headIn(t, store, ""), "third"))
	if report, err := tryToEtcd(t.Context(), t, path, prefix); !errors.Is(err, migrate.ErrDiffers) || len(report.Problems) == 0 {
		t.Errorf("with a target that has changed: %v, %q", err, report.Problems)
	}
	if _, err := tryToFile(t, prefix, back); !errors.Is(err, storage.ErrPresent) {
		t.Errorf("with a source that has changed: %v", err)
	}
}

func TestMigrationRefusesForeignTargets(t *testing.T) {
	sequential(t)
	t.Parallel()
	path, prefix := newFile(t, 5), newPrefix()
	other := open(t, etcdConfig(t, prefix))
	fillStore(t, other, 5)
	if _, err := tryToEtcd(t.Context(), t, path, prefix); !errors.Is(err, storage.ErrPresent) {
		t.Errorf("into another store: %v", err)
	}
	if _, err := tryToFile(t, prefix, path); !errors.Is(err, storage.ErrPresent) {
		t.Errorf("into another file: %v", err)
	}
	stray := newPrefix()
	mustPut(t, newClient(t), stray+"something", "else")
	if _, err := tryToEtcd(t.Context(), t, path, stray); !errors.Is(err, storage.ErrPresent) {
		t.Errorf("beside something else: %v", err)
	}
}

// TestMigrationNoticesAChangedSource: between two runs, and during one.
func TestMigrationNoticesAChangedSource(t *testing.T) {
	sequential(t)
	t.Parallel()
	prefix, back := newPrefix(), filepath.Join(t.TempDir(), "back.db")
	store := open(t, etcdConfig(t, prefix))
	fillStore(t, store, 10)
	source, err := etcdstore.OpenExport(t.Context(), etcdConfig(t, prefix))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	head := headIn(t, store, "")
	change := func() {
		t.Helper()
		next := storagetest.ApplyPolicy(head, "next")
		mustCommit(t, store, next)
		head = storagetest.After(next)
	}
	// During a run.
	once := change
	target := boltstore.NewImport(back, boltstore.Config{})
	_, err = migrate.Run(t.Context(), migrate.Options{Source: source, Target: target, Progress: func(migrate.Stage, int64, int64) {
		if once != nil {
			once()
			once = nil
		}
	}})
	_ = target.Close()
	if !errors.Is(err, storage.ErrSourceChanged) {
		t.Errorf("during a run: %v", err)
	}
	// After it was interrupted.
	if _, err := tryToFile(t, prefix, back); !errors.Is(err, storage.ErrSourceChanged) {
		t.Errorf("between two runs: %v", err)
	}
}

// TestDamagedTargetIsNotServed changes what was copied before it is compared.
func TestDamagedTargetIsNotServed(t *testing.T) {
	sequential(t)
	t.Parallel()
	path := newFile(t, 10)
	for _, name := range []string{"data/keys/", "data/audit/", "data/ids/", "data/requests/", "data/order/", "data/heads/"} {
		prefix, client := newPrefix(), newClient(t)
		target := etcdstore.NewImport(t.Context(), etcdConfig(t, prefix))
		damaged := false
		report, err := migrate.Run(t.Context(), migrate.Options{Source: openExport(t, path), Target: target, Progress: func(stage migrate.Stage, _, _ int64) {
			if stage == migrate.Copying || damaged {
				return
			}
			damaged = true
			found, err := client.Get(t.Context(), prefix+name, clientv3.WithPrefix(), clientv3.WithLimit(1))
			if err != nil || len(found.Kvs) != 1 {
				t.Fatal(found, err)
			}
			mustDelete(t, client, string(found.Kvs[0].Key))
		}})
		_ = target.Close()
		if !damaged || err == nil {
			t.Errorf("%s: %v, %q", name, err, report.Problems)
		}
		if _, err := etcdstore.New(t.Context(), etcdConfig(t, prefix)); !errors.Is(err, storage.ErrUnfinished) {
			t.Errorf("%s: it can be opened: %v", name, err)
		}
	}
}

// TestTwoMigrationsDoNotFillOneStore: the one that began later goes on alone.
func TestTwoMigrationsDoNotFillOneStore(t *testing.T) {
	t.Parallel()
	path, prefix := newFile(t, 100), newPrefix()
	var second *migrate.Report
	target := etcdstore.NewImport(t.Context(), etcdConfig(t, prefix))
	defer target.Close()
	_, err := migrate.Run(t.Context(), migrate.Options{Source: openExport(t, path), Target: target, Progress: func(_ migrate.Stage, done, _ int64) {
		if done == 150 {
			second = toEtcd(t, path, prefix)
		}
	}})
	if !errors.Is(err, storage.ErrLocked) || second == nil {
		t.Errorf("the first one: %v", err)
	}
	mustBeSound(t, prefix)
}

// TestMigrationEndsSettings: a file keeps no settings, so an event says that they were deleted.
func TestMigrationEndsSettings(t *testing.T) {
	sequential(t)
	t.Parallel()
	prefix, back, again := newPrefix(), filepath.Join(t.TempDir(), "back.db"), newPrefix()
	store := open(t, etcdConfig(t, prefix))
	fillStore(t, store, 10)
	mustCommit(t, store, storagetest.PutSettings(headIn(t, store, ""), time.Second))
	toFile(t, prefix, back)
	mustBeSoundFile(t, back)
	parts := exported(t, openExport(t, back), storage.PortableHead)
	if last := parts[len(parts)-1]; !strings.HasPrefix(last, `audit event 4 of workspace ""`) {
		t.Errorf("the last event is %s", last)
	}
	toEtcd(t, back, again)
	mustBeSound(t, again)
}

// TestOldPolicyInAMigratedFileIsNamed puts the older of two policies back into a file whose events list settings, which a
// file does not have. The events still show that it is the policy that is stale.
func TestOldPolicyInAMigratedFileIsNamed(t *testing.T) {
	t.Parallel()
	prefix, path := newPrefix(), filepath.Join(t.TempDir(), "back.db")
	store := open(t, etcdConfig(t, prefix))
	first := storagetest.ApplyPolicy(storage.Head{}, "first")
	mustCommit(t, store, first)
	settings := storagetest.PutSettings(storagetest.After(first), time.Second)
	mustCommit(t, store, settings)
	mustCommit(t, store, storagetest.ApplyPolicy(storagetest.After(settings), "second"))
	toFile(t, prefix, path)
	payload, err := storage.Encode(first.PutPolicy)
	if err != nil {
		t.Fatal(err)
	}
	file, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = file.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("policy")).Put([]byte("active"), storage.Frame("policy/active", payload))
	})
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	opened, err := boltstore.Open(path, boltstore.Config{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	var found []string
	if _, err := opened.Load(t.Context(), func(item storage.Item) error {
		if item.Damaged != nil {
			found = append(found, item.Damaged.Err.Error())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || !strings.Contains(found[0], integrity.ProblemStale) || !strings.Contains(found[0], "policy") {
		t.Errorf("found damaged: %q, want the policy, and that it is stale", found)
	}
}

// TestMigrationKeepsTheSchema: a file of schema 3 has held keys, which a program of schema 2 would allow.
func TestMigrationKeepsTheSchema(t *testing.T) {
	t.Parallel()
	path, prefix, back := newFile(t, 5), newPrefix(), filepath.Join(t.TempDir(), "back.db")
	if _, err := boltstore.BeginRestored(path, boltstore.Config{Reserve: -1}, noSink, true); err != nil {
		t.Fatal(err)
	}
	toEtcd(t, path, prefix)
	mustBeSound(t, prefix)
	toFile(t, prefix, back)
	if report, err := boltstore.Check(t.Context(), back); err != nil || report.Schema != storage.SchemaHeld {
		t.Errorf("schema %d, %v", report.Schema, err)
	}
}

// noSink is the mark of a restore without a sink.
var noSink anchor.Mark

// TestMigrationTakesPrunedEventsAlong: what a store may miss, the other one may miss as well, in both directions, and nothing
// more.
func TestMigrationTakesPrunedEventsAlong(t *testing.T) {
	t.Parallel()
	p := newPruned(t)
	p.change(80)
	if deleted := p.prune(time.Now().Add(time.Hour)); deleted == 0 {
		t.Fatal("nothing was pruned")
	}
	p.change(10) // these are all there
	file, again, back := filepath.Join(t.TempDir(), "one.db"), newPrefix(), filepath.Join(t.TempDir(), "two.db")
	toFile(t, p.prefix, file)
	mustBeSoundFile(t, file)
	report := toEtcd(t, file, again)
	mustBeSound(t, again)
	toFile(t, again, back)
	mustBeSoundFile(t, back)
	if got := exportedFile(t, back); !slices.Equal(got, exportedFile(t, file)) || report.Origin.Pruned == 0 {
		t.Errorf("%d parts became others, of an origin pruned up to %d", len(got), report.Origin.Pruned)
	}
	// An event that is missing and was not pruned is damage.
	workspace := p.workspaces[0]
	name := again + "data/audit/a\x00" + complementOf(workspace.Head.Sequence-1)
	if deleted, err := newClient(t).Delete(t.Context(), name); err != nil || deleted.Deleted != 1 {
		t.Fatal(deleted, err)
	}
	third := filepath.Join(t.TempDir(), "three.db")
	if _, err := tryToFile(t, again, third); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("with an event missing: %v", err)
	}
	// The target goes on.
	store := open(t, etcdConfig(t, p.prefix))
	other := p.workspaces[1]
	other.Head = headIn(t, store, other.ID)
	mustCommit(t, store, other.PutMember("new", "member"))
}
