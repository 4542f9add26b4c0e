package storagetest

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

var usageTests = []test{
	{"LatestUseStays", testLatestUse},
	{"LatestUseOfEachSecretStays", testLatestSecretUse},
	{"ManyUsesAreRecordedAtOnce", testUseOfManyKeys},
	{"UsesAreOutsideOfRevisionsAndWatch", testUsageOutside},
	{"LastUseIsDeletedWithItsKey", testUsageGoes},
}

// wantUses fails the test if Load does not visit exactly these last uses, and each of them after
// its key.
func (s *suite) wantUses(want map[string]time.Time) {
	s.Helper()
	keys, got := make(map[string]bool), make(map[string]time.Time)
	_, err := s.store.Load(s.ctx, func(item storage.Item) error {
		switch {
		case item.Key != nil:
			keys[item.Key.GetKeyId()] = true
		case item.Usage != nil:
			if _, twice := got[item.Usage.KeyID]; twice || !keys[item.Usage.KeyID] {
				s.Errorf("Load: use of %s, twice or before the key", item.Usage.KeyID)
			}
			got[item.Usage.KeyID] = item.Usage.Time
		}
		return nil
	})
	if err != nil || !maps.EqualFunc(got, want, time.Time.Equal) {
		s.Errorf("Load: uses %v, %v; want %v", got, err, want)
	}
}

// use records when keys were used.
func (s *suite) use(uses ...storage.Usage) {
	s.Helper()
	if err := s.store.PutUsage(s.ctx, uses); err != nil {
		s.Fatalf("PutUsage: %v", err)
	}
}

func testLatestUse(s *suite) {
	workspace := s.begin("w")
	s.create(workspace, KeyID(1))
	s.create(workspace, KeyID(2))
	at := now()
	s.use()
	s.use(storage.Usage{KeyID: KeyID(1), Time: at})
	s.wantUses(map[string]time.Time{KeyID(1): at})
	s.use(storage.Usage{KeyID: KeyID(1), Time: at.Add(-time.Nanosecond)})
	s.wantUses(map[string]time.Time{KeyID(1): at})
	later := at.Add(storage.UsageGranularity + time.Nanosecond)
	s.use(storage.Usage{KeyID: KeyID(1), Time: later}, storage.Usage{KeyID: KeyID(1), Time: at})
	s.wantUses(map[string]time.Time{KeyID(1): later})
	// Keys that do not exist, and invalid key ids, are skipped.
	s.use(
		storage.Usage{KeyID: KeyID(3), Time: at}, storage.Usage{Time: at}, storage.Usage{KeyID: "short", Time: at},
		storage.Usage{KeyID: strings.Repeat("x", 70000), Time: at}, storage.Usage{KeyID: "a\x00b", Time: at},
		storage.Usage{KeyID: KeyID(2), Time: at},
	)
	s.reopen()
	s.wantUses(map[string]time.Time{KeyID(1): later, KeyID(2): at})
}

