package boltstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// disk is a Config.allocate with space for a file of room bytes.
type disk struct{ room atomic.Int64 }

func (d *disk) allocate(file *os.File, from, to int64) error {
	if to > d.room.Load() {
		return fmt.Errorf("allocating up to %d: %w", to, syscall.ENOSPC)
	}
	return allocate(file, from, to)
}

// fill creates keys until the disk is full and returns them.
func fill(t *testing.T, store *Store, workspace *storagetest.Workspace) []*storagev1.KeyRecord {
	t.Helper()
	var keys []*storagev1.KeyRecord
	for number := range 1_000_000 {
		change := workspace.CreateKey(storagetest.KeyID(number))
		_, err := store.Commit(t.Context(), change)
		if errors.Is(err, storage.ErrFull) {
			return keys
		}
		if err != nil {
			t.Fatalf("Commit: %v, want ErrFull once the disk is full", err)
		}
		workspace.Follow(change)
		keys = append(keys, change.PutKeys[0])
	}
	t.Fatal("the disk does not get full")
	return nil
}

// TestFullDiskCommitsNarrowingChanges fills a disk. Then changes that do not narrow are
// refused, and last-used times as well. Narrowing changes are committed until the reserve is
// used up: far more than 10,000 if it has 64 MiB. The store stays up all the time, the file
// grows as far as the disk has space, and the store opens in this state. Once the disk has
// space again, all changes are committed.
func TestFullDiskCommitsNarrowingChanges(t *testing.T) {
	const reserve = 192 << 10
	const promised = 10_000 * reserve / (64 << 20)
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "store.db")
	disk := &disk{}
	disk.room.Store(reserve + 128<<10)
	config := Config{Reserve: reserve, allocate: disk.allocate, LockTimeout: quick.LockTimeout}
	store := mustOpen(t, path, config)
	workspace := storagetest.NewWorkspace("w")
	member := workspace.PutMember("member", "admin")
	if _, err := store.Commit(ctx, member); err != nil {
		t.Fatal(err)
	}
	workspace.Follow(member)
	keys := fill(t, store, workspace)
	if len(keys) < 20 {
		t.Fatalf("full after %d keys", len(keys))
	}
	// Free pages, which are not part of the reserve, may still have space for some keys.
	created := len(keys)
	createUntilRefused := func() {
		t.Helper()
		for refused := 0; refused < 3; {
			change := workspace.CreateKey(storagetest.KeyID(created))
			switch _, err := store.Commit(ctx, change); {
			case errors.Is(err, storage.ErrFull):
				refused++
			case err != nil:
				t.Fatalf("a new key: %v, want ErrFull", err)
			default:
				workspace.Follow(change)
				created++
			}
		}
	}
	createUntilRefused()
	// Each PutUsage takes space, so that one of them soon does not fit.
	for second := int64(1); ; second++ {
		uses := make([]storage.Usage, len(keys))
		for index, key := range keys {
			uses[index] = storage.Usage{KeyID: key.GetKeyId(), Time: time.Unix(second, 0)}
		}
		err := store.PutUsage(ctx, uses)
		if errors.Is(err, storage.ErrFull) {
			break
		}
		if err != nil || second > 100 {
			t.Fatalf("PutUsage %d times: %v, want ErrFull", second, err)
		}
	}
	narrowed := 0
	narrow := func() error {
		key := keys[narrowed%len(keys)]
		change := workspace.RevokeKey(key)
		change.Narrows = true
		_, err := store.Commit(ctx, change)
		if err == nil {
			workspace.Follow(change)
			narrowed++
		}
		return err
	}
	for narrowed < promised {
		if err := narrow(); err != nil {
			t.Fatalf("narrowing %d: %v", narrowed, err)
		}
		if narrowed%20 == 0 {
			createUntilRefused()
		}
		if narrowed == promised/2 {
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			store = mustOpen(t, path, config)
		}
	}
	var last error
	for last == nil {
		last = narrow()
	}
	if !errors.Is(last, storage.ErrFull) {
		t.Errorf("a change that takes away, after the reserve: %v, want ErrFull", last)
	}
	t.Logf("%d keys; %d narrowings, %d promised", created, narrowed, promised)
	if info, err := os.Stat(path); err != nil || info.Size() > disk.room.Load() {
		t.Errorf("the file has %d bytes, the disk room for %d; %v", info.Size(), disk.room.Load(), err)
	}
	disk.room.Store(64 << 20)
	began := time.Now()
	change := workspace.CreateKey("Key0000000other1")
	for {
		_, err := store.Commit(ctx, change)
		if err == nil {
			break
		}
		if !errors.Is(err, storage.ErrFull) || time.Since(began) > 5*time.Second {
			t.Fatalf("a new key %v after there was room again: %v", time.Since(began), err)
		}
	}
	workspace.Follow(change)
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v until there was room again", took)
	}
	if err := narrow(); err != nil {
		t.Errorf("a change that takes away: %v", err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, path)
}

