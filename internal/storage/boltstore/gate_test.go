package boltstore

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestCallsEndWithTheirContextWhileASyncHangs lets the disk hang in the middle of a commit:
// every read ends with its context, and none shows what is not durable.
func TestCallsEndWithTheirContextWhileASyncHangs(t *testing.T) {
	keyID := storagetest.KeyID(1)
	for name, call := range map[string]func(ctx context.Context, store *Store) error{
		"GetKey": func(ctx context.Context, store *Store) error {
			_, _, err := store.GetKey(ctx, "w", keyID)
			return err
		},
		"FindRequest": func(ctx context.Context, store *Store) error {
			_, _, err := store.FindRequest(ctx, "w", "request")
			return err
		},
		"ListKeys": func(ctx context.Context, store *Store) error {
			_, err := store.ListKeys(ctx, storage.Query{WorkspaceID: "w", Limit: 1})
			return err
		},
		"GetMember": func(ctx context.Context, store *Store) error {
			_, _, err := store.GetMember(ctx, "w", "member")
			return err
		},
		"ListMembers": func(ctx context.Context, store *Store) error {
			_, err := store.ListMembers(ctx, storage.Query{WorkspaceID: "w", Limit: 1})
			return err
		},
		"ListAuditEvents": func(ctx context.Context, store *Store) error {
			_, err := store.ListAuditEvents(ctx, storage.Query{WorkspaceID: "w", Limit: 1})
			return err
		},
		"ScanAuditEvents": func(ctx context.Context, store *Store) error {
			_, err := store.ScanAuditEvents(ctx, storage.AuditQuery{All: true})
			return err
		},
		"ListFeed": func(ctx context.Context, store *Store) error {
			_, err := store.ListFeed(ctx, 1)
			return err
		},
		"Load": func(ctx context.Context, store *Store) error {
			_, err := store.Load(ctx, func(storage.Item) error { return nil })
			return err
		},
		"PutUsage": func(ctx context.Context, store *Store) error {
			return store.PutUsage(ctx, []storage.Usage{{KeyID: keyID, Time: time.Now()}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			synctest.Test(t, func(t *testing.T) {
				var hanging atomic.Bool
				hung, mended := make(chan struct{}), make(chan struct{})
				store := mustOpen(t, path, Config{fault: func(written bool) error {
					if written && hanging.CompareAndSwap(true, false) {
						close(hung)
						<-mended
					}
					return nil
				}})
				workspace := storagetest.NewWorkspace("w")
				commit := func(change *storage.Change) {
					if _, err := store.Commit(t.Context(), change); err != nil {
						t.Fatal(err)
					}
					workspace.Follow(change)
				}
				commit(workspace.PutMember("member", "admin"))
				commit(workspace.CreateKey(keyID, "request"))
				hanging.Store(true)
				committed := make(chan error, 1)
				go func() {
					_, err := store.Commit(t.Context(), workspace.CreateKey(storagetest.KeyID(2)))
					committed <- err
				}()
				<-hung
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				begun := time.Now()
				answered := make(chan error, 1)
				go func() { answered <- call(ctx, store) }()
				select {
				case err := <-answered:
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("got %v, want the context's error", err)
					}
					if lasted := time.Since(begun); lasted != 200*time.Millisecond {
						t.Errorf("the call lasted %s", lasted)
					}
				case <-time.After(25 * time.Second):
					t.Error("the call lasted as long as the sync")
				}
				close(mended)
				if err := <-committed; err != nil {
					t.Errorf("the change: %v", err)
				}
				if err := call(t.Context(), store); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
