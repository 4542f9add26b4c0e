package boltstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// describeViews returns what LoadViews visits as describeItems has it, and fails if two visits
// overlap.
func describeViews(t *testing.T, store *Store) []string {
	t.Helper()
	var items []string
	expected, visiting := 0, false
	position, err := store.LoadViews(t.Context(), func(storage.Expected) { expected++ }, func(item storage.Item) error {
		if visiting {
			t.Error("two visits at once")
		}
		visiting = true
		items = append(items, describeItem(item)...)
		visiting = false
		return nil
	})
	if err != nil || expected != 1 {
		t.Fatal(expected, err)
	}
	return append(items, fmt.Sprint(position))
}

// describeItems returns what Load visits.
func describeItems(t *testing.T, store *Store) []string {
	t.Helper()
	var items []string
	position, err := store.Load(t.Context(), func(item storage.Item) error {
		items = append(items, describeItem(item)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(items, fmt.Sprint(position))
}

// describeItem describes an item. A key and its view have one description, and so have the time of a
// use in a view and in an item of its own.
func describeItem(item storage.Item) []string {
	use := func(keyID string, nanoseconds int64) string { return fmt.Sprintf("use %s %d", keyID, nanoseconds) }
	view := func(view *storage.KeyView) string {
		with := *view
		with.LastUsed = 0
		with.Scopes, with.AllowedCIDRs, with.RequestIDs, with.Secrets = nil, nil, nil, nil
		return fmt.Sprintf("key %q %q %q %q %v", fmt.Sprintf("%s", reflect.ValueOf(with)), view.Scopes, view.AllowedCIDRs, view.RequestIDs, view.Secrets)
	}
	switch {
	case item.KeyView != nil:
		described := []string{view(item.KeyView)}
		if item.KeyView.LastUsed != 0 {
			described = append(described, use(string(item.KeyView.KeyID), item.KeyView.LastUsed))
		}
		return described
	case item.Key != nil:
		decoded := &storage.KeyView{}
		decoded.Set(item.Key)
		return []string{view(decoded)}
	case item.Usage != nil:
		return []string{use(item.Usage.KeyID, item.Usage.Time.UnixNano())}
	case item.Head != nil:
		return []string{fmt.Sprintf("head %v", *item.Head)}
	case item.Damaged != nil:
		return []string{fmt.Sprintf("damaged %v %v", *item.Damaged, item.Damaged.Err)}
	}
	return []string{fmt.Sprint(item.Policy, item.Workspace, item.Member)}
}

// randomStore makes a store with random changes and uses.
func randomStore(t *testing.T, r *rand.Rand) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, quick)
	commit := func(workspace *storagetest.Workspace, change *storage.Change) {
		t.Helper()
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	var workspaces []*storagetest.Workspace
	for index := range 4 {
		workspace := storagetest.NewWorkspace(fmt.Sprintf("workspace-%d", index))
		commit(workspace, workspace.PutMember("member", "admin"))
		workspaces = append(workspaces, workspace)
	}
	var uses []storage.Usage
	for index := range 60 {
		workspace := workspaces[r.IntN(len(workspaces))]
		var requestIDs []string
		if r.IntN(3) == 0 {
			requestIDs = append(requestIDs, fmt.Sprint("request ", index))
		}
		change := workspace.CreateKey(storagetest.KeyID(index), requestIDs...)
		commit(workspace, change)
		key := change.PutKeys[0]
		if r.IntN(2) == 0 {
			uses = append(uses, storage.Usage{KeyID: key.GetKeyId(), Time: time.Unix(1_700_000_000, int64(index))})
		}
		switch r.IntN(6) {
		case 0:
			commit(workspace, workspace.RevokeKey(key))
		case 1:
			commit(workspace, workspace.DeleteKey(key))
		}
	}
	if err := store.PutUsage(t.Context(), uses); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// damageRandomly changes a value in one of the ways in which a file goes wrong below its pages.
func damageRandomly(t *testing.T, path string, r *rand.Rand) {
	t.Helper()
	edit(t, path, func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte([]string{bucketKeys, bucketKeys, bucketUsage, bucketMembers, bucketHeads}[r.IntN(5)]))
		var names [][]byte
		_ = bucket.ForEach(func(name, _ []byte) error {
			names = append(names, slices.Clone(name))
			return nil
		})
		if len(names) < 2 {
			return nil
		}
		name, other := names[r.IntN(len(names))], names[r.IntN(len(names))]
		value := slices.Clone(bucket.Get(name))
		switch r.IntN(7) {
		case 0: // a flipped bit
			value[r.IntN(len(value))] ^= 1 << r.IntN(8)
			return bucket.Put(name, value)
		case 1: // missing
			return bucket.Delete(name)
		case 2: // the value of another name, and so with a wrong checksum
			return bucket.Put(name, slices.Clone(bucket.Get(other)))
		case 3: // a record of another name, with a right checksum
			kind := map[bool]string{true: bucketKeys, false: bucketUsage}[len(name) > numberLength]
			return bucket.Put(name, frame(kind, string(name), slices.Clone(storage.Payload(bucket.Get(other)))))
		case 4: // surplus
			if tx.Bucket([]byte(bucketUsage)) != nil && len(name) >= numberLength {
				surplus := number(int64(1000 + r.IntN(1000)))
				return tx.Bucket([]byte(bucketUsage)).Put([]byte(surplus), frame(bucketUsage, surplus, []byte(number(7))))
			}
			return nil
		case 5: // another record of the name, with a right checksum: its name is followed by another one
			return bucket.Put(name, frame(bucketKeys, string(name), append(slices.Clone(storage.Payload(value)), 0x3a, 1, 'n')))
		default: // no record
			return bucket.Put(name, frame(bucketKeys, string(name), []byte{0xff, 0x01}))
		}
	})
}

// TestLoadViewsVisitsWhatLoadVisits compares the two ways to load on random stores, sound ones and
// damaged ones.
func TestLoadViewsVisitsWhatLoadVisits(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	damaged, refused := 0, 0
	for range race.Rounds(8, 2) {
		path := randomStore(t, r)
		content := readFile(t, path)
		for round := range race.Rounds(12, 4) {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			for range round {
				damageRandomly(t, path, r)
			}
			store, err := Open(path, quick)
			if err != nil {
				if !errors.Is(err, storage.ErrDamaged) {
					t.Fatal(err)
				}
				refused++
				continue
			}
			want, got := describeItems(t, store), describeViews(t, store)
			if !slices.Equal(got, want) {
				t.Errorf("LoadViews visits\n%q\nwant\n%q", got, want)
			}
			if round > 0 {
				damaged++
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d damaged stores were compared, %d were refused", damaged, refused)
}