func testLatestSecretUse(s *suite) {
	workspace := s.begin("w")
	s.create(workspace, KeyID(1))
	at := now()
	secrets := func(newest, older time.Time) [2]storage.SecretUse {
		return [2]storage.SecretUse{{Tag: 1, Time: newest}, {Tag: 1<<32 - 1, Time: older}}
	}
	want := func(wanted storage.Usage) {
		s.Helper()
		var got storage.Usage
		_, err := s.store.Load(s.ctx, func(item storage.Item) error {
			if item.Usage != nil {
				got = *item.Usage
			}
			return nil
		})
		same := got.Time.Equal(wanted.Time)
		for index, secret := range got.Secrets {
			same = same && secret.Tag == wanted.Secrets[index].Tag && secret.Time.Equal(wanted.Secrets[index].Time)
		}
		if err != nil || !same {
			s.Errorf("Load: %v, %v; want %v", got, err, wanted)
		}
	}
	// 1. A store of an earlier version has the time of the key alone.
	s.use(storage.Usage{KeyID: KeyID(1), Time: at})
	want(storage.Usage{KeyID: KeyID(1), Time: at})
	// 2. Secrets are added, one of which was never used.
	const step = storage.UsageGranularity + time.Second
	use := storage.Usage{KeyID: KeyID(1), Time: at.Add(step), Secrets: secrets(time.Time{}, at.Add(step))}
	s.use(use)
	want(use)
	// 3. Both are used, and an earlier use changes nothing.
	use = storage.Usage{KeyID: KeyID(1), Time: at.Add(3 * step), Secrets: secrets(at.Add(3*step), at.Add(2*step))}
	s.use(use)
	s.use(storage.Usage{KeyID: KeyID(1), Time: at, Secrets: secrets(at, at)}, storage.Usage{KeyID: KeyID(1), Time: at})
	s.reopen()
	want(use)
	// 4. Once the secret follows from the key, it is forgotten.
	s.use(storage.Usage{KeyID: KeyID(1), Time: at.Add(5 * step)})
	want(storage.Usage{KeyID: KeyID(1), Time: at.Add(5 * step)})
}

// testUseOfManyKeys records more uses than one transaction may have, from many goroutines
// at the same time, in different orders.
func testUseOfManyKeys(s *suite) {
	const keys, callers = 260, 4
	const step = storage.UsageGranularity + time.Second
	at := now()
	want := make(map[string]time.Time)
	workspace := s.begin("w")
	for number := range keys {
		s.create(workspace, KeyID(number))
		want[KeyID(number)] = at.Add(time.Duration(callers-1) * step)
	}
	var group sync.WaitGroup
	for caller := range callers {
		group.Go(func() {
			var uses []storage.Usage
			for number := range keys {
				uses = append(uses, storage.Usage{KeyID: KeyID(number), Time: at.Add(time.Duration((caller+number)%callers) * step)})
			}
			if err := s.store.PutUsage(s.ctx, uses); err != nil {
				s.Errorf("PutUsage: %v", err)
			}
		})
	}
	group.Wait()
	s.wantUses(want)
}

func testUsageOutside(s *suite) {
	workspace := s.begin("w")
	key := s.create(workspace, KeyID(1))
	w := s.watch(s.model.Revision())
	defer w.cancel()
	s.use(storage.Usage{KeyID: KeyID(1), Time: now()})
	s.unchanged()
	revision := s.do(workspace, workspace.UpdateKey(key, rename("new")))
	if change := w.next(); change.Revision != revision {
		s.Errorf("Watch: revision %d, want %d", change.Revision, revision)
	}
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := s.store.PutUsage(ended, []storage.Usage{{KeyID: KeyID(1), Time: now()}}); !errors.Is(err, context.Canceled) {
		s.Errorf("PutUsage: %v, want context.Canceled", err)
	}
	closed := s.store
	s.reopen()
	if err := closed.PutUsage(s.ctx, []storage.Usage{{KeyID: KeyID(1), Time: now()}}); !errors.Is(err, storage.ErrUnavailable) {
		s.Errorf("PutUsage after Close: %v, want ErrUnavailable", err)
	}
}

func testUsageGoes(s *suite) {
	workspace := s.begin("w")
	at := now()
	for number := range 3 {
		s.create(workspace, KeyID(number))
		s.use(storage.Usage{KeyID: KeyID(number), Time: at})
	}
	s.do(workspace, workspace.UpdateKey(s.getKey("w", KeyID(0)), rename("new")))
	s.do(workspace, workspace.RevokeKey(s.getKey("w", KeyID(1))))
	s.do(workspace, workspace.DeleteKey(s.getKey("w", KeyID(2))))
	s.use(storage.Usage{KeyID: KeyID(2), Time: at})
	want := map[string]time.Time{KeyID(0): at, KeyID(1): at}
	s.wantUses(want)
	// A key that is added again has no last use.
	s.create(workspace, KeyID(2))
	s.wantUses(want)
}