// TestFullDiskRefusesOnlyTheChangesThatDoNotNarrow lets both kinds of changes wait for one
// transaction that does not fit.
func TestFullDiskRefusesOnlyTheChangesThatDoNotNarrow(t *testing.T) {
	const reserve, workspaces = 1 << 20, 40
	hold, holding := make(chan struct{}), make(chan struct{})
	var commits atomic.Int64
	var armed atomic.Bool
	disk := &disk{}
	disk.room.Store(reserve + 1<<20)
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{Reserve: reserve, allocate: disk.allocate, fault: func(written bool) error {
		if !written && armed.Load() && commits.Add(1) == 1 {
			close(holding)
			<-hold
		}
		return nil
	}})
	all := make([]*storagetest.Workspace, workspaces)
	members := make([]*storagev1.MemberRecord, workspaces)
	for index := range all {
		all[index] = storagetest.NewWorkspace(fmt.Sprintf("w%d", index))
		change := all[index].PutMember("member", "admin")
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		all[index].Follow(change)
		members[index] = change.PutMembers[0]
	}
	armed.Store(true)
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := store.Commit(t.Context(), storagetest.NewWorkspace("first").PutMember("member", "admin")); err != nil {
			t.Errorf("Commit: %v", err)
		}
	})
	<-holding
	for index, workspace := range all {
		group.Go(func() {
			if index%2 == 0 {
				change := workspace.PutMember("member", "none")
				change.Narrows = true
				if _, err := store.Commit(t.Context(), change); err != nil {
					t.Errorf("a change that takes away: %v", err)
				}
				return
			}
			change := workspace.CreateKey(storagetest.KeyID(index))
			change.PutKeys[0].Name = string(make([]byte, 200<<10))
			if _, err := store.Commit(t.Context(), change); !errors.Is(err, storage.ErrFull) {
				t.Errorf("a large key: %v, want ErrFull", err)
			}
		})
	}
	for len(store.queue) < workspaces {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	group.Wait()
}

// TestLowEstimateGrowsTheFile commits a change that takes more than was estimated: the file
// grows for it.
func TestLowEstimateGrowsTheFile(t *testing.T) {
	store := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Config{})
	workspace := storagetest.NewWorkspace("w")
	for number := range 30 {
		change := workspace.PutMember("member", "admin")
		if number > 0 {
			change = workspace.CreateKey(storagetest.KeyID(number))
			change.PutKeys[0].Name = string(make([]byte, number*15_000))
		}
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatalf("Commit: %v", err)
		}
		workspace.Follow(change)
	}
}

// TestWriteZerosAllocates covers systems without a call that allocates.
func TestWriteZerosAllocates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	config := Config{Reserve: 1 << 20, allocate: writeZeros}
	for range 3 {
		store := mustOpen(t, path, config)
		workspace := storagetest.NewWorkspace(fmt.Sprintf("w%d", time.Now().UnixNano()))
		if _, err := store.Commit(t.Context(), workspace.PutMember("member", "admin")); err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() < 1<<20 || info.Sys().(*syscall.Stat_t).Blocks*512 < 1<<20 {
			t.Errorf("the file is %v, %v; want room for the reserve", info, err)
		}
	}
	mustBeSound(t, path)
}
