package usage_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// store keeps the times that are written, and fails if fail is set.
type store struct {
	mutex sync.Mutex
	times map[string]time.Time
	// secrets are those of the use that was written last.
	secrets [2]storage.SecretUse
	writes  int
	fail    error
}

func (s *store) PutUsage(_ context.Context, uses []storage.Usage) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.writes++
	if s.fail != nil {
		return s.fail
	}
	if s.times == nil {
		s.times = make(map[string]time.Time)
	}
	for _, use := range uses {
		s.times[use.KeyID] = use.Time
		s.secrets = use.Secrets
	}
	return nil
}

// written returns how many writes there were.
func (s *store) written() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.writes
}

// table keeps the words of keys with numbers. It is replaced by next once next is set.
type table struct {
	mutex sync.Mutex
	words map[flat.ID]*usage.Word
	// secrets are the last uses of the secrets of every key, if there are any.
	secrets *[2]storage.SecretUse
	next    *table
}

// idOf returns the id of the key with a number.
func idOf(number int) flat.ID {
	id, is := flat.Pack(fmt.Sprintf("Key%013d", number))
	if !is {
		panic("not an id")
	}
	return id
}

func keyID(number int) string { return idOf(number).String() }

// key returns the Last of a key, which is new if the table does not have it.
func (t *table) key(number int) usage.Last {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	id := idOf(number)
	if t.words == nil {
		t.words = make(map[flat.ID]*usage.Word)
	}
	if t.words[id] == nil {
		t.words[id] = &usage.Word{}
		t.words[id].Begin(noon.AddDate(-1, 0, 0))
	}
	return usage.LastOf(t, t.words[id], id, t.secrets != nil)
}

func (t *table) Replaced() bool { return t.newest() != t }

func (t *table) newest() *table {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.next != nil {
		return t.next
	}
	return t
}

func (t *table) Find(id flat.ID) (last usage.Last) {
	now := t.newest()
	now.Words([]flat.ID{id}, func(id flat.ID, word *usage.Word, _ [2]storage.SecretUse) {
		last = usage.LastOf(now, word, id, now.secrets != nil)
	})
	return last
}

func (t *table) RaiseSecret(_ flat.ID, tag uint32, at time.Time) (raised bool) {
	now := t.newest()
	now.mutex.Lock()
	defer now.mutex.Unlock()
	for index := range now.secrets {
		if secret := &now.secrets[index]; secret.Tag == tag && secret.Time.Before(at) {
			secret.Time, raised = at, true
		}
	}
	return raised
}

func (t *table) Words(ids []flat.ID, visit func(id flat.ID, word *usage.Word, secrets [2]storage.SecretUse)) {
	now := t.newest()
	now.mutex.Lock()
	defer now.mutex.Unlock()
	for _, id := range ids {
		if word := now.words[id]; word != nil {
			var secrets [2]storage.SecretUse
			if now.secrets != nil {
				secrets = *now.secrets
			}
			visit(id, word, secrets)
		}
	}
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestLastNeverGoesBack(t *testing.T) {
	last := new(table).key(1)
	if !last.Time().IsZero() {
		t.Errorf("a new one says %v", last.Time())
	}
	if !last.Raise(noon) || last.Raise(noon) || last.Raise(noon.Add(-time.Hour)) {
		t.Error("it moved where it should not, or did not where it should")
	}
	if !last.Time().Equal(noon) {
		t.Errorf("got %v", last.Time())
	}
}

// TestUsesOfAKeyAreMergedIntoOneWrite: a thousand uses are one time.
func TestUsesOfAKeyAreMergedIntoOneWrite(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	last := new(table).key(1)
	for second := range 1000 {
		recorder.Used(last, 0, noon.Add(time.Duration(second)*time.Second))
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]time.Time{keyID(1): noon.Add(999 * time.Second)}
	if s.writes != 1 || !maps.EqualFunc(s.times, want, time.Time.Equal) {
		t.Errorf("%d writes, %v", s.writes, s.times)
	}
}

// TestManyKeysTakeFewWrites: a write holds the times of thousands of keys.
func TestManyKeysTakeFewWrites(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	const keys = 1_000_000
	used := &table{}
	for number := range keys {
		recorder.Used(used.key(number), 0, noon)
	}
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.times) != keys || s.writes > 250 {
		t.Errorf("%d times in %d writes", len(s.times), s.writes)
	}
}

func TestFailedWriteIsRepeatedByTheNextFlush(t *testing.T) {
	s := &store{fail: errors.New("no disk")}
	recorder := usage.NewRecorder(s, nil)
	last := new(table).key(1)
	recorder.Used(last, 0, noon)
	if err := recorder.Flush(t.Context()); !errors.Is(err, s.fail) {
		t.Errorf("got %v", err)
	}
	s.fail = nil
	recorder.Used(last, 0, noon.Add(time.Second))
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.times[keyID(1)].Equal(noon.Add(time.Second)) {
		t.Errorf("got %v", s.times)
	}
}

// TestNothingIsLostBetweenFlushes: a use during a flush is written by that flush or the next.
func TestNothingIsLostBetweenFlushes(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	lasts, used := make([]usage.Last, 8), &table{}
	var users sync.WaitGroup
	for number := range lasts {
		lasts[number] = used.key(number)
		users.Go(func() {
			for step := range 2000 {
				recorder.Used(lasts[number], 0, noon.Add(time.Duration(step)))
			}
		})
	}
	for range 100 {
		if err := recorder.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	users.Wait()
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for number, last := range lasts {
		if !s.times[keyID(number)].Equal(last.Time()) {
			t.Errorf("key %d: stored %v, used %v", number, s.times[keyID(number)], last.Time())
		}
	}
}

func TestRunFlushesAtEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		recorder := usage.NewRecorder(s, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { recorder.Run(ctx, time.Minute) })
		recorder.Used(new(table).key(1), 0, noon)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if writes := s.written(); writes != 0 {
			t.Errorf("%d writes before the interval", writes)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if writes := s.written(); writes != 1 {
			t.Errorf("%d writes after the interval", writes)
		}
		cancel()
		running.Wait()
	})
}

