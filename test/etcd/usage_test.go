package etcd_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// usedKey opens a store with a key in a workspace, and counts the transactions of the store that write.
func usedKey(t *testing.T) (store *etcdstore.Store, writes func() int64) {
	t.Helper()
	between := &network{}
	store = open(t, etcdstore.Config{Members: between.clients(t), Prefix: newPrefix()})
	workspace := storagetest.NewWorkspace("w")
	mustFollow(t, store, workspace, workspace.PutMember("m", "admin"))
	mustCommit(t, store, workspace.CreateKey(storagetest.KeyID(1)))
	return store, between.count()
}

func putUses(t *testing.T, store storage.UsageWriter, uses ...storage.Usage) {
	t.Helper()
	if err := store.PutUsage(t.Context(), uses); err != nil {
		t.Fatalf("PutUsage: %v", err)
	}
}

func stored(t *testing.T, store storage.UsageReader) storage.Usage {
	t.Helper()
	uses, err := store.ReadUsage(t.Context(), []string{storagetest.KeyID(2), "a\x00b", storagetest.KeyID(1)})
	if err != nil || len(uses) != 1 || uses[0].KeyID != storagetest.KeyID(1) {
		t.Fatalf("ReadUsage: %v, %v; want the one of %s", uses, err, storagetest.KeyID(1))
	}
	return uses[0]
}

// TestAUseIsWrittenOnceAnHour: a key that is used all the time, at any replica, costs one write an hour.
func TestAUseIsWrittenOnceAnHour(t *testing.T) {
	t.Parallel()
	store, writes := usedKey(t)
	at := time.Now().UTC()
	for minute := range 120 {
		putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: at.Add(time.Duration(minute) * time.Minute)})
	}
	if got := writes(); got != 2 {
		t.Errorf("%d writes in two hours, want 2", got)
	}
	if got := stored(t, store).Time; !got.Equal(at.Add(61 * time.Minute)) {
		t.Errorf("the stored time is %s, want the one of minute 61, %s", got, at.Add(61*time.Minute))
	}
}

// TestSecretsOfSeveralProcesses: one process sees uses of the new secret, and another one uses of the old
// one. Neither takes the other's time away.
func TestSecretsOfSeveralProcesses(t *testing.T) {
	t.Parallel()
	store, _ := usedKey(t)
	at := time.Now().UTC()
	secrets := func(newest, older time.Time) [2]storage.SecretUse {
		return [2]storage.SecretUse{{Tag: 1, Time: newest}, {Tag: 2, Time: older}}
	}
	putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: at, Secrets: secrets(time.Time{}, at)})
	soon := at.Add(time.Minute)
	putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: soon, Secrets: secrets(soon, time.Time{})})
	if got := stored(t, store); !got.Time.Equal(soon) || !got.Secrets[0].Time.Equal(soon) || !got.Secrets[1].Time.Equal(at) {
		t.Errorf("%v; want the key and the new secret used at %s, the old one at %s", got, soon, at)
	}
	// The other way around: the use that comes later is the earlier one.
	before := at.Add(-time.Minute)
	late := at.Add(2 * time.Hour)
	putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: late, Secrets: secrets(late, before)})
	putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: late.Add(-time.Second), Secrets: secrets(before, late.Add(-time.Second))})
	if got := stored(t, store); !got.Time.Equal(late) || !got.Secrets[0].Time.Equal(late) || !got.Secrets[1].Time.Equal(late.Add(-time.Second)) {
		t.Errorf("%v; want the key and the new secret used at %s, the old one a second before", got, late)
	}
}

// TestUsesOfAnotherProcessAreShown: a key that only another process allowed is shown as used, and does not
// pass for unused.
func TestUsesOfAnotherProcessAreShown(t *testing.T) {
	t.Parallel()
	store, _ := usedKey(t)
	records := projection.New(store, nil)
	if _, err := records.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error, 1)
	go func() { followed <- records.Follow(ctx) }()
	defer func() { cancel(); <-followed }()
	manager := keys.New(keys.Config{Store: store, Projection: records})
	shown := func(unusedSince *time.Time) []*keys.Key {
		t.Helper()
		page, err := manager.ListKeys(ctx, access.All(), keys.KeyQuery{WorkspaceID: "w", UnusedSince: unusedSince})
		if err != nil {
			t.Fatalf("ListKeys: %v", err)
		}
		return page.Keys
	}
	at := time.Now().UTC().Truncate(time.Microsecond).Add(time.Hour)
	if got := shown(&at); len(got) != 1 || !got[0].LastUsedTime.IsZero() {
		t.Fatalf("before any use the list of unused keys has %d, want the one key, never used", len(got))
	}
	putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: at})
	if got := shown(&at); len(got) != 0 {
		t.Errorf("%d unused keys after another process recorded a use, want none", len(got))
	}
	if got := shown(nil); len(got) != 1 || !got[0].LastUsedTime.Equal(at) {
		t.Errorf("the list shows %v, want a use at %s", got, at)
	}
	later := at.Add(2 * time.Hour)
	putUses(t, store, storage.Usage{KeyID: storagetest.KeyID(1), Time: later})
	if got, _, err := manager.GetKey(ctx, access.All(), "w", storagetest.KeyID(1)); err != nil || !got.LastUsedTime.Equal(later) {
		t.Errorf("GetKey: %v, %v; want a use at %s", got, err, later)
	}
	// What this process knows is kept if it is later than what is stored.
	latest := later.Add(time.Minute)
	records.LearnUses([]storage.Usage{{KeyID: storagetest.KeyID(1), Time: latest}})
	if got := shown(nil); !slices.ContainsFunc(got, func(key *keys.Key) bool { return key.LastUsedTime.Equal(latest) }) {
		t.Errorf("the list shows %v, want the use that this process knows of, %s", got, latest)
	}
}
