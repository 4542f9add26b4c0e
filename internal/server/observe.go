package server

import (
	"context"
	"iter"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/tally"
)

// observed returns a source that tells outages when its watch breaks off and when it was loaded again, and calls loaded with
// the position of each load before the projection shows what was loaded. The projection follows it.
func observed(source storage.Source, outages *outages, loaded func(storage.Position)) storage.Source {
	watched := &observedSource{Source: source, outages: outages, position: loaded}
	if local, has := storage.LocalBarrierOf(source); has {
		return struct {
			*observedSource
			storage.LocalBarrierReader
		}{watched, local}
	}
	return watched
}

type observedSource struct {
	storage.Source
	outages  *outages
	position func(storage.Position)
}

// Watch implements storage.Source.
func (s *observedSource) Watch(ctx context.Context, after storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return func(yield func(*storage.Committed, error) bool) {
		for change, err := range s.Source.Watch(ctx, after) {
			if err != nil && ctx.Err() == nil {
				s.outages.set(&s.outages.broken, true, err, 0)
			}
			if !yield(change, err) {
				return
			}
		}
	}
}

// OnResume implements storage.Resumer, for sources that resume their watches.
func (s *observedSource) OnResume(call func()) {
	if resumer, is := storage.ResumerOf(s.Source); is {
		resumer.OnResume(call)
	}
}

// Load implements storage.Source.
func (s *observedSource) Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error) {
	position, err := s.Source.Load(ctx, visit)
	return s.loaded(position, err)
}

// LoadViews implements storage.ViewLoader.
func (s *observedSource) LoadViews(
	ctx context.Context, expect func(storage.Expected), visit func(storage.Item) error,
) (storage.Position, error) {
	loader, is := storage.ViewLoaderOf(s.Source)
	if !is {
		expect(storage.Expected{})
		return s.Load(ctx, visit)
	}
	position, err := loader.LoadViews(ctx, expect, visit)
	return s.loaded(position, err)
}

// loaded reports the store as back if a load has succeeded.
func (s *observedSource) loaded(position storage.Position, err error) (storage.Position, error) {
	if err == nil {
		s.position(position)
		s.outages.set(&s.outages.broken, false, nil, position.Revision)
	}
	return position, err
}

// publisher is the hub, and calls ChangeCommitted. Before that it calls follow.
type publisher struct {
	*feed.Hub
	hooks  events.Hooks
	follow func(*storage.Committed)
}

// Settings implements projection.Publisher.
func (p publisher) Settings(settings *projection.Settings) {
	if settings == nil {
		p.SetStaleness(0, 0)
		return
	}
	p.SetStaleness(settings.Staleness, settings.Previous)
}

// Publish implements projection.Publisher.
func (p publisher) Publish(change *storage.Committed) {
	p.follow(change)
	p.Hub.Publish(change)
	entry := change.Feed
	kind, subject := kindOf(entry.GetKind()), events.Subject{WorkspaceID: entry.GetWorkspaceId()}
	switch kind {
	case "key":
		subject.KeyID = entry.GetSubject()
	case "member":
		subject.MemberID = entry.GetSubject()
	}
	p.hooks.ChangeCommitted(events.Change{Revision: change.Revision, Kind: kind, Subject: subject, Time: change.Time})
}

// kindOf returns the word for a kind of change; "" for an unspecified kind.
func kindOf(kind storagev1.FeedKind) string {
	switch kind {
	case storagev1.FeedKind_FEED_KIND_KEY:
		return "key"
	case storagev1.FeedKind_FEED_KIND_MEMBER:
		return "member"
	case storagev1.FeedKind_FEED_KIND_WORKSPACE:
		return "workspace"
	case storagev1.FeedKind_FEED_KIND_POLICY:
		return "policy"
	case storagev1.FeedKind_FEED_KIND_PURGE:
		return "purge"
	case storagev1.FeedKind_FEED_KIND_UNSPECIFIED:
	}
	return ""
}

// sessionObserver calls the hooks of sessions.
type sessionObserver struct{ hooks events.Hooks }

// SessionBegan implements feed.Observer.
func (o sessionObserver) SessionBegan(resumed bool) {
	o.hooks.SessionBegan(events.SessionBegan{Resumed: resumed})
}

// SessionReset implements feed.Observer.
func (o sessionObserver) SessionReset() { o.hooks.SessionReset() }

// SessionEnded implements feed.Observer.
func (o sessionObserver) SessionEnded(gaveUp bool) {
	o.hooks.SessionEnded(events.SessionEnded{GaveUp: gaveUp})
}

// ChangeDelivered implements feed.Observer.
func (o sessionObserver) ChangeDelivered(after time.Duration) { o.hooks.ChangeDelivered(after) }

// newTally returns the counter of tokens that are not valid. It calls InvalidTokens.
func newTally(hooks events.Hooks) *tally.Tally {
	return tally.New(monotonic, func(report tally.Report) {
		invalid := events.InvalidTokens{Caller: report.Source.Caller, Count: report.Count}
		if report.Source.Network.IsValid() {
			invalid.Network = report.Source.Network.String()
		}
		hooks.InvalidTokens(invalid)
	})
}
