package projection_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// publisher notes what it is told, and what the projection showed then.
type publisher struct {
	projection *projection.Projection

	mutex sync.Mutex
	told  []string
	// ahead are revisions that the projection showed before they were published.
	ahead []int64
}

func (p *publisher) Publish(change *storage.Committed) {
	p.note(fmt.Sprint("publish ", change.Revision), change.Revision)
}

func (p *publisher) Announce() {
	shown := p.projection.Revision()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if last := p.told[len(p.told)-1]; last != fmt.Sprint("publish ", shown) {
		p.told = append(p.told, "announced too soon")
	}
}

func (p *publisher) Settings(settings *projection.Settings) {
	told := "settings that cannot be read"
	if settings != nil {
		told = fmt.Sprint("settings ", settings.Staleness, " after ", settings.Previous)
	}
	p.note(told, p.projection.Revision()+1)
}

func (p *publisher) Restart(revision int64) { p.note(fmt.Sprint("restart ", revision), revision) }

func (p *publisher) note(told string, revision int64) {
	shown := p.projection.Revision()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.told = append(p.told, told)
	if shown >= revision {
		p.ahead = append(p.ahead, revision)
	}
}

func (p *publisher) expect(t *testing.T, want ...string) {
	t.Helper()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !slices.Equal(p.told, want) || len(p.ahead) > 0 {
		t.Errorf("told %q, want %q; shown before that: %d", p.told, want, p.ahead)
	}
}

// TestChangesArePublishedBeforeTheyAreSeen checks S1 of docs/coherence.md, for changes and for a
// state that was loaded anew.
func TestChangesArePublishedBeforeTheyAreSeen(t *testing.T) {
	loading := make(chan struct{})
	store := &breaking{Store: openStore(t), broken: make(chan error), refuse: func(load int64) error {
		if load == 2 {
			<-loading
		}
		return nil
	}}
	acme := storagetest.NewWorkspace("acme")
	commit(t, store, acme, acme.PutMember("member", "admin"))
	p := loaded(t, store)
	told := &publisher{projection: p}
	p.PublishTo(told)
	follow(t, p)
	told.expect(t)
	for index := range 2 {
		waitFor(t, p, commit(t, store, acme, acme.CreateKey(storagetest.KeyID(index))))
	}
	told.expect(t, "publish 2", "publish 3")
	store.broken <- errors.New("broken")
	commit(t, store, acme, acme.CreateKey(storagetest.KeyID(2)))
	commit(t, store, acme, acme.CreateKey(storagetest.KeyID(3)))
	close(loading)
	waitFor(t, p, 5)
	told.expect(t, "publish 2", "publish 3", "restart 5")
	waitFor(t, p, commit(t, store, acme, acme.CreateKey(storagetest.KeyID(4))))
	told.expect(t, "publish 2", "publish 3", "restart 5", "publish 6")
	found := p.Find(storagetest.KeyID(4))
	key, _, err := store.GetKey(t.Context(), "acme", storagetest.KeyID(4))
	if err != nil {
		t.Fatal(err)
	}
	// A near-cache whose clock is wrong reports a use before the creation: it counts as of then.
	found.Last.Raise(key.GetCreateTime().AsTime().AddDate(-1, 0, 0))
	if got := p.LastUsed(storagetest.KeyID(4)); got.Before(key.GetCreateTime().AsTime()) || got.Sub(key.GetCreateTime().AsTime()) > time.Microsecond {
		t.Errorf("used at %s, created at %s", got, key.GetCreateTime().AsTime())
	}
	if found := p.Find(storagetest.KeyID(99)); !found.Last.IsZero() || found.Last.Raise(begin) {
		t.Error("an unknown key was used")
	}
}
