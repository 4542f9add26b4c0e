package etcd_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvc "github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestRepairClockOverEtcd: a process whose clock was ahead leaves a time in the store at which every start would be refused.
func TestRepairClockOverEtcd(t *testing.T) {
	t.Parallel()
	settings := settingsFor(t, newPrefix(), endpoint)
	ahead := time.Now().Add(400 * 24 * time.Hour)
	store := open(t, etcdConfig(t, settings.EtcdPrefix))
	workspace := storagetest.NewWorkspace("w")
	mustCommit(t, store, workspace.PutMember("m", "admin"))
	workspace.Head = headIn(t, store, "w")
	change := workspace.CreateKey(storagetest.KeyID(1))
	change.Event.Time = timestamppb.New(ahead)
	mustCommit(t, store, change)
	if err := store.PutUsage(t.Context(), []storage.Usage{{KeyID: storagetest.KeyID(1), Time: ahead}}); err != nil {
		t.Fatal(err)
	}
	at := func() time.Time {
		position, err := store.Load(t.Context(), func(item storage.Item) error {
			if item.Usage != nil && item.Usage.Time.After(time.Now()) && !item.Usage.Time.Equal(ahead.UTC()) {
				t.Errorf("the use is at %s", item.Usage.Time)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return position.Time
	}
	if err := keysvc.RepairClockEtcd(t.Context(), settings, false, t.Output()); err != nil || !at().After(time.Now()) {
		t.Errorf("without --yes: %v, the time is %s", err, at())
	}
	if err := keysvc.RepairClockEtcd(t.Context(), settings, true, t.Output()); err != nil || at().After(time.Now()) {
		t.Errorf("with --yes: %v, the time is %s", err, at())
	}
	mustBeSound(t, settings.EtcdPrefix)
}
