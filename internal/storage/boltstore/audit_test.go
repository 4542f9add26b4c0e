package boltstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// auditScanner is what Store and AuditFile have in common.
type auditScanner interface {
	ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error)
}

// scanned returns the revisions of all pages of a scan, and how many pages there were.
func scanned(t *testing.T, from auditScanner, query storage.AuditQuery) (revisions []int64, pages int) {
	t.Helper()
	for {
		page, err := from.ScanAuditEvents(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range page.Events {
			revisions = append(revisions, event.Revision)
		}
		if pages++; page.Next == 0 {
			return revisions, pages
		}
		query.Before = page.Next
	}
}

// TestAuditScanGoesOnBehindPrunedEvents deletes events of a workspace from the file. Both a
// store and an AuditFile then find the events that are left, in pages whose work is bounded.
func TestAuditScanGoesOnBehindPrunedEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, quick)
	busy := storagetest.NewWorkspace("busy")
	commit := func(workspace *storagetest.Workspace) int64 {
		change := workspace.PutMember("member", "admin")
		revision, err := store.Commit(t.Context(), change)
		if err != nil {
			t.Error(err)
		}
		workspace.Follow(change)
		return revision
	}
	// The events of busy are the first three, and the last three after many of others.
	var all []int64
	for range 3 {
		all = append([]int64{commit(busy)}, all...)
	}
	const others, each = 51, storage.MaxPage / 50
	const between = others * each
	var committing sync.WaitGroup
	for number := range others {
		committing.Go(func() {
			other := storagetest.NewWorkspace(fmt.Sprintf("other%d", number))
			for range each {
				commit(other)
			}
		})
	}
	committing.Wait()
	for range 3 {
		all = append([]int64{commit(busy)}, all...)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	pruned := []int64{all[1], all[2], all[4]}
	edit(t, path, func(tx *bolt.Tx) error {
		var err error
		for _, revision := range pruned {
			err = errors.Join(err, tx.Bucket([]byte(bucketAudit)).Delete([]byte(number(revision))))
		}
		return err
	})
	want := []int64{all[0], all[3], all[5]}
	store = mustOpen(t, path, quick)
	got, pages := scanned(t, store, storage.AuditQuery{WorkspaceID: "busy", Limit: 10})
	if !slices.Equal(got, want) || pages < 2 {
		t.Errorf("the store: %v in %d pages, want %v in at least 2", got, pages, want)
	}
	got, _ = scanned(t, store, storage.AuditQuery{All: true, Limit: storage.MaxPage})
	if len(got) != between+len(want) {
		t.Errorf("the store has %d events, want %d", len(got), between+len(want))
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := OpenAudit(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got, pages = scanned(t, file, storage.AuditQuery{WorkspaceID: "busy", Limit: 10})
	if !slices.Equal(got, want) || pages < 2 {
		t.Errorf("the file: %v in %d pages, want %v in at least 2", got, pages, want)
	}
}

// TestAuditFileIsOfNoServer opens the file of a store while the store is open, and after that.
func TestAuditFileIsOfNoServer(t *testing.T) {
	path, _ := small(t)
	store := mustOpen(t, path, quick)
	if _, err := OpenAudit(t.Context(), path); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("of a store that is served: %v, want ErrLocked", err)
	}
	epoch, revision := store.Epoch(), store.LocalBarrier().Revision
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := OpenAudit(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	page, err := file.ScanAuditEvents(t.Context(), storage.AuditQuery{All: true, Limit: 1})
	if err != nil || page.Revision != revision || len(page.Events) != 1 || page.Events[0].Revision != revision || file.Epoch() != epoch {
		t.Errorf("%+v, %v of epoch %s; want the event of revision %d of epoch %s", page, err, file.Epoch(), revision, epoch)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenAudit(t.Context(), filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent file was opened")
	}
}
