package boltstore

import (
	"errors"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// some returns refusals.
func some(count int) []*storagev1.RefusalRecord {
	made := make([]*storagev1.RefusalRecord, count)
	for index := range made {
		made[index] = &storagev1.RefusalRecord{Count: int64(index + 1), Kind: storagev1.RefusalKind_REFUSAL_KIND_CHANGE, Caller: "backend"}
	}
	return made
}

// TestFileOfAnEarlierVersionKeepsRefusals: the committed file has no bucket for them, and needs no
// upgrade.
func TestFileOfAnEarlierVersionKeepsRefusals(t *testing.T) {
	path := committed(t, "schema2.db.gz")
	if report := mustBeSound(t, path); report.Refusals != 0 {
		t.Errorf("%d refusals", report.Refusals)
	}
	store := mustOpen(t, path, quick)
	if page, err := store.ListRefusals(t.Context(), storage.Query{Limit: 5}); err != nil || len(page.Refusals) != 0 {
		t.Errorf("ListRefusals: %v, %v", page, err)
	}
	if err := store.PutRefusals(t.Context(), some(3)); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if report := mustBeSound(t, path); report.Refusals != 3 || report.Schema != storage.Schema {
		t.Errorf("%+v", report)
	}
}

// TestDamagedRefusalsHarmNothingElse: the stream cannot be read then, and everything else goes on.
func TestDamagedRefusalsHarmNothingElse(t *testing.T) {
	for what, damage := range map[string]func(bucket *bolt.Bucket) error{
		"value": func(bucket *bolt.Bucket) error { return bucket.Put([]byte(number(2)), []byte("no record")) },
		"gap":   func(bucket *bolt.Bucket) error { return bucket.Delete([]byte(number(2))) },
		"name":  func(bucket *bolt.Bucket) error { return bucket.Put([]byte("\xffname"), []byte("x")) },
	} {
		path := filepath.Join(t.TempDir(), "store.db")
		store := mustOpen(t, path, Config{})
		if err := store.PutRefusals(t.Context(), some(3)); err != nil {
			t.Fatal(err)
		}
		if err := store.file.database.Update(func(tx *bolt.Tx) error { return damage(tx.Bucket([]byte(bucketRefusals))) }); err != nil {
			t.Fatal(err)
		}
		if _, err := store.ListRefusals(t.Context(), storage.Query{Limit: 5}); (what == "value") != errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: ListRefusals: %v", what, err)
		}
		if err := store.PutRefusals(t.Context(), some(1)); (what == "name") != errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: PutRefusals: %v", what, err)
		}
		workspace := storagetest.NewWorkspace("w")
		if _, err := store.Commit(t.Context(), workspace.PutMember("member", "admin")); err != nil {
			t.Errorf("%s: Commit: %v", what, err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		report, err := Check(t.Context(), path)
		if err != nil || len(report.Problems) != 1 {
			t.Errorf("%s: Check: %q, %v", what, report.Problems, err)
		}
		if err := mustOpen(t, path, Config{}).Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestFullDiskDropsRefusals: they leave the reserve to the changes that narrow, and do not have other
// changes refused that would fit.
func TestFullDiskDropsRefusals(t *testing.T) {
	const reserve = 192 << 10
	disk := &disk{}
	disk.room.Store(reserve + 128<<10)
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{Reserve: reserve, allocate: disk.allocate, LockTimeout: quick.LockTimeout})
	workspace := storagetest.NewWorkspace("w")
	for _, change := range []*storage.Change{workspace.PutMember("member", "admin")} {
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	var err error
	put := 0
	for put = 0; err == nil && put < 1000; put++ {
		err = store.PutRefusals(t.Context(), some(20))
	}
	if !errors.Is(err, storage.ErrFull) {
		t.Fatalf("PutRefusals %d times: %v, want ErrFull", put, err)
	}
	if store.room.full.Load() {
		t.Error("the store counts as full for changes, which has not been tried")
	}
	create := workspace.CreateKey(storagetest.KeyID(1))
	switch _, err := store.Commit(t.Context(), create); {
	case err == nil:
		workspace.Follow(create)
	case !errors.Is(err, storage.ErrFull):
		t.Errorf("Commit: %v", err)
	}
	narrowing := workspace.PutMember("member", "member")
	narrowing.Narrows = true
	if _, err := store.Commit(t.Context(), narrowing); err != nil {
		t.Errorf("a change that takes away: %v", err)
	}
}
