package server

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/internal/tracing"
)

// offering is a store with every optional behaviour.
type offering struct {
	Store
	storage.AuditFollower
	storage.AuditPruner
	storage.Elector
	storage.Fencer
	storage.LocalBarrierReader
	storage.RefusalStore
	storage.Resumer
	storage.SettingsKeeper
	storage.SinkReopener
	storage.SinkTrimmer
	storage.Snapshotter
	storage.StatsReader
	storage.StatusReader
	storage.UsageReader
	storage.ViewLoader
}

// TestServersWrappersKeepWhatAStoreOffers wraps a store as the server does for the verbs, for
// the projection, and for last-used times. Each optional behaviour of the store must still be there, and
// no other.
func TestServersWrappersKeepWhatAStoreOffers(t *testing.T) {
	traces, err := tracing.New(t.Context(), tracing.Config{Endpoint: "http://127.0.0.1:1", OneIn: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := traces.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	wrapped := func(inside Store) map[string]any {
		now := clock.New(clock.Config{Wall: time.Now})
		s := &Server{config: Config{Store: inside}, tracing: traces, others: clock.NewOthers(now)}
		if _, is := s.verbStore().(storage.Wrapper); !is {
			t.Fatal("the store of the verbs is not wrapped")
		}
		return map[string]any{
			"the verbs":      s.verbStore(),
			"the projection": observed(inside, &outages{}, nil),
			"last uses":      postponedUses{inside, s},
		}
	}
	for _, behaviour := range storagetest.Behaviours {
		if !behaviour.Of(offering{}) {
			t.Errorf("the store of this test has no %s", behaviour.Name)
		}
		for user, store := range wrapped(offering{}) {
			if !behaviour.Of(store) {
				t.Errorf("the store of %s hides %s", user, behaviour.Name)
			}
		}
		for user, store := range wrapped(struct{ Store }{}) {
			if behaviour.Of(store) {
				t.Errorf("the store of %s is a %s, and the one inside is not", user, behaviour.Name)
			}
		}
	}
}
