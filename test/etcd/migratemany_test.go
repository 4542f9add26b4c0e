package etcd_test

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/migrate"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// manyKeys is how many keys TestMigrateMany migrates.
var manyKeys = flag.Int("migrate.keys", 0, "how many keys to migrate in TestMigrateMany; 0 skips it")

// TestMigrateMany measures how long a migration takes.
func TestMigrateMany(t *testing.T) {
	if *manyKeys == 0 {
		t.Skip("give -migrate.keys to measure")
	}
	const workspaces = 200
	path, prefix := filepath.Join(t.TempDir(), "keysvc.db"), newPrefix()
	store, err := boltstore.Open(path, boltstore.Config{Create: boltstore.CreateNew, Unanchored: true, Unsynced: true, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, store, storagetest.ApplyPolicy(storage.Head{}, "policy"))
	var group sync.WaitGroup
	failed := make(chan error, workspaces)
	for number := range workspaces {
		group.Go(func() {
			workspace := storagetest.NewWorkspace(fmt.Sprint("workspace ", number))
			change := workspace.PutMember("member", "admin")
			for key := 0; ; key++ {
				if _, err := store.Commit(t.Context(), change); err != nil {
					failed <- err
					return
				}
				if workspace.Follow(change); key == *manyKeys/workspaces {
					return
				}
				id := number**manyKeys + key
				change = workspace.CreateKey(storagetest.KeyID(id), fmt.Sprint("request ", id))
			}
		})
	}
	group.Wait()
	close(failed)
	if err := errors.Join(<-failed, store.Close()); err != nil {
		t.Fatal(err)
	}
	from := openExport(t, path)
	measure(t, from, etcdstore.NewImport(t.Context(), etcdConfig(t, prefix)))
	_ = from.Close()
	back, err := etcdstore.OpenExport(t.Context(), etcdConfig(t, prefix))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	measure(t, back, boltstore.NewImport(filepath.Join(t.TempDir(), "back.db"), boltstore.Config{}))
}

// measure migrates, and logs how long each stage takes.
func measure(t *testing.T, source storage.Exporter, target storage.Importer) {
	t.Helper()
	defer target.Close()
	began, stages := time.Now(), make(map[migrate.Stage]time.Time)
	report, err := migrate.Run(t.Context(), migrate.Options{Source: source, Target: target, Progress: func(stage migrate.Stage, _, _ int64) {
		if _, known := stages[stage]; !known {
			stages[stage] = time.Now()
		}
	}})
	if err != nil {
		t.Fatalf("%v: %q", err, report.Problems)
	}
	compared, checked := stages[migrate.Comparing], stages[migrate.Checking]
	t.Logf("%d parts in %v: copied in %v, compared in %v, checked in %v", report.Origin.Parts, time.Since(began).Round(time.Millisecond),
		compared.Sub(began).Round(time.Millisecond), checked.Sub(compared).Round(time.Millisecond), time.Since(checked).Round(time.Millisecond))
}
