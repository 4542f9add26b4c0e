package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
)

// prunedStore counts calls of PruneAudit.
type prunedStore struct {
	Store
	calls  int
	before time.Time
	err    error
}

func (s *prunedStore) PruneAudit(_ context.Context, before time.Time) (int64, error) {
	s.calls, s.before = s.calls+1, before
	return 7, s.err
}

// TestAuditEventsArePrunedOnceADay calls pruneAudit as the sweep does, on a clock of its own.
func TestAuditEventsArePrunedOnceADay(t *testing.T) {
	now := time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC)
	store := &prunedStore{}
	var told []events.Prune
	s := &Server{
		config: Config{Store: store, Settings: config.Defaults()},
		clock:  clock.New(clock.Config{Wall: func() time.Time { return now }}),
		hooks:  events.Join(events.Hooks{AuditPruned: func(prune events.Prune) { told = append(told, prune) }}),
	}
	hours := func(count int) {
		for range count {
			s.pruneAudit(t.Context())
			now = now.Add(time.Hour)
		}
	}
	// 1. By default everything older than 90 days goes, once a day.
	hours(48)
	if want := time.Date(2026, time.February, 1, 12, 0, 0, 0, time.UTC); store.calls != 2 || !store.before.Equal(want) {
		t.Errorf("%d calls in 48 hours, the last one for %v, want %v", store.calls, store.before, want)
	}
	// 2. An error is told.
	store.err = errors.New("broken")
	hours(24)
	if len(told) != 3 || told[1].Events != 7 || told[1].Error != nil || told[2].Error == nil {
		t.Errorf("told: %v", told)
	}
	// 3. 0 keeps them for ever.
	s.config.Settings.AuditRetentionDays = 0
	hours(48)
	// 4. A store that cannot prune is left alone.
	s.config.Settings.AuditRetentionDays = 1
	s.config.Store = struct{ Store }{store}
	hours(48)
	if store.calls != 3 {
		t.Errorf("%d calls, want 3", store.calls)
	}
}