// TestFailedWriteKeepsAllUses: the uses of many keys are several writes, of which the first fails.
func TestFailedWriteKeepsAllUses(t *testing.T) {
	s := &store{fail: errors.New("no disk")}
	recorder := usage.NewRecorder(s, nil)
	const keys = 10_000
	used := &table{}
	for number := range keys {
		recorder.Used(used.key(number), 0, noon)
	}
	if err := recorder.Flush(t.Context()); !errors.Is(err, s.fail) {
		t.Errorf("got %v", err)
	}
	s.fail = nil
	recorder.Used(used.key(keys-1), 0, noon.Add(time.Second))
	if err := recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.times) != keys || !s.times[keyID(keys-1)].Equal(noon.Add(time.Second)) {
		t.Errorf("%d times, want %d", len(s.times), keys)
	}
}

// TestLastOfAPurgedKeyMarksNoOther: the word of a purged key is given to another key.
func TestLastOfAPurgedKeyMarksNoOther(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	used := &table{}
	purged := used.key(1)
	recorder.Used(purged, 0, noon)
	word := used.words[idOf(1)]
	delete(used.words, idOf(1))
	used.words[idOf(2)] = word
	word.Begin(noon)
	if purged.Raise(noon.Add(time.Hour)) || !purged.Time().IsZero() || !word.Time().IsZero() {
		t.Errorf("the other key was used at %s", word.Time())
	}
	recorder.Used(purged, 0, noon.Add(time.Hour))
	if err := recorder.Flush(t.Context()); err != nil || len(s.times) != 0 {
		t.Errorf("%v was written, %v", s.times, err)
	}
	recorder.Used(used.key(2), 0, noon.Add(time.Minute))
	if err := recorder.Flush(t.Context()); err != nil || len(s.times) != 1 || !s.times[keyID(2)].Equal(noon.Add(time.Minute)) {
		t.Errorf("%v was written, %v", s.times, err)
	}
}

// TestUseInAReplacedTableIsNotedInTheNextOne: a validation may find a key, and note its use after
// the projection was loaded anew.
func TestUseInAReplacedTableIsNotedInTheNextOne(t *testing.T) {
	s := &store{}
	recorder := usage.NewRecorder(s, nil)
	before, after := &table{}, &table{}
	early, now := before.key(1), after.key(1)
	before.next = after
	recorder.Used(early, 0, noon)
	if !now.Time().Equal(noon) {
		t.Errorf("got %s", now.Time())
	}
	if err := recorder.Flush(t.Context()); err != nil || !s.times[keyID(1)].Equal(noon) {
		t.Errorf("%v was written, %v", s.times, err)
	}
	gone := before.key(2)
	recorder.Used(gone, 0, noon)
	if err := recorder.Flush(t.Context()); err != nil || len(s.times) != 1 {
		t.Errorf("%v was written, %v", s.times, err)
	}
}

// TestFirstUseIsNotBeforeTheCreation: a near-cache may have a wrong clock.
func TestFirstUseIsNotBeforeTheCreation(t *testing.T) {
	var word usage.Word
	created := noon.Add(7 * time.Nanosecond)
	word.Begin(noon.AddDate(1, 0, 0))
	word.SetCreated(created)
	if !word.Time().IsZero() {
		t.Errorf("a new one says %s", word.Time())
	}
	if !word.Raise(noon.AddDate(-1, 0, 0)) || word.Time().Before(created) || word.Time().Sub(created) > time.Microsecond {
		t.Errorf("got %s", word.Time())
	}
	word.SetCreated(noon.AddDate(1, 0, 0))
	if !word.Raise(noon.Add(time.Millisecond)) || !word.Time().Equal(noon.Add(time.Millisecond)) {
		t.Errorf("got %s", word.Time())
	}
}

// TestUseOfAnEarlierTimeIsWrittenForItsSecret: a near-cache reports late that the older secret was used.
func TestUseOfAnEarlierTimeIsWrittenForItsSecret(t *testing.T) {
	const newest, older, ended = 1, 2, 3
	store := &store{}
	recorder := usage.NewRecorder(store, nil)
	used := &table{secrets: &[2]storage.SecretUse{{Tag: newest}, {Tag: older}}}
	want := func(writes int, newestAt, olderAt time.Time) {
		t.Helper()
		if err := recorder.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := [2]storage.SecretUse{{Tag: newest, Time: newestAt}, {Tag: older, Time: olderAt}}; store.writes != writes || store.secrets != got ||
			!store.times[keyID(1)].Equal(noon.Add(time.Second)) {
			t.Errorf("%d writes, the last one of %v and %v; want %d and %v", store.writes, store.times, store.secrets, writes, got)
		}
	}
	recorder.Used(used.key(1), newest, noon.Add(time.Second))
	want(1, noon.Add(time.Second), time.Time{})
	recorder.Used(used.key(1), older, noon)
	want(2, noon.Add(time.Second), noon)
	recorder.Used(used.key(1), older, noon)
	recorder.Used(used.key(1), ended, noon)
	recorder.Used(used.key(1), 0, noon)
	want(2, noon.Add(time.Second), noon)
}
