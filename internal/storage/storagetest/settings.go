package storagetest

import (
	"context"
	"errors"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// settingsTests run where a store keeps settings, except for the first, which is about the others.
var settingsTests = []test{
	{"StoreWithoutSettingsRefusesThem", testNoSettings},
	{"SettingsAreReadAsPut", withSettings(testSettings)},
	{"SettingsAndPolicyHaveOneHead", withSettings(testSettingsHead)},
	{"SettingsAreWatched", withSettings(testSettingsWatch)},
	{"InvalidChangeOfSettings", withSettings(testInvalidSettings)},
	{"SettingsHonourContextAndClose", withSettings(testSettingsContext)},
}

func withSettings(run func(s *suite, keeper storage.SettingsKeeper)) func(s *suite) {
	return func(s *suite) {
		if keeper, has := storage.As[storage.SettingsKeeper](s.store); has {
			run(s, keeper)
		}
	}
}

func testNoSettings(s *suite) {
	if _, has := storage.As[storage.SettingsKeeper](s.store); !has {
		s.refused(PutSettings(storage.Head{}, time.Second), storage.ErrInvalidChange)
	}
}

func testSettings(s *suite, keeper storage.SettingsKeeper) {
	if record, revision, err := keeper.GetSettings(s.ctx); !errors.Is(err, storage.ErrNotFound) || revision != 0 {
		s.Errorf("GetSettings of an empty store: %v at %d, %v; want ErrNotFound", record, revision, err)
	}
	s.begin("w")
	head := storage.Head{}
	for _, staleness := range []time.Duration{time.Second, 100 * time.Millisecond} {
		change := PutSettings(head, staleness)
		revision := s.commit(change)
		head = After(change)
		record, at, err := keeper.GetSettings(s.ctx)
		if err != nil || at != revision {
			s.Fatalf("GetSettings: at revision %d, %v; want %d", at, err, revision)
		}
		s.equal("GetSettings", record, change.PutSettings)
	}
}

// testSettingsHead: the settings are in the policy's chain, so a change that was checked against the
// policy's head before the settings were put is a conflict.
func testSettingsHead(s *suite, _ storage.SettingsKeeper) {
	policy := ApplyPolicy(storage.Head{}, "first")
	s.commit(policy)
	s.refused(PutSettings(storage.Head{}, time.Second), storage.ErrConflict)
	settings := PutSettings(After(policy), time.Second)
	s.commit(settings)
	s.refused(ApplyPolicy(After(policy), "stale"), storage.ErrConflict)
	s.commit(ApplyPolicy(After(settings), "second"))
}

func testSettingsWatch(s *suite, _ storage.SettingsKeeper) {
	w := s.watch(0)
	change := PutSettings(storage.Head{}, time.Second)
	s.commit(change)
	got := w.next()
	want := change.Committed(got.Revision, After(change))
	s.equal("Watch: feed entry", got.Feed, want.Feed)
	equalLists(s, "Watch: put records", putRecords(got), putRecords(want))
	if got.Head != want.Head || len(got.Put) != 1 {
		s.Errorf("Watch: head %+v and %d records, want %+v and 1", got.Head, len(got.Put), want.Head)
	}
}

func testInvalidSettings(s *suite, _ storage.SettingsKeeper) {
	workspace := s.begin("w")
	both := ApplyPolicy(storage.Head{}, "policy")
	both.PutSettings = PutSettings(storage.Head{}, time.Second).PutSettings
	inWorkspace := workspace.PutMember("other", "admin")
	inWorkspace.PutSettings = &storagev1.SettingsRecord{ChangeSequence: inWorkspace.Event.GetSequence()}
	nothing := PutSettings(storage.Head{}, time.Second)
	nothing.PutSettings = nil
	sequence := PutSettings(storage.Head{}, time.Second)
	sequence.PutSettings.ChangeSequence++
	for name, change := range map[string]*storage.Change{
		"beside a policy": both, "in a workspace": inWorkspace, "no record": nothing, "of another event": sequence,
	} {
		if _, err := s.store.Commit(s.ctx, change); !errors.Is(err, storage.ErrInvalidChange) {
			s.Errorf("%s: %v, want ErrInvalidChange", name, err)
		}
		s.unchanged()
	}
}

func testSettingsContext(s *suite, keeper storage.SettingsKeeper) {
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, _, err := keeper.GetSettings(ended); !errors.Is(err, context.Canceled) {
		s.Errorf("GetSettings with an ended context: %v", err)
	}
	if err := s.store.Close(); err != nil {
		s.Fatal(err)
	}
	if _, _, err := keeper.GetSettings(s.ctx); !errors.Is(err, storage.ErrUnavailable) {
		s.Errorf("GetSettings of a closed store: %v, want ErrUnavailable", err)
	}
}
